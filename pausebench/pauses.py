"""The paper itself: where ``<pause>`` goes and which positions are asked for an answer.

Three operations, all batched tensor functions without state (Goyal et al., ICLR 2024, sections 3.1 and 5.3):

- ``inject``: pretraining. Pauses at random places of a row, the row cut back to a length; a position whose NEXT
  token is a pause is left out of the loss, a pause whose next token is real is kept in it.
- ``finetuning_rows``: prefix + K pauses + target (``append``) or K pauses + prefix + target (``prepend``); only the
  target is supervised, so with ``append`` the last pause predicts its first token.
- ``inference_rows``: the same without the target; decoding starts at the last position of each row.

A row's read-out is the position that predicts its first target token: the last pause, the last token of a cue, or with
``prepend`` the last prefix token.

Invariant: ``<pause>`` is never a label.

Shapes: B rows, T positions, P prefix tokens, A target tokens, N pauses drawn for a row of pretraining text.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

import torch
from torch import Tensor

from pausebench.config.groups import Placement
from pausebench.config.pauses import PausePolicy
from pausebench.counter_rng import uniform

IGNORE_INDEX = -100  # torch's own default for labels without a loss


class Role(Enum):
    """What a position is, for attention masks. Values are stored as int8."""

    PREFIX = 0
    PAUSE = 1
    TARGET = 2
    PADDING = 3


@dataclass(frozen=True)
class Rows:
    """Model-ready rows, right-padded.

    input_ids: int64 [B, T]; labels: int64 [B, T], the NEXT token or IGNORE_INDEX; roles: int8 [B, T] of ``Role``;
    lengths: int64 [B], tokens that are not padding; readout: int64 [B], the place that predicts the first target token;
    positions: int64 [B, T], None where they count from 0; jump: what stands behind the pauses' places, and whatever is
    decoded behind the row, is at its place plus this.
    """

    input_ids: Tensor
    labels: Tensor
    roles: Tensor
    lengths: Tensor
    readout: Tensor
    positions: Tensor | None = None
    jump: int = 0

    @property
    def readouts(self) -> Tensor:
        """bool [B, T], True at each row's read-out."""
        return torch.arange(self.input_ids.shape[1], device=self.readout.device) == self.readout[:, None]


def pause_count(length: int, fraction: float) -> int:
    """How many pauses are inserted in a row of ``length`` tokens: round(fraction x length); 205 for .1 and 2048."""
    return round(fraction * length)


def draw_places(seed: int, row_numbers: Tensor, length: int, count: int) -> Tensor:
    """int64 [B, count], ascending: each a number of real tokens in 0..length that precede one inserted pause.

    A function of (seed, row number) alone: batch size, workers, ranks and resumption cannot move a pause. Several
    may fall on the same place.
    """
    places = (uniform(seed, "pause places", row_numbers, count) * (length + 1)).to(torch.int64)
    return places.sort(dim=1).values


def inject(
    input_ids: Tensor, supervised: Tensor, places: Tensor, pause_id: int, length: int | None = None
) -> tuple[Tensor, Tensor]:
    """Insert a pause at each place, keep the order of the real tokens, cut back to T (section 3.1, Algorithm 1).

    Args:
        input_ids: int64 [B, R], the real tokens.
        supervised: bool [B, R], whether a token may be a target at all (False for padding).
        places: int64 [B, N] ascending, from ``draw_places``; N may be 0, which is standard pretraining.
        length: T, at most R + N. None is R: the tokens that are pushed over the end are lost. With R + N none is.

    Returns:
        (input_ids, labels), both int64 [B, T]. labels[b, t] is the next token, or IGNORE_INDEX at the row's end,
        where the next token is a pause, or where it is not supervised.
    """
    batch, tokens = input_ids.shape
    count, length = places.shape[1], tokens if length is None else length
    final = places + torch.arange(count, device=places.device)  # a pause moves right by the pauses before it
    is_pause = torch.zeros(batch, tokens + count, dtype=torch.bool, device=input_ids.device)
    is_pause.scatter_(1, final, True)
    is_pause = is_pause[:, :length]
    source = torch.arange(length, device=input_ids.device) - is_pause.cumsum(dim=1)
    # A pause in front of the first token has source -1; its value is replaced below.
    source = source.clamp_min_(0)
    injected = input_ids.gather(1, source).masked_fill_(is_pause, pause_id)
    is_target = supervised.gather(1, source) & ~is_pause
    labels = torch.full_like(injected, IGNORE_INDEX)
    labels[:, :-1] = torch.where(is_target[:, 1:], injected[:, 1:], IGNORE_INDEX)
    return injected, labels


def injected_roles(input_ids: Tensor, pause_id: int) -> tuple[Tensor, Tensor]:
    """(roles, read-outs) of injected rows: int8 and bool, both [B, T]; text counts as target.

    The read-out of a run of adjacent pauses is its last, the one whose next token is real, also where the row ends.
    """
    is_pause = input_ids == pause_id
    readouts = is_pause.clone()
    readouts[:, :-1] &= ~is_pause[:, 1:]
    return torch.where(is_pause, Role.PAUSE.value, Role.TARGET.value).to(torch.int8), readouts


def draw_counts(policy: PausePolicy, seed: int, row_numbers: Tensor) -> Tensor:
    """int64 [B]: K of each training row, drawn from ``policy.k_range`` by (seed, row number) alone.

    All are K where the policy has one number. A row keeps its K in every epoch.
    """
    if policy.k_range is None:
        return torch.full_like(row_numbers, policy.longest)
    first, last = policy.k_range
    return first + (uniform(seed, "pauses of a row", row_numbers, 1)[:, 0] * (last - first + 1)).to(torch.int64)


def finetuning_rows(
    prefix: Tensor,
    prefix_lengths: Tensor,
    target: Tensor,
    target_lengths: Tensor,
    cue: Tensor,
    policy: PausePolicy,
    counts: Tensor | None = None,
    *,
    pause_id: int,
    pad_id: int,
) -> Rows:
    """Prefix, K pauses, cue, target; loss on the target alone (section 3.1, Algorithm 2).

    The cue is a fixed string of the task (often empty) that belongs to the target side but is given, never predicted.
    The last target token is a label only: nothing is predicted from it, so it is no input.

    Args:
        prefix: int64 [B, P] right-padded, with prefix_lengths int64 [B].
        target: int64 [B, A] right-padded, with target_lengths int64 [B].
        cue: int64 [C].
        policy: its k pauses in every row; ``k=0`` is standard finetuning. With ``shift``, whatever is
            behind the pauses' place is at least so many positions further on than without pauses: the positions of
            ``k=shift`` without its pauses. Pauses fill the gap that this leaves from its beginning, so that
            ``k >= shift`` changes nothing.
        counts: int64 [B], K of each row (``draw_counts``); None is the policy's k for all.
        pause_id: the token in the pauses' places, which may be any filler (section 5.2's control without pauses).
    """
    k = torch.full_like(prefix_lengths, policy.longest) if counts is None else counts
    prepended, nowhere = policy.placement is Placement.prepend, torch.zeros_like(k)
    pauses_at, prefix_at = (nowhere, k) if prepended else (prefix_lengths, nowhere)
    cue_at = prefix_lengths + k
    target_at = cue_at + len(cue)
    lengths = target_at + target_lengths
    t = torch.arange(int(lengths.max()), device=prefix.device).expand(len(prefix), -1)
    tokens = torch.full_like(t, pad_id)
    roles = torch.full_like(t, Role.PADDING.value, dtype=torch.int8)
    parts = [
        (prefix, prefix_at, prefix_lengths, Role.PREFIX),
        (torch.full_like(tokens[:, :1], pause_id), pauses_at, k, Role.PAUSE),
        (cue.expand(len(prefix), -1), cue_at, torch.full_like(k, len(cue)), Role.TARGET),
        (target, target_at, target_lengths, Role.TARGET),
    ]
    for values, start, count, role in parts:
        if not values.shape[1]:
            continue  # nothing to gather from
        offset = t - start[:, None]
        inside = (offset >= 0) & (offset < count[:, None])
        # Clamped, because gather reads everywhere; there are more pauses than values of theirs, all the same.
        tokens = torch.where(inside, values.gather(1, offset.clamp(0, values.shape[1] - 1)), tokens)
        roles = roles.masked_fill_(inside, role.value)
    is_target = (t >= target_at[:, None]) & (t < lengths[:, None])
    labels = torch.where(is_target[:, 1:], tokens[:, 1:], IGNORE_INDEX)
    padding = t >= lengths[:, None] - 1  # a row's last target token, too, where the batch has longer rows
    tokens, roles = tokens.masked_fill(padding, pad_id), roles.masked_fill(padding, Role.PADDING.value)
    jump = max(0, policy.shift - policy.longest)  # a policy with a shift has one number of pauses
    positions = None
    if jump:
        positions = (t + jump * (t >= (pauses_at + k)[:, None])).masked_fill_(padding, 0)[:, :-1]
    return Rows(tokens[:, :-1], labels, roles[:, :-1], lengths - 1, target_at - 1, positions, jump)


def inference_rows(
    prefix: Tensor,
    prefix_lengths: Tensor,
    cue: Tensor,
    policy: PausePolicy,
    *,
    pause_id: int,
    pad_id: int,
) -> Rows:
    """Prefix, M pauses, cue: what one parallel pass reads before the first token is decoded (section 3.1).

    ``policy`` is that of M: ``trained.at(m)``. Labels are all IGNORE_INDEX.
    """
    one_token = torch.full((len(prefix), 1), pad_id, dtype=prefix.dtype, device=prefix.device)
    rows = finetuning_rows(
        prefix,
        prefix_lengths,
        one_token,
        torch.ones_like(prefix_lengths),
        cue,
        policy,
        pause_id=pause_id,
        pad_id=pad_id,
    )
    return replace(rows, labels=torch.full_like(rows.labels, IGNORE_INDEX))
