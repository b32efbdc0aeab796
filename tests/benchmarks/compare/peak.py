"""The peak that MFU is a share of: the fastest matrix product of a few shapes, measured in the same run."""

from __future__ import annotations

from typing import NamedTuple

import torch

from pausebench.config.devices import BF16_PEAKS
from pausebench.config.groups import ModelConfig
from tests.benchmarks.compare.contest import seconds

SECONDS_A_SHAPE = 0.5
ROUNDS = 5


class Peak(NamedTuple):
    """FLOP/s measured, the shape (M, K, N) that reached them, and those of the maker's data sheet where known."""

    flops: float
    shape: tuple[int, int, int]
    data_sheet: float | None


def measure(device: torch.device, dtype: torch.dtype, model: ModelConfig, tokens: int, vocab_size: int) -> Peak:
    """The best of squares and of the model's own products for a step of ``tokens``."""
    d, m = model.d_model, model.d_mlp
    squares = (4096, 8192) if device.type == "cuda" else (1024, 2048)
    shapes = [(n, n, n) for n in squares]
    shapes += [(tokens, d, 3 * d), (tokens, d, m), (tokens, m, d), (tokens, d, vocab_size)]
    flops, shape = max((_flops(shape, device, dtype), shape) for shape in shapes)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    sheet = next((value for known, value in BF16_PEAKS.items() if known in name), None)
    return Peak(flops, shape, sheet if dtype is torch.bfloat16 else None)


def _flops(shape: tuple[int, int, int], device: torch.device, dtype: torch.dtype) -> float:
    M, K, N = shape
    a, b = torch.ones(M, K, dtype=dtype, device=device), torch.ones(K, N, dtype=dtype, device=device)
    once = min(seconds(lambda: a @ b, device) for _ in range(2))
    times = max(1, min(50, int(SECONDS_A_SHAPE / ROUNDS / once)))

    def several() -> None:
        for _ in range(times):
            a @ b

    best = min(seconds(several, device) for _ in range(ROUNDS)) / times
    return 2.0 * M * K * N / best
