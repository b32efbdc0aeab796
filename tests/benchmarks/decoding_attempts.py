"""One step of greedy decoding on a CPU: what the cache's attention takes, and what was tried in its place.

    python tests/benchmarks/decoding_attempts.py        # two minutes on two threads

64 rows, 12 heads of width 64, twelve layers' caches in turn, so that none stays in the processor's. Prints medians in
milliseconds a layer, for the choice of a token from 64 rows of bf16 logits, and new tokens/s of `130m` by batch size.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pausebench.config.groups import AttentionKind, ModelConfig
from pausebench.config.pauses import PausePolicy
from pausebench.data.batches import EncodedExamples, RowLayout
from pausebench.evaluation.generate import generate
from pausebench.model import build
from pausebench.model.cache import KeyValueCache
from pausebench.training.device import keep_few_kernels, keep_freed_memory

CONFIG, VOCABULARY = ModelConfig("130m", 12, 12, 768, 3072, 2048), 50_258
ROWS, SLOTS, WIDTHS = 64, 260, (50, 100, 130, 200, 260)
TOGETHER = 16  # rows of a group
EXAMPLES, NEW_TOKENS, BATCH_SIZES = 256, 64, (32, 64, 128, 256)


def milliseconds(work: Callable[[int], object], calls: int = 36) -> float:
    layers = itertools.cycle(range(CONFIG.n_layers))
    spent = []
    for _ in range(calls + 4):
        layer, began = next(layers), time.perf_counter()
        work(layer)
        spent.append(time.perf_counter() - began)
    return 1e3 * statistics.median(spent[4:])


def attention() -> None:
    cache = KeyValueCache(CONFIG, ROWS, SLOTS, torch.float32, torch.device("cpu"))
    cache.keys.normal_()
    cache.values.normal_()
    turned = cache.values.transpose(3, 4).contiguous()  # [L, B, H, S, C], as fused attention wants them
    low_keys, low_values = cache.keys.bfloat16(), turned.bfloat16()
    q = torch.randn(ROWS, 1, CONFIG.d_model)
    heads = q.view(ROWS, 1, CONFIG.n_heads, -1).transpose(1, 2)

    @torch.compile(dynamic=True)
    def compiled(query: Tensor, keys: Tensor, values: Tensor, width: int, bias: Tensor) -> Tensor:
        scores = (keys[:, :, :width].float() * query.float()).sum(3) / 8 + bias
        return (values[:, :, :width].float() * scores.softmax(2)[..., None]).sum(2)

    print("ms a layer: slots, ours, four groups of rows, fused float32, fused bf16, compiled over bf16")
    for width in WIDTHS:
        slots = torch.full((ROWS, 1), width - 1)
        allowed = torch.rand(ROWS, 1, 1, width) < 0.7
        allowed[..., 0] = True
        bias = torch.zeros(allowed.shape).masked_fill(~allowed, -math.inf)
        groups = [slice(begin, begin + TOGETHER) for begin in range(0, ROWS, TOGETHER)]

        def grouped(layer: int, allowed: Tensor = allowed, groups: list[slice] = groups, most: int = width) -> None:
            """Rows of four lengths: each group attends to as many slots as its own."""
            for number, some in enumerate(groups, start=1):
                own = most * number // len(groups)
                scores = torch.matmul(cache.keys[layer, some, :, :own], heads[some].transpose(2, 3)).transpose(2, 3)
                shares = scores.masked_fill(~allowed[some, :, :, :own], -math.inf).softmax(dim=3)
                torch.matmul(cache.values[layer, some, :, :, :own], shares.transpose(2, 3))

        def fused(layer: int, keys: Tensor, values: Tensor, bias: Tensor = bias, most: int = width) -> None:
            query, mask = heads.to(keys.dtype), bias.to(keys.dtype)
            F.scaled_dot_product_attention(query, keys[layer, :, :, :most], values[layer, :, :, :most], attn_mask=mask)

        taken = (
            milliseconds(lambda layer, s=slots, a=allowed: cache.attend(layer, q, q, q, s, a)),  # type: ignore[misc]
            milliseconds(grouped),
            milliseconds(lambda layer, f=fused: f(layer, cache.keys, turned)),  # type: ignore[misc]
            milliseconds(lambda layer, f=fused: f(layer, low_keys, low_values)),  # type: ignore[misc]
            milliseconds(lambda i, w=width, b=bias: compiled(heads, low_keys[i], low_values[i], w, b[:, 0])),  # type: ignore[misc]
        )
        print(f"{width:4}", *(f"{value:6.2f}" for value in taken), flush=True)


def choice() -> None:
    logits = torch.randn(ROWS, VOCABULARY).bfloat16()
    by_max = milliseconds(lambda layer: logits[:, :-1].max(dim=1))
    by_argmax = milliseconds(lambda layer: logits[:, :-1].argmax(dim=1))
    print(f"the likeliest token: max {by_max:.2f} ms, argmax {by_argmax:.2f} ms")


def batch_sizes() -> None:
    model = build(CONFIG, VOCABULARY)
    model.initialize(0)
    model = model.bfloat16().eval()
    drawn = torch.randn(EXAMPLES, generator=torch.Generator().manual_seed(0))
    lengths = (0.35 * drawn + 4).exp().clamp(20, 220).long().sort().values.tolist()
    pause, pad = VOCABULARY - 1, VOCABULARY - 2
    layout = RowLayout(PausePolicy(k=10), AttentionKind.causal, torch.tensor([5]), pause, pad)
    for size in BATCH_SIZES:
        began = time.perf_counter()
        for begin in range(0, EXAMPLES, size):
            prefixes = [list(range(length)) for length in lengths[begin : begin + size]]
            rows = layout.inference_rows(EncodedExamples.of(prefixes, [[]] * len(prefixes), pad))
            generate(
                model,
                rows,
                AttentionKind.causal,
                max_new_tokens=NEW_TOKENS,
                end_id=pause,
                pause_id=pause,
                means=False,
            )
        print(
            f"batches of {size}: {EXAMPLES * NEW_TOKENS / (time.perf_counter() - began):.0f} new tokens/s", flush=True
        )


if __name__ == "__main__":
    torch.set_num_threads(2)
    keep_few_kernels()
    keep_freed_memory()
    with torch.no_grad():
        attention()
        choice()
        batch_sizes()
