"""Exact attention in blocks of queries, for bf16 on a CPU.

torch's fused kernel for CPUs is one loop over small tiles; large products and the vectorised softmax take half of its
time, and causal rows skip the keys behind a block. Scores are rounded to bf16, as in transformers' eager attention; the
gradient is as close to float32's as the fused kernel's. Only queries, keys and values are kept for the backward pass.

Shapes: B rows, H heads, T queries, the last of S keys, D = H x width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

MOST_BLOCKS = 8  # of causal rows: 9/16 of the scores. Each block has kernels of its own; more cost more to make
LEAST_QUERIES = 128  # of a block


class BlockwiseAttention(torch.autograd.Function):
    """softmax(q k / sqrt(width) + bias) v.

    q: [B, T, D]; k, v: [B, S, D]. bias: [B, 1, T, S] in their dtype, 0 or -inf; None is causal.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, n_heads: int, bias: Tensor | None) -> Tensor:
        B, T, D = q.shape
        heads = q, k, v = [_split(part, n_heads) for part in (q, k, v)]
        out = q.new_empty(B, T, n_heads, D // n_heads)
        for begin, end, seen in _blocks(T, k.shape[1], bias is None):
            weights = _weights(q[:, begin:end], k[:, :seen], bias, begin, end)
            attended = torch.bmm(weights, v[:, :seen])
            out[:, begin:end] = attended.view(B, n_heads, end - begin, -1).transpose(1, 2)
        ctx.save_for_backward(*heads, bias)
        return out.flatten(2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias = ctx.saved_tensors
        B, T, D = upstream.shape
        H, S = len(q) // B, k.shape[1]
        scale = 1 / math.sqrt(D // H)
        upstream = _split(upstream, H)
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for begin, end, seen in _blocks(T, S, bias is None):
            weights = _weights(q[:, begin:end], k[:, :seen], bias, begin, end)
            given = upstream[:, begin:end]
            dv[:, :seen] += torch.bmm(weights.transpose(1, 2), given)
            dscores = torch.ops.aten._softmax_backward_data(
                torch.bmm(given, v[:, :seen].transpose(1, 2)), weights, -1, weights.dtype
            )
            torch.bmm(dscores, k[:, :seen], out=dq[:, begin:end])
            dk[:, :seen] += torch.bmm(dscores.transpose(1, 2), q[:, begin:end])
        return _merge(dq.mul_(scale), B), _merge(dk.mul_(scale), B), _merge(dv, B), None, None


def _blocks(T: int, S: int, causal: bool) -> Iterator[tuple[int, int, int]]:
    """(first query, end of queries, keys that they may see) of each block."""
    size = max(LEAST_QUERIES, -(-T // MOST_BLOCKS)) if causal else T
    for begin in range(0, T, size):
        end = min(T, begin + size)
        yield begin, end, S - T + end if causal else S


def _weights(q: Tensor, k: Tensor, bias: Tensor | None, begin: int, end: int) -> Tensor:
    """Softmax of the scores of a block: [B H, end - begin, keys]."""
    shape = (len(q), end - begin, k.shape[1])
    if bias is None:
        bias = _causal(*shape[1:], q.dtype)
    else:
        bias = bias[:, :, begin:end].expand(-1, len(q) // len(bias), -1, -1).reshape(shape)
    return torch.baddbmm(bias, q, k.transpose(1, 2), alpha=1 / math.sqrt(q.shape[2])).softmax(dim=2)


@lru_cache(maxsize=32)
def _causal(T: int, S: int, dtype: torch.dtype) -> Tensor:
    """[T, S]: 0 where the i-th of the last T positions may look, -inf elsewhere."""
    return torch.full((T, S), -math.inf, dtype=dtype).triu_(S - T + 1)


def _split(x: Tensor, n_heads: int) -> Tensor:
    """[B, T, D] -> [B H, T, D / H], contiguous."""
    return x.view(*x.shape[:2], n_heads, -1).transpose(1, 2).reshape(-1, x.shape[1], x.shape[2] // n_heads)


def _merge(x: Tensor, rows: int) -> Tensor:
    """[B H, T, D / H] -> [B, T, D]"""
    return x.view(rows, -1, *x.shape[1:]).transpose(1, 2).flatten(2)
