"""Cross entropy over a large vocabulary, without the N x V tensors of logits and gradients.

The gradient of a chunk of positions is made in the forward pass, while its logits are there: three products of the
head's size instead of the four of recomputation. Shapes: N positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pausebench.model.tuning import TUNING, Tuning

ToGradient = Callable[[Tensor, Tensor, int], Tensor]  # logits, labels, rows that are normalised together


def summed_cross_entropy(
    hidden: Tensor,
    head: Tensor,
    labels: Tensor,
    low: Tensor | None = None,
    to_gradient: ToGradient | None = None,
    tuning: Tuning = TUNING,
) -> Tensor:
    """Sum over N positions of -log softmax(head @ hidden)[label]: hidden [N, D], head [V, D], labels [N].

    low: the head in the dtype of the products (None: as it is). to_gradient: turns a chunk of logits into its loss and
    gradient (None: ``loss_to_gradient_``). Where logits are few, torch's own loss is as good.
    """
    low = head if low is None else low
    hidden = hidden.to(low.dtype)
    # Below, torch's own loss needs no more memory than a chunk and its gradient would.
    if len(hidden) * len(head) <= tuning.chunk_logits // 2:
        return F.cross_entropy(F.linear(hidden, low).float(), labels, reduction="sum")
    weight = head if torch.is_grad_enabled() else head.detach()  # Functions ask the inputs, not the mode
    change = to_gradient or loss_to_gradient_
    total: Tensor = HeadLoss.apply(hidden, weight, low.detach(), labels, change, tuning)  # type: ignore[no-untyped-call]
    return total


class HeadLoss(torch.autograd.Function):
    """Sum over N positions of -log softmax(head @ hidden)[label], float32.

    hidden: [N, D], and low: [V, D], the head in the same dtype, in which products are taken. head: [V, D], the weight
    that gets the gradient, summed over chunks in its own dtype. labels: int64 [N].
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        low: Tensor,
        labels: Tensor,
        to_gradient: ToGradient,
        tuning: Tuning = TUNING,
    ) -> Tensor:
        # Validation has no gradient, and then two of the three products are left out.
        wanted = any(ctx.needs_input_grad)
        dhidden, dhead = torch.empty_like(hidden), torch.zeros_like(head) if wanted else head
        total = torch.zeros((), device=hidden.device)
        chunks = -(-len(hidden) // max(1, tuning.chunk_logits // len(low)))
        # Chunks of one size: a small last one would cost a product that is mostly overhead.
        size = -(-len(hidden) // chunks)
        buffer = hidden.new_empty(size, len(low))  # one for all chunks
        at_once = tuning.cpu_logits if hidden.device.type == "cpu" else tuning.gpu_logits
        rows_at_once = max(1, at_once // len(low))
        for begin in range(0, len(hidden), size):
            part = hidden[begin : begin + size]
            # ``out=`` keeps the allocator out of it: a hundred fresh megabytes a chunk are page faults on a CPU.
            logits = torch.mm(part, low.T, out=buffer[: len(part)])
            total += to_gradient(logits, labels[begin : begin + size], rows_at_once)
            if wanted:
                torch.mm(logits, low, out=dhidden[begin : begin + size])
                for first in range(0, len(low), tuning.head_slice):
                    last = first + tuning.head_slice
                    dhead[first:last] += torch.mm(logits[:, first:last].T, part)
        if wanted:
            ctx.save_for_backward(dhidden, dhead)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        dhidden, dhead = ctx.saved_tensors
        # The loss is a sum, so that its gradient scales as a whole; in place, since nobody else holds them.
        return dhidden.mul_(upstream), dhead.mul_(upstream), None, None, None, None


def loss_to_gradient_(logits: Tensor, labels: Tensor, rows_at_once: int) -> Tensor:
    """The summed loss of logits [N, V], float32; they become its gradient, softmax less one at the label."""
    total = torch.zeros((), device=logits.device)
    for begin in range(0, len(logits), rows_at_once):
        rows, label = logits[begin : begin + rows_at_once], labels[begin : begin + rows_at_once]
        log_probabilities = rows.float().log_softmax(dim=1)
        right = torch.arange(len(rows), device=rows.device), label
        total -= log_probabilities[right].sum()
        gradient = log_probabilities.exp_()
        # d(-log softmax) is softmax, less one at the label.
        gradient[right] -= 1
        rows.copy_(gradient)
        del log_probabilities, gradient  # before the next ones are made
    return total


def loss_to_gradient_in_one_pass_(logits: Tensor, labels: Tensor, rows_at_once: int) -> Tensor:
    """``loss_to_gradient_`` to be compiled: fused to one pass over the logits, it needs no rows at a time."""
    x = logits.float()
    most = x.amax(dim=1, keepdim=True)
    normaliser = (x - most).exp().sum(dim=1, keepdim=True).log() + most
    loss = (normaliser - x.gather(1, labels[:, None])).sum()
    right = torch.arange(x.shape[1], device=x.device) == labels[:, None]
    logits.copy_((x - normaliser).exp() - right.float())
    return loss
