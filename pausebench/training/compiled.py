"""torch.compile where it pays: what a block does position by position, and the loss over the vocabulary.

Attention stays outside, so that one compiled code serves every layer and every mask; on CUDA masks have a kernel of
their own (``model.attention``). Row lengths that change become symbols with the second one seen. Compiled code is kept
on disk by torch (TORCHINDUCTOR_CACHE_DIR).

torch compiles a function for a few shapes only (``torch._dynamo.config.recompile_limit``) and runs others as they are.
Each run begins with none, so that the runs of a process take no shapes from each other.

Invariants: a compiled run rounds differently from one that is not, and in nothing else; what it compiles does not
depend on the runs before it in its process.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from pausebench.config.groups import AttentionKind, Compile
from pausebench.model import decoder
from pausebench.model.attention import AttentionMask, attend_flexibly, block_mask
from pausebench.training.loss import Objective

# FLOPs of training from which ``compile=auto`` compiles. On a CPU compiling took ten seconds and saved a twentieth of a
# 130m step, so that it pays after some minutes at 400 GFLOP/s; that of a GPU is an estimate, a minute at 300 TFLOP/s.
PAYS = {"cpu": 4e14, "cuda": 2e16}


def compile_objective(
    objective: Objective, choice: Compile, flops: Callable[[], float], say: Callable[[str], None]
) -> bool:
    """Put compiled code into a model and its loss, if ``choice`` says so for a run of ``flops()`` in all.

    Where torch cannot compile here (no C++ compiler, no Triton), one line says why, and training goes on without. One
    line also says when a function has been compiled for as many shapes as torch allows. Code that a model of this
    process was given before is compiled again if it is used.
    """
    if choice is Compile.off or (choice is Compile.auto and flops() < PAYS.get(objective.device.type, float("inf"))):
        return False
    torch.compiler.reset()
    LIMIT.say = say
    try:
        _try(objective.device)
    except Exception as error:  # whatever Dynamo, Inductor and a compiler raise
        say(f"torch.compile does not work here ({_reason(error)}); training goes on without it")
        return False
    for block in objective.model.blocks:
        assert isinstance(block, decoder.Block)
        block.attention_inputs = _by_position(decoder.attention_inputs)
        block.after_attention = _by_position(decoder.after_attention)
    objective.to_gradient = _loss_to_gradient_()
    if objective.device.type == "cuda":
        try:
            _try_flexible(objective.device)
            objective.model.flexible = True
        except Exception as error:
            say(f"FlexAttention does not work here ({_reason(error)}); masks go through torch's fused attention")
    return True


class Limit(logging.Filter):
    """Says Dynamo's warning about too many shapes in a line, once a run, instead of the five that torch logs."""

    say: Callable[[str], None] | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether torch logs the record, too."""
        if "hit config.%s" not in str(record.msg) or not isinstance(record.args, tuple):
            return True
        say, self.say = self.say, None
        if say is not None:
            _, limit, function, *_ = record.args
            name = str(function).split()[0]
            say(f"torch.compile has compiled {name} {limit} times, its limit; other shapes run without it")
        return False


LIMIT = Limit()
logging.getLogger("torch._dynamo.convert_frame").addFilter(LIMIT)


def _try(device: torch.device) -> None:
    """Compile something small, so that a failure is seen before the run's own graphs."""
    compiled = torch.compile(torch.nn.functional.gelu)
    compiled(torch.ones(16, device=device))


def _try_flexible(device: torch.device) -> None:
    """The same for FlexAttention, forward and backward, in the arithmetic of training."""
    roles = torch.zeros(1, 256, dtype=torch.int8, device=device)
    x = torch.ones(1, 256, 64, dtype=torch.bfloat16, device=device, requires_grad=True)
    out = attend_flexibly(x, x, x, 1, block_mask(AttentionMask(AttentionKind.bidirectional, roles)))
    torch.autograd.grad(out.sum(), x)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


@lru_cache(maxsize=8)
def _by_position(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``function(x, ...)`` compiled for [N, ...] positions instead of [B, T, ...]; as it was without gradients."""
    compiled: Callable[..., Tensor] = torch.compile(function)

    def by_position(*given: Any, lean: bool) -> Tensor:
        if not torch.is_grad_enabled():
            return function(*given, lean=lean)
        shape = given[0].shape[:-1]
        flat = [item.flatten(0, -2) if isinstance(item, Tensor) else item for item in given]
        return compiled(*flat, lean=lean).view(*shape, -1)

    return by_position


@lru_cache(maxsize=1)
def _loss_to_gradient_() -> Callable[[Tensor, Tensor], Tensor]:
    """``loss.loss_to_gradient_`` in one pass over the logits."""

    def in_one_pass_(logits: Tensor, labels: Tensor) -> Tensor:
        x = logits.float()
        most = x.amax(dim=1, keepdim=True)
        normaliser = (x - most).exp().sum(dim=1, keepdim=True).log() + most
        loss = (normaliser - x.gather(1, labels[:, None])).sum()
        right = torch.arange(x.shape[1], device=x.device) == labels[:, None]
        logits.copy_((x - normaliser).exp() - right.float())
        return loss

    return torch.compile(in_one_pass_)
