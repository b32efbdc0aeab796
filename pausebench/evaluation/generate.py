"""Greedy decoding and log-likelihoods of targets after one parallel pass over prefix + M pauses (section 3.1).

Invariant: ``<pause>`` is never emitted, and what a row gives does not depend on the other rows of its batch.
Shapes: B rows of the batch, N some rows or positions of it, D width of the model, V vocabulary.
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
    """Token ids, without the end token, and the mean log-probability of all decoded tokens, the end token included.

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

    rows: from ``pauses.inference_rows``; the last position of each predicts its first answer token. limit: positions
    after which a row stops, if no end token comes before (None: the end of the position table).
    """
    limit = model.config.max_positions if limit is None else limit
    read = model.prefill(rows, kind, visibility, rows.input_ids.shape[1] + max_new_tokens)
    return decode(read, max_new_tokens=max_new_tokens, end_id=end_id, pause_id=pause_id, limit=limit, means=means)


@torch.no_grad()
def decode(
    read: Prefill, *, max_new_tokens: int, end_id: int, pause_id: int, limit: int, means: bool = True
) -> list[Answer]:
    """Each row's answer after what was read, as in ``generate``. It uses up ``read``: decode a copy to keep the rows.

    means: whether to compute the mean log-probabilities. They cost a softmax over the vocabulary for each token.
    """
    device, batch = read.slots.device, len(read.slots)
    alive = torch.arange(batch, device=device)
    answers = torch.full((batch, max_new_tokens), end_id, device=device)
    counts = torch.zeros(batch, dtype=torch.int64, device=device)
    sums = torch.zeros(batch, dtype=torch.float64, device=device)
    # One token a step for every row that has not ended. Rows that end leave the batch, so that a step costs what the
    # remaining rows cost; answers of text differ in length by a factor of ten and more.
    for index in range(max_new_tokens):
        logits = read.model.logits(read.hidden)
        tokens = greedy(logits, pause_id)
        if means:
            sums[alive] += logits.double().log_softmax(dim=1).gather(1, tokens[:, None])[:, 0]
        answers[alive, index] = tokens
        counts[alive] += 1
        unfinished = (tokens != end_id) & (read.slots + read.jump < limit)
        left = int(unfinished.sum())
        if left == 0 or index == max_new_tokens - 1:
            break
        if left < len(tokens):
            kept = _closed_up(unfinished, left)
            alive, tokens, read = alive[kept], tokens[kept], read.keep_rows(kept)
        read = read.through(tokens[:, None])
    # Moved to the CPU once, at the end: a transfer for each token would wait for the device each time.
    listed = zip(answers.tolist(), counts.tolist(), sums.tolist(), strict=True)
    return [Answer(tokens[: count - (tokens[count - 1] == end_id)], total / count) for tokens, count, total in listed]


def _closed_up(unfinished: Tensor, left: int) -> Tensor:
    """int64 [left]: the unfinished rows, in an order that moves as few of them as possible.

    Rows among the first ``left`` stay in place; the others move into the places that became free.
    """
    rows = torch.arange(left, device=unfinished.device)
    rows[~unfinished[:left]] = left + unfinished[left:].nonzero()[:, 0]
    return rows


def greedy(logits: Tensor, pause_id: int) -> Tensor:
    """int64 [B]: the likeliest token of float [B, V] other than ``<pause>``, the last of V; the first of equal ones."""
    # As the last token it can be sliced away; masking would copy all logits.
    assert pause_id == logits.shape[1] - 1
    return logits[:, :pause_id].max(dim=1).indices  # argmax takes four times as long on a CPU in bfloat16


@torch.no_grad()
def target_log_likelihoods(
    read: Prefill, targets: Sequence[Tokens], *, tokens_at_once: int = 32, logits_at_once: int = 256
) -> list[float]:
    """Sum of the log-probabilities of each row's target tokens after what was read, in nats; one float a row.

    The distribution is the model's own over the whole vocabulary, ``<pause>`` included, as in training.

    tokens_at_once: tokens of a row read in one pass, so that a short target is not padded to the longest.
    logits_at_once: positions whose logits are in memory together (256 of GPT-2's vocabulary are 100 MB in float64).
    Neither changes a likelihood beyond rounding.
    """
    labels, lengths = (part.to(read.slots.device) for part in pad(targets, 0))
    # The last pause predicts the first token; the tokens themselves predict the others.
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


def _log_probabilities(model: Model, hidden: Tensor, tokens: Tensor, at_once: int) -> Tensor:
    """float64 [N] of int64 [N] tokens after states [N, D]."""
    found = []
    for states, labels in zip(torch.split(hidden, at_once), torch.split(tokens, at_once), strict=True):
        logits = model.logits(states)
        # A sum over 50,000 probabilities needs more than the 8 bits of bf16, whatever the model computes in.
        wide = logits if logits.dtype is torch.float64 else logits.float()
        found.append(-F.cross_entropy(wide, labels, reduction="none").double())
    return torch.cat(found)
