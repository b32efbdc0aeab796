"""A GPT-2 style decoder: pre-norm blocks, learned positions, biases everywhere, input and output embeddings tied.

Published parameter counts are met exactly (paper, Table 5): 136,237,056 and 1,345,085,440.

Invariant: ``forward`` returns hidden states; who needs logits applies the head where it needs them (``logits`` or
``training.loss``), so that no B x T x V tensor exists unless somebody asks for it.

Shapes: B rows, T positions, S cache slots, D width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from torch.utils.checkpoint import checkpoint

from pausebench.config.groups import ModelConfig
from pausebench.model.attention import (
    AttentionMask,
    Documents,
    attend,
    attend_documents,
    attend_flexibly,
    block_mask,
    take_apart,
)
from pausebench.model.cache import KeyValueCache
from pausebench.model.flops import training_flops_per_token

Allowed = Tensor | Documents | BlockMask | None

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": partial(F.gelu, approximate="tanh"),  # GPT-2's
    "gelu_erf": F.gelu,
    "relu": F.relu,
}


LEAST_NUMBERS = 1 << 22  # of states whose norms and activations are computed again rather than kept


class InPlaceOf(torch.autograd.Function):
    """``low``, a copy of ``weight`` that was made before; its gradient goes to the weight."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, low: Tensor) -> Tensor:
        ctx.dtype = weight.dtype
        return low.detach()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        return upstream.to(ctx.dtype), None


def in_place_of(weight: Tensor, low: Tensor) -> Tensor:
    """``low``, whose gradient is cast and summed as soon as it is there.

    Autograd takes what was recorded first last: casts at the head of a step would hold all gradients in low precision
    until the end of each backward pass, and ranks could share none before.
    """
    instead: Tensor = InPlaceOf.apply(weight, low)  # type: ignore[no-untyped-call]
    return instead


class Linear(nn.Linear):
    """A linear layer that computes in the dtype of ``low``, copies of weight and bias, while it has them."""

    low: tuple[Tensor, Tensor] | None = None

    def operands(self) -> tuple[Tensor, Tensor]:
        """Weight and bias in the dtype of the arithmetic."""
        if self.low is None:
            return self.weight, self.bias
        weight, bias = self.low
        return in_place_of(self.weight, weight), in_place_of(self.bias, bias)


class Norm(nn.LayerNorm):
    """The weights of a layer norm, which a block applies in their own dtype, whatever that of the products around it.

    Calling it is what gathers them where they are sharded (``parallel.Ranks.distribute``).
    """

    def forward(self) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Weight and bias."""
        return self.weight, self.bias


def normed_linear(x: Tensor, norm: tuple[Tensor, Tensor], linear: tuple[Tensor, Tensor]) -> Tensor:
    return F.linear(F.layer_norm(x, x.shape[-1:], *norm).to(linear[0].dtype), *linear)


def activated_linear(x: Tensor, activation: Callable[[Tensor], Tensor], linear: tuple[Tensor, Tensor]) -> Tensor:
    return F.linear(activation(x), *linear)


def keeping_inputs(function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """``function(*inputs)``, cheap work that ends in a product: autograd keeps the inputs and does the work again.

    It does not multiply again: a product saves its operands before it computes, and recomputation ends with the last of
    them.
    """
    how: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False, "determinism_check": "none"}
    kept: Tensor = checkpoint(function, *inputs, **how)
    return kept


def attention_inputs(x: Tensor, norm: tuple[Tensor, Tensor], qkv: tuple[Tensor, Tensor], *, lean: bool) -> Tensor:
    """Queries, keys and values of normed states: [B, T, D] -> [B, T, 3D], or as many as ``qkv`` has rows."""
    return keeping_inputs(normed_linear, x, norm, qkv) if lean else normed_linear(x, norm, qkv)


def after_attention(
    x: Tensor,
    attended: Tensor,
    out: tuple[Tensor, Tensor],
    norm: tuple[Tensor, Tensor],
    mlp_in: tuple[Tensor, Tensor],
    mlp_out: tuple[Tensor, Tensor],
    activation: Callable[[Tensor], Tensor],
    *,
    lean: bool,
) -> Tensor:
    """The rest of a block, position by position: [B, T, D] each -> [B, T, D]."""
    x = x + F.linear(attended, *out)
    if lean:
        hidden = keeping_inputs(normed_linear, x, norm, mlp_in)
        return x + keeping_inputs(activated_linear, hidden, activation, mlp_out)
    return x + activated_linear(normed_linear(x, norm, mlp_in), activation, mlp_out)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        d, m = config.d_model, config.d_mlp
        self.layer = layer
        self.recomputed = False  # whether the backward pass runs this block again instead of keeping its activations
        self.attention_inputs = attention_inputs  # ``training.compiled`` puts compiled ones in their places
        self.after_attention = after_attention
        self.n_heads = config.n_heads
        self.activation = ACTIVATIONS[config.activation]
        self.norm_attention = Norm(d)
        self.qkv = Linear(d, 3 * d)
        self.attention_out = Linear(d, d)
        self.norm_mlp = Norm(d)
        self.mlp_in = Linear(d, m)
        self.mlp_out = Linear(m, d)

    def forward(
        self,
        x_BTD: Tensor,
        allowed: Allowed,
        last: int,
        cache: KeyValueCache | None,
        slots: Tensor | None,
        wanted: Tensor | None,
    ) -> Tensor:
        """[B, T, D] -> [B, last, D]: every position is read, the last ones are computed. [N, D] of them if N wanted."""
        if self.recomputed and torch.is_grad_enabled():
            again: Tensor = checkpoint(self._compute, x_BTD, allowed, last, cache, slots, wanted, use_reentrant=False)
            return again
        return self._compute(x_BTD, allowed, last, cache, slots, wanted)

    def _compute(
        self,
        x_BTD: Tensor,
        allowed: Allowed,
        last: int,
        cache: KeyValueCache | None,
        slots: Tensor | None,
        wanted: Tensor | None,
    ) -> Tensor:
        T, D = x_BTD.shape[1:]
        lean = torch.is_grad_enabled() and x_BTD.numel() >= LEAST_NUMBERS and not self.recomputed
        norm, (weight, bias) = self.norm_attention(), self.qkv.operands()
        if last == T:
            q, k, v = self.attention_inputs(x_BTD, norm, (weight, bias), lean=lean).chunk(3, dim=2)
        else:
            k, v = self.attention_inputs(x_BTD, norm, (weight[D:], bias[D:]), lean=lean).chunk(2, dim=2)
            x_BTD = x_BTD[:, -last:]
            q = self.attention_inputs(x_BTD, norm, (weight[:D], bias[:D]), lean=lean)
            assert not isinstance(allowed, Documents | BlockMask)
            allowed = None if allowed is None else allowed[:, :, -last:]
        if cache is not None and slots is None:
            cache.fill(self.layer, k, v)
        if cache is not None and slots is not None:
            assert isinstance(allowed, Tensor)
            attended = cache.attend(self.layer, q, k, v, slots, allowed)
        elif isinstance(allowed, Documents):
            attended = attend_documents(q, k, v, self.n_heads, allowed)
        elif isinstance(allowed, BlockMask):
            attended = attend_flexibly(q, k, v, self.n_heads, allowed)
        else:
            attended = attend(q, k, v, self.n_heads, allowed)
        del q, k, v  # whose copies, a head's positions side by side, are what attention keeps
        if wanted is not None:
            x_BTD, attended = (part.flatten(0, 1).index_select(0, wanted) for part in (x_BTD, attended))
        return self.after_attention(
            x_BTD,
            attended,
            self.attention_out.operands(),
            self.norm_mlp(),
            self.mlp_in.operands(),
            self.mlp_out.operands(),
            self.activation,
            lean=lean,
        )


class Decoder(nn.Module):
    """Token and position embeddings, blocks, final norm; ``<pause>`` is row ``vocab_size - 1`` of the embedding."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.token_embedding = nn.Embedding(vocab_size, config.d_model)
        self.position_embedding = nn.Embedding(config.max_positions, config.d_model)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm_out = nn.LayerNorm(config.d_model)
        self.flexible = False  # whether masks go through FlexAttention
        self.sharded = False  # whether weights are gathered, and cast there (``parallel.Ranks.distribute``)
        self._lowered: torch.dtype | None = None
        self._low_head: Tensor | None = None

    def forward(
        self,
        input_ids_BT: Tensor,
        mask: AttentionMask | None = None,
        positions_BT: Tensor | None = None,
        cache: KeyValueCache | None = None,
        decoding: Tensor | None = None,
        slots: Tensor | None = None,
        last: int | None = None,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """Hidden states [B, last, D] after the final norm, or [N, D] of those wanted.

        Args:
            mask: None is plain causal. It may be on the CPU, and packed rows' should be.
            positions_BT: None is 0..T-1; packed rows restart theirs, shifted rows leave some out.
            cache: filled by this call (prefill), or read and extended when ``decoding`` is given.
            decoding: bool [B, 1, T, S], what the new tokens of each row see of the cache's first S slots
                (``attention.decoding_mask``); then positions_BT says where they stand.
            slots: int64 [B, T], the cache slots that take the new tokens (None: those numbered as their positions).
            last: how many of the last positions are wanted (None: all T); the last block computes no others.
            wanted: int64 [N], numbers of flattened [B, last] positions (None: all); nor does its MLP compute others.
        """
        assert decoding is None or positions_BT is not None
        x_BTD = self.token_embedding(input_ids_BT)
        if positions_BT is None:
            x_BTD = x_BTD + self.position_embedding.weight[: input_ids_BT.shape[1]]
        else:
            x_BTD = x_BTD + self.position_embedding(positions_BT)
        allowed: Allowed = decoding
        if mask is not None and self.flexible and last in (None, input_ids_BT.shape[1]) and not mask.is_causal:
            allowed = block_mask(mask.to(x_BTD.device))
        elif mask is not None and mask.documents is None:
            allowed = mask.to(x_BTD.device).dense()
        elif mask is not None:
            allowed = take_apart(mask).to(x_BTD.device)
        if decoding is not None and slots is None:
            slots = positions_BT
        T = input_ids_BT.shape[1]
        for block in self.blocks:
            is_last = block is self.blocks[-1]
            x_BTD = block(x_BTD, allowed, last or T if is_last else T, cache, slots, wanted if is_last else None)
        hidden: Tensor = self.norm_out(x_BTD)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., V] through the tied embedding."""
        return F.linear(hidden.to(self.arithmetic), self.head())

    @torch.no_grad()
    def initialize(self, seed: int, fill: Callable[[Tensor, Tensor], object] = Tensor.copy_) -> None:
        """Draw all weights from ``seed`` with the scales of the model's config; norms 1 and 0, biases 0.

        Outputs of the residual branches are divided by sqrt(2 x layers), as in GPT-2. ``fill(weight, drawn)`` puts a
        weight in its place, where that is not a plain copy (sharded models).
        """
        generator = torch.Generator().manual_seed(seed)
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

    @property
    def arithmetic(self) -> torch.dtype:
        """The dtype of matrix products: that of the weights, unless ``lowered`` says another."""
        return self._lowered or self.token_embedding.weight.dtype

    @contextmanager
    def lowered(self, dtype: torch.dtype) -> Iterator[None]:
        """Multiply matrices in ``dtype`` inside: weights are cast once, here, and take their gradients as they are.

        Embeddings are looked up, norms computed and the residual stream summed in the weights' own dtype. Sharded
        weights are cast where they are gathered.
        """
        if dtype is self.token_embedding.weight.dtype:
            yield
            return
        linears = [module for module in self.modules() if isinstance(module, Linear)]
        self._lowered = dtype
        try:
            if not self.sharded:
                with torch.no_grad():
                    self._low_head = self.token_embedding.weight.to(dtype)
                    for linear in linears:
                        linear.low = linear.weight.to(dtype), linear.bias.to(dtype)
            yield
        finally:
            self._lowered = self._low_head = None
            for linear in linears:
                linear.low = None

    def head(self) -> Tensor:
        """[V, D]: the tied embedding in the dtype of the arithmetic."""
        weight = self.token_embedding.weight
        return weight.to(self.arithmetic) if self._low_head is None else in_place_of(weight, self._low_head)

    def recompute_blocks(self) -> None:
        """Activation checkpointing: training keeps each block's input alone and computes the rest a second time."""
        for block in self.blocks:
            assert isinstance(block, Block)
            block.recomputed = True

    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def flops_per_token(self, sequence_length: float) -> float:
        """Floating-point operations of forward and backward for one token (``flops.training_flops_per_token``)."""
        return training_flops_per_token(self.config, self.vocab_size, sequence_length)
