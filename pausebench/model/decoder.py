"""A GPT-2 style decoder as a textbook has it: pre-norm blocks, learned positions, biases everywhere, tied embeddings.

Published parameter counts are met exactly (paper, Table 5): 136,237,056 and 1,345,085,440.

This is the definition. ``fast.use`` turns a decoder into one that computes the same with less time and memory, and that
can decode with a cache; weights and their names stay. tests/model/test_fast.py holds the two equal.

Invariant: ``forward`` returns hidden states, not logits: at 50k tokens of vocabulary the logits of a batch are the
largest tensor of a step, so the head is applied only where somebody needs them.

Shapes: B rows, T positions, D width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pausebench.config.groups import ModelConfig
from pausebench.model.attention import AttentionMask, merge_heads, split_heads
from pausebench.model.base import Model

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": partial(F.gelu, approximate="tanh"),  # GPT-2's
    "gelu_erf": F.gelu,
    "relu": F.relu,
}


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d, m = config.d_model, config.d_mlp
        self.n_heads = config.n_heads
        self.activation = ACTIVATIONS[config.activation]
        # Pre-norm with biases everywhere, as GPT-2: the published parameter counts are met only with them
        # (docs/choices.md).
        self.norm_attention = nn.LayerNorm(d)
        self.qkv = nn.Linear(d, 3 * d)
        self.attention_out = nn.Linear(d, d)
        self.norm_mlp = nn.LayerNorm(d)
        self.mlp_in = nn.Linear(d, m)
        self.mlp_out = nn.Linear(m, d)

    def forward(self, x_BTD: Tensor, allowed: Tensor | None) -> Tensor:
        """[B, T, D] -> [B, T, D]. allowed: bool [B, 1, T, T], who sees whom; None is causal."""
        x_BTD = x_BTD + self.attention(self.norm_attention(x_BTD), allowed)
        return x_BTD + self.mlp(self.norm_mlp(x_BTD))

    def attention(self, x_BTD: Tensor, allowed: Tensor | None) -> Tensor:
        q, k, v = (split_heads(part, self.n_heads) for part in self.qkv(x_BTD).chunk(3, dim=2))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, is_causal=allowed is None)
        out: Tensor = self.attention_out(merge_heads(attended))
        return out

    def mlp(self, x_BTD: Tensor) -> Tensor:
        out: Tensor = self.mlp_out(self.activation(self.mlp_in(x_BTD)))
        return out


class Decoder(Model):
    """Token and position embeddings, blocks, final norm; ``<pause>`` is row ``vocab_size - 1`` of the embedding."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.token_embedding = nn.Embedding(vocab_size, config.d_model)
        self.position_embedding = nn.Embedding(config.max_positions, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm_out = nn.LayerNorm(config.d_model)

    def forward(
        self, input_ids_BT: Tensor, mask: AttentionMask | None = None, positions_BT: Tensor | None = None
    ) -> Tensor:
        """Hidden states [B, T, D] after the final norm.

        Args:
            mask: None is plain causal.
            positions_BT: None is 0..T-1; packed rows restart theirs, shifted rows leave some out.
        """
        # Text is counted from 0. Only packed rows, which restart, and shifted rows bring their own.
        if positions_BT is None:
            positions_BT = torch.arange(input_ids_BT.shape[1], device=input_ids_BT.device)
        x_BTD = self.token_embedding(input_ids_BT) + self.position_embedding(positions_BT)
        allowed = None if mask is None else mask.to(x_BTD.device).dense()
        for block in self.blocks:
            x_BTD = block(x_BTD, allowed)
        hidden: Tensor = self.norm_out(x_BTD)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., V] through the tied embedding."""
        return F.linear(hidden, self.token_embedding.weight)

    @torch.no_grad()
    def initialize(self, seed: int, fill: Callable[[Tensor, Tensor], object] = Tensor.copy_) -> None:
        """Draw all weights from ``seed`` with the scales of the model's config; norms 1 and 0, biases 0."""
        generator = torch.Generator().manual_seed(seed)
        # Every block adds twice to the residual stream. GPT-2 divides what it adds by sqrt(2 x layers), so that the
        # stream does not grow with depth.
        residual = 1 / math.sqrt(2 * self.config.n_layers)

        def normal(weight: Tensor, std: float) -> None:
            fill(weight, torch.empty(weight.shape).normal_(0.0, std, generator=generator))

        normal(self.token_embedding.weight, self.config.embedding_std)
        normal(self.position_embedding.weight, self.config.embedding_std)
        for name, module in self.named_modules():
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, nn.Linear):
                gain = self.config.linear_gain
                std = self.config.linear_std if gain is None else gain / math.sqrt(module.in_features)
                normal(module.weight, std * (residual if name.endswith("_out") else 1.0))
                module.bias.zero_()
