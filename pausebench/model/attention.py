"""Who may attend to whom: every mask of the project behind one class.

Invariant: a position always sees itself, and no position of a target is ever seen by an earlier position. A visibility
other than ``all`` takes pauses away from what the kind allows and adds nothing.

Shapes: B rows, T queries, S keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from pausebench.config.groups import AttentionKind, PauseVisibility
from pausebench.model.blockwise import BlockwiseAttention
from pausebench.pauses import Role


@dataclass(frozen=True)
class AttentionMask:
    """A mask as data.

    roles: int8 [B, T] of ``Role``, unused by causal rows whose pauses all may see. documents: int64 [B, T] or None;
    positions of different documents never see each other (packed rows). readouts: bool [B, T], needed where
    ``visibility`` is readout; a pause's is the first marked position at or after it in its document.
    """

    kind: AttentionKind
    roles: Tensor | None = None
    documents: Tensor | None = None
    visibility: PauseVisibility = PauseVisibility.all
    readouts: Tensor | None = None

    def __post_init__(self) -> None:
        plain = self.kind is AttentionKind.causal and self.visibility is PauseVisibility.all
        assert plain or self.roles is not None
        assert self.visibility is not PauseVisibility.readout or self.readouts is not None

    def _each(self, change: Callable[[Tensor], Tensor]) -> AttentionMask:
        roles, documents, readouts = (
            None if tensor is None else change(tensor) for tensor in (self.roles, self.documents, self.readouts)
        )
        return AttentionMask(self.kind, roles, documents, self.visibility, readouts)

    def narrow(self, start: int, count: int) -> AttentionMask:
        """The same mask for rows ``start`` to ``start + count`` of the batch."""
        return self._each(lambda tensor: tensor.narrow(0, start, count))

    def pick(self, rows: Tensor) -> AttentionMask:
        """The same mask for these rows (int64) of the batch."""
        return self._each(lambda tensor: tensor[rows])

    def to(self, device: torch.device) -> AttentionMask:
        return self._each(lambda tensor: placed(tensor, device))

    @property
    def is_causal(self) -> bool:
        """Whether nothing but the future is hidden. Right-padding needs no mask: nothing real comes after it."""
        plain = self.kind is AttentionKind.causal and self.visibility is PauseVisibility.all
        return plain and self.documents is None

    def dense(self) -> Tensor | None:
        """bool [B, 1, T, T], True where query (dim 2) may see key (dim 3); None for plain causal rows."""
        if self.is_causal:
            return None
        shape = self.roles if self.roles is not None else self.documents
        assert shape is not None
        length = shape.shape[1]
        allowed = torch.ones(length, length, dtype=torch.bool, device=shape.device).tril_()[None]
        if self.kind is AttentionKind.bidirectional:
            assert self.roles is not None
            prefix_side = self.roles <= Role.PAUSE.value
            allowed = allowed | (prefix_side[:, :, None] & prefix_side[:, None, :])
        elif self.kind is AttentionKind.bottleneck:
            assert self.roles is not None
            allowed = allowed & ~(
                (self.roles == Role.TARGET.value)[:, :, None] & (self.roles == Role.PREFIX.value)[:, None, :]
            )
        if self.visibility is not PauseVisibility.all:
            assert self.roles is not None
            seen = torch.eye(length, dtype=torch.bool, device=shape.device)[None]
            if self.visibility is PauseVisibility.readout:
                assert self.readouts is not None
                run = self.runs()
                seen = seen | (self.readouts[:, :, None] & (run[:, :, None] == run[:, None, :]))
            allowed = allowed & (seen | (self.roles != Role.PAUSE.value)[:, None, :])
        if self.documents is not None:
            allowed = allowed & (self.documents[:, :, None] == self.documents[:, None, :])
        return allowed[:, None]

    def runs(self) -> Tensor:
        """int64 [B, T]: how many read-outs stand before a position of its document; its own read-out has as many."""
        assert self.readouts is not None
        marked = self.readouts.to(torch.int64)
        if self.documents is None:
            return marked.cumsum(1) - marked
        order = self.documents.argsort(dim=1, stable=True)  # a document need not stand in one piece
        marked = marked.gather(1, order)
        return torch.empty_like(marked).scatter_(1, order, marked.cumsum(1) - marked)


class DocumentGroup(NamedTuple):
    """Documents of like length, each in a row of its own for attention.

    places: int64 [N, L], where a document's tokens stand in the flattened batch; padding repeats the first token. real:
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


LIKE_LENGTH = 0.7  # documents of a group have at least this share of the longest one's length


def take_apart(mask: AttentionMask) -> Documents:
    """The documents of packed rows; a document number of -1 is padding. Asks for sizes: give it a mask on the CPU."""
    assert mask.documents is not None
    rows, length = mask.documents.shape
    device = mask.documents.device
    numbers = mask.documents + torch.arange(rows, device=device)[:, None] * (int(mask.documents.max()) + 1)
    flat = numbers.masked_fill(mask.documents < 0, -1).flatten()
    order = flat.argsort(stable=True)[int((flat < 0).sum()) :]  # real positions, document by document
    sizes = torch.unique_consecutive(flat[order], return_counts=True)[1]
    starts = sizes.cumsum(0) - sizes
    by_size = sizes.argsort(descending=True, stable=True)
    groups, taken = [], 0
    listed = sizes[by_size].tolist()
    while taken < len(listed):
        longest = listed[taken]
        count = sum(size >= LIKE_LENGTH * longest for size in listed[taken:])
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
    inverse = torch.zeros(rows * length, dtype=torch.int64, device=device)
    real = torch.cat([group.real.flatten() for group in groups])
    inverse[torch.cat([group.places.flatten() for group in groups])[real]] = real.nonzero()[:, 0]
    return Documents(groups, inverse)


def attend_documents(q: Tensor, k: Tensor, v: Tensor, n_heads: int, documents: Documents) -> Tensor:
    """``attend`` for packed rows: [B, T, D] each -> [B, T, D]."""
    shape, flat = q.shape, torch.cat([q, k, v], dim=2).flatten(0, 1)
    attended = []
    for group in documents.groups:
        rows = flat.index_select(0, group.places.flatten()).view(*group.places.shape, 3, -1)
        q, k, v = rows.unbind(dim=2)
        attended.append(attend(q, k, v, n_heads, group.allowed).flatten(0, 1))
    return torch.cat(attended).index_select(0, documents.inverse).view(shape)


def decoding_mask(
    kind: AttentionKind, key_roles: Tensor, slots: Tensor, visibility: PauseVisibility = PauseVisibility.all
) -> Tensor:
    """bool [B, 1, T, S]: what new target tokens in ``slots``, [B, T] or [B] for one a row, see of a cache.

    They stand behind the read-out, so they never see a pause that is not visible to all. key_roles: int8 [B, S], those
    of the cache's keys; entries past a token's slot are not yet written and stay unseen.
    """
    slots = slots.view(len(slots), -1)
    allowed = torch.arange(key_roles.shape[1], device=key_roles.device) <= slots[:, :, None]
    if kind is AttentionKind.bottleneck:
        allowed = allowed & (key_roles != Role.PREFIX.value)[:, None]
    if visibility is not PauseVisibility.all:
        allowed = allowed & (key_roles != Role.PAUSE.value)[:, None]
    return allowed[:, None]


BLOCKWISE = ("cpu",)  # devices on which bf16 goes through ``blockwise`` instead of torch's fused kernel
SMALL_SCORES = 64 * 64  # below this many scores a head, plain products beat the fused kernel on a CPU by half


def attend(q: Tensor, k: Tensor, v: Tensor, n_heads: int, allowed: Tensor | None) -> Tensor:
    """Multi-head scaled dot-product attention: [B, T, D], [B, S, D], [B, S, D] -> [B, T, D].

    ``allowed`` is bool, broadcastable to [B, H, T, S]; None is causal, the T queries being the last of the S keys.
    """
    B, T, D = q.shape
    S, H = k.shape[1], n_heads
    if q.device.type == "cpu" and q.dtype is not torch.bfloat16 and T * S <= SMALL_SCORES:
        bias = causal_bias(T, S).to(q.dtype)
        if allowed is not None:
            bias = hidden_bias(allowed, q.dtype).expand(B, H, T, S).reshape(B * H, T, S)
        if H > 1:
            q, k, v = (split_heads(part, H).flatten(0, 1) for part in (q, k, v))
        scores = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=1 / math.sqrt(D // H))
        attended: Tensor = torch.bmm(scores.softmax(dim=2), v)
        return attended if H == 1 else merge_heads(attended.view(B, H, T, -1))
    if q.device.type in BLOCKWISE and q.dtype is torch.bfloat16 and T > 1:
        blockwise: Callable[..., Tensor] = BlockwiseAttention.apply
        return blockwise(q, k, v, H, None if allowed is None else hidden_bias(allowed, q.dtype))
    q, k, v = (split_heads(part, H) for part in (q, k, v))
    if allowed is None and T == S:
        return merge_heads(F.scaled_dot_product_attention(q, k, v, is_causal=True))
    if allowed is None and T > 1:
        allowed = causal_bias(T, S).to(q.device) == 0
    return merge_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=allowed))


def hidden_bias(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where ``allowed``, -inf elsewhere: what is added to scores."""
    return torch.zeros_like(allowed, dtype=dtype).masked_fill_(~allowed, -math.inf)


def split_heads(x: Tensor, n_heads: int) -> Tensor:
    """[B, T, D] -> [B, H, T, D/H]"""
    return x.view(*x.shape[:2], n_heads, -1).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """[B, H, T, D/H] -> [B, T, D]"""
    return x.transpose(1, 2).flatten(2)


@lru_cache(maxsize=64)
def causal_bias(T: int, S: int) -> Tensor:
    """float32 [T, S]: 0 where the i-th of the last T positions may look, -inf elsewhere."""
    return torch.full((T, S), -math.inf).triu_(S - T + 1)


# ------------------------------
# Attention under a mask by FlexAttention: one compiled kernel that skips what a mask hides, for CUDA devices.


def block_mask(mask: AttentionMask) -> BlockMask:
    """A mask that hides something beside the future, [B, T, T], in the blocks of the kernel."""
    shape = mask.roles if mask.roles is not None else mask.documents
    assert shape is not None
    B, T = shape.shape
    create = _compiled(create_block_mask) if shape.is_cuda else create_block_mask
    made: BlockMask = create(sees(mask), B, None, T, T, device=shape.device)
    return made


def sees(mask: AttentionMask) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """``AttentionMask.dense`` as a function of row, head, query and key."""
    kind, visibility, roles, documents, readouts = (
        mask.kind,
        mask.visibility,
        mask.roles,
        mask.documents,
        mask.readouts,
    )
    runs = mask.runs() if visibility is PauseVisibility.readout else None

    def allowed(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        seen = q >= k
        if kind is AttentionKind.bidirectional:
            assert roles is not None
            seen = seen | ((roles[b, q] <= Role.PAUSE.value) & (roles[b, k] <= Role.PAUSE.value))
        elif kind is AttentionKind.bottleneck:
            assert roles is not None
            seen = seen & ~((roles[b, q] == Role.TARGET.value) & (roles[b, k] == Role.PREFIX.value))
        if visibility is not PauseVisibility.all:
            assert roles is not None
            by = q == k
            if runs is not None and readouts is not None:
                by = by | (readouts[b, q] & (runs[b, q] == runs[b, k]))
            seen = seen & (by | (roles[b, k] != Role.PAUSE.value))
        if documents is not None:
            seen = seen & (documents[b, q] == documents[b, k])
        return seen

    return allowed


def attend_flexibly(q: Tensor, k: Tensor, v: Tensor, n_heads: int, mask: BlockMask) -> Tensor:
    """``attention.attend``: [B, T, D] each -> [B, T, D]."""
    attention: Any = _compiled(flex_attention) if q.is_cuda else flex_attention
    out: Tensor = attention(*(split_heads(part, n_heads) for part in (q, k, v)), block_mask=mask)
    return merge_heads(out)


@lru_cache(maxsize=2)
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True)


# ------------------------------
# How tensors get to the device.


def placed(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on the device. Where that is a GPU, the copy is made behind what the GPU still has to do: a copy from
    memory that is not pinned would make this process wait for all of it."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
