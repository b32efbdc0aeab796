"""Greedy decoding and log-likelihoods of targets after one parallel pass over prefix + M pauses (section 3.1).

Invariant: ``<pause>`` is never emitted, and what a row gives does not depend on the other rows of its batch.
Shape suffixes: B rows, T positions of a row, S slots of the cache, D width of the model, V vocabulary.
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
    """Token ids, without the end token, and the mean log-probability of all decoded tokens, the end token included.

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

    rows: from ``pauses.inference_rows``; the last position of each predicts its first answer token. limit: positions
    after which a row stops, if no end token comes before (None: the end of the position table).
    """
    limit = model.config.max_positions if limit is None else limit
    read = prefill(model, rows, kind, visibility, rows.input_ids.shape[1] + max_new_tokens)
    return decode(read, max_new_tokens=max_new_tokens, end_id=end_id, pause_id=pause_id, limit=limit, means=means)


@torch.no_grad()
def decode(
    read: Prefill, *, max_new_tokens: int, end_id: int, pause_id: int, limit: int, means: bool = True
) -> list[Answer]:
    """Each row's answer after what was read, as in ``generate``. It uses up the cache of ``read``.

    means: whether to compute the mean log-probabilities. They cost a softmax over the vocabulary for each token.
    """
    model, cache, hidden, slots, roles = read.model, read.cache, read.hidden, read.slots, read.roles
    device, batch = slots.device, len(slots)
    alive = torch.arange(batch, device=device)
    answers = torch.full((batch, max_new_tokens), end_id, device=device)
    counts = torch.zeros(batch, dtype=torch.int64, device=device)
    sums = torch.zeros(batch, dtype=torch.float64, device=device)
    width = int(slots.max())
    # One token a step for every row that has not ended. Rows that end leave the batch, so that a step costs what the
    # rows still at work cost; answers of text differ in length by a factor of ten and more.
    for index in range(max_new_tokens):
        logits = model.logits(hidden)
        tokens = greedy(logits, pause_id)
        if means:
            sums[alive] += logits.double().log_softmax(dim=1).gather(1, tokens[:, None])[:, 0]
        answers[alive, index] = tokens
        counts[alive] += 1
        unfinished = (tokens != end_id) & (slots + read.jump < limit)
        left = int(unfinished.sum())
        if left == 0 or index == max_new_tokens - 1:
            break
        if left < len(tokens):
            kept = _closed_up(unfinished, left)
            alive, tokens, slots, roles = alive[kept], tokens[kept], slots[kept], roles[kept]
            cache.keep_rows(kept)
        width += 1  # the longest row grows by one slot; the attention need not look beyond it
        seen = decoding_mask(read.kind, roles[:, :width], slots, read.visibility)
        positions = slots[:, None] + read.jump
        hidden = model(tokens[:, None], None, positions, cache, seen, slots[:, None])[:, 0]
        slots = slots + 1
    # Moved to the CPU once, at the end: a transfer for each token would wait for the device each time.
    listed = zip(answers.tolist(), counts.tolist(), sums.tolist(), strict=True)
    return [Answer(tokens[: count - (tokens[count - 1] == end_id)], total / count) for tokens, count, total in listed]


def _closed_up(unfinished: Tensor, left: int) -> Tensor:
    """int64 [left]: the unfinished rows in an order that moves as few of them in the cache as possible.

    Rows among the first ``left`` stay in place; the others move into the places that became free.
    """
    rows = torch.arange(left, device=unfinished.device)
    rows[~unfinished[:left]] = left + unfinished[left:].nonzero()[:, 0]
    return rows


def greedy(logits: Tensor, pause_id: int) -> Tensor:
    """int64 [B]: the likeliest token of float [B, V] other than ``<pause>``, the last of V; the first of equal ones."""
    assert pause_id == logits.shape[1] - 1
    return logits[:, :pause_id].max(dim=1).indices  # argmax takes four times as long on a CPU in bfloat16


@dataclass(frozen=True)
class Prefill:
    """Rows as far as they have been read: prefix and pauses, then a cue, a target or an answer's tokens.

    A token's slot in the cache is its place in the row. Its position differs from it by ``jump`` where positions were
    shifted.

    cache: keys and values. roles: int8 [B, S] of the slots; unwritten slots have the target's role. slots: int64 [B],
    the first free slot of each row. states: [B, T, D] of what was read last, beginning at slot ``first``.
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
        """[B, D]: the state that predicts the next token of each row."""
        rows = torch.arange(len(self.slots), device=self.slots.device)
        return self.states[rows, self.slots - 1 - self.first]

    @torch.no_grad()
    def read(self, tokens: Tensor, offset: int = 0) -> Tensor:
        """States [N, T, D] of int64 [N, T] tokens after the first N rows, from ``offset`` slots after the free one on.

        They overwrite what was read there before, so that candidates are read one after the other into one cache.
        """
        count, length = tokens.shape
        slots = self.slots[:count, None] + offset + torch.arange(length, device=tokens.device)
        width = int(slots.max()) + 1
        seen = decoding_mask(self.kind, self.roles[:count, :width], slots, self.visibility)
        # Padding on the right may reach beyond the position table; nothing sees it, so any position does.
        positions = (slots + self.jump).clamp_max_(self.model.config.max_positions - 1)
        states: Tensor = self.model(tokens, None, positions, self.cache.first_rows(count), seen, slots)
        return states

    def read_cue(self, cue: Tensor) -> Prefill:
        """The rows with the cue, int64 [C], after each."""
        if not len(cue):
            return self
        states = self.read(cue.to(self.slots.device).expand(len(self.slots), -1))
        return replace(self, slots=self.slots + len(cue), states=states, first=self.slots)

    def without_last(self, pauses: int, jump: int) -> Prefill:
        """Drop the last ``pauses`` pauses of each row. Valid only if they come last and nothing before them sees them.

        The cache is shared with these rows, and what is read next overwrites the dropped pauses. Of several M take the
        largest first.
        """
        slots = self.slots - pauses
        free = torch.arange(self.roles.shape[1], device=slots.device) >= slots[:, None]
        return replace(self, roles=self.roles.masked_fill(free, Role.TARGET.value), slots=slots, jump=jump)

    def copy(self) -> Prefill:
        """The rows with a cache of their own."""
        return replace(self, cache=self.cache.copy(int(self.slots.max())))


@torch.no_grad()
def prefill(
    model: FastDecoder,
    rows: Rows,
    kind: AttentionKind,
    visibility: PauseVisibility,
    capacity: int,
    like_length: float = 0.85,
) -> Prefill:
    """Read rows of ``pauses.inference_rows`` in parallel, into a cache of ``capacity`` slots a row.

    like_length: rows of one pass have at least this share of its longest one's positions. Padding is computed like
    text, while a pass for each length would read too few rows at a time.
    """
    device = model.token_embedding.weight.device
    batch, length = rows.input_ids.shape
    cache = KeyValueCache(model.config, batch, capacity, model.token_embedding.weight.dtype, device)
    states = torch.empty(batch, length, model.config.d_model, dtype=model.token_embedding.weight.dtype, device=device)
    for some in _of_like_length(rows.lengths, like_length):
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


def _of_like_length(lengths: Tensor, share: float) -> Iterator[Tensor]:
    """Numbers of the rows of each pass, int64, the longest rows first."""
    order = lengths.argsort(descending=True, stable=True)
    listed = lengths[order].tolist()
    begin = 0
    while begin < len(listed):
        count = sum(size >= share * listed[begin] for size in listed[begin:])
        yield order[begin : begin + count].sort().values
        begin += count


@torch.no_grad()
def target_log_likelihoods(
    read: Prefill, targets: Sequence[Tokens], *, tokens_at_once: int = 32, logits_at_once: int = 256
) -> list[float]:
    """Sum of the log-probabilities of each row's target tokens after what was read, in nats; one float a row.

    The distribution is the model's own over the whole vocabulary, ``<pause>`` included, as in training.

    tokens_at_once: tokens of a row read in one pass, so that a short target is not padded to the longest.
    logits_at_once: positions whose logits are in memory together (with GPT-2's vocabulary 256 of them are 100 MB in
    float64). Neither changes a likelihood.
    """
    labels, lengths = (part.to(read.slots.device) for part in pad(targets, 0))
    sums = _log_probabilities(read.model, read.hidden, labels[:, 0], logits_at_once)
    longest = int(lengths.max())
    for start in range(0, longest - 1, tokens_at_once):  # the last token is a label only
        # A pass takes the rows up to the last one whose target is longer: long targets first make the passes small.
        count = int((lengths > start + 1).nonzero()[-1]) + 1
        tokens = labels[:count, start : min(start + tokens_at_once, longest - 1)]
        states = read.read(tokens, start)
        row, column = (start + 1 + torch.arange(tokens.shape[1], device=tokens.device) < lengths[:count, None]).nonzero(
            as_tuple=True
        )
        following = labels[row, start + 1 + column]
        sums.index_add_(0, row, _log_probabilities(read.model, states[row, column], following, logits_at_once))
    totals: list[float] = sums.tolist()
    return totals


def _log_probabilities(model: FastDecoder, hidden: Tensor, tokens: Tensor, at_once: int) -> Tensor:
    """float64 [N] of int64 [N] tokens after states [N, D]."""
    found = []
    for states, labels in zip(torch.split(hidden, at_once), torch.split(tokens, at_once), strict=True):
        logits = model.logits(states)
        wide = logits if logits.dtype is torch.float64 else logits.float()
        found.append(-F.cross_entropy(wide, labels, reduction="none").double())
    return torch.cat(found)
