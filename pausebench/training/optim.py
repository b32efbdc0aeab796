"""AdamW and its learning-rate schedule."""

from __future__ import annotations

import math

import torch

from pausebench.groups import TrainConfig
from pausebench.model.decoder import Decoder


def build_optimizer(model: Decoder, config: TrainConfig) -> torch.optim.AdamW:
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
