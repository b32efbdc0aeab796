"""Greedy decoding after one parallel pass over prefix + M pauses (section 3.1), with a key-value cache.

Invariant: ``<pause>`` is never emitted, and a row's answer does not depend on the rows beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pausebench.config.groups import AttentionKind, PauseVisibility
from pausebench.data.examples import Tokens
from pausebench.data.tokenizer import pad
from pausebench.model.base import Model
from pausebench.model.prefill import Prefill
from pausebench.pauses import Rows


class Answer(NamedTuple):
    """Token ids without the end token that stops them; mean log-probability of what was decoded, the end too.

    The mean is 0 where it was not asked for.
    """

    tokens: list[int]
    mean_log_probability: float


def generate(
    model: Model,
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
    read = model.prefill(rows, kind, visibility, rows.input_ids.shape[1] + max_new_tokens)
    return decode(read, max_new_tokens=max_new_tokens, end_id=end_id, pause_id=pause_id, limit=limit, means=means)


@torch.no_grad()
def decode(
    read: Prefill, *, max_new_tokens: int, end_id: int, pause_id: int, limit: int, means: bool = True
) -> list[Answer]:
    """Each row's answer behind what was read, as in ``generate``; rows that leave are lost from ``read``.

    means: whether the answers' mean log-probabilities are wanted. They cost a softmax over the vocabulary a token.
    """
    device, batch = read.slots.device, len(read.slots)
    alive = torch.arange(batch, device=device)
    answers = torch.full((batch, max_new_tokens), end_id, device=device)
    counts = torch.zeros(batch, dtype=torch.int64, device=device)
    sums = torch.zeros(batch, dtype=torch.float64, device=device)
    for index in range(max_new_tokens):
        logits = read.model.logits(read.hidden)
        tokens = greedy(logits, pause_id)
        if means:
            sums[alive] += logits.double().log_softmax(dim=1).gather(1, tokens[:, None])[:, 0]
        answers[alive, index] = tokens
        counts[alive] += 1
        going_on = (tokens != end_id) & (read.slots + read.jump < limit)
        left = int(going_on.sum())
        if left == 0 or index == max_new_tokens - 1:
            break
        if left < len(tokens):
            kept = _closed_up(going_on, left)
            alive, tokens, read = alive[kept], tokens[kept], read.keep_rows(kept)
        read = read.through(tokens[:, None])
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


def _log_probabilities(model: Model, hidden: Tensor, tokens: Tensor) -> Tensor:
    """float64 [N] of int64 [N] tokens after states [N, D]."""
    found = []
    for states, labels in zip(torch.split(hidden, LOGITS), torch.split(tokens, LOGITS), strict=True):
        logits = model.logits(states)
        wide = logits if logits.dtype is torch.float64 else logits.float()
        found.append(-F.cross_entropy(wide, labels, reduction="none").double())
    return torch.cat(found)
