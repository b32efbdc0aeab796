"""Prefix and pauses read once, and what is read behind them: a cue, a target, candidates, an answer's tokens.

Invariant: a token read behind the cached positions gets the state that one pass over the whole row gives it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pausebench.groups import AttentionKind, PauseVisibility
from pausebench.model.attention import AttentionMask, decoding_mask
from pausebench.model.cache import KeyValueCache
from pausebench.model.decoder import Decoder
from pausebench.pauses import Role, Rows


@dataclass(frozen=True)
class Prefill:
    """Rows as far as they have been read.

    cache: their keys and values. roles: int8 [B, S] of the cache's slots, those not yet written being the target's.
    slots: int64 [B], the first slot behind each row. states: [B, T, D], of what was read last, whose first slot is
    ``first``. jump: the position of what comes next, less its slot.
    """

    model: Decoder
    kind: AttentionKind
    visibility: PauseVisibility
    cache: KeyValueCache
    roles: Tensor
    slots: Tensor
    states: Tensor
    first: Tensor | int
    jump: int

    @property
    def hidden(self) -> Tensor:
        """[B, D], what predicts the next token of each row."""
        rows = torch.arange(len(self.slots), device=self.slots.device)
        return self.states[rows, self.slots - 1 - self.first]

    @torch.no_grad()
    def read(self, tokens: Tensor, offset: int = 0) -> Tensor:
        """States [N, T, D] of int64 [N, T] tokens of the first N rows, ``offset`` slots behind the first free one.

        They overwrite what was read there before. Padding on their right may pass the position table's end.
        """
        count, length = tokens.shape
        slots = self.slots[:count, None] + offset + torch.arange(length, device=tokens.device)
        width = int(slots.max()) + 1
        seen = decoding_mask(self.kind, self.roles[:count, :width], slots, self.visibility)
        positions = (slots + self.jump).clamp_max_(self.model.config.max_positions - 1)
        states: Tensor = self.model(tokens, None, positions, self.cache.first_rows(count), seen, slots)
        return states

    def through(self, cue: Tensor) -> Prefill:
        """The rows with the same cue, int64 [C], behind each."""
        if not len(cue):
            return self
        states = self.read(cue.to(self.slots.device).expand(len(self.slots), -1))
        return replace(self, slots=self.slots + len(cue), states=states, first=self.slots)

    def without_last(self, pauses: int, jump: int) -> Prefill:
        """The rows without so many of their last pauses, where those stand last and nothing before sees them.

        What is read behind them overwrites the others: of several M the largest comes first.
        """
        slots = self.slots - pauses
        behind = torch.arange(self.roles.shape[1], device=slots.device) >= slots[:, None]
        return replace(self, roles=self.roles.masked_fill(behind, Role.TARGET.value), slots=slots, jump=jump)

    def copy(self) -> Prefill:
        """The rows with a cache of their own: what is read there leaves this one as it is."""
        return replace(self, cache=self.cache.copy(int(self.slots.max())))


LIKE_LENGTH = 0.85  # rows read in one pass have at least this share of the longest one's positions


@torch.no_grad()
def prefill(model: Decoder, rows: Rows, kind: AttentionKind, visibility: PauseVisibility, capacity: int) -> Prefill:
    """Rows of ``pauses.inference_rows`` read in parallel, like lengths in one pass; the cache takes ``capacity``."""
    device = model.token_embedding.weight.device
    batch, length = rows.input_ids.shape
    cache = KeyValueCache(model.config, batch, capacity, model.token_embedding.weight.dtype, device)
    states = torch.empty(batch, length, model.config.d_model, dtype=model.token_embedding.weight.dtype, device=device)
    for some in _of_like_length(rows.lengths):
        width = int(rows.lengths[some].max())
        cut = [None if part is None else part[some, :width] for part in (rows.roles, rows.readouts, rows.positions)]
        roles, readouts, positions = (None if part is None else part.to(device) for part in cut)
        mask = AttentionMask(kind, roles, visibility=visibility, readouts=readouts)
        places = some.to(device)
        read = model(rows.input_ids[some, :width].to(device), mask, positions, cache.filling(places))
        states[places, :width] = read
    roles = torch.full((batch, capacity), Role.TARGET.value, dtype=torch.int8, device=device)
    roles[:, :length] = rows.roles.to(device)
    return Prefill(model, kind, visibility, cache, roles, rows.lengths.to(device), states, 0, rows.jump)


def _of_like_length(lengths: Tensor) -> Iterator[Tensor]:
    """Numbers of the rows of each pass, int64: padding is read like text and costs as much."""
    order = lengths.argsort(descending=True, stable=True)
    listed = lengths[order].tolist()
    begin = 0
    while begin < len(listed):
        count = sum(size >= LIKE_LENGTH * listed[begin] for size in listed[begin:])
        yield order[begin : begin + count].sort().values
        begin += count
