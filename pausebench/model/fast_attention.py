"""Faster ways to compute attention than one product over a dense mask; each gives the same up to rounding.

- Small scores on a CPU: plain products, which beat torch's fused kernel by half.
- bf16 on a CPU: blocks of queries (``BlockwiseAttention``).
- Packed rows: their documents taken apart (``take_apart``), so that attention costs what the documents cost.
- Masks on CUDA: FlexAttention, one compiled kernel that skips what a mask hides.

Shapes: B rows, H heads, T queries, the last of S keys, D = H x width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from pausebench.config.groups import AttentionKind
from pausebench.model.attention import AttentionMask, Places, merge_heads, placed, sees, split_heads
from pausebench.model.tuning import TUNING, Tuning
from pausebench.pauses import Role


def attend(q: Tensor, k: Tensor, v: Tensor, n_heads: int, allowed: Tensor | None, tuning: Tuning = TUNING) -> Tensor:
    """Multi-head scaled dot-product attention: [B, T, D], [B, S, D], [B, S, D] -> [B, T, D].

    ``allowed`` is bool, broadcastable to [B, H, T, S]; None is causal, the T queries being the last of the S keys.
    """
    B, T, D = q.shape
    S, H = k.shape[1], n_heads
    if q.device.type == "cpu" and q.dtype is not torch.bfloat16 and tuning.small_scores >= T * S:
        bias = causal_bias(T, S, q.dtype)
        if allowed is not None:
            bias = hidden_bias(allowed, q.dtype).expand(B, H, T, S).reshape(B * H, T, S)
        # A single head is already laid out as the product wants it.
        if H > 1:
            q, k, v = (split_heads(part, H).flatten(0, 1) for part in (q, k, v))
        scores = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=1 / math.sqrt(D // H))
        attended: Tensor = torch.bmm(scores.softmax(dim=2), v)
        return attended if H == 1 else merge_heads(attended.view(B, H, T, -1))
    if q.device.type in tuning.blockwise and q.dtype is torch.bfloat16 and T > 1:
        blockwise: Callable[..., Tensor] = BlockwiseAttention.apply
        return blockwise(q, k, v, H, None if allowed is None else hidden_bias(allowed, q.dtype), tuning)
    q, k, v = (split_heads(part, H) for part in (q, k, v))
    # ``is_causal`` lets the kernel skip what is hidden; an explicit mask does not.
    if allowed is None and T == S:
        return merge_heads(F.scaled_dot_product_attention(q, k, v, is_causal=True))
    # torch's ``is_causal`` lines up the first query with the first key, ours is lined up at the ends.
    if allowed is None and T > 1:
        allowed = causal_bias(T, S).to(q.device) == 0
    return merge_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=allowed))


def hidden_bias(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where ``allowed``, -inf elsewhere: what is added to scores."""
    return torch.zeros_like(allowed, dtype=dtype).masked_fill_(~allowed, -math.inf)


@lru_cache(maxsize=64)
def causal_bias(T: int, S: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """[T, S]: 0 where the i-th of the last T positions may look, -inf elsewhere."""
    return torch.full((T, S), -math.inf, dtype=dtype).triu_(S - T + 1)


class BlockwiseAttention(torch.autograd.Function):
    """softmax(q k / sqrt(width) + bias) v, exact, in blocks of queries, for bf16 on a CPU.

    torch's fused kernel for CPUs is one loop over small tiles; large products and the vectorised softmax take half of
    its time, and causal rows skip the keys behind a block. Scores are rounded to bf16, as in transformers' eager
    attention; the gradient is as close to float32's as the fused kernel's. Only queries, keys and values are kept for
    the backward pass.

    q: [B, T, D]; k, v: [B, S, D]. bias: [B, 1, T, S] in their dtype, 0 or -inf; None is causal.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, n_heads: int, bias: Tensor | None, tuning: Tuning) -> Tensor:
        B, T, D = q.shape
        heads = q, k, v = [_split(part, n_heads) for part in (q, k, v)]
        out = q.new_empty(B, T, n_heads, D // n_heads)
        for begin, end, seen in query_blocks(T, k.shape[1], bias is None, tuning):
            weights = _weights(q[:, begin:end], k[:, :seen], bias, begin, end)
            attended = torch.bmm(weights, v[:, :seen])
            out[:, begin:end] = attended.view(B, n_heads, end - begin, -1).transpose(1, 2)
        ctx.save_for_backward(*heads, bias)
        ctx.tuning = tuning
        return out.flatten(2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias = ctx.saved_tensors
        B, T, D = upstream.shape
        H, S = len(q) // B, k.shape[1]
        scale = 1 / math.sqrt(D // H)
        # Everything below is by head; one contiguous copy here saves strided products in each block.
        upstream = _split(upstream, H)
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for begin, end, seen in query_blocks(T, S, bias is None, ctx.tuning):
            # Weights are computed again: kept for all blocks, they would be the T x S tensor that blocks avoid.
            weights = _weights(q[:, begin:end], k[:, :seen], bias, begin, end)
            given = upstream[:, begin:end]
            dv[:, :seen] += torch.bmm(weights.transpose(1, 2), given)
            # torch has no public gradient of softmax; this operator is the one that autograd itself calls.
            dscores = torch.ops.aten._softmax_backward_data(
                torch.bmm(given, v[:, :seen].transpose(1, 2)), weights, -1, weights.dtype
            )
            torch.bmm(dscores, k[:, :seen], out=dq[:, begin:end])
            dk[:, :seen] += torch.bmm(dscores.transpose(1, 2), q[:, begin:end])
        return _merge(dq.mul_(scale), B), _merge(dk.mul_(scale), B), _merge(dv, B), None, None, None


def query_blocks(T: int, S: int, causal: bool, tuning: Tuning = TUNING) -> Iterator[tuple[int, int, int]]:
    """(first query, end of queries, keys that they may see) of each block; one block where the mask is not causal."""
    # Blocks pay because causal rows skip the keys behind them. Under other masks there is nothing to skip.
    size = max(tuning.least_queries, -(-T // tuning.most_blocks)) if causal else T
    for begin in range(0, T, size):
        end = min(T, begin + size)
        yield begin, end, S - T + end if causal else S


def _weights(q: Tensor, k: Tensor, bias: Tensor | None, begin: int, end: int) -> Tensor:
    """Softmax of the scores of a block: [B H, end - begin, keys]."""
    shape = (len(q), end - begin, k.shape[1])
    if bias is None:
        bias = causal_bias(*shape[1:], q.dtype)
    else:
        bias = bias[:, :, begin:end].expand(-1, len(q) // len(bias), -1, -1).reshape(shape)
    return torch.baddbmm(bias, q, k.transpose(1, 2), alpha=1 / math.sqrt(q.shape[2])).softmax(dim=2)


def _split(x: Tensor, n_heads: int) -> Tensor:
    """[B, T, D] -> [B H, T, D / H], contiguous."""
    return x.view(*x.shape[:2], n_heads, -1).transpose(1, 2).reshape(-1, x.shape[1], x.shape[2] // n_heads)


def _merge(x: Tensor, rows: int) -> Tensor:
    """[B H, T, D / H] -> [B, T, D]"""
    return x.view(rows, -1, *x.shape[1:]).transpose(1, 2).flatten(2)


class DocumentGroup(NamedTuple):
    """Documents of like length, each in a row of its own for attention.

    places: int64 [N, L], where a document's tokens are in the flattened batch; padding repeats the first token. real:
    bool [N, L]. allowed: as ``AttentionMask.dense`` for these N rows.
    """

    places: Tensor
    real: Tensor
    allowed: Tensor | None


class Documents(NamedTuple):
    """Packed rows taken apart: attention costs what the documents cost, not the square of the row.

    inverse: int64 [B * T], each position's place among the places of all groups in order; padding, which belongs to no
    document, takes the first.
    """

    groups: list[DocumentGroup]
    inverse: Tensor

    def to(self, device: torch.device) -> Documents:
        groups = [
            DocumentGroup(*(None if tensor is None else placed(tensor, device) for tensor in group))  # type: ignore[arg-type]
            for group in self.groups
        ]
        return Documents(groups, placed(self.inverse, device))


def take_apart(mask: AttentionMask, like_length: float = TUNING.like_length) -> Documents:
    """The documents of packed rows; a document number of -1 is padding. Asks for sizes: give it a mask on the CPU."""
    assert mask.documents is not None
    rows, length = mask.documents.shape
    device = mask.documents.device
    # Numbers are a row's own: the same number in another row is another document.
    numbers = mask.documents + torch.arange(rows, device=device)[:, None] * (int(mask.documents.max()) + 1)
    flat = numbers.masked_fill(mask.documents < 0, -1).flatten()
    # Stable, so that a document's positions keep their order.
    order = flat.argsort(stable=True)[int((flat < 0).sum()) :]  # real positions, document by document
    sizes = torch.unique_consecutive(flat[order], return_counts=True)[1]
    starts = sizes.cumsum(0) - sizes
    # The longest first: each group is padded to its first document.
    by_size = sizes.argsort(descending=True, stable=True)
    groups, taken = [], 0
    listed = sizes[by_size].tolist()
    while taken < len(listed):
        longest = listed[taken]
        count = sum(size >= like_length * longest for size in listed[taken:])
        chosen = by_size[taken : taken + count]
        t = torch.arange(longest, device=device)
        real = t < sizes[chosen][:, None]
        places = order[starts[chosen][:, None] + torch.where(real, t, 0)]
        roles = readouts = None
        if mask.roles is not None:
            roles = mask.roles.flatten()[places].masked_fill(~real, Role.PADDING.value)
        if mask.readouts is not None:
            readouts = mask.readouts.flatten()[places] & real
        alone = AttentionMask(mask.kind, roles, visibility=mask.visibility, readouts=readouts)
        groups.append(DocumentGroup(places, real, alone.dense()))
        taken += count
    # Padding reads some real position's result. It is never supervised, so that its gradient is zero.
    inverse = torch.zeros(rows * length, dtype=torch.int64, device=device)
    real = torch.cat([group.real.flatten() for group in groups])
    inverse[torch.cat([group.places.flatten() for group in groups])[real]] = real.nonzero()[:, 0]
    return Documents(groups, inverse)


def attend_documents(
    q: Tensor, k: Tensor, v: Tensor, n_heads: int, documents: Documents, tuning: Tuning = TUNING
) -> Tensor:
    """``attend`` for packed rows: [B, T, D] each -> [B, T, D]."""
    # One gather of queries, keys and values side by side; three of them take longer, and so do their gradients.
    shape, flat = q.shape, torch.cat([q, k, v], dim=2).flatten(0, 1)
    attended = []
    for group in documents.groups:
        rows = flat.index_select(0, group.places.flatten()).view(*group.places.shape, 3, -1)
        q, k, v = rows.unbind(dim=2)
        attended.append(attend(q, k, v, n_heads, group.allowed, tuning).flatten(0, 1))
    return torch.cat(attended).index_select(0, documents.inverse).view(shape)


def block_mask(mask: AttentionMask) -> BlockMask:
    """A mask that hides something beside the future, [B, T, T], in the blocks of FlexAttention's kernel."""
    shape = mask.roles if mask.roles is not None else mask.documents
    assert shape is not None
    kind, visibility, (_, *given) = mask.kind, mask.visibility, mask.places()

    def allowed(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        query, key = (Places(at, *(None if part is None else part[b, at] for part in given)) for at in (q, k))
        return sees(kind, visibility, query, key)

    # Uncompiled, the mask is made as a dense [B, T, T] first; on a GPU that memory is what the kernel avoids.
    create = _compiled(create_block_mask) if shape.is_cuda else create_block_mask
    B, T = shape.shape
    made: BlockMask = create(allowed, B, None, T, T, device=shape.device)
    return made


def attend_flexibly(q: Tensor, k: Tensor, v: Tensor, n_heads: int, mask: BlockMask) -> Tensor:
    """``attend`` by FlexAttention: [B, T, D] each -> [B, T, D]."""
    attention: Any = _compiled(flex_attention) if q.is_cuda else flex_attention
    out: Tensor = attention(*(split_heads(part, n_heads) for part in (q, k, v)), block_mask=mask)
    return merge_heads(out)


def try_flex_attention(device: torch.device) -> None:
    """Compile FlexAttention on something small, forward and backward, in bf16; raises what torch and Triton raise."""
    roles = torch.zeros(1, 256, dtype=torch.int8, device=device)
    # Two of the kernel's blocks of 128 positions.
    x = torch.ones(1, 256, 64, dtype=torch.bfloat16, device=device, requires_grad=True)
    out = attend_flexibly(x, x, x, 1, block_mask(AttentionMask(AttentionKind.bidirectional, roles)))
    torch.autograd.grad(out.sum(), x)


@lru_cache(maxsize=2)
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True)
