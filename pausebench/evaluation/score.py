"""How likely the right answer is: log-likelihoods of targets after prefix + M pauses."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from pausebench.data.batch import Batch
from pausebench.model.decoder import Decoder
from pausebench.pauses import IGNORE_INDEX


@torch.no_grad()
def target_log_likelihoods(model: Decoder, batch: Batch) -> list[float]:
    """Sum of the log-probabilities of each row's target tokens, in nats; one float a row.

    The distribution is the model's own over the whole vocabulary, ``<pause>`` included, as in training.
    """
    device = model.token_embedding.weight.device
    positions = None if batch.positions is None else batch.positions.to(device)
    hidden = model(batch.input_ids.to(device), batch.mask.to(device), positions, last=batch.last)
    labels = batch.labels[:, -batch.last :].to(device)
    row, column = (labels != IGNORE_INDEX).nonzero(as_tuple=True)
    losses = F.cross_entropy(model.logits(hidden[row, column]), labels[row, column], reduction="none")
    sums = torch.zeros(len(labels), dtype=torch.float64, device=device).index_add_(0, row, losses.double())
    return [-value for value in sums.tolist()]
