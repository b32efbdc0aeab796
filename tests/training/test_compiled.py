"""Fast paths on and off: lowered weights, activations made again, blockwise attention, the head's gradient at once,
torch.compile."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from pausebench.config.groups import AttentionKind, Compile, PauseVisibility
from pausebench.config.pauses import PausePolicy
from pausebench.data.batch import Batch
from pausebench.data.batches import EncodedExamples, RowLayout
from pausebench.model.attention import AttentionMask
from pausebench.model.decoder import Decoder
from pausebench.model.fast_attention import BlockwiseAttention, attend, block_mask, query_blocks
from pausebench.model.fast_loss import HeadLoss, loss_to_gradient_
from pausebench.model.tuning import TUNING, Tuning
from pausebench.training.compiled import PAYS, compile_model
from pausebench.training.loss import Objective

CPU = torch.device("cpu")
V = 48


def say(message: str) -> None:
    raise AssertionError(message)


def rows(length: int = 70, count: int = 3, seed: int = 0) -> Batch:
    ids = torch.randint(0, V, (count, length), generator=torch.Generator().manual_seed(seed))
    return Batch(ids, ids.roll(-1, 1), AttentionMask(AttentionKind.causal), length)


def packed(kind: AttentionKind, visibility: PauseVisibility) -> Batch:
    generator = torch.Generator().manual_seed(1)
    examples = EncodedExamples(
        torch.randint(0, V - 3, (9, 60), generator=generator),
        torch.randint(20, 60, (9,), generator=generator),
        torch.randint(0, V - 3, (9, 6), generator=generator),
        torch.randint(1, 7, (9,), generator=generator),
    )
    layout = RowLayout(PausePolicy(k=3, pause_visibility=visibility), kind, torch.tensor([V - 3]), V - 1, V - 2)
    return layout.packed_batch(examples)


BATCHES = {"causal rows": rows()} | {
    f"packed, {kind.value}, {visibility.value}": packed(kind, visibility)
    for kind in AttentionKind
    for visibility in PauseVisibility
}


def value_and_gradient(objective: Objective, batch: Batch, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The loss a supervised position, and all gradients in one row."""
    objective.zero_grad()
    with objective.model.lowered(dtype):
        total = objective(batch) / batch.supervised
        total.backward()
    return total.detach(), torch.cat([p.grad.flatten() for p in objective.parameters() if p.grad is not None])


class Calls(TorchDispatchMode):
    """Counts layer norms."""

    norms = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.norms += func is torch.ops.aten.native_layer_norm.default
        return func(*args, **(kwargs or {}))


def apart(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).detach().norm() / wanted.norm())


# bf16


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_bf16_is_float32_up_to_its_rounding(make_decoder: Callable[..., Decoder], batch: Batch) -> None:
    objective = Objective(make_decoder(V, d_model=64, n_heads=4))
    exact, gradient = value_and_gradient(objective, batch, torch.float32)
    low, low_gradient = value_and_gradient(objective, batch, torch.bfloat16)
    assert abs(float(low / exact) - 1) < 2e-3
    assert 0 < apart(low_gradient, gradient) < 0.02, "a hundredth is what 8 bits give; the same would be float32"


def test_lowered_weights_are_what_autocast_computes_with(make_decoder: Callable[..., Decoder]) -> None:
    model, batch = make_decoder(V, tuning=Tuning(blockwise=()), d_model=64, n_heads=4), rows()
    objective = Objective(model)
    low, gradient = value_and_gradient(objective, batch, torch.bfloat16)
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        expected = F.cross_entropy(model.logits(model(batch.input_ids)).flatten(0, 1).float(), batch.labels.flatten())
    expected.backward()
    autocast = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(low, expected, rtol=1e-3, atol=0)
    assert apart(gradient, autocast) < 5e-3, "a hundredth is what float32 is away"


def test_micro_batches_share_the_lowered_weights(make_decoder: Callable[..., Decoder]) -> None:
    objective, batch = Objective(make_decoder(V, d_model=64, n_heads=4)), rows(count=4)
    _, whole = value_and_gradient(objective, batch, torch.bfloat16)
    objective.zero_grad()
    with objective.model.lowered(torch.bfloat16):
        for start in (0, 2):
            (objective(batch.rows(start, 2)) / batch.supervised).backward()
    parts = torch.cat([p.grad.flatten() for p in objective.parameters() if p.grad is not None])
    assert apart(parts, whole) < 5e-3
    assert objective.model.arithmetic is torch.float32, "and are gone after the step"


# Activations that are made again


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_activations_made_again_change_no_bit_and_multiply_nothing_twice(
    make_decoder: Callable[..., Decoder], batch: Batch, dtype: torch.dtype
) -> None:
    found = []
    for least in (1 << 40, 0):
        objective = Objective(make_decoder(V, tuning=Tuning(least_numbers=least), d_model=64, n_heads=4))
        with FlopCounterMode(display=False) as counter, Calls() as calls:
            total, gradient = value_and_gradient(objective, batch, dtype)
        found.append((total, gradient, counter.get_total_flops(), calls.norms))
    (kept, kept_gradient, flops, norms), (made, made_gradient, other_flops, more_norms) = found
    assert torch.equal(kept, made) and torch.equal(kept_gradient, made_gradient)
    assert flops == other_flops > 0
    assert more_norms > norms, "or nothing was made again"


# Blockwise attention


@pytest.mark.parametrize(("queries", "keys"), [(300, 300), (130, 300), (2, 300), (40, 40)])
@pytest.mark.parametrize("masked", [False, True], ids=["causal", "masked"])
def test_blockwise_attention_is_as_close_to_float32_as_the_fused_kernel(masked: bool, queries: int, keys: int) -> None:
    generator = torch.Generator().manual_seed(3)
    given = [torch.randn(2, size, 48, generator=generator) for size in (queries, keys, keys, queries)]
    allowed = None
    if masked:
        allowed = torch.rand(2, 1, queries, keys, generator=generator) < 0.5
        allowed |= torch.eye(keys, dtype=torch.bool)[-queries:]

    def computed(dtype: torch.dtype, tuning: Tuning = TUNING) -> list[Tensor]:
        q, k, v = (part.to(dtype).requires_grad_() for part in given[:3])
        out = attend(q, k, v, 4, allowed, tuning)
        return [part.float() for part in (out, *torch.autograd.grad(out, (q, k, v), given[3].to(dtype)))]

    exact, blocks = computed(torch.float32), computed(torch.bfloat16)
    fused = computed(torch.bfloat16, Tuning(blockwise=()))
    for found, kernel, wanted in zip(blocks, fused, exact, strict=True):
        assert 0 < apart(found, wanted) < max(0.01, 2 * apart(kernel, wanted))


@pytest.mark.parametrize("size", [(1, 1), (8, 16), (3, 128)])
def test_the_number_of_blocks_changes_rounding_alone(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(4)
    q, k, v = (torch.randn(2, 90, 24, generator=generator, dtype=torch.float64) for _ in range(3))
    expected = BlockwiseAttention.apply(q, k, v, 2, None, TUNING)
    assert len(list(query_blocks(90, 90, causal=True))) == 1
    found = BlockwiseAttention.apply(q, k, v, 2, None, Tuning(most_blocks=size[0], least_queries=size[1]))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("masked", [False, True], ids=["causal", "masked"])
def test_blockwise_attentions_gradient_is_that_of_finite_differences(masked: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    q = torch.randn(2, 7, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(2, 9, 4, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2))
    bias = None
    if masked:
        bias = torch.zeros(2, 1, 7, 9, dtype=torch.float64)
        bias[:, :, :, 3] = -torch.inf
    assert torch.autograd.gradcheck(
        lambda *x: BlockwiseAttention.apply(*x, 2, bias, Tuning(least_queries=3)), (q, k, v)
    )


# The head


def test_the_heads_loss_and_gradient_are_torchs() -> None:
    tuning = Tuning(chunk_logits=5 * V, cpu_logits=2 * V, head_slice=7)
    generator = torch.Generator().manual_seed(6)
    hidden = torch.randn(23, 8, generator=generator, dtype=torch.float32, requires_grad=True)
    head = torch.randn(V, 8, generator=generator, requires_grad=True)
    labels = torch.randint(0, V, (23,), generator=generator)
    found = HeadLoss.apply(hidden, head, head.detach(), labels, loss_to_gradient_, tuning)
    expected = F.cross_entropy(hidden @ head.T, labels, reduction="sum")
    torch.testing.assert_close(found, expected)
    for one, other in zip(
        torch.autograd.grad(found / 3, (hidden, head)), torch.autograd.grad(expected / 3, (hidden, head)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_in_bf16_the_heads_gradient_is_summed_over_chunks_in_float32() -> None:
    """A sum in bf16 would lose what single positions add to a large one."""
    a_position_a_chunk = Tuning(chunk_logits=V)
    generator = torch.Generator().manual_seed(7)
    hidden = torch.randn(2000, 8, generator=generator).bfloat16()
    head = torch.randn(V, 8, generator=generator, requires_grad=True)
    labels = torch.zeros(2000, dtype=torch.int64)
    exact = head.detach().bfloat16().float().requires_grad_()
    F.cross_entropy(hidden.float() @ exact.T, labels, reduction="sum").backward()
    HeadLoss.apply(hidden, head, head.detach().bfloat16(), labels, loss_to_gradient_, a_position_a_chunk).backward()
    assert head.grad is not None and exact.grad is not None
    assert apart(head.grad, exact.grad) < 2e-3


def test_validation_makes_no_gradient_of_the_head(make_decoder: Callable[..., Decoder]) -> None:
    """The gradient of the head would be one product of its size more a chunk, and that of the states another."""
    batch = rows()
    model = make_decoder(V, tuning=Tuning(chunk_logits=5 * V))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.summed_loss(batch)
    with torch.no_grad(), FlopCounterMode(display=False) as blocks:
        model(batch.input_ids, batch.mask)
    head = 2 * batch.input_ids.numel() * V * model.config.d_model
    assert counter.get_total_flops() - blocks.get_total_flops() == head


# Positions without a loss


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_states_that_nobody_wants_change_nothing(make_decoder: Callable[..., Decoder], batch: Batch) -> None:
    model = make_decoder(V, d_model=64, n_heads=4)
    whole = model(batch.input_ids, batch.mask, batch.positions).flatten(0, 1)
    wanted = torch.tensor([0, 5, len(whole) - 1])
    some = model(batch.input_ids, batch.mask, batch.positions, wanted=wanted)
    torch.testing.assert_close(some, whole[wanted], rtol=1e-5, atol=1e-5)


# FlexAttention


@pytest.mark.parametrize("batch", [batch for name, batch in BATCHES.items() if "packed" in name])
def test_flexattention_sees_what_the_dense_mask_allows(make_decoder: Callable[..., Decoder], batch: Batch) -> None:
    dense = batch.mask.dense()
    assert dense is not None
    B, _, T, _ = dense.shape
    b, q, k = torch.meshgrid(torch.arange(B), torch.arange(T), torch.arange(T), indexing="ij")
    assert torch.equal(block_mask(batch.mask).mask_mod(b, b, q, k), dense[:, 0])
    model = make_decoder(V, d_model=64, n_heads=4)
    with torch.no_grad():  # FlexAttention has no gradient on a CPU
        expected = model.summed_loss(batch)
        model.flexible = True
        found = model.summed_loss(batch)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


# torch.compile


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "least"), [(torch.float32, 1 << 40), (torch.bfloat16, 0)], ids=["float32 kept", "bf16 made again"]
)
def test_compiled_code_rounds_differently_and_no_more(
    make_decoder: Callable[..., Decoder], dtype: torch.dtype, least: int
) -> None:
    tuning = Tuning(least_numbers=least, chunk_logits=64 * V)
    plain = Objective(make_decoder(V, tuning=tuning, d_model=64, n_heads=4))
    fast = copy.deepcopy(plain)
    assert compile_model(fast.model, CPU, Compile.on, lambda: 0.0, say)
    bound = 1e-5 if dtype is torch.float32 else 0.01
    for batch in (rows(), rows(91), packed(AttentionKind.bidirectional, PauseVisibility.all)):
        value, gradient = value_and_gradient(plain, batch, dtype)
        found, compiled_gradient = value_and_gradient(fast, batch, dtype)
        torch.testing.assert_close(found, value, rtol=bound, atol=0)
        assert apart(compiled_gradient, gradient) < bound
    with torch.no_grad():
        torch.testing.assert_close(fast(rows()), plain(rows()), rtol=bound, atol=0)


def captured(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., Any]:
    """A backend that runs what Dynamo captures as it is: Dynamo's limits without the seconds of a C++ compiler."""
    return graph.forward


@pytest.mark.slow
def test_a_process_that_trains_many_shapes_compiles_each(make_decoder: Callable[..., Decoder]) -> None:
    shapes = range(torch._dynamo.config.recompile_limit + 2)
    graphs = []
    for number in shapes:
        vocabulary = V + number
        tuning = Tuning(chunk_logits=64 * vocabulary)
        objective = Objective(make_decoder(vocabulary, tuning=tuning, d_model=16 * (number + 1), n_heads=2))
        assert compile_model(objective.model, CPU, Compile.on, lambda: 0.0, say, captured)
        before = counters["stats"]["unique_graphs"]
        with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
            for batch in (rows(), rows(91)):
                objective(batch).backward()
        graphs.append(counters["stats"]["unique_graphs"] - before)
    assert graphs == [graphs[0]] * len(shapes) and graphs[0] >= 3, "each as if it were alone"


def test_where_a_run_has_more_shapes_than_torch_compiles_a_line_says_so(make_decoder: Callable[..., Decoder]) -> None:
    plain = Objective(make_decoder(V))
    fast = copy.deepcopy(plain)
    lines: list[str] = []
    assert compile_model(fast.model, CPU, Compile.on, lambda: 0.0, lines.append, captured)
    with torch._dynamo.config.patch(recompile_limit=1):
        for length in (70, 91, 50):
            torch.testing.assert_close(fast(rows(length)), plain(rows(length)), rtol=1e-5, atol=0)
    assert lines == ["torch.compile has compiled 'attention_inputs' 1 times, its limit; other shapes run without it"]


def test_auto_compiles_long_runs_and_off_none(make_decoder: Callable[..., Decoder]) -> None:
    model = make_decoder(V)
    assert not compile_model(model, CPU, Compile.auto, lambda: PAYS["cpu"] / 2, say)
    assert not compile_model(model, CPU, Compile.off, lambda: PAYS["cpu"] * 2, say)
    assert compile_model(model, CPU, Compile.auto, lambda: PAYS["cpu"], say)


def test_where_nothing_compiles_a_line_says_so_and_training_goes_on(make_decoder: Callable[..., Decoder]) -> None:
    def broken(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., Any]:
        raise RuntimeError("no C++ compiler\nand a long trace")

    model = make_decoder(V)
    lines: list[str] = []
    assert not compile_model(model, CPU, Compile.on, lambda: 0.0, lines.append, broken)
    [line] = lines
    assert line.startswith("torch.compile does not work here (") and "\n" not in line
    assert line.endswith("); training goes on without it")
    model.summed_loss(rows()).backward()
