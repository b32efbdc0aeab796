"""The device of a run: which one, how fast, how many threads, and its memory allocator."""

from __future__ import annotations

import ctypes
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch

from pausebench.config.devices import BF16_PEAKS
from pausebench.errors import BadInput


def choose_device(name: str) -> torch.device:
    """``auto`` takes CUDA where there is one. Raises ``BadInput`` for cuda on a machine without."""
    if name == "cuda" and not torch.cuda.is_available():
        raise BadInput("device=cuda: torch sees no CUDA device here; allowed are device=cpu and device=auto.")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Run with so many threads, and give the former number back: the cells of a sweep share a process."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    keep_few_kernels()
    keep_freed_memory()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def keep_few_kernels() -> None:
    """Tell oneDNN to keep the kernels of the last 64 shapes instead of 1024: packed rows have another shape at every
    step, and the kernels of forty steps took a gigabyte. One shape of a decoder needs about twenty.

    It reads these variables with its first kernel; whoever sets them has the last word.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, "64")


@lru_cache(maxsize=1)
def keep_freed_memory() -> None:
    """Tell glibc not to hand freed buffers back to the kernel between steps: a small model's training step took a
    seventh longer with the page faults that this costs."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        m_trim_threshold, m_top_pad, m_mmap_threshold = -1, -2, -3
        libc.mallopt(m_mmap_threshold, 32 << 20)
        libc.mallopt(m_trim_threshold, 1 << 30)
        libc.mallopt(m_top_pad, 64 << 20)


def return_freed_memory() -> None:
    """Hand what is free now back to the kernel, glibc's way, for the moment when it has been cut into pieces."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


@lru_cache(maxsize=8)
def peak_flops(device: torch.device, dtype: torch.dtype, threads: int) -> float:
    """FLOP/s of large matrix products: the data sheet's for known GPUs, else the best of a few measured here."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for known, flops in BF16_PEAKS.items():
            if known in name:
                return flops
    size = 4096 if device.type == "cuda" else 512
    a = torch.ones(size, size, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        (a @ a)[0, 0].item()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def describe(device: torch.device) -> str:
    """Name of the device for the manifest."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} of {os.cpu_count()} threads"
