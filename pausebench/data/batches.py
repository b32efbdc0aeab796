"""Rows of tokens by step number: what the trainer and the evaluator read.

Invariant: the batch of step s is a function of (data, seed, s) alone. A resumed run asks for step s + 1 and needs no
other state. Rows are made some hundred at a time, which costs a training step of the smallest model under a tenth
of its time; encoded rows of a task are kept for the next run in the same process (a sweep shares them).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from pausebench import pauses
from pausebench.config import AttentionKind, FinetuneConfig, Placement, PretrainConfig, WorldConfig
from pausebench.data.embedded import VALIDATION_SEED, World, build_world
from pausebench.data.tokenizer import WordTokenizer
from pausebench.errors import BadInput
from pausebench.model.attention import AttentionMask
from pausebench.pauses import IGNORE_INDEX
from pausebench.tasks import TASKS, Example, Task

BLOCK_ROWS = 2048


class Batch(NamedTuple):
    """input_ids, labels: int64 [B, T]; mask: who attends to whom; last: answers lie in the last so many positions."""

    input_ids: Tensor
    labels: Tensor
    mask: AttentionMask
    last: int

    def rows(self, start: int, count: int) -> Batch:
        """A slice of the rows."""
        return Batch(
            self.input_ids.narrow(0, start, count),
            self.labels.narrow(0, start, count),
            self.mask.narrow(start, count),
            self.last,
        )


class Batches:
    """Batches cut from blocks: ``block(seed, start, count)`` makes any range of rows."""

    def __init__(self, block: Callable[[int, int, int], Batch], seed: int, batch_size: int) -> None:
        self._block = block
        self._seed = seed
        self._batch_size = batch_size
        self._steps = max(1, BLOCK_ROWS // batch_size)
        self._cached: tuple[int, Batch] | None = None

    def batch(self, step: int) -> Batch:
        """The rows of optimizer step ``step`` (1, 2, ...)."""
        number, offset = divmod(step - 1, self._steps)
        if self._cached is None or self._cached[0] != number:
            rows = self._steps * self._batch_size
            self._cached = (number, self._block(self._seed, number * rows, rows))
        return self._cached[1].rows(offset * self._batch_size, self._batch_size)

    def validation(self, count: int) -> Batch:
        """Training-side rows that no training step reads."""
        return self._block(VALIDATION_SEED, 0, count)


def pretraining_batches(config: PretrainConfig, world: World) -> Batches:
    """One document a row, padded with end tokens of which the first is a target; pauses injected when enabled."""
    tokenizer, length = world.tokenizer, config.sequence_length
    assert length is not None
    count = pauses.pause_count(length, config.pause_fraction) if config.pause.enabled else 0
    if config.pause.enabled and count == 0:
        raise BadInput(
            f"pause_fraction={config.pause_fraction} with sequence_length={length} inserts no pause at all; "
            f"the smallest fraction that inserts one is about {0.501 / length:.5f}."
        )

    def block(seed: int, start: int, rows: int) -> Batch:
        documents, lengths = tokenizer.encode_batch(world.documents(seed, start, rows))
        input_ids = torch.full((rows, length), tokenizer.end_id)
        input_ids[:, : documents.shape[1]] = documents[:, :length]
        supervised = torch.arange(length) <= lengths[:, None]
        places = pauses.draw_places(seed, torch.arange(start, start + rows), length, count)
        input_ids, labels = pauses.inject(input_ids, supervised, places, tokenizer.pause_id)
        return Batch(input_ids, labels, AttentionMask(AttentionKind.causal), length)

    return Batches(block, config.seed, config.train.batch_size)


class EncodedExamples(NamedTuple):
    """Right-padded token ids of examples: prefix [R, P], target [R, A] and their lengths [R]."""

    prefix: Tensor
    prefix_lengths: Tensor
    target: Tensor
    target_lengths: Tensor

    def rows(self, index: Tensor) -> EncodedExamples:
        """Some rows, padding cut to the longest."""
        prefix_lengths, target_lengths = self.prefix_lengths[index], self.target_lengths[index]
        return EncodedExamples(
            self.prefix[index, : int(prefix_lengths.max())],
            prefix_lengths,
            self.target[index, : int(target_lengths.max())],
            target_lengths,
        )


def encode_examples(examples: list[Example], tokenizer: WordTokenizer) -> EncodedExamples:
    """Tokenise prefix and target apart, as inference will. Raises ``BadInput`` for an empty one."""
    columns: list[Tensor] = []
    for name in ("prefix", "target"):
        ids, lengths = tokenizer.encode_batch([getattr(example, name) for example in examples])
        if not bool(lengths.all()):
            raise BadInput(f"row {int(lengths.argmin())} has an empty {name}.")
        columns += [ids, lengths]
    return EncodedExamples(*columns)


@dataclass(frozen=True)
class RowLayout:
    """How an example becomes a row: everything ``pauses.finetuning_rows`` needs beside the example."""

    k: int
    placement: Placement
    attention: AttentionKind
    cue: Tensor
    pause_id: int
    pad_id: int

    @classmethod
    def of(cls, config: FinetuneConfig, task: Task, tokenizer: WordTokenizer) -> RowLayout:
        return cls(
            config.pauses,
            config.placement,
            config.prefix,
            torch.tensor(tokenizer.encode(task.cue), dtype=torch.int64),
            tokenizer.pause_id,
            tokenizer.end_id,
        )

    def training_batch(self, examples: EncodedExamples) -> Batch:
        rows = pauses.finetuning_rows(
            *examples,
            self.cue,
            k=self.k,
            placement=self.placement,
            pause_id=self.pause_id,
            pad_id=self.pad_id,
        )
        first = int((rows.labels != IGNORE_INDEX).int().argmax(dim=1).min())
        return Batch(
            rows.input_ids, rows.labels, AttentionMask(self.attention, rows.roles), rows.input_ids.shape[1] - first
        )

    def inference_rows(self, examples: EncodedExamples) -> pauses.Rows:
        return pauses.inference_rows(
            examples.prefix,
            examples.prefix_lengths,
            self.cue,
            m=self.k,
            placement=self.placement,
            pause_id=self.pause_id,
            pad_id=self.pad_id,
        )


@lru_cache(maxsize=512)
def _encoded_task_rows(task: str, world: WorldConfig, seed: int, start: int, count: int) -> EncodedExamples:
    """Encoded rows of a task, kept because the cells of a sweep differ in K and parent, not in their rows."""
    built = build_world(world)
    examples = [TASKS[task].to_example(row) for row in built.task_rows(seed, start, count)]
    return encode_examples(examples, built.tokenizer)


def finetuning_batches(config: FinetuneConfig, task: Task, world: World) -> Batches:
    """Fresh rows of the task for every step, pauses in place."""
    layout = RowLayout.of(config, task, world.tokenizer)

    def block(seed: int, start: int, rows: int) -> Batch:
        return layout.training_batch(_encoded_task_rows(task.name, config.world, seed, start, rows))

    return Batches(block, config.seed, config.train.batch_size)
