"""Greedy decoding after one parallel pass over prefix + M pauses (section 3.1), with a key-value cache.

Invariant: ``<pause>`` is never emitted, and a row's answer does not depend on the rows beside it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pausebench.groups import AttentionKind
from pausebench.model.attention import AttentionMask, decoding_mask
from pausebench.model.decoder import Decoder, KeyValueCache
from pausebench.pauses import Role, Rows


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
) -> list[list[int]]:
    """Token ids of each row's answer, without the end token that stops it.

    ``rows`` come from ``pauses.inference_rows``; the last position of each row predicts its first answer token. A row
    that has ended leaves the batch; so does one that has reached ``limit`` positions (None: the position table's end).
    """
    device = model.token_embedding.weight.device
    batch, length = rows.input_ids.shape
    limit = model.config.max_positions if limit is None else limit
    slots = min(length + max_new_tokens, limit)
    cache = KeyValueCache(model.config, batch, slots, model.token_embedding.weight.dtype, device)
    hidden = model(rows.input_ids.to(device), AttentionMask(kind, rows.roles.to(device)), cache=cache)
    positions = rows.lengths.to(device)
    hidden = hidden[torch.arange(batch, device=device), positions - 1]
    key_roles = torch.full((batch, slots), Role.TARGET.value, dtype=torch.int8, device=device)
    key_roles[:, :length] = rows.roles.to(device)
    alive = torch.arange(batch, device=device)
    answers: list[list[int]] = [[] for _ in range(batch)]
    for index in range(max_new_tokens):
        tokens = greedy(model.logits(hidden), pause_id)
        going_on = tokens != end_id
        for row, token in zip(alive[going_on].tolist(), tokens[going_on].tolist(), strict=True):
            answers[row].append(token)
        going_on &= positions < limit
        if index == max_new_tokens - 1 or not bool(going_on.any()):
            break
        if not bool(going_on.all()):
            kept = going_on.nonzero()[:, 0]
            alive, tokens, positions, key_roles = alive[kept], tokens[kept], positions[kept], key_roles[kept]
            cache.keep_rows(kept)
        seen = decoding_mask(kind, key_roles, positions)
        hidden = model(tokens[:, None], positions_BT=positions[:, None], cache=cache, decoding=seen)[:, 0]
        positions = positions + 1
    return answers


def greedy(logits: Tensor, pause_id: int) -> Tensor:
    """int64 [B]: the likeliest token of float [B, V] that is not ``<pause>``."""
    return logits.index_fill(1, torch.tensor(pause_id, device=logits.device), -torch.inf).argmax(dim=1)
