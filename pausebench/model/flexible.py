"""Attention under a mask by FlexAttention: one compiled kernel that skips what a mask hides, for CUDA devices.

``training.compiled`` turns it on where it compiles; everywhere else masks are dense or packed rows are taken apart
(``attention``), with the same results up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from pausebench.groups import AttentionKind, PauseVisibility
from pausebench.model.attention import AttentionMask, merge_heads, split_heads
from pausebench.pauses import Role


def block_mask(mask: AttentionMask) -> BlockMask:
    """A mask that hides something beside the future, [B, T, T], in the blocks of the kernel."""
    shape = mask.roles if mask.roles is not None else mask.documents
    assert shape is not None
    B, T = shape.shape
    create = _compiled(create_block_mask) if shape.is_cuda else create_block_mask
    made: BlockMask = create(sees(mask), B, None, T, T, device=shape.device)
    return made


def sees(mask: AttentionMask) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """``AttentionMask.dense`` as a function of row, head, query and key."""
    kind, visibility, roles, documents, readouts = (
        mask.kind,
        mask.visibility,
        mask.roles,
        mask.documents,
        mask.readouts,
    )
    runs = mask.runs() if visibility is PauseVisibility.readout else None

    def allowed(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        seen = q >= k
        if kind is AttentionKind.bidirectional:
            assert roles is not None
            seen = seen | ((roles[b, q] <= Role.PAUSE.value) & (roles[b, k] <= Role.PAUSE.value))
        elif kind is AttentionKind.bottleneck:
            assert roles is not None
            seen = seen & ~((roles[b, q] == Role.TARGET.value) & (roles[b, k] == Role.PREFIX.value))
        if visibility is not PauseVisibility.all:
            assert roles is not None
            by = q == k
            if runs is not None and readouts is not None:
                by = by | (readouts[b, q] & (runs[b, q] == runs[b, k]))
            seen = seen & (by | (roles[b, k] != Role.PAUSE.value))
        if documents is not None:
            seen = seen & (documents[b, q] == documents[b, k])
        return seen

    return allowed


def attend_flexibly(q: Tensor, k: Tensor, v: Tensor, n_heads: int, mask: BlockMask) -> Tensor:
    """``attention.attend``: [B, T, D] each -> [B, T, D]."""
    attention: Any = _compiled(flex_attention) if q.is_cuda else flex_attention
    out: Tensor = attention(*(split_heads(part, n_heads) for part in (q, k, v)), block_mask=mask)
    return merge_heads(out)


@lru_cache(maxsize=2)
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True)
