"""Rows read up to their read-out, and whatever is read after them: a cue, a target, candidates, an answer's tokens.

``RereadPrefill`` keeps the tokens and runs the model over whole rows again for every new one. It needs nothing of an
architecture but its forward pass, and is the reference for those that keep a cache (``cache.CachedPrefill``).

Shapes: B rows, T new tokens, S slots, D width. A slot is a place in a row; its position, which the model is told, is
the slot plus ``jump`` once the pauses are over.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from pausebench.config.groups import AttentionKind, PauseVisibility
from pausebench.model.attention import AttentionMask
from pausebench.pauses import Role, Rows

if TYPE_CHECKING:
    from pausebench.model.base import Model


@dataclass(frozen=True)
class Prefill(ABC):
    """Rows as far as they have been read.

    roles: int8 [B, S], those not yet read being the target's. slots: int64 [B], the first free one of each row.
    states: [B, T, D], of what was read last, whose first slot is ``first``. jump: the position of what comes next, less
    its slot.
    """

    model: Model
    kind: AttentionKind
    visibility: PauseVisibility
    roles: Tensor
    slots: Tensor
    states: Tensor
    first: Tensor | int
    jump: int

    @abstractmethod
    def read(self, tokens: Tensor, offset: int = 0) -> Tensor:
        """States [N, T, D] of int64 [N, T] tokens of the first N rows, ``offset`` slots after the first free one.

        They overwrite what was read there before. Padding on their right may pass the position table's end.
        """

    @abstractmethod
    def copy(self) -> Self:
        """The rows with memory of their own: what is read there leaves this one as it is."""

    @abstractmethod
    def keep_rows(self, rows: Tensor) -> Self:
        """Row i becomes what row ``rows[i]`` was (int64); no others are left, here neither."""

    @property
    def hidden(self) -> Tensor:
        """[B, D], what predicts the next token of each row."""
        rows = torch.arange(len(self.slots), device=self.slots.device)
        # ``states`` cover only what was read last, so a row's newest one is counted from ``first``.
        return self.states[rows, self.slots - 1 - self.first]

    def places(self, tokens: Tensor, offset: int) -> tuple[Tensor, Tensor]:
        """Slots and positions, int64 [N, T] each, of tokens that are read."""
        count, length = tokens.shape
        slots = self.slots[:count, None] + offset + torch.arange(length, device=tokens.device)
        return slots, (slots + self.jump).clamp_max_(self.model.config.max_positions - 1)

    def through(self, tokens: Tensor) -> Self:
        """The rows with int64 [B, T] tokens after each, or the same [T] after all."""
        if not tokens.shape[-1]:
            return self
        states = self.read(tokens.to(self.slots.device).expand(len(self.slots), -1))
        return replace(self, slots=self.slots + tokens.shape[-1], states=states, first=self.slots)

    def without_last(self, pauses: int, jump: int) -> Self:
        """The rows without their last ``pauses`` pauses, if those come last and nothing before sees them.

        What is read after them overwrites the others: of several M the largest comes first.
        """
        slots = self.slots - pauses
        behind = torch.arange(self.roles.shape[1], device=slots.device) >= slots[:, None]
        return replace(self, roles=self.roles.masked_fill(behind, Role.TARGET.value), slots=slots, jump=jump)


@dataclass(frozen=True)
class RereadPrefill(Prefill):
    """Rows kept as tokens.

    ids, positions: int64 [B, S]. readouts: bool [B, S].
    """

    ids: Tensor
    positions: Tensor
    readouts: Tensor

    @classmethod
    @torch.no_grad()
    def of(
        cls, model: Model, rows: Rows, kind: AttentionKind, visibility: PauseVisibility, capacity: int
    ) -> RereadPrefill:
        device, (batch, length) = model.device, rows.input_ids.shape
        # Slots past the position table are padding and never asked for; clamping keeps the look-up inside.
        counted = torch.arange(capacity, device=device).clamp_max_(model.config.max_positions - 1)
        ids, positions = torch.zeros(batch, capacity, dtype=torch.int64, device=device), counted.repeat(batch, 1)
        roles = torch.full((batch, capacity), Role.TARGET.value, dtype=torch.int8, device=device)
        readouts = torch.zeros(batch, capacity, dtype=torch.bool, device=device)
        ids[:, :length], roles[:, :length], readouts[:, :length] = (
            part.to(device) for part in (rows.input_ids, rows.roles, rows.readouts)
        )
        if rows.positions is not None:
            positions[:, :length] = rows.positions.to(device)
        slots, nothing = rows.lengths.to(device), ids.new_zeros(0)
        read = cls(model, kind, visibility, roles, slots, nothing, 0, rows.jump, ids, positions, readouts)
        return replace(read, states=read._states(batch, length))

    @torch.no_grad()
    def read(self, tokens: Tensor, offset: int = 0) -> Tensor:
        slots, positions = self.places(tokens, offset)
        rows = torch.arange(len(tokens), device=tokens.device)[:, None]
        # In place, like a cache: a second candidate overwrites the first, and ``copy`` is for those who want both.
        self.ids[rows, slots], self.positions[rows, slots] = tokens, positions
        # The slot may have been padding of a shorter row, or a pause that ``without_last`` took away.
        self.roles[rows, slots] = Role.TARGET.value
        return self._states(len(tokens), int(slots.max()) + 1)[rows, slots]

    def copy(self) -> RereadPrefill:
        return replace(self, ids=self.ids.clone(), positions=self.positions.clone(), roles=self.roles.clone())

    def keep_rows(self, rows: Tensor) -> RereadPrefill:
        kept = {
            name: getattr(self, name)[rows] for name in ("roles", "slots", "states", "ids", "positions", "readouts")
        }
        return replace(self, first=self.first if isinstance(self.first, int) else self.first[rows], **kept)

    def _states(self, rows: int, width: int) -> Tensor:
        """[rows, width, D] of the first rows and slots."""
        ids, roles, positions, readouts = (
            part[:rows, :width] for part in (self.ids, self.roles, self.positions, self.readouts)
        )
        # Everything again, the prefix too: no state is kept that could be wrong.
        mask = AttentionMask(self.kind, roles, visibility=self.visibility, readouts=readouts)
        states: Tensor = self.model(ids, mask, positions)
        return states
