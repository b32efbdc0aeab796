"""Attention that prefers what is near (ALiBi; Press et al., 2022): one layer, no MLP, an output matrix of its own."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pausebench.config.groups import ModelConfig
from pausebench.model.attention import AttentionMask
from pausebench.model.base import Model


class Alibi(Model):
    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.config, self.vocab_size = config, vocab_size
        self.embedding = nn.Embedding(vocab_size, config.d_model)
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model, bias=False)
        self.out = nn.Linear(config.d_model, vocab_size, bias=False)

    def forward(self, ids: Tensor, mask: AttentionMask | None = None, positions: Tensor | None = None) -> Tensor:
        x = self.embedding(ids)
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device)[None]
        distance = (positions[:, :, None] - positions[:, None, :]).abs()[:, None].to(x.dtype)
        allowed = None if mask is None else mask.dense()
        if allowed is None:
            allowed = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device).tril()
        q, k, v = (part[:, None] for part in self.qkv(x).chunk(3, dim=2))
        bias = (-0.1 * distance).masked_fill(~allowed, -math.inf).to(q.dtype)
        return x + F.scaled_dot_product_attention(q, k, v, attn_mask=bias)[:, 0]

    def logits(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.out(hidden)
        return logits

    @torch.no_grad()
    def initialize(self, seed: int, fill: Callable[[Tensor, Tensor], object] = Tensor.copy_) -> None:
        generator = torch.Generator().manual_seed(seed)
        for weight in self.parameters():
            fill(weight, torch.empty(weight.shape).normal_(0.0, 0.3, generator=generator))


def build(config: ModelConfig, vocab_size: int) -> Alibi:
    return Alibi(config, vocab_size)
