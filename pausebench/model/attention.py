"""Who may attend to whom: every mask of the project behind one class.

Invariant: a position always sees itself, and no position of a target is ever seen by an earlier position. A visibility
other than ``all`` takes pauses away from what the kind allows and adds nothing.

Shapes: B rows, T queries, S keys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pausebench.config.groups import AttentionKind, PauseVisibility
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


def split_heads(x: Tensor, n_heads: int) -> Tensor:
    """[B, T, D] -> [B, H, T, D/H]"""
    return x.view(*x.shape[:2], n_heads, -1).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """[B, H, T, D/H] -> [B, T, D]"""
    return x.transpose(1, 2).flatten(2)


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


def placed(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on the device. Where that is a GPU, the copy is made behind what the GPU still has to do: a copy from
    memory that is not pinned would make this process wait for all of it."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
