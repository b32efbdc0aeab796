"""Who may attend to whom: one predicate, ``sees``, from which every form of a mask is made.

Dense masks compare all positions at once, FlexAttention asks for one pair at a time, and decoding compares new tokens
with what a cache holds. A new kind of attention is one more case in ``sees``.

Invariant: a position always sees itself, and no position of a target is ever seen by an earlier position. A visibility
other than ``all`` takes pauses away from what the kind allows and adds nothing.

Shapes: B rows, T queries, S keys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pausebench.config.groups import AttentionKind, PauseVisibility
from pausebench.pauses import Role


class Places(NamedTuple):
    """Positions of rows. Those of queries and of keys broadcast against each other.

    place: int64, where in the row. role: int8 of ``Role``; None where nobody asks for it. document: int64; None
    where a row is one document. readout: bool, and run: int64, the number of read-outs of the document before it;
    None where no position is the read-out.
    """

    place: Tensor
    role: Tensor | None = None
    document: Tensor | None = None
    readout: Tensor | None = None
    run: Tensor | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> Places:
        place, *others = self
        return Places(change(place), *(None if part is None else change(part) for part in others))


def sees(kind: AttentionKind, visibility: PauseVisibility, query: Places, key: Places) -> Tensor:
    """bool, of the shape that both broadcast to: whether a query may attend to a key."""
    # Right-padding needs no case of its own: nothing real comes after it.
    allowed = query.place >= key.place
    if kind is AttentionKind.causal and visibility is PauseVisibility.all:
        return allowed if query.document is None else allowed & (query.document == key.document)
    assert query.role is not None and key.role is not None
    if kind is AttentionKind.bidirectional:
        # Prefix and pauses see each other whole; PREFIX and PAUSE are the two lowest roles.
        allowed = allowed | ((query.role <= Role.PAUSE.value) & (key.role <= Role.PAUSE.value))
    elif kind is AttentionKind.bottleneck:
        allowed = allowed & ~((query.role == Role.TARGET.value) & (key.role == Role.PREFIX.value))
    if visibility is not PauseVisibility.all:
        # Otherwise a pause is hidden from everyone but itself and, with ``readout``, the read-out of its own run.
        exempt = query.place == key.place
        if query.readout is not None:
            assert query.run is not None and key.run is not None
            exempt = exempt | (query.readout & (query.run == key.run))
        allowed = allowed & (exempt | (key.role != Role.PAUSE.value))
    return allowed if query.document is None else allowed & (query.document == key.document)


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
        # Found here rather than in a kernel: a mask without roles would silently be causal.
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
        places = self.places()
        query, key = places.each(lambda part: part[:, :, None]), places.each(lambda part: part[:, None, :])
        return sees(self.kind, self.visibility, query, key)[:, None]

    def places(self) -> Places:
        """Every position of the rows, [B, T], for ``sees``; no roles in rows that need none."""
        some = self.roles if self.roles is not None else self.documents
        assert some is not None
        index = torch.arange(some.shape[1], device=some.device)[None]
        if self.visibility is not PauseVisibility.readout:
            return Places(index, self.roles, self.documents)
        return Places(index, self.roles, self.documents, self.readouts, self.runs())

    def runs(self) -> Tensor:
        """int64 [B, T]: how many read-outs stand before a position of its document; its own read-out has as many."""
        assert self.readouts is not None
        marked = self.readouts.to(torch.int64)
        if self.documents is None:
            return marked.cumsum(1) - marked
        # Counted in document order and put back: one cumulative sum over the row would count the read-outs of others.
        order = self.documents.argsort(dim=1, stable=True)  # a document need not stand in one piece
        marked = marked.gather(1, order)
        return torch.empty_like(marked).scatter_(1, order, marked.cumsum(1) - marked)


def decoding_mask(
    kind: AttentionKind, key_roles: Tensor, slots: Tensor, visibility: PauseVisibility = PauseVisibility.all
) -> Tensor:
    """bool [B, 1, T, S]: what new target tokens in ``slots``, [B, T] or [B] for one a row, see of a cache.

    They come after the read-out, so they never see a pause that is not visible to all. key_roles: int8 [B, S], those
    of the cache's keys; slots past a token's own are not yet written and stay unseen.
    """
    slots = slots.view(len(slots), -1)
    # A new token belongs to the target, whatever the slot held before.
    index = torch.arange(key_roles.shape[1], device=key_roles.device)
    query = Places(slots[:, :, None], torch.full_like(key_roles[:, :1, None], Role.TARGET.value))
    return sees(kind, visibility, query, Places(index, key_roles[:, None]))[:, None]


def split_heads(x: Tensor, n_heads: int) -> Tensor:
    """[B, T, D] -> [B, H, T, D/H]"""
    return x.view(*x.shape[:2], n_heads, -1).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """[B, H, T, D/H] -> [B, T, D]"""
    return x.transpose(1, 2).flatten(2)


def placed(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on the device. Where that is a GPU, the copy is made behind what the GPU still has to do: a copy from
    memory that is not pinned would make this process wait for all of it."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    # Pinning copies once more on the CPU, which is idle; an unpinned copy stalls the GPU's queue.
    return tensor.pin_memory().to(device, non_blocking=True)
