"""How likely the right answer is: log-likelihoods of targets after prefix + M pauses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pausebench.data.lengths import Tokens
from pausebench.data.tokenizer import pad
from pausebench.evaluation.prefill import Prefill
from pausebench.model.decoder import Decoder

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


def _log_probabilities(model: Decoder, hidden: Tensor, tokens: Tensor) -> Tensor:
    """float64 [N] of int64 [N] tokens after states [N, D]."""
    found = []
    for states, labels in zip(torch.split(hidden, LOGITS), torch.split(tokens, LOGITS), strict=True):
        logits = model.logits(states)
        wide = logits if logits.dtype is torch.float64 else logits.float()
        found.append(-F.cross_entropy(wide, labels, reduction="none").double())
    return torch.cat(found)
