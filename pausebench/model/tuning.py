"""Sizes at which one way to compute gives way to another. No torch: what plans memory reads them, too."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tuning:
    """What a fast decoder is tuned by; any values give the same results up to rounding.

    Defaults were measured. Tests take others to reach every way of computing with small tensors.
    """

    # Attention.
    small_scores: int = 64 * 64  # up to as many scores a head, plain products beat the fused kernel on a CPU by half
    blockwise: tuple[str, ...] = ("cpu",)  # devices on which bf16 goes through blocks of queries, not torch's kernel
    most_blocks: int = 8  # of causal rows: 9/16 of the scores. Each has kernels of its own to start
    least_queries: int = 128  # of a block
    like_length: float = 0.7  # share of the longest length that documents attended together have; the rest is padding
    # Decoding.
    like_prefixes: float = 0.85  # share of the longest prefix's positions that rows read in one pass have
    # Activations: from as many numbers of hidden states on, norms and activations are computed again, not kept.
    least_numbers: int = 1 << 22
    # Loss.
    chunk_logits: int = 1 << 26  # logits alive at once: 128 MiB in bf16, twice that in float32
    cpu_logits: int = 1 << 21  # of them that are normalised together in float32: what a CPU's caches hold
    gpu_logits: int = 1 << 24  # the same on a GPU: enough to keep it busy
    head_slice: int = 4096  # rows of the head whose gradient is one product: a whole one is half as fast on a CPU


TUNING = Tuning()
