"""Greedy decoding after one parallel pass over prefix + M pauses (section 3.1), with a key-value cache.

Invariant: ``<pause>`` is never emitted, and a row's answer does not depend on the rows beside it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pausebench.evaluation.prefill import Prefill, prefill
from pausebench.groups import AttentionKind, PauseVisibility
from pausebench.model.attention import decoding_mask
from pausebench.model.decoder import Decoder
from pausebench.pauses import Rows


class Answer(NamedTuple):
    """Token ids without the end token that stops them; mean log-probability of what was decoded, the end too.

    The mean is 0 where it was not asked for.
    """

    tokens: list[int]
    mean_log_probability: float


def generate(
    model: Decoder,
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
