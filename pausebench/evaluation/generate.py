"""Greedy decoding after one parallel pass over prefix + M pauses (section 3.1), with a key-value cache.

Invariant: ``<pause>`` is never emitted, and a row's answer does not depend on the rows beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pausebench.config.groups import AttentionKind, PauseVisibility
from pausebench.data.examples import Tokens
from pausebench.data.tokenizer import pad
from pausebench.model.attention import AttentionMask, decoding_mask
from pausebench.model.cache import KeyValueCache
from pausebench.model.fast import FastDecoder
from pausebench.pauses import Role, Rows


class Answer(NamedTuple):
    """Token ids without the end token that stops them; mean log-probability of what was decoded, the end too.

    The mean is 0 where it was not asked for.
    """

    tokens: list[int]
    mean_log_probability: float


def generate(
    model: FastDecoder,
    rows: Rows,
    kind: AttentionKind,
    *,
    max_new_tokens: int,
    end_id: int,
    pause_id: int,
    limit: int | None = None,
    visibility: PauseVisibility = PauseVisibility.all,
    means: bool = True,
) -> list[Answer]:
    """Each row's answer; ``means`` as in ``decode``.

    ``rows`` come from ``pauses.inference_rows``; the last position of each row predicts its first answer token. A row
    that has ended leaves the batch; so does one that has reached ``limit`` positions (None: the position table's end).
    A token's slot in the cache is its place in the row; where the row's positions jump, so does its position.
    """
    limit = model.config.max_positions if limit is None else limit
    read = prefill(model, rows, kind, visibility, rows.input_ids.shape[1] + max_new_tokens)
    return decode(read, max_new_tokens=max_new_tokens, end_id=end_id, pause_id=pause_id, limit=limit, means=means)


@torch.no_grad()
def decode(
    read: Prefill, *, max_new_tokens: int, end_id: int, pause_id: int, limit: int, means: bool = True
) -> list[Answer]:
    """Each row's answer behind what was read, as in ``generate``; rows that leave are lost from the cache.

    means: whether the answers' mean log-probabilities are wanted. They cost a softmax over the vocabulary a token.
    """
    model, cache, hidden, slots, roles = read.model, read.cache, read.hidden, read.slots, read.roles
    device, batch = slots.device, len(slots)
    alive = torch.arange(batch, device=device)
    answers = torch.full((batch, max_new_tokens), end_id, device=device)
    counts = torch.zeros(batch, dtype=torch.int64, device=device)
    sums = torch.zeros(batch, dtype=torch.float64, device=device)
    width = int(slots.max())
    for index in range(max_new_tokens):
        logits = model.logits(hidden)
        tokens = greedy(logits, pause_id)
        if means:
            sums[alive] += logits.double().log_softmax(dim=1).gather(1, tokens[:, None])[:, 0]
        answers[alive, index] = tokens
        counts[alive] += 1
        going_on = (tokens != end_id) & (slots + read.jump < limit)
        left = int(going_on.sum())
        if left == 0 or index == max_new_tokens - 1:
            break
        if left < len(tokens):
            kept = _closed_up(going_on, left)
            alive, tokens, slots, roles = alive[kept], tokens[kept], slots[kept], roles[kept]
            cache.keep_rows(kept)
        width += 1  # no row is further on
        seen = decoding_mask(read.kind, roles[:, :width], slots, read.visibility)
        positions = slots[:, None] + read.jump
        hidden = model(tokens[:, None], None, positions, cache, seen, slots[:, None])[:, 0]
        slots = slots + 1
    listed = zip(answers.tolist(), counts.tolist(), sums.tolist(), strict=True)
    return [Answer(tokens[: count - (tokens[count - 1] == end_id)], total / count) for tokens, count, total in listed]


def _closed_up(going_on: Tensor, left: int) -> Tensor:
    """int64 [left]: rows that go on, in their places where they can be, the last ones in those that became free."""
    rows = torch.arange(left, device=going_on.device)
    rows[~going_on[:left]] = left + going_on[left:].nonzero()[:, 0]
    return rows


def greedy(logits: Tensor, pause_id: int) -> Tensor:
    """int64 [B]: the likeliest token of float [B, V] that is not ``<pause>``, the last one; of equals the first."""
    assert pause_id == logits.shape[1] - 1
    return logits[:, :pause_id].max(dim=1).indices  # argmax takes four times as long on a CPU in bfloat16


# ------------------------------
# Prefix and pauses read once, and what is read behind them: a cue, a target, candidates, an answer's tokens.


@dataclass(frozen=True)
class Prefill:
    """Rows as far as they have been read.

    cache: their keys and values. roles: int8 [B, S] of the cache's slots, those not yet written being the target's.
    slots: int64 [B], the first slot behind each row. states: [B, T, D], of what was read last, whose first slot is
    ``first``. jump: the position of what comes next, less its slot.
    """

    model: FastDecoder
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
def prefill(model: FastDecoder, rows: Rows, kind: AttentionKind, visibility: PauseVisibility, capacity: int) -> Prefill:
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


# ------------------------------
# How likely the right answer is: log-likelihoods of targets after prefix + M pauses.

TOGETHER = 32  # target tokens of a row read in one pass, so that a short target is not padded to the longest
LOGITS = 256  # positions of which logits are held at once


@torch.no_grad()
def target_log_likelihoods(read: Prefill, targets: Sequence[Tokens]) -> list[float]:
    """Sum of the log-probabilities of each row's target tokens behind what was read, in nats; one float a row.

    The distribution is the model's own over the whole vocabulary, ``<pause>`` included, as in training. Rows with long
    targets should stand first: a pass takes the rows up to the last one that is not yet at its end.
    """
    labels, lengths = (part.to(read.slots.device) for part in pad(targets, 0))
    sums = _log_probabilities(read.model, read.hidden, labels[:, 0])
    longest = int(lengths.max())
    for start in range(0, longest - 1, TOGETHER):  # the last token is a label only
        count = int((lengths > start + 1).nonzero()[-1]) + 1
        tokens = labels[:count, start : min(start + TOGETHER, longest - 1)]
        states = read.read(tokens, start)
        row, column = (start + 1 + torch.arange(tokens.shape[1], device=tokens.device) < lengths[:count, None]).nonzero(
            as_tuple=True
        )
        sums.index_add_(0, row, _log_probabilities(read.model, states[row, column], labels[row, start + 1 + column]))
    totals: list[float] = sums.tolist()
    return totals


def _log_probabilities(model: FastDecoder, hidden: Tensor, tokens: Tensor) -> Tensor:
    """float64 [N] of int64 [N] tokens after states [N, D]."""
    found = []
    for states, labels in zip(torch.split(hidden, LOGITS), torch.split(tokens, LOGITS), strict=True):
        logits = model.logits(states)
        wide = logits if logits.dtype is torch.float64 else logits.float()
        found.append(-F.cross_entropy(wide, labels, reduction="none").double())
    return torch.cat(found)
