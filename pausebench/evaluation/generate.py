"""Greedy decoding after one parallel pass over prefix + M pauses (section 3.1), with a key-value cache.

Invariant: ``<pause>`` is never emitted, and a row's answer does not depend on the rows beside it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pausebench.groups import AttentionKind, PauseVisibility
from pausebench.model.attention import AttentionMask, decoding_mask
from pausebench.model.decoder import Decoder, KeyValueCache
from pausebench.pauses import Role, Rows


class Answer(NamedTuple):
    """Token ids without the end token that stops them; mean log-probability of what was decoded, the end too."""

    tokens: list[int]
    mean_log_probability: float


@torch.no_grad()
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
) -> list[Answer]:
    """Each row's answer.

    ``rows`` come from ``pauses.inference_rows``; the last position of each row predicts its first answer token. A row
    that has ended leaves the batch; so does one that has reached ``limit`` positions (None: the position table's end).
    A token's slot in the cache is its place in the row; where the row's positions jump, so does its position.
    """
    device = model.token_embedding.weight.device
    batch, length = rows.input_ids.shape
    limit = model.config.max_positions if limit is None else limit
    capacity = min(length + max_new_tokens, max(length, limit - rows.jump))
    cache = KeyValueCache(model.config, batch, capacity, model.token_embedding.weight.dtype, device)
    mask = AttentionMask(kind, rows.roles, visibility=visibility, readouts=rows.readouts).to(device)
    prefilled = None if rows.positions is None else rows.positions.to(device)
    hidden = model(rows.input_ids.to(device), mask, prefilled, cache=cache)
    slots = rows.lengths.to(device)
    hidden = hidden[torch.arange(batch, device=device), slots - 1]
    key_roles = torch.full((batch, capacity), Role.TARGET.value, dtype=torch.int8, device=device)
    key_roles[:, :length] = rows.roles.to(device)
    alive = torch.arange(batch, device=device)
    answers: list[list[int]] = [[] for _ in range(batch)]
    sums, counts = torch.zeros(batch, dtype=torch.float64, device=device), torch.zeros(batch, device=device)
    for index in range(max_new_tokens):
        logits = model.logits(hidden)
        tokens = greedy(logits, pause_id)
        sums[alive] += logits.double().log_softmax(dim=1).gather(1, tokens[:, None])[:, 0]
        counts[alive] += 1
        going_on = tokens != end_id
        for row, token in zip(alive[going_on].tolist(), tokens[going_on].tolist(), strict=True):
            answers[row].append(token)
        going_on &= slots + rows.jump < limit
        if index == max_new_tokens - 1 or not bool(going_on.any()):
            break
        if not bool(going_on.all()):
            kept = going_on.nonzero()[:, 0]
            alive, tokens, slots, key_roles = alive[kept], tokens[kept], slots[kept], key_roles[kept]
            cache.keep_rows(kept)
        seen = decoding_mask(kind, key_roles[:, : length + index + 1], slots, visibility)  # no row is further on
        positions = slots[:, None] + rows.jump
        hidden = model(tokens[:, None], positions_BT=positions, cache=cache, decoding=seen, slots=slots)[:, 0]
        slots = slots + 1
    means = (sums / counts.clamp_min(1)).tolist()
    return [Answer(tokens, mean) for tokens, mean in zip(answers, means, strict=True)]


def greedy(logits: Tensor, pause_id: int) -> Tensor:
    """int64 [B]: the likeliest token of float [B, V] that is not ``<pause>``."""
    return logits.index_fill(1, torch.tensor(pause_id, device=logits.device), -torch.inf).argmax(dim=1)
