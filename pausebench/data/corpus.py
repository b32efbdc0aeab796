"""Pretraining text from any source, and its packing into full rows.

Invariants: row r of a seed is a function of (corpus, tokenizer, seed, r) alone; a row is full: documents follow each
other with an end token behind each, and the row's edge cuts where it falls.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from pausebench.counter_rng import uniform
from pausebench.data import files, hub
from pausebench.data.english import EnglishWorld
from pausebench.data.tokenizer import Tokenizer
from pausebench.errors import BadInput
from pausebench.groups import Source
from pausebench.stages import TrainingConfig

TRAIN, VALIDATION = "train", "validation"
SHUFFLE_DOCUMENTS = 8192  # documents held to shuffle; a whole corpus need not fit in memory
SAMPLE_DOCUMENTS = 64  # documents that stand for a corpus in its fingerprint
ENCODED_TOGETHER = 64


class Corpus(Protocol):
    """Documents by split and pass; ``identity`` says what else tells this corpus from a changed one."""

    def documents(self, split: str, epoch: int) -> Iterator[str]:
        """One pass over a split in its own order."""

    def identity(self) -> list[str]: ...


class FileCorpus:
    """Local files (``data.files``)."""

    def __init__(self, root: Path, name: str, field: str) -> None:
        self.root, self.name, self.field = root, name, field

    def documents(self, split: str, epoch: int) -> Iterator[str]:
        for located in files.read_split(self.root, self.name, split):
            yield _text(located, self.field)

    def identity(self) -> list[str]:
        paths = files.split_files(self.root, self.name, TRAIN)
        return [f"{path.name} {path.stat().st_size}" for path in paths]


class HubCorpus:
    """A dataset of the hub, streamed: nothing is stored."""

    def __init__(self, hub_id: str, subset: str | None, revision: str, field: str) -> None:
        self.hub_id, self.subset, self.revision, self.field = hub_id, subset, revision, field

    def documents(self, split: str, epoch: int) -> Iterator[str]:
        rows = hub.stream_split(self.hub_id, self.subset, self.revision, split)
        for number, row in enumerate(rows, start=1):
            yield _text(files.Located(row, f"{self.hub_id} {split}, row {number}"), self.field)

    def identity(self) -> list[str]:
        return [self.hub_id, self.subset or "", self.revision]


class WorldCorpus:
    """The documents of the embedded English world: every pass has new ones."""

    PASS_DOCUMENTS = 65536

    def __init__(self, world: EnglishWorld) -> None:
        self.world = world

    def documents(self, split: str, epoch: int) -> Iterator[str]:
        seed = 0 if split == TRAIN else 1
        first = epoch * self.PASS_DOCUMENTS
        for start in range(first, first + self.PASS_DOCUMENTS, 1024):
            yield from self.world.documents(seed, start, 1024)

    def identity(self) -> list[str]:
        return []


def open_corpus(config: TrainingConfig) -> Corpus:
    """The corpus that a config names. Raises ``BadInput`` for one that its source does not have."""
    corpus = config.corpus
    if config.data.source is Source.embedded:
        return WorldCorpus(EnglishWorld(config.world))
    if config.data.source is Source.files:
        assert config.data.root is not None
        return FileCorpus(Path(config.data.root).expanduser(), corpus.name, corpus.field)
    if corpus.hub_id is None or corpus.revision is None:
        raise BadInput(
            f"corpus={corpus.name} has no place on the hub. Take corpus=c4, give corpus.hub_id= and corpus.revision=, "
            "or type data=files data.root=DIR."
        )
    return HubCorpus(corpus.hub_id, corpus.subset, corpus.revision, corpus.field)


def fingerprint(corpus: Corpus, tokenizer: str) -> str:
    """Hex digest of the first documents, the tokenizer and what the source itself says (sizes, revision)."""
    sample = islice(corpus.documents(TRAIN, 0), SAMPLE_DOCUMENTS)
    return hashlib.sha256("\n".join([tokenizer, *corpus.identity(), *sample]).encode()).hexdigest()[:16]


def shuffled(corpus: Corpus, split: str, seed: int) -> Iterator[str]:
    """Documents without end: pass after pass, each in an order drawn from (seed, pass) by a buffer of documents."""
    for epoch in itertools.count():
        held: list[str] = []
        draws = _draws(seed, f"document order {split} {epoch}")
        for document in corpus.documents(split, epoch):
            if len(held) < SHUFFLE_DOCUMENTS:
                held.append(document)
                continue
            place = int(next(draws) * SHUFFLE_DOCUMENTS)
            held[place], document = document, held[place]
            yield document
        if not held:
            raise BadInput(f"the split {split} of the corpus has no documents; it needs at least one.")
        while held:
            place = int(next(draws) * len(held))
            held[place], held[-1] = held[-1], held[place]
            yield held.pop()


def _draws(seed: int, stream: str) -> Iterator[float]:
    for block in itertools.count():
        yield from uniform(seed, stream, torch.tensor([block]), 4096)[0].tolist()


class PackedRows:
    """Rows of ``length`` tokens cut from a stream of documents that can be started again."""

    def __init__(self, documents: Callable[[], Iterator[str]], tokenizer: Tokenizer, length: int) -> None:
        self._documents = documents
        self._tokenizer = tokenizer
        self._length = length
        self._next_row = 0
        self._stream = documents()
        self._held: list[int] = []

    def rows(self, start: int, count: int) -> Tensor:
        """int64 [count, length]: rows ``start`` onwards. Going back starts the stream again."""
        if start < self._next_row:
            self._next_row, self._stream, self._held = 0, self._documents(), []
        while self._next_row < start:
            self._take(min(start - self._next_row, 256))
        return torch.tensor(self._take(count), dtype=torch.int64).view(count, self._length)

    def _take(self, rows: int) -> list[int]:
        taken: list[int] = []
        wanted = rows * self._length
        while len(taken) + len(self._held) < wanted:
            taken += self._held
            self._held = []
            for ids in self._tokenizer.encode_lists(list(islice(self._stream, ENCODED_TOGETHER))):
                self._held += ids
                self._held.append(self._tokenizer.end_id)
        missing = wanted - len(taken)
        taken += self._held[:missing]
        self._held = self._held[missing:]
        self._next_row += rows
        return taken


def _text(located: files.Located, field: str) -> str:
    text = files.require_fields(located, (field,))[field]
    if not isinstance(text, str):
        raise BadInput(f"{located.where}: field {field} is a {type(text).__name__}; it has to be text.")
    return text
