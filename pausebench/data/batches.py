"""From documents and examples to batches by step number: what the trainer reads.

Batches are made some together, which costs a training step of the smallest model under a tenth of its time; encoded
rows of a task are kept for the next run in the same process (a sweep shares them).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from pausebench import pauses
from pausebench.config.groups import AttentionKind, PauseVisibility, Trim, WorldConfig
from pausebench.config.pauses import PauseInjection, PausePolicy
from pausebench.data.batch import ALL, Batch, Batches, Share
from pausebench.data.corpus import TRAIN, VALIDATION, Corpus, PackedRows, shuffled
from pausebench.data.examples import Tokens, encode, fit
from pausebench.data.packing import PackedExamples, pack
from pausebench.data.shards import PreparedRows, PreparedText
from pausebench.data.task_rows import DatasetRows, GeneratedRows
from pausebench.data.tokenizer import Tokenizer, pad
from pausebench.errors import BadInput
from pausebench.model.attention import AttentionMask
from pausebench.pauses import Role
from pausebench.tasks import TASKS, Task
from pausebench.worlds.counting import VALIDATION_SEED, World

# Made one by one, the batches of the smallest model would cost a good part of its step.
BLOCK_ROWS = 2048  # rows of a generated world made together
BLOCK_TOKENS = 65536  # the same for packed text
BLOCK_EXAMPLES = 256  # the same for packed examples


def _fixed_batches(
    block: Callable[[int, int, int], Batch], seed: int, batch_size: int, rows_together: int, share: Share
) -> Batches:
    """Batches of ``batch_size`` rows out of ``block(seed, first row, rows)``; a rank makes its own rows alone."""

    def own(seed: int, start: int, rows: int) -> Batch:
        first, count, fillers = share.of(rows)
        return block(seed, start, rows).share(share) if fillers else block(seed, start + first, count)

    def make(first: int, count: int) -> list[Batch]:
        # One rank of several makes its own rows and no others, so that making a batch gets faster with the ranks.
        if share.ranks > 1:
            return [own(seed, step * batch_size, batch_size) for step in range(first, first + count)]
        made = block(seed, first * batch_size, count * batch_size)
        return [made.rows(index * batch_size, batch_size) for index in range(count)]

    return Batches(make, rows_together // batch_size, partial(own, VALIDATION_SEED, 0))


def document_batches(
    world: World, injection: PauseInjection, *, length: int, seed: int, batch_size: int, share: Share = ALL
) -> Batches:
    """One document of a count world a row, padded with end tokens of which the first is a target."""
    tokenizer, count = world.tokenizer, _pauses_in_a_row(injection, length)
    if injection.trim is Trim.carry:
        raise BadInput(
            f"pause.trim=carry with world={world.config.name}: a document has a row of its own, and the next row is "
            "another's. Leave it out."
        )

    def block(seed: int, start: int, rows: int) -> Batch:
        documents, lengths = pad(tokenizer.encode_lists(world.documents(seed, start, rows)), tokenizer.end_id)
        input_ids = torch.full((rows, length), tokenizer.end_id)
        input_ids[:, : documents.shape[1]] = documents[:, :length]
        # `<=`: the first end token behind a document is predicted, the ones behind it are padding.
        supervised = torch.arange(length) <= lengths[:, None]
        batch = _paused(input_ids, supervised, injection, count, length, (seed, start), tokenizer.pause_id)
        text = (batch.input_ids != tokenizer.pause_id) & (ends_before(batch.input_ids, tokenizer.end_id) == 0)
        return batch._replace(text=text)

    return _fixed_batches(block, seed, batch_size, BLOCK_ROWS, share)


def text_batches(
    text: Corpus | PreparedText,
    tokenizer: Tokenizer,
    injection: PauseInjection,
    *,
    length: int,
    seed: int,
    batch_size: int,
    document_mask: bool = False,
    share: Share = ALL,
) -> Batches:
    """Full rows of a corpus: documents one after the other, an end token behind each.

    With ``document_mask`` a document sees itself alone, and its first token is no target: nothing before it could say
    anything about it. Positions count through the row.
    """
    count = _pauses_in_a_row(injection, length)
    # carry: the row is cut that much shorter before its pauses come in, so it is full afterwards and loses nothing.
    tokens = length - count if injection.trim is Trim.carry else length
    if tokens < 1:
        raise BadInput(f"pause.trim=carry with pause_fraction={injection.fraction}: a row has no place for text.")

    def opened(split: str, seed: int) -> PackedRows | PreparedRows:
        if isinstance(text, PreparedText):
            return text.rows(split, seed, tokens)
        return PackedRows(partial(shuffled, text, split, seed), tokenizer, tokens, text.has_ends)

    opened_rows = {seed: opened(TRAIN, seed), VALIDATION_SEED: opened(VALIDATION, VALIDATION_SEED)}

    def block(seed: int, start: int, rows: int) -> Batch:
        input_ids = opened_rows[seed].rows(start, rows)
        supervised = torch.ones_like(input_ids, dtype=torch.bool)
        if document_mask:
            # The token behind an end token begins a document.
            supervised[:, 1:] = input_ids[:, :-1] != tokenizer.end_id
        batch = _paused(input_ids, supervised, injection, count, length, (seed, start), tokenizer.pause_id)
        if not document_mask:
            return batch
        # Numbers that no other row of the batch has: masks of several rows are made from them together.
        documents = ends_before(batch.input_ids, tokenizer.end_id) + torch.arange(rows)[:, None] * length
        return batch._replace(mask=replace(batch.mask, documents=documents))

    return _fixed_batches(block, seed, batch_size, BLOCK_TOKENS // length, share)


def ends_before(input_ids: Tensor, end_id: int) -> Tensor:
    """int64 [B, T]: end tokens before each position. An end token belongs to what it ends."""
    is_end = input_ids == end_id
    return is_end.cumsum(1) - is_end.to(torch.int64)


def _paused(
    input_ids: Tensor,
    supervised: Tensor,
    injection: PauseInjection,
    count: int,
    length: int,
    first: tuple[int, int],
    pause_id: int,
) -> Batch:
    """These rows with ``count`` pauses injected in each. first: (seed, number) of the first row."""
    (rows, tokens), (seed, start) = input_ids.shape, first
    mask = AttentionMask(AttentionKind.causal)
    # By (seed, number of the row): the same places for any batch size, any rank and after any resume.
    places = pauses.draw_places(seed, torch.arange(start, start + rows), tokens, count)
    input_ids, labels = pauses.inject(input_ids, supervised, places, pause_id, length)
    if not count:
        return Batch(input_ids, labels, mask, length)
    if injection.visibility is not PauseVisibility.all:
        roles, readouts = pauses.injected_roles(input_ids, pause_id)
        mask = replace(mask, roles=roles, visibility=injection.visibility, readouts=readouts)
    return Batch(input_ids, labels, mask, length, text=input_ids != pause_id)


def _pauses_in_a_row(injection: PauseInjection, length: int) -> int:
    """Pauses drawn for a row. Raises ``BadInput`` when pause=on would insert none."""
    if not injection.fraction:
        return 0
    count = pauses.pause_count(length, injection.fraction)
    if count == 0:
        raise BadInput(
            f"pause_fraction={injection.fraction} with sequence_length={length} inserts no pause at all; "
            f"the smallest fraction that inserts one is about {0.501 / length:.5f}."
        )
    return count


class EncodedExamples(NamedTuple):
    """Right-padded token ids of examples: prefix [R, P], target [R, A] and their lengths [R]."""

    prefix: Tensor
    prefix_lengths: Tensor
    target: Tensor
    target_lengths: Tensor

    @classmethod
    def of(cls, prefixes: Sequence[Tokens], targets: Sequence[Tokens], pad_id: int) -> EncodedExamples:
        return cls(*pad(prefixes, pad_id), *pad(targets, pad_id))


@dataclass(frozen=True)
class RowLayout:
    """How an example becomes a row: everything ``pauses.finetuning_rows`` needs beside the example, and who sees whom.

    pause_id: the token in the pauses' places, ``<pause>`` or a filler.
    """

    policy: PausePolicy
    attention: AttentionKind
    cue: Tensor
    pause_id: int
    pad_id: int

    @classmethod
    def of(cls, policy: PausePolicy, attention: AttentionKind, task: Task, tokenizer: Tokenizer) -> RowLayout:
        """Raises ``BadInput`` where the policy's filler is not one token."""
        filler, special = policy.filler, {"pause": [tokenizer.pause_id], "end": [tokenizer.end_id]}
        ids = special[filler] if filler in special else tokenizer.encode(filler)
        if len(ids) != 1:
            raise BadInput(
                f"filler={filler} is {len(ids)} tokens; allowed are pause, end, and text that is one token, "
                "such as filler=."
            )
        cue = torch.tensor(tokenizer.encode(task.cue), dtype=torch.int64)
        return cls(policy, attention, cue, ids[0], tokenizer.end_id)

    @property
    def given(self) -> int:
        """Positions that a row has beside prefix and target, at most: of its pauses or their jump, and its cue."""
        return self.policy.positions + len(self.cue)

    def at(self, m: int) -> RowLayout:
        """The same rows with M pauses each, at inference."""
        return replace(self, policy=self.policy.at(m))

    def finetuning_rows(self, examples: EncodedExamples, seed: int = 0, numbers: Tensor | None = None) -> pauses.Rows:
        """Rows of these examples, whose numbers in the data (None: 0, 1, ...) decide about their pauses."""
        numbers = torch.arange(len(examples.prefix_lengths)) if numbers is None else numbers
        # With k_range every row draws its own number of pauses by (seed, number), too.
        counts = pauses.draw_counts(self.policy, seed, numbers)
        return pauses.finetuning_rows(
            *examples, self.cue, self.policy, counts, pause_id=self.pause_id, pad_id=self.pad_id
        )

    def mask(self, rows: pauses.Rows | PackedExamples, documents: Tensor | None = None) -> AttentionMask:
        """Who sees whom in rows of this layout."""
        return AttentionMask(self.attention, rows.roles, documents, self.policy.pause_visibility, rows.readouts)

    def training_batch(self, examples: EncodedExamples, seed: int = 0, numbers: Tensor | None = None) -> Batch:
        """One example a row, padded to the longest."""
        rows = self.finetuning_rows(examples, seed, numbers)
        # Logits are computed from the earliest read-out on alone: the head is most of the work of a small model.
        last = rows.input_ids.shape[1] - int(rows.readout.min())
        return Batch(rows.input_ids, rows.labels, self.mask(rows), last, rows.positions, text=_is_text(rows.roles))

    def packed_batch(self, examples: EncodedExamples, seed: int = 0, numbers: Tensor | None = None) -> Batch:
        """Several examples a row (``data.packing``)."""
        packed = pack(self.finetuning_rows(examples, seed, numbers), self.pad_id)
        mask, text = self.mask(packed, packed.documents), _is_text(packed.roles)
        return Batch(packed.input_ids, packed.labels, mask, packed.input_ids.shape[1], packed.positions, text=text)

    def inference_rows(self, examples: EncodedExamples) -> pauses.Rows:
        prefix, lengths, *_ = examples
        return pauses.inference_rows(prefix, lengths, self.cue, self.policy, pause_id=self.pause_id, pad_id=self.pad_id)


def _is_text(roles: Tensor) -> Tensor:
    return (roles == Role.PREFIX.value) | (roles == Role.TARGET.value)


@lru_cache(maxsize=512)
def _encoded_generated_rows(task: str, world: WorldConfig, seed: int, start: int, count: int) -> EncodedExamples:
    """Encoded rows of a world, kept because the cells of a sweep differ in K and parent, not in their rows."""
    rows = GeneratedRows(TASKS[task], world)
    tokenizer = rows.world.tokenizer
    examples = encode(rows.training(seed, start, count), rows.task, tokenizer)
    return EncodedExamples.of([e.prefix for e in examples], [e.target for e in examples], tokenizer.end_id)


def generated_batches(
    generated: GeneratedRows, layout: RowLayout, seed: int, batch_size: int, share: Share = ALL
) -> Batches:
    """Fresh rows of a world for every step; all have one length."""
    task, world = generated.task.name, generated.world.config

    def block(seed: int, start: int, rows: int) -> Batch:
        examples = _encoded_generated_rows(task, world, seed, start, rows)
        return layout.training_batch(examples, seed, torch.arange(start, start + rows))

    return _fixed_batches(block, seed, batch_size, BLOCK_ROWS, share)


class DatasetBatches:
    """Packed batches of a dataset's training rows, in at most ``limit`` tokens each.

    A row with a long context is trained with one window of it, chosen by the row's number; ``truncated`` counts those.
    Rows whose question and answer alone do not fit are left out of their batch, so that every K trains on the same rows
    in the same steps but for these; ``left_out`` counts them over the whole split. fitting: (prefix, target) of each
    row of the split, None for those left out.
    """

    def __init__(self, rows: DatasetRows, layout: RowLayout, tokenizer: Tokenizer, limit: int) -> None:
        self._rows = rows
        self._layout = layout
        room = limit - layout.given
        self.fitting: list[tuple[Tokens, Tokens] | None] = []
        self.truncated = 0
        for number, example in enumerate(rows.encoded(tokenizer)):
            fitted = fit(example, room - len(example.target))
            # Answers are never cut: a row whose question and answer do not fit trains nothing.
            whole = len(example.question) + len(example.target) <= room
            # By the row's number, not at random: every seed reads the same window of a row.
            prefix = fitted.prefixes[number % len(fitted.prefixes)]
            self.fitting.append((prefix, example.target) if whole else None)
            self.truncated += whole and bool(fitted.cut)
        # Over the whole split, before the first step: a result says what share of the task was trained on.
        self.left_out = self.fitting.count(None)

    def batches(self, seed: int, batch_size: int, share: Share = ALL) -> Batches:
        """Batches of ``batch_size`` examples; every rank packs the whole batch and takes its rows of it."""

        def make(first: int, count: int) -> list[Batch]:
            # Rows are counted through the epochs, so step s has the rows from s * batch_size on, whatever ran before.
            numbers = self._rows.training(seed, first * batch_size, count * batch_size)
            starts = range(0, len(numbers), batch_size)
            return [self._batch(seed, numbers[start : start + batch_size]).share(share) for start in starts]

        def validation(count: int) -> Batch:
            return self._batch(seed, self._rows.validation[:count]).share(share)

        return Batches(make, BLOCK_EXAMPLES // batch_size, validation)

    def _batch(self, seed: int, numbers: Sequence[int]) -> Batch:
        fitting = [(number, *pair) for number in numbers if (pair := self.fitting[number]) is not None]
        if not fitting:
            raise BadInput(
                f"task={self._rows.task.name}: none of the {len(numbers)} rows of a batch fits; {self.left_out} of "
                f"{len(self.fitting)} rows are too long. Pretrain with a longer sequence_length, or lower k."
            )
        # A batch may have fewer rows than its size: filling it up would shift every later row, and by K.
        kept, prefixes, targets = zip(*fitting, strict=True)
        examples = EncodedExamples.of(prefixes, targets, self._layout.pad_id)
        return self._layout.packed_batch(examples, seed, torch.tensor(kept))
