"""What the makers' data sheets say about devices: the only place with such numbers. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Device:
    """Peak FLOP/s of dense matrix products, of training (bf16, fp32) and of evaluation (fp64).

    memory: bytes, None if unknown.
    """

    name: str
    bf16: float
    fp32: float
    fp64: float
    memory: float | None = None

    def with_bf16(self, peak: float) -> Device:
        """Another bf16 peak; the others keep their proportion to it."""
        scale = peak / self.bf16
        return replace(self, bf16=peak, fp32=self.fp32 * scale, fp64=self.fp64 * scale)


# NVIDIA's data sheets, SXM versions. Their bf16 numbers are with sparsity (1,979 for the H100); dense is half of that.
# fp64 is that of the tensor cores.
DEVICES = {
    "h100": Device("h100", 989e12, 67e12, 67e12, 80e9),
    "h200": Device("h200", 989e12, 67e12, 67e12, 141e9),
    "a100": Device("a100", 312e12, 19.5e12, 19.5e12, 80e9),
}

# By what torch's name of a GPU contains ("NVIDIA H100 80GB HBM3"): the peak that MFU is a share of.
BF16_PEAKS = {name.upper(): device.bf16 for name, device in DEVICES.items()} | {"L40S": 362e12, "B200": 2250e12}
