"""Cross entropy where there is supervision, never on a B x T x V tensor.

With a large vocabulary the gradient of a chunk of positions is made in the forward pass, while its logits are there:
three products of the head's size instead of the four of recomputation. Shapes: N positions, D width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pausebench.config.groups import TrainConfig
from pausebench.data.batch import Batch
from pausebench.model.attention import placed
from pausebench.model.decoder import Decoder
from pausebench.pauses import IGNORE_INDEX

CHUNK_LOGITS = 1 << 26  # logits alive at once: 128 MiB in bf16, twice that in float32
FLOAT32_LOGITS = {"cpu": 1 << 21, "cuda": 1 << 24}  # of them that are normalised together: what caches hold, or enough
SLICE = 4096  # rows of the head whose gradient is one product: a whole one is half as fast on a CPU


ToGradient = Callable[[Tensor, Tensor], Tensor]


class Objective(nn.Module):
    """A decoder with its loss: the module whose backward pass ranks share."""

    def __init__(self, model: Decoder, device: torch.device) -> None:
        super().__init__()
        self.model = model
        self.device = device
        self.to_gradient: ToGradient = loss_to_gradient_

    def forward(self, batch: Batch) -> Tensor:
        return summed_loss(self.model, batch, self.device, self.to_gradient)


def summed_loss(model: Decoder, batch: Batch, device: torch.device, to_gradient: ToGradient | None = None) -> Tensor:
    """Sum of the cross entropy over the supervised positions of a CPU batch, in nats (float32 scalar on device)."""
    labels = batch.labels[:, -batch.last :].flatten()
    supervised = (labels != IGNORE_INDEX).nonzero()[:, 0]  # found on the CPU: no device is waited for
    positions = None if batch.positions is None else placed(batch.positions, device)
    chosen = None if len(supervised) == len(labels) else placed(supervised, device)
    few = chosen if len(supervised) < len(labels) / 2 else None  # to pick them inside costs the gradient a scatter more
    hidden = model(placed(batch.input_ids, device), batch.mask, positions, last=batch.last, wanted=few)
    hidden = hidden.to(model.arithmetic)  # here, so that nobody holds float32 states beside the logits
    if few is None:
        hidden = hidden.flatten(0, 1) if chosen is None else hidden.flatten(0, 1).index_select(0, chosen)
    labels = labels if chosen is None else labels[supervised]
    return summed_cross_entropy(hidden, model.token_embedding.weight, placed(labels, device), model.head(), to_gradient)


def summed_cross_entropy(
    hidden: Tensor, head: Tensor, labels: Tensor, low: Tensor | None = None, to_gradient: ToGradient | None = None
) -> Tensor:
    """Sum over N positions of -log softmax(head @ hidden)[label]: hidden [N, D], head [V, D], labels [N].

    ``low``: the head in the dtype of the products (None: as it is). A large head's logits exist a chunk at a time, and
    ``to_gradient`` (None: ``loss_to_gradient_``) turns each into its loss and gradient.
    """
    low = head if low is None else low
    hidden = hidden.to(low.dtype)
    if len(hidden) * len(head) <= CHUNK_LOGITS // 2:
        return F.cross_entropy(F.linear(hidden, low).float(), labels, reduction="sum")
    weight = head if torch.is_grad_enabled() else head.detach()  # Functions ask the inputs, not the mode
    total: Tensor = HeadLoss.apply(hidden, weight, low.detach(), labels, to_gradient or loss_to_gradient_)  # type: ignore[no-untyped-call]
    return total


class HeadLoss(torch.autograd.Function):
    """Sum over N positions of -log softmax(head @ hidden)[label], float32.

    hidden: [N, D], and low: [V, D], the head in the same dtype, in which products are taken. head: [V, D], the weight
    that gets the gradient, summed over chunks in its own dtype. labels: int64 [N].
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, low: Tensor, labels: Tensor, to_gradient: ToGradient) -> Tensor:
        wanted = any(ctx.needs_input_grad)
        dhidden, dhead = torch.empty_like(hidden), torch.zeros_like(head) if wanted else head
        total = torch.zeros((), device=hidden.device)
        chunks = -(-len(hidden) // max(1, CHUNK_LOGITS // len(low)))
        size = -(-len(hidden) // chunks)
        buffer = hidden.new_empty(size, len(low))
        for begin in range(0, len(hidden), size):
            part = hidden[begin : begin + size]
            logits = torch.mm(part, low.T, out=buffer[: len(part)])
            total += to_gradient(logits, labels[begin : begin + size])
            if wanted:
                torch.mm(logits, low, out=dhidden[begin : begin + size])
                for first in range(0, len(low), SLICE):
                    dhead[first : first + SLICE] += torch.mm(logits[:, first : first + SLICE].T, part)
        if wanted:
            ctx.save_for_backward(dhidden, dhead)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        dhidden, dhead = ctx.saved_tensors
        return dhidden.mul_(upstream), dhead.mul_(upstream), None, None, None


def loss_to_gradient_(logits: Tensor, labels: Tensor) -> Tensor:
    """The summed loss of logits [N, V], float32; they become its gradient, softmax less one at the label."""
    total = torch.zeros((), device=logits.device)
    size = max(1, FLOAT32_LOGITS[logits.device.type] // logits.shape[1])
    for begin in range(0, len(logits), size):
        rows, label = logits[begin : begin + size], labels[begin : begin + size]
        log_probabilities = rows.float().log_softmax(dim=1)
        right = torch.arange(len(rows), device=rows.device), label
        total -= log_probabilities[right].sum()
        gradient = log_probabilities.exp_()
        gradient[right] -= 1
        rows.copy_(gradient)
        del log_probabilities, gradient  # before the next ones are made
    return total


# ------------------------------
# AdamW and its learning-rate schedule.


def build_optimizer(model: Decoder, config: TrainConfig) -> torch.optim.AdamW:
    """Fused AdamW; weight decay on matrices and embeddings, none on biases and norms."""
    parameters = list(model.parameters())
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        fused=True,
    )


def learning_rate(step: int, config: TrainConfig) -> float:
    """Rate of optimizer step ``step`` (1 .. steps): linear warm-up to the peak, then cosine to its last share."""
    warmup = config.warmup_steps or 0
    if step <= warmup:
        return config.lr * step / warmup
    progress = (step - warmup) / max(1, config.steps - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return config.lr * (config.min_lr_fraction + (1 - config.min_lr_fraction) * cosine)
