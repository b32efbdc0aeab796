"""Parallel blocks (GPT-J, PaLM): attention and MLP read the same states, and both results are added to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from pausebench.model import fast
from pausebench.model.decoder import Decoder


def side_by_side(x: Tensor, attended: Tensor, *weights: Any, lean: bool) -> Tensor:
    """The rest of a block after attention: [B, T, D] each -> [B, T, D]."""
    out, norm, mlp_in, mlp_out, activation = weights
    mlp = fast.activated_linear(fast.normed_linear(x, norm, mlp_in), activation, mlp_out)
    return x + F.linear(attended, *out) + mlp


class ParallelDecoder(fast.FastDecoder):
    """The weights of the plain decoder, by name and shape, in parallel blocks."""

    def use_compiled_code(self, say: Callable[[str], None], backend: fast.Backend = "inductor") -> None:
        say("parallel blocks are not compiled")  # the compiled pieces are those of the plain block


def use(decoder: Decoder) -> ParallelDecoder:
    """The same object with parallel blocks."""
    model = fast.use(decoder)
    model.__class__ = ParallelDecoder
    assert isinstance(model, ParallelDecoder)
    for block in model.blocks:
        block.pieces = fast.Pieces(after_attention=side_by_side)
    return model
