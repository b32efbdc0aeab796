"""How tensors get to the device."""

from __future__ import annotations

import torch
from torch import Tensor


def placed(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on the device. Where that is a GPU, the copy is made behind what the GPU still has to do: a copy from
    memory that is not pinned would make this process wait for all of it."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
