"""A batch of rows, one process's share of it, and the batch of any step.

Invariant: the batch of step s is a function of (data, seed, s) alone, and the shares of all ranks together are that
batch. A resumed run asks for step s + 1 and needs no other state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from pausebench.model.attention import AttentionMask
from pausebench.pauses import IGNORE_INDEX


class Share(NamedTuple):
    """The part of every global batch that one of several processes works on."""

    rank: int = 0
    ranks: int = 1

    def of(self, rows: int) -> tuple[int, int, int]:
        """(first row, rows, rows that only fill up) of this rank: all ranks have equally many rows in their batch."""
        # Rounded up and filled: a rank with fewer rows would leave a collective that the others wait in.
        each = -(-rows // self.ranks)
        first = min(self.rank * each, rows)
        count = min(each, rows - first)
        return first, count, each - count


ALL = Share()


class Batch(NamedTuple):
    """One batch of rows on the CPU: the global batch, or one rank's share of it.

    input_ids, labels: int64 [B, T]. mask: who attends to whom. last: all labels lie in the last ``last`` positions.
    positions: int64 [B, T] for packed and for shifted rows; None counts from 0. fillers: the number of rows at the end
    that have no labels and do not count; they give every rank equally many rows. text: bool [B, T], False at pauses
    and padding; None where there are neither.
    """

    input_ids: Tensor
    labels: Tensor
    mask: AttentionMask
    last: int
    positions: Tensor | None = None
    fillers: int = 0
    text: Tensor | None = None

    @property
    def tokens(self) -> int:
        """Positions computed for this batch, pauses and padding included."""
        return (len(self.input_ids) - self.fillers) * self.input_ids.shape[1]

    @property
    def meaningful(self) -> int:
        """Positions of ``tokens`` that hold text: neither pause nor padding."""
        if self.text is None:
            return self.tokens
        return int(self.text[: len(self.text) - self.fillers].sum())

    @property
    def supervised(self) -> int:
        """Positions with a label."""
        # No label lies before ``last``, so the rest need not be looked at.
        return int((self.labels[:, -self.last :] != IGNORE_INDEX).sum())

    def share(self, share: Share) -> Batch:
        """One rank's rows of this global batch; rows that fill it up are its first row without labels."""
        first, count, fillers = share.of(len(self.input_ids))
        if not fillers:
            return self.rows(first, count)
        # Row 0 fills up: any row would do, its labels are taken away, and it is as long as the others.
        index = torch.tensor([*range(first, first + count), *[0] * fillers])
        picked = self._each(lambda tensor: tensor[index], self.mask.pick(index), fillers)
        picked.labels[count:] = IGNORE_INDEX
        return picked

    def rows(self, start: int, count: int) -> Batch:
        """A slice of the rows, which shares their memory."""
        fillers = min(count, max(0, start + count - (len(self.input_ids) - self.fillers)))
        return self._each(lambda tensor: tensor.narrow(0, start, count), self.mask.narrow(start, count), fillers)

    def _each(self, change: Callable[[Tensor], Tensor], mask: AttentionMask, fillers: int) -> Batch:
        positions = None if self.positions is None else change(self.positions)
        text = None if self.text is None else change(self.text)
        return Batch(change(self.input_ids), change(self.labels), mask, self.last, positions, fillers, text)

    @property
    def attention_length(self) -> float:
        """Positions that a token's attention spans: T, or in packed rows the length of its document, on average."""
        documents = self.mask.documents
        if documents is None:
            return self.input_ids.shape[1]
        # A token of a document of length n spans n positions, and a document has n such tokens: a mean of squares.
        lengths = documents[documents >= 0].bincount().double()
        return float(lengths.square().sum() / lengths.sum())


class Batches:
    """The batch of any step: ``make(first, count)`` gives those of steps ``first``, ``first + 1``, ... (from 0)."""

    def __init__(
        self, make: Callable[[int, int], Sequence[Batch]], together: int, validation: Callable[[int], Batch]
    ) -> None:
        self.validation = validation  # training-side rows that no step reads, at most as many as asked for
        self._make = make
        self._together = max(1, together)
        self._cached: tuple[int, Sequence[Batch]] | None = None

    def batch(self, step: int) -> Batch:
        """The rows of optimizer step ``step`` (1, 2, ...)."""
        block, offset = divmod(step - 1, self._together)
        # The block of a resumed run is made anew from its first step: nothing is stored but the step.
        if self._cached is None or self._cached[0] != block:
            self._cached = (block, self._make(block * self._together, self._together))
        return self._cached[1][offset]


class Prefetched:
    """The same batches, each made by a thread of its own while the one before it is trained on.

    Everything is asked of the one thread, so what is behind ``batches`` needs no lock. An error in making a batch is
    raised where that batch is asked for, and nowhere when it never is.
    """

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        # A thread is enough: tokenizing and tensor work release the interpreter while they run.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._ahead: tuple[int, Future[Batch]] | None = None

    def batch(self, step: int) -> Batch:
        """The rows of optimizer step ``step``; those of the next step are begun."""
        ahead, self._ahead = self._ahead, None
        # After a resume the step asked for is not the one that was made ahead; it is then made now.
        future = ahead[1] if ahead is not None and ahead[0] == step else self._thread.submit(self._batches.batch, step)
        made = future.result()
        self._ahead = (step + 1, self._thread.submit(self._batches.batch, step + 1))
        return made

    def validation(self, count: int) -> Batch:
        """At most ``count`` training-side rows, none of which a training step reads."""
        return self._thread.submit(self._batches.validation, count).result()
