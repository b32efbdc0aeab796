"""What training and evaluation ask of an architecture, and nothing else of it.

An architecture gives ``forward``, ``logits`` and ``initialize``. Everything else has a plain default here, right for
any model that keeps to them; overriding one makes it faster or smaller (docs/adding-a-model.md).

Shapes: B rows, T positions, D width, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pausebench.config.groups import AttentionKind, ModelConfig, PauseVisibility
from pausebench.errors import BadInput
from pausebench.model.attention import AttentionMask
from pausebench.model.flops import training_flops_per_token
from pausebench.model.prefill import Prefill, RereadPrefill
from pausebench.pauses import IGNORE_INDEX, Rows

Backend = str | Callable[..., Any]  # of torch.compile


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


class ShardUnit(NamedTuple):
    """Modules whose weights FSDP gathers together: in the arithmetic of training if ``lowered``, else as they are."""

    modules: list[nn.Module]
    lowered: bool


class Model(nn.Module, ABC):
    """A language model over ``vocab_size`` tokens, ``<pause>`` being the last of them."""

    config: ModelConfig
    vocab_size: int
    sharded = False  # whether FSDP gathers the weights, and casts them then (``training.parallel``)

    # nn.Module declares forward as an attribute, so an abstract method of that name would not be enforced.
    # ``forward(input_ids [B, T], mask=None, positions=None [B, T]) -> hidden states [B, T, D]``: a mask of None is
    # plain causal, positions of None are 0..T-1.

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., V]"""

    @abstractmethod
    def initialize(self, seed: int, fill: Callable[[Tensor, Tensor], object] = Tensor.copy_) -> None:
        """Draw all weights from ``seed``; ``fill(weight, drawn)`` puts each in its place, sharded or not."""

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def summed_loss(self, batch: LabelledRows) -> Tensor:
        """Sum of the cross entropy over the supervised positions of a CPU batch, in nats."""
        positions = None if batch.positions is None else batch.positions.to(self.device)
        # The whole [B, T, V] tensor: fine for small vocabularies, the reason to override this for large ones.
        logits = self.logits(self(batch.input_ids.to(self.device), batch.mask.to(self.device), positions))
        labels = batch.labels.to(self.device).flatten()
        return F.cross_entropy(logits.flatten(0, 1).float(), labels, ignore_index=IGNORE_INDEX, reduction="sum")

    def prefill(self, rows: Rows, kind: AttentionKind, visibility: PauseVisibility, capacity: int) -> Prefill:
        """Read rows of ``pauses.inference_rows`` up to their read-out; ``capacity`` is the longest they will become."""
        return RereadPrefill.of(self, rows, kind, visibility, capacity)

    def slot_bytes(self) -> int:
        """Bytes of memory for one position of a row while answers are decoded."""
        return self.config.d_model * self.dtype.itemsize

    def flops_per_token(self, sequence_length: float) -> float:
        """Floating-point operations of forward and backward for one token, for MFU."""
        return training_flops_per_token(self.config, self.vocab_size, sequence_length)

    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    # Autocast casts every weight in every micro-batch. It is right for all models and slower than casting once.
    def lowered(self, dtype: torch.dtype) -> AbstractContextManager[None]:
        """Multiply matrices in ``dtype`` inside; weights and their gradients stay as they are."""
        return nullcontext() if dtype is self.dtype else torch.autocast(self.device.type, dtype)

    def shard_units(self) -> list[ShardUnit]:
        """Parts gathered one after the other under FSDP; what is in none of them is gathered as one."""
        return []

    def recompute_activations(self) -> None:
        """Trade time for memory in the backward pass. Raises ``BadInput`` if the architecture cannot."""
        raise BadInput(
            f"train.activation_checkpointing=true: model.architecture={self.config.architecture} does not recompute "
            "activations. Leave the option out, or make train.micro_batch_size smaller."
        )

    def use_compiled_code(self, say: Callable[[str], None], backend: Backend = "inductor") -> None:
        """Replace what torch.compile makes faster by compiled code; say a line where there is none."""
        say(f"model.architecture={self.config.architecture} has nothing compiled; training goes on without it")
