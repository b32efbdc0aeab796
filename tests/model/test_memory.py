"""Memory by formula, against what torch's own trackers see of real decoders: on real, fake and meta tensors."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.profiler import ProfilerActivity, profile
from torch.testing._internal.distributed.fake_pg import FakeStore

from pausebench.config.groups import ModelConfig, Parallel, Precision, TrainConfig
from pausebench.model import fast
from pausebench.model.decoder import Decoder
from pausebench.model.fast import FastDecoder
from pausebench.model.fast_loss import summed_cross_entropy
from pausebench.model.memory import block_activations, step_memory
from pausebench.model.tuning import TUNING, Tuning
from pausebench.training.loss import build_optimizer
from pausebench.training.parallel import Ranks, fill

V = 50_258  # GPT-2's tokens and <pause>
MODELS = {
    "130m": ModelConfig("130m", 12, 12, 768, 3072, 16384),
    "1b": ModelConfig("1b", 24, 32, 2048, 8192, 16384),
    "narrow": ModelConfig("narrow", 3, 4, 64, 256, 256),
    "odd": ModelConfig("odd", 2, 2, 96, 160, 512),
    "measured": ModelConfig("measured", 4, 4, 128, 512, 512),
}


# Fused attention, and as many float32 logits at once as on a GPU: the formula is that of devices with scarce memory.
AS_ON_A_GPU = Tuning(blockwise=(), cpu_logits=TUNING.gpu_logits)


def decoder_of(config: ModelConfig, vocab_size: int, tuning: Tuning = AS_ON_A_GPU) -> FastDecoder:
    return fast.use(Decoder(config, vocab_size), tuning)


def lowered(model: Decoder, precision: Precision) -> AbstractContextManager[object]:
    return model.lowered(torch.bfloat16 if precision is Precision.bf16 else torch.float32)


def micro_batch(model: Decoder, ids: Tensor, precision: Precision = Precision.bf16) -> None:
    """Forward and backward as the trainer does them; every position predicts."""
    with lowered(model, precision):
        hidden = model(ids).flatten(0, 1).to(model.arithmetic)
        total = summed_cross_entropy(
            hidden, model.token_embedding.weight, ids.flatten(), model.head(), tuning=model.tuning
        )
        del hidden
        total.backward()


def prepare_later_micro_batch(model: Decoder, optimizer: torch.optim.Optimizer) -> None:
    """Leave gradients and moments as the first micro-batch of a later step finds them."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
        moments = {"exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
        optimizer.state[parameter] = {"step": torch.zeros(())} | moments


def tracked(tracker: MemTracker, state: str) -> dict[str, int]:
    """Bytes of each kind that the tracker saw."""
    [snapshot] = tracker.get_tracker_snapshot(state).values()
    return {str(kind).removesuffix(">").rpartition(".")[2]: count for kind, count in snapshot.items()}


@pytest.mark.parametrize(("name", "count"), [("130m", 136_237_056), ("1b", 1_345_085_440)])
def test_the_papers_models_have_their_published_parameters_on_the_meta_device(name: str, count: int) -> None:
    with torch.device("meta"):
        model = decoder_of(MODELS[name], V)
    assert model.parameter_count() == count
    states = step_memory(MODELS[name], V, 2048, 1)
    assert (states.weights, states.gradients, states.optimizer) == (4 * count, 4 * count, 8 * count)


@pytest.mark.parametrize("name", ["narrow", "odd"])
def test_weights_gradients_and_moments_are_those_of_a_real_step(name: str) -> None:
    model = decoder_of(MODELS[name], 100)
    optimizer = build_optimizer(model, TrainConfig())
    tracker = MemTracker()
    tracker.track_external(model, optimizer)
    with tracker:
        micro_batch(model, torch.zeros(2, 64, dtype=torch.int64))
        optimizer.step()
        seen = tracked(tracker, "current")
    counters = 4 * len(list(model.parameters()))  # AdamW counts the steps of each tensor
    expected = step_memory(MODELS[name], 100, 64, 2)
    assert (seen["PARAM"], seen["GRAD"]) == (expected.weights, expected.gradients)
    assert seen["OPT"] == expected.optimizer + counters


def kept_for_backward(work: Callable[[], object], beside: set[int]) -> int:
    """Bytes of the storages that autograd saves, each once, without those at the addresses ``beside``."""
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        held = work()
    assert held is not None
    return sum(storage.nbytes() for address, storage in storages.items() if address not in beside)


@pytest.mark.parametrize("precision", [Precision.bf16, Precision.fp32])
@pytest.mark.parametrize("name", ["narrow", "odd"])
@pytest.mark.parametrize("lean", [True, False])
def test_a_block_keeps_to_the_byte_what_the_formula_says(name: str, precision: Precision, lean: bool) -> None:
    tuning = dataclasses.replace(AS_ON_A_GPU, least_numbers=0 if lean else 1 << 40)
    rows, length = 3, 128
    sizes = []
    for n_layers in (1, 2):
        config = MODELS[name]
        model = decoder_of(ModelConfig(name, n_layers, config.n_heads, config.d_model, config.d_mlp, 256), 100, tuning)
        ids = torch.zeros(rows, length, dtype=torch.int64)
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        with lowered(model, precision):
            sizes.append(kept_for_backward(lambda model=model, ids=ids: model(ids), weights))
    recomputed = 3 * config.d_model**2 + 2 * config.d_model * config.d_mlp  # matrices that hooks see only if not lean
    matrices = config.d_model**2 + (0 if lean else recomputed)
    copies = 2 * matrices if precision is Precision.bf16 else 0
    assert sizes[1] - sizes[0] == rows * length * block_activations(config, precision, lean) + copies


@pytest.mark.parametrize(
    ("name", "length", "rows", "checkpointing"),
    [
        ("130m", 512, 2, False),
        pytest.param("130m", 2048, 16, True, marks=pytest.mark.slow),
        pytest.param("1b", 2048, 4, False, marks=pytest.mark.slow),
    ],
)
def test_the_peak_of_a_whole_model_on_a_device_is_within_2_percent_of_torchs(
    name: str, length: int, rows: int, checkpointing: bool
) -> None:
    with FakeTensorMode():
        model = decoder_of(MODELS[name], V)
        if checkpointing:
            model.recompute_activations()
        optimizer = build_optimizer(model, TrainConfig())
        prepare_later_micro_batch(model, optimizer)
        ids = torch.zeros(rows, length, dtype=torch.int64)
        tracker = MemTracker()
        tracker.track_external(model, optimizer, ids)
        with tracker:
            micro_batch(model, ids)
        seen = tracked(tracker, "peak")["Total"]
    expected = step_memory(MODELS[name], V, length, rows, activation_checkpointing=checkpointing)
    print(f"{name}, {rows} x {length}: {expected.total / seen - 1:+.2%}")
    assert expected.total == pytest.approx(seen, rel=0.02)


@pytest.fixture
def eight_devices() -> Iterator[None]:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=8)
    yield
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "length", "rows", "checkpointing"),
    [("130m", 512, 2, False), ("1b", 2048, 1, True)],
)
def test_the_peak_of_a_share_of_the_model_is_within_2_percent_of_torchs(
    eight_devices: None, name: str, length: int, rows: int, checkpointing: bool
) -> None:
    """Without the moments: of a sharded tensor torch's tracker counts the whole ones beside the share."""
    mesh = init_device_mesh("cpu", (8,))
    bf16 = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    with FakeTensorMode():
        model = decoder_of(MODELS[name], V)
        if checkpointing:
            model.recompute_activations()
        for block in model.blocks:
            norms = [block.norm_attention, block.norm_mlp]  # as ``Ranks.distribute`` does
            fully_shard(norms, mesh=mesh, reshard_after_forward=False)
            fully_shard(block, mesh=mesh, mp_policy=bf16)
        fully_shard(model, mesh=mesh, reshard_after_forward=False)
        model.sharded = True
        ids = torch.zeros(rows, length, dtype=torch.int64)
        tracker = FSDPMemTracker(model)
        tracker.track_inputs((ids,))
        with tracker:
            micro_batch(model, ids)
            tracker.reset_mod_stats()
            micro_batch(model, ids)
        seen = tracked(tracker, "peak")["Total"]
    expected = step_memory(
        MODELS[name], V, length, rows, devices=8, parallel=Parallel.fsdp, activation_checkpointing=checkpointing
    )
    print(f"{name}, {rows} x {length}: {(expected.total - expected.optimizer) / seen - 1:+.2%}")
    assert expected.total - expected.optimizer == pytest.approx(seen, rel=0.02)


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


@pytest.mark.parametrize(
    ("name", "vocab_size", "rows", "precision", "checkpointing"),
    [
        pytest.param("130m", V, 2, Precision.bf16, False, marks=pytest.mark.slow),
        ("measured", 5000, 8, Precision.bf16, True),
        ("measured", 5000, 8, Precision.fp32, False),
        ("measured", 5000, 8, Precision.fp32, True),
    ],
)
def test_the_peak_of_a_real_step_is_within_3_percent_of_what_the_allocator_gave_out(
    name: str, vocab_size: int, rows: int, precision: Precision, checkpointing: bool
) -> None:
    """Every allocation counts, the kernels' own scratch space as well."""
    model = decoder_of(MODELS[name], vocab_size)
    if checkpointing:
        model.recompute_activations()
    optimizer = build_optimizer(model, TrainConfig())
    prepare_later_micro_batch(model, optimizer)
    ids = torch.zeros(rows, 512, dtype=torch.int64)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        micro_batch(model, ids, precision)
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    expected = step_memory(
        MODELS[name], vocab_size, 512, rows, activation_checkpointing=checkpointing, precision=precision
    )
    print(f"{name}: {peak / 1e6:,.1f} MB measured, {(expected.total - expected.states) / 1e6:,.1f} MB by formula")
    assert expected.total - expected.states == pytest.approx(peak, rel=0.03)


def test_the_table_of_the_docs_is_what_the_formulas_say() -> None:
    text = (Path(__file__).parents[2] / "docs" / "cost.md").read_text()
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith(("| 130m |", "| 1b |"))]
    assert len(lines) == 12
    for name, devices, activations, *shown in lines:
        count = int(devices.split()[0].rstrip(","))
        needed = step_memory(
            MODELS[name],
            V,
            2048,
            4,
            devices=count,
            parallel=Parallel.fsdp,
            activation_checkpointing=activations == "recomputed",
        )
        assert shown == [f"{each / 1e9:.2f}" for each in (*dataclasses.astuple(needed), needed.total)]


def test_memory_is_planned_without_torch() -> None:
    code = "import sys, pausebench.model.memory; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
