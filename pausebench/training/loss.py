"""Cross entropy where there is supervision, never on a B x T x V tensor."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pausebench.data.batch import Batch
from pausebench.model.decoder import Decoder
from pausebench.pauses import IGNORE_INDEX

CHUNK_LOGITS = 1 << 25  # logits alive at once, 128 MiB in float32; larger heads are recomputed chunk by chunk


class Objective(nn.Module):
    """A decoder with its loss: the module whose backward pass ranks share."""

    def __init__(self, model: Decoder, device: torch.device) -> None:
        super().__init__()
        self.model = model
        self.device = device

    def forward(self, batch: Batch) -> Tensor:
        return summed_loss(self.model, batch, self.device)


def summed_loss(model: Decoder, batch: Batch, device: torch.device) -> Tensor:
    """Sum of the cross entropy over the supervised positions of a CPU batch, in nats (float32 scalar on device)."""
    labels = batch.labels[:, -batch.last :].flatten()
    supervised = (labels != IGNORE_INDEX).nonzero()[:, 0]  # found on the CPU: no device is waited for
    positions = None if batch.positions is None else batch.positions.to(device)
    hidden = model(batch.input_ids.to(device), batch.mask.to(device), positions, last=batch.last).flatten(0, 1)
    if len(supervised) < len(labels):
        hidden, labels = hidden.index_select(0, supervised.to(device)), labels[supervised]
    return summed_cross_entropy(hidden, model.token_embedding.weight, labels.to(device))


def summed_cross_entropy(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """Sum over N positions of -log softmax(head @ hidden)[label]: hidden [N, D], head [V, D], labels [N].

    Where N x V passes ``CHUNK_LOGITS``, logits are made and remade a chunk at a time in forward and backward.
    """

    def chunk_loss(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(hidden, head).float(), labels, reduction="sum")

    size = max(1, CHUNK_LOGITS // head.shape[0])
    if len(hidden) <= size:
        return chunk_loss(hidden, head, labels)
    losses = [
        checkpoint(chunk_loss, h, head, y, use_reentrant=False)
        for h, y in zip(torch.split(hidden, size), torch.split(labels, size), strict=True)
    ]
    return torch.stack(losses).sum()
