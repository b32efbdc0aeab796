"""The module whose backward pass is shared between ranks, AdamW, and its learning-rate schedule."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pausebench.config.groups import TrainConfig
from pausebench.data.batch import Batch
from pausebench.model.base import Model


class Objective(nn.Module):
    """A model with its loss. DDP needs the two in one module: it averages the gradients of what its forward returns."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        """The summed loss of a batch, in nats (float32 scalar)."""
        return self.model.summed_loss(batch)


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Fused AdamW; weight decay on matrices and embeddings, none on biases and norms."""
    parameters = list(model.parameters())
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        fused=True,
    )


def learning_rate(step: int, config: TrainConfig) -> float:
    """Rate of optimizer step ``step`` (1 .. steps): linear warm-up to the peak, then cosine to its last share."""
    warmup = config.warmup_steps or 0
    if step <= warmup:
        return config.lr * step / warmup
    progress = (step - warmup) / max(1, config.steps - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return config.lr * (config.min_lr_fraction + (1 - config.min_lr_fraction) * cosine)
