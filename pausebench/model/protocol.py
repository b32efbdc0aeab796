"""What is asked of a model from outside of ``model/``."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from pausebench.model.attention import AttentionMask


class LabelledRows(Protocol):
    """What a loss reads of a batch (``data.batch.Batch``), on the CPU.

    input_ids, labels: int64 [B, T], labels being IGNORE_INDEX where there is no loss. last: all labels are in the last
    ``last`` positions. positions: int64 [B, T]; None counts from 0.
    """

    @property
    def input_ids(self) -> Tensor: ...
    @property
    def labels(self) -> Tensor: ...
    @property
    def mask(self) -> AttentionMask: ...
    @property
    def last(self) -> int: ...
    @property
    def positions(self) -> Tensor | None: ...
