"""The memory of a step: the formula of ``plan`` against torch's own trackers, and what must not be kept alive."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from pausebench.config.groups import ModelConfig, Precision, TrainConfig
from pausebench.model import fast
from pausebench.model.decoder import Decoder
from pausebench.model.fast import FastDecoder
from pausebench.model.fast_loss import summed_cross_entropy
from pausebench.model.tuning import TUNING, Tuning
from pausebench.study.cost import step_bytes
from pausebench.training.loss import build_optimizer
from pausebench.training.parallel import Ranks, fill

V = 50_258  # GPT-2's tokens and <pause>
MODELS = {
    "130m": ModelConfig("130m", 12, 12, 768, 3072, 16384),
    "1b": ModelConfig("1b", 24, 32, 2048, 8192, 16384),
    "narrow": ModelConfig("narrow", 3, 4, 64, 256, 256),
}


# Fused attention, and as many float32 logits at once as on a GPU, for which memory is planned.
AS_ON_A_GPU = Tuning(blockwise=(), cpu_logits=TUNING.gpu_logits)


def decoder_of(config: ModelConfig, vocab_size: int) -> FastDecoder:
    return fast.use(Decoder(config, vocab_size), AS_ON_A_GPU)


@pytest.fixture
def eight_devices() -> Iterator[None]:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=8)
    yield
    dist.destroy_process_group()


def micro_batch(model: FastDecoder, ids: Tensor) -> None:
    """Forward and backward in bf16 as the trainer does them; every position predicts."""
    with model.lowered(torch.bfloat16):
        hidden = model(ids).flatten(0, 1).to(model.arithmetic)
        total = summed_cross_entropy(
            hidden, model.token_embedding.weight, ids.flatten(), model.head(), tuning=model.tuning
        )
        del hidden
        total.backward()


def peak(tracker: MemTracker) -> int:
    """Most bytes that the tracker saw at once."""
    [snapshot] = tracker.get_tracker_snapshot("peak").values()
    return next(count for kind, count in snapshot.items() if str(kind).endswith("Total"))


@pytest.mark.parametrize(("name", "count"), [("130m", 136_237_056), ("1b", 1_345_085_440)])
def test_the_papers_models_have_their_published_parameters_on_the_meta_device(name: str, count: int) -> None:
    with torch.device("meta"):
        model = decoder_of(MODELS[name], V)
    assert model.parameter_count() == count


@pytest.mark.parametrize(
    ("name", "length", "rows", "checkpointing"),
    [
        ("130m", 512, 2, False),
        ("130m", 2048, 16, False),
        pytest.param("130m", 2048, 16, True, marks=pytest.mark.slow),
        pytest.param("1b", 2048, 4, False, marks=pytest.mark.slow),
        ("1b", 2048, 8, True),
    ],
)
def test_the_planned_memory_of_a_step_is_within_a_tenth_of_torchs(
    name: str, length: int, rows: int, checkpointing: bool
) -> None:
    """Of a later micro-batch, when gradients and moments are there."""
    with FakeTensorMode():
        model = decoder_of(MODELS[name], V)
        if checkpointing:
            model.recompute_activations()
        optimizer = build_optimizer(model, TrainConfig())
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
            moments = {"exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
            optimizer.state[parameter] = {"step": torch.zeros(())} | moments
        ids = torch.zeros(rows, length, dtype=torch.int64)
        tracker = MemTracker()
        tracker.track_external(model, optimizer, ids)
        with tracker:
            micro_batch(model, ids)
    planned = step_bytes(MODELS[name], V, length, rows, activation_checkpointing=checkpointing)
    print(f"{name}, {rows} x {length}: {planned / peak(tracker) - 1:+.1%}")
    assert planned == pytest.approx(peak(tracker), rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rows", "checkpointing"), [("130m", 16, True), ("1b", 4, False)])
def test_the_planned_memory_of_a_sharded_step_is_within_a_tenth_of_torchs(
    eight_devices: None, name: str, rows: int, checkpointing: bool
) -> None:
    """Without the moments: torch's tracker counts the whole ones of a sharded tensor beside the share."""
    mesh = init_device_mesh("cpu", (8,))
    bf16 = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    with FakeTensorMode():
        model = decoder_of(MODELS[name], V)
        if checkpointing:
            model.recompute_activations()
        for block in model.blocks:  # as ``Ranks.distribute`` does
            fully_shard([block.norm_attention, block.norm_mlp], mesh=mesh, reshard_after_forward=False)
            fully_shard(block, mesh=mesh, mp_policy=bf16)
        fully_shard(model, mesh=mesh, reshard_after_forward=False)
        model.sharded = True
        ids = torch.zeros(rows, 2048, dtype=torch.int64)
        tracker = FSDPMemTracker(model)
        tracker.track_inputs((ids,))
        with tracker:
            micro_batch(model, ids)
            tracker.reset_mod_stats()
            micro_batch(model, ids)
    moments = 8 * model.parameter_count() / 8
    planned = step_bytes(MODELS[name], V, 2048, rows, activation_checkpointing=checkpointing, shards=8) - moments
    print(f"{name}, {rows} x 2048: {planned / peak(tracker) - 1:+.1%}")
    assert planned == pytest.approx(peak(tracker), rel=0.1)


def test_sharded_steps_and_validations_leave_no_hooks_on_weights(eight_devices: None) -> None:
    """FSDP puts one on what a unit returns, and a norm returns its weights."""
    with torch.device("meta"):
        model = decoder_of(MODELS["narrow"], 104)
    Ranks().distribute(model, Precision.bf16, torch.device("cpu"))
    model.initialize(0, fill)
    ids = torch.zeros(2, 64, dtype=torch.int64)
    for _ in range(2):
        micro_batch(model, ids)
        with torch.no_grad(), model.lowered(torch.bfloat16):
            model(ids)
    units = [module for module in model.modules() if isinstance(module, FSDPModule)]
    groups = [group for unit in units if (group := unit._get_fsdp_state()._fsdp_param_group) is not None]
    weights = [parameter.unsharded_param for group in groups for parameter in group.fsdp_params]
    assert len(weights) > len(list(model.blocks[0].parameters()))
    assert not any(weight._backward_hooks for weight in weights)


def test_a_block_hands_its_gradients_over_before_the_block_below_begins() -> None:
    """Or all of them would be held in bf16 until the end, and ranks could share none before."""
    model = decoder_of(MODELS["narrow"], 100)
    arrived: list[str] = []
    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: arrived.append(name))
    micro_batch(model, torch.zeros(2, 64, dtype=torch.int64))
    blocks = [name.split(".")[1] for name in arrived if name.startswith("blocks.")]
    assert blocks == sorted(blocks, reverse=True)
    assert len(blocks) == sum(1 for _ in model.blocks.parameters())
