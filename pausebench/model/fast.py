"""The decoder made fast: ``use`` changes how a plain ``Decoder`` computes, not what.

What is different, each with its reason beside it below: weights are cast to bf16 once a step; norms and activations are
computed again in the backward pass rather than kept; the last block and the head run only where somebody reads them;
attention is chosen by mask, size and device (``fast_attention``); a block's work that needs no other position can be
replaced by compiled code; with a cache, new tokens are read behind old ones.

Invariant: hidden states and gradients are those of the plain decoder up to rounding (tests/model/test_fast.py), and
parameters have the same names.

Shapes: B rows, T positions, S cache slots, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from torch.utils.checkpoint import checkpoint

from pausebench.config.groups import AttentionKind, ModelConfig, PauseVisibility
from pausebench.model.attention import AttentionMask, placed
from pausebench.model.base import Backend, LabelledRows, ShardUnit
from pausebench.model.cache import CachedPrefill, KeyValueCache, slot_bytes
from pausebench.model.decoder import Block, Decoder
from pausebench.model.fast_attention import (
    Documents,
    attend,
    attend_documents,
    attend_flexibly,
    block_mask,
    take_apart,
    try_flex_attention,
)
from pausebench.model.fast_loss import (
    ToGradient,
    loss_to_gradient_,
    loss_to_gradient_in_one_pass_,
    summed_cross_entropy,
)
from pausebench.model.tuning import TUNING, Tuning
from pausebench.pauses import IGNORE_INDEX, Rows

Allowed = Tensor | Documents | BlockMask | None


def use(model: Decoder, tuning: Tuning = TUNING) -> FastDecoder:
    """The same decoder object, computing the fast way from here on; weights, their names and hooks stay.

    Classes are exchanged in place, as FSDP2 does, so that a model on the meta device and one with weights are alike.
    """
    for layer, block in enumerate(model.blocks):
        for module in block.modules():
            if isinstance(module, nn.LayerNorm):
                module.__class__ = Norm
            elif isinstance(module, nn.Linear):
                module.__class__ = Linear
        block.__class__ = FastBlock
        fast_block = cast(FastBlock, block)
        fast_block.layer, fast_block.tuning = layer, tuning
    model.__class__ = FastDecoder
    fast = cast(FastDecoder, model)
    fast.tuning = tuning
    return fast


def build(config: ModelConfig, vocab_size: int) -> FastDecoder:
    """The decoder that training and evaluation use."""
    return use(Decoder(config, vocab_size))


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

    Autograd runs backward what was recorded first last: casts at the head of a step would hold all gradients in low
    precision until the end of each backward pass, and ranks could share none before.
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
    """The weights of a layer norm. The block applies them, in their own dtype and together with the next product.

    Calling it is what gathers sharded weights (``parallel.Ranks.distribute``): FSDP's hooks sit on the call.
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


class Pieces(NamedTuple):
    """What needs no position but its own: as it is written above, or compiled."""

    attention_inputs: Callable[..., Tensor] = attention_inputs
    after_attention: Callable[..., Tensor] = after_attention
    to_gradient: ToGradient = loss_to_gradient_


class FastBlock(Block):
    """``Block`` in two pieces that need no other position, with attention between them."""

    norm_attention: Norm
    qkv: Linear
    attention_out: Linear
    norm_mlp: Norm
    mlp_in: Linear
    mlp_out: Linear
    layer: int
    tuning: Tuning
    pieces = Pieces()
    recomputed = False  # whether the backward pass runs this block again instead of keeping its activations

    def forward(
        self,
        x_BTD: Tensor,
        allowed: Allowed,
        last: int | None = None,
        cache: KeyValueCache | None = None,
        slots: Tensor | None = None,
        wanted: Tensor | None = None,
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
        last: int | None,
        cache: KeyValueCache | None,
        slots: Tensor | None,
        wanted: Tensor | None,
    ) -> Tensor:
        T, D = x_BTD.shape[1:]
        # Small batches keep everything: memory is not what they lack, and computing again would cost a tenth of a step.
        lean = torch.is_grad_enabled() and x_BTD.numel() >= self.tuning.least_numbers and not self.recomputed
        norm, (weight, bias) = self.norm_attention(), self.qkv.operands()
        if last is None or last == T:
            q, k, v = self.pieces.attention_inputs(x_BTD, norm, (weight, bias), lean=lean).chunk(3, dim=2)
        else:
            # Keys and values of every position; queries, and all that follows from them, of the last ones alone.
            k, v = self.pieces.attention_inputs(x_BTD, norm, (weight[D:], bias[D:]), lean=lean).chunk(2, dim=2)
            x_BTD = x_BTD[:, -last:]
            q = self.pieces.attention_inputs(x_BTD, norm, (weight[:D], bias[:D]), lean=lean)
            assert not isinstance(allowed, Documents | BlockMask)
            allowed = None if allowed is None else allowed[:, :, -last:]
        attended = self._attended(q, k, v, allowed, cache, slots)
        del q, k, v  # attention has kept copies of its own, a head's positions side by side
        if wanted is not None:
            x_BTD, attended = (part.flatten(0, 1).index_select(0, wanted) for part in (x_BTD, attended))
        return self.pieces.after_attention(
            x_BTD,
            attended,
            self.attention_out.operands(),
            self.norm_mlp(),
            self.mlp_in.operands(),
            self.mlp_out.operands(),
            self.activation,
            lean=lean,
        )

    def _attended(
        self, q: Tensor, k: Tensor, v: Tensor, allowed: Allowed, cache: KeyValueCache | None, slots: Tensor | None
    ) -> Tensor:
        """Attention by the kind of mask; with ``slots``, of new tokens to what the cache holds."""
        if cache is not None and slots is not None:
            assert isinstance(allowed, Tensor)
            return cache.attend(self.layer, q, k, v, slots, allowed)
        if cache is not None:
            cache.fill(self.layer, k, v)
        if isinstance(allowed, Documents):
            return attend_documents(q, k, v, self.n_heads, allowed, self.tuning)
        if isinstance(allowed, BlockMask):
            return attend_flexibly(q, k, v, self.n_heads, allowed)
        return attend(q, k, v, self.n_heads, allowed, self.tuning)


class FastDecoder(Decoder):
    """``Decoder`` after ``use``."""

    tuning: Tuning
    pieces = Pieces()
    flexible = False  # whether masks go through FlexAttention
    _lowered: torch.dtype | None = None
    _low_head: Tensor | None = None

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
            mask: None is plain causal. It may be on the CPU, and packed rows' should be: their documents are taken
                apart there, without waiting for a device.
            positions_BT: None is 0..T-1; packed rows restart theirs, shifted rows leave some out.
            cache: filled by this call (prefill), or read and extended when ``decoding`` is given.
            decoding: bool [B, 1, T, S], what the new tokens of each row see of the cache's first S slots
                (``attention.decoding_mask``); positions_BT are then needed.
            slots: int64 [B, T], the cache slots that take the new tokens (None: those numbered as their positions).
            last: how many of the last positions are wanted (None: all T); the last block computes no others.
            wanted: int64 [N], numbers of flattened [B, last] positions (None: all); the last block's MLP computes no
                others.
        """
        assert decoding is None or positions_BT is not None
        x_BTD = self.token_embedding(input_ids_BT)
        if positions_BT is None:
            x_BTD = x_BTD + self.position_embedding.weight[: input_ids_BT.shape[1]]  # no look-up: rows are in order
        else:
            x_BTD = x_BTD + self.position_embedding(positions_BT)
        allowed: Allowed = decoding
        if mask is not None and self.flexible and last in (None, input_ids_BT.shape[1]) and not mask.is_causal:
            allowed = block_mask(mask.to(x_BTD.device))
        elif mask is not None and mask.documents is None:
            allowed = mask.to(x_BTD.device).dense()
        elif mask is not None:
            allowed = take_apart(mask, self.tuning.like_length).to(x_BTD.device)
        if decoding is not None and slots is None:
            slots = positions_BT
        for block in self.blocks:
            is_last = block is self.blocks[-1]
            x_BTD = block(x_BTD, allowed, last if is_last else None, cache, slots, wanted if is_last else None)
        hidden: Tensor = self.norm_out(x_BTD)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., V] through the tied embedding, in the dtype of the arithmetic."""
        return F.linear(hidden.to(self.arithmetic), self.head())

    def summed_loss(self, batch: LabelledRows) -> Tensor:
        """Sum of the cross entropy over the supervised positions of a CPU batch, in nats (float32 scalar)."""
        device = self.token_embedding.weight.device
        labels = batch.labels[:, -batch.last :].flatten()
        supervised = (labels != IGNORE_INDEX).nonzero()[:, 0]  # found on the CPU: no device is waited for
        positions = None if batch.positions is None else placed(batch.positions, device)
        chosen = None if len(supervised) == len(labels) else placed(supervised, device)
        # Picked inside the last block, positions spare its MLP, but cost the gradient a scatter more: few must be left.
        few = chosen if len(supervised) < len(labels) / 2 else None
        hidden = self(placed(batch.input_ids, device), batch.mask, positions, last=batch.last, wanted=few)
        hidden = hidden.to(self.arithmetic)  # here, so that nobody holds float32 states beside the logits
        if few is None:
            hidden = hidden.flatten(0, 1) if chosen is None else hidden.flatten(0, 1).index_select(0, chosen)
        labels = placed(labels if chosen is None else labels[supervised], device)
        return summed_cross_entropy(
            hidden, self.token_embedding.weight, labels, self.head(), self.pieces.to_gradient, self.tuning
        )

    def prefill(self, rows: Rows, kind: AttentionKind, visibility: PauseVisibility, capacity: int) -> CachedPrefill:
        return CachedPrefill.of(self, rows, kind, visibility, capacity)

    def slot_bytes(self) -> int:
        return slot_bytes(self.config, self.dtype, self.device)

    @property
    def arithmetic(self) -> torch.dtype:
        """The dtype of matrix products: that of the weights, unless ``lowered`` says another."""
        return self._lowered or self.token_embedding.weight.dtype

    @contextmanager
    def lowered(self, dtype: torch.dtype) -> Iterator[None]:
        """Multiply matrices in ``dtype`` inside: weights are cast once, here, and take their gradients as they are.

        Autocast would cast them in every micro-batch. Embeddings are looked up, norms computed and the residual stream
        summed in the weights' own dtype. Sharded weights are cast where they are gathered.
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

    def recompute_activations(self) -> None:
        """Keep only the input of each block for the backward pass, which then runs every block a second time."""
        for block in self._fast_blocks():
            block.recomputed = True

    def shard_units(self) -> list[ShardUnit]:
        """A block's norms, in float32 as one process reads them, then the block; embeddings are left to the rest."""
        return [
            unit
            for block in self._fast_blocks()
            for unit in (ShardUnit([block.norm_attention, block.norm_mlp], False), ShardUnit([block], True))
        ]

    def use_compiled_code(self, say: Callable[[str], None], backend: Backend = "inductor") -> None:
        """Compile what needs no other position, the loss over the vocabulary and, on CUDA, attention under masks.

        Attention stays outside of what is compiled otherwise, so that one compiled code serves every layer and mask.
        A line says where FlexAttention does not work.
        """
        self.pieces = compiled_pieces(backend)
        for block in self._fast_blocks():
            block.pieces = self.pieces
        device = self.token_embedding.weight.device
        if device.type != "cuda":
            return
        try:
            try_flex_attention(device)
            self.flexible = True
        except Exception as error:  # Triton's and torch's, of many kinds
            line = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            say(f"FlexAttention does not work here ({line}); masks go through torch's fused attention")

    def _fast_blocks(self) -> Iterator[FastBlock]:
        for block in self.blocks:
            assert isinstance(block, FastBlock)
            yield block


@lru_cache(maxsize=4)
def compiled_pieces(backend: Backend) -> Pieces:
    """The pieces compiled, one code a process: torch keeps compiled shapes with the function."""
    plain = Pieces()
    return Pieces(
        by_position(plain.attention_inputs, backend),
        by_position(plain.after_attention, backend),
        torch.compile(loss_to_gradient_in_one_pass_, backend=backend),
    )


def by_position(function: Callable[..., Tensor], backend: Backend) -> Callable[..., Tensor]:
    """``function(x, ...)`` compiled for [N, ...] positions instead of [B, T, ...]; as it was without gradients.

    With rows and positions in one dimension, a change of either is the same change of shape to the compiler.
    """
    compiled: Callable[..., Tensor] = torch.compile(function, backend=backend)

    def computed(*given: Any, lean: bool) -> Tensor:
        if not torch.is_grad_enabled():
            return function(*given, lean=lean)
        shape = given[0].shape[:-1]
        flat = [item.flatten(0, -2) if isinstance(item, Tensor) else item for item in given]
        return compiled(*flat, lean=lean).view(*shape, -1)

    return computed
