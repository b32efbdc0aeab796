"""What ``precision=auto`` chooses: bfloat16 where the device multiplies it fast, float32 elsewhere.

On a CPU without bfloat16 instructions torch's bfloat16 products are 40 to 60 times slower than its float32 ones (1.3
against 75 GFLOP/s). The answer is read from the CPU's flags, never timed: run names depend on it, so every call must
give the same one. No torch here: a finished run is found without importing it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from pausebench.config.groups import ModelConfig, Precision

LEAST_WIDTH = 64  # d_model below which the casts cost more than bfloat16 products save

# Linux's CPU flags (two of x86, one of ARM) for which oneDNN, torch's library of CPU products, has bfloat16 kernels.
FAST_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")
# Values of ONEDNN_MAX_CPU_ISA that turn those kernels off. ATEN_CPU_CAPABILITY does not matter: it limits torch's own
# loops, and products measured under avx2 and default were equally fast.
SLOW_CAPS = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")


class Bfloat16(NamedTuple):
    """Whether a device multiplies bfloat16 fast, and why."""

    fast: bool
    reason: str


def bfloat16_on(
    device: str,
    cpu_flags: frozenset[str] | None = None,
    environ: Mapping[str, str] = os.environ,
    gpu: bool | None = None,
) -> Bfloat16:
    """The answer for ``device`` (auto, cpu or cuda).

    cpu_flags, gpu: the CPU's flags, and whether there is an NVIDIA GPU (None: this machine's).
    """
    gpu = has_gpu(environ) if gpu is None else gpu
    if device == "cuda" or (device == "auto" and gpu):
        return Bfloat16(True, "a GPU multiplies bfloat16 fast")
    # Every GPU that torch still supports is taken to be fast. One without bfloat16 units needs precision=fp32.
    found = sorted((own_cpu_flags() if cpu_flags is None else cpu_flags).intersection(FAST_FLAGS))
    if not found:
        return Bfloat16(False, f"this CPU has none of {', '.join(FAST_FLAGS)}")
    cap = environ.get("ONEDNN_MAX_CPU_ISA", environ.get("DNNL_MAX_CPU_ISA", "")).upper()
    if cap in SLOW_CAPS:
        return Bfloat16(False, f"ONEDNN_MAX_CPU_ISA={cap} turns this CPU's {found[0]} off")
    return Bfloat16(True, f"this CPU has {', '.join(found)}")


def resolved_precision(precision: Precision, model: ModelConfig, device: str) -> Precision:
    """What ``auto`` means for this model on this device."""
    if precision is not Precision.auto:
        return precision
    fast = model.d_model >= LEAST_WIDTH and bfloat16_on(device).fast
    return Precision.bf16 if fast else Precision.fp32


def precision_line(precision: Precision, model: ModelConfig, device: str) -> str | None:
    """What a training run says about its precision if bfloat16 is slow here; else None."""
    answer = bfloat16_on(device)
    if model.d_model < LEAST_WIDTH or answer.fast:
        return None
    if precision is Precision.bf16:
        return f"precision=bf16 is slow here: {answer.reason}. precision=fp32 is many times faster."
    return f"training in float32: {answer.reason}, so bfloat16 would be slow"


def own_cpu_flags() -> frozenset[str]:
    """The flags of the first CPU in /proc/cpuinfo; none without that file (macOS, Windows)."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    # x86 calls the line "flags", ARM "Features".
    named = (line.partition(":")[2] for line in lines if line.lower().startswith(("flags", "features")))
    return frozenset(next(named, "").split())


def has_gpu(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether torch will find an NVIDIA GPU, as far as can be told without importing it."""
    # A CPU build of torch on a machine with a GPU is common in continuous integration.
    shown = environ.get("CUDA_VISIBLE_DEVICES", "all") not in ("", "-1")
    return shown and Path("/proc/driver/nvidia/version").exists() and "+cpu" not in version("torch")
