"""Pretraining text from any source, and its packing into full rows.

Invariants: row r of a seed is a function of (corpus, tokenizer, seed, r) alone; a row is full: documents follow each
other with an end token behind each, and the row's edge cuts where it falls.
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, ClassVar

import numpy as np

from pausebench.config.groups import Source, TokenizerKind
from pausebench.config.source import TextSource
from pausebench.counter_rng import uniform_array
from pausebench.data import files, hub
from pausebench.data.tokenizer import Tokenizer
from pausebench.errors import BadInput
from pausebench.worlds.english import EnglishWorld

if TYPE_CHECKING:
    from torch import Tensor

TRAIN, VALIDATION = "train", "validation"
SHUFFLE_DOCUMENTS = 8192  # documents held to shuffle; a whole corpus need not fit in memory
SAMPLE_DOCUMENTS = 64  # documents that stand for a corpus in its fingerprint
ENCODED_TOGETHER = 64


class Corpus(ABC):
    """Documents by split and pass.

    splits: those it has. has_ends: whether an end token follows each document.
    """

    splits: tuple[str, ...] = (TRAIN, VALIDATION)
    has_ends = True

    @abstractmethod
    def parts(self, split: str) -> list[str]:
        """The parts of a split (the source's files, which can be read side by side), as they are named in messages and
        fingerprints."""

    @abstractmethod
    def part(self, split: str, number: int) -> Iterator[str]:
        """The documents of one part in order."""

    @abstractmethod
    def identity(self) -> list[str]:
        """What tells this corpus from a changed one, beside its first documents."""

    def documents(self, split: str, epoch: int) -> Iterator[str]:
        """One pass over a split in its own order. Raises ``BadInput`` where it has none."""
        found = chain.from_iterable(self.part(split, number) for number in range(len(self.parts(split))))
        first = next(found, None)
        # Without this, a stream of passes over nothing would never end.
        if first is None:
            raise BadInput(f"the split {split} of the corpus has no documents; it needs at least one.")
        yield first
        yield from found


class FileCorpus(Corpus):
    """Local files (``data.files``); of the training split the first ``limit``, where one is given."""

    def __init__(self, root: Path, name: str, field: str, limit: int | None = None) -> None:
        self.root, self.name, self.field, self.limit = root, name, field, limit

    def parts(self, split: str) -> list[str]:
        # Sizes, not contents: they change with nearly every edit, and a look at them takes no time.
        return [f"{path.name} {path.stat().st_size}" for path in self._paths(split)]

    def part(self, split: str, number: int) -> Iterator[str]:
        return (_text(located, self.field) for located in files.read_file(self._paths(split)[number]))

    def identity(self) -> list[str]:
        return self.parts(TRAIN)

    def _paths(self, split: str) -> list[Path]:
        return files.split_files(self.root, self.name, split)[: self.limit if split == TRAIN else None]


class HubCorpus(Corpus):
    """A dataset of the hub, streamed: nothing is stored. Of the training split the first ``limit`` files."""

    def __init__(self, hub_id: str, subset: str | None, revision: str, field: str, limit: int | None = None) -> None:
        self.hub_id, self.subset, self.revision, self.field, self.limit = hub_id, subset, revision, field, limit

    def parts(self, split: str) -> list[str]:
        names = hub.split_files(self.hub_id, self.subset, self.revision, split)
        return names[: self.limit] if split == TRAIN else names

    def part(self, split: str, number: int) -> Iterator[str]:
        # By files, not as one stream: ``limit`` then downloads nothing of the files after it.
        rows = hub.stream_file(self.hub_id, self.subset, self.revision, split, number)
        for place, row in enumerate(rows, start=1):
            yield _text(files.Located(row, f"{self.hub_id} {split} file {number}, row {place}"), self.field)

    def identity(self) -> list[str]:
        # The revision is a commit, so it stands for every byte.
        return [self.hub_id, self.subset or "", self.revision]


class ByteCorpus(Corpus):
    """One file of bytes, split as enwik8 is: the first 90 % train, the next 5 % validation, the last 5 % test.

    Its documents are pieces of ``PIECE`` bytes with no end token between them: prepared, a split is the file's own
    bytes; streamed, the pieces are shuffled. Bytes that are no UTF-8 are kept (``surrogateescape``).
    """

    SHARES: ClassVar = {TRAIN: (0, 90), VALIDATION: (90, 95), "test": (95, 100)}
    PIECE = 65536  # shuffled together 8,192 are 512 MiB: more than all of enwik8
    splits: tuple[str, ...] = tuple(SHARES)
    has_ends = False

    def __init__(self, root: Path, name: str) -> None:
        folder = root / name
        found = [path for path in (folder / name, folder / f"{name}.zip", folder / f"{name}.gz") if path.is_file()]
        if not found:
            raise BadInput(f"{folder / name} does not exist, nor with .zip or .gz; corpus={name} is one file of bytes.")
        self.path = found[0]

    def parts(self, split: str) -> list[str]:
        first, last = self._borders(split)
        return [f"{self.path.name} bytes {first} to {last}"]

    def part(self, split: str, number: int) -> Iterator[str]:
        first, last = self._borders(split)
        with self._opened() as file:
            file.seek(first)
            for start in range(first, last, self.PIECE):
                yield file.read(min(self.PIECE, last - start)).decode(errors="surrogateescape")

    def _borders(self, split: str) -> tuple[int, int]:
        # In integers: the same borders on every machine.
        first, last = (self._size * share // 100 for share in self.SHARES[split])
        return first, last

    def identity(self) -> list[str]:
        return [f"{self._size} bytes"]

    @cached_property
    def _size(self) -> int:
        with self._opened() as file:
            return sum(map(len, iter(lambda: file.read(1 << 20), b"")))

    @contextmanager
    def _opened(self) -> Iterator[IO[bytes]]:
        try:
            if self.path.suffix == ".zip":
                with zipfile.ZipFile(self.path) as archive, archive.open(archive.namelist()[0]) as file:
                    yield file
            else:
                with gzip.open(self.path) if self.path.suffix == ".gz" else self.path.open("rb") as file:
                    yield file  # type: ignore[misc]
        except (OSError, EOFError, zlib.error, zipfile.BadZipFile, IndexError) as error:
            raise BadInput(f"{self.path} cannot be read ({error}). Copy or download it again.") from None


class WorldCorpus(Corpus):
    """The documents of the embedded English world: every pass has new ones."""

    PASS_DOCUMENTS = 65536

    def documents(self, split: str, epoch: int) -> Iterator[str]:
        seed = 0 if split == TRAIN else 1
        # Every pass has other documents: the world has no end.
        first = epoch * self.PASS_DOCUMENTS
        for start in range(first, first + self.PASS_DOCUMENTS, SAMPLE_DOCUMENTS):
            yield from EnglishWorld().documents(seed, start, SAMPLE_DOCUMENTS)

    def parts(self, split: str) -> list[str]:
        raise BadInput("generated text has no end and is not prepared. Type data=hub, or data=files data.root=DIR.")

    def part(self, split: str, number: int) -> Iterator[str]:
        raise AssertionError("it has no parts")

    def identity(self) -> list[str]:
        return []  # the first documents alone: every document is drawn by the same code


def open_corpus(source: TextSource) -> Corpus:
    """The corpus of a source. Raises ``BadInput`` for one that cannot be had there."""
    corpus = source.corpus
    if source.embedded:
        return WorldCorpus()
    if source.data.source is Source.files:
        assert source.data.root is not None
        root = Path(source.data.root).expanduser()
        if not corpus.bytes:
            return FileCorpus(root, corpus.name, corpus.field, corpus.files)
        if source.tokenizer.kind is not TokenizerKind.byte:
            raise BadInput(f"corpus={corpus.name} is read as bytes: type tokenizer=byte.")
        return ByteCorpus(root, corpus.name)
    if corpus.hub_id is None or corpus.revision is None:
        raise BadInput(
            f"corpus={corpus.name} has no place on the hub. Take corpus=c4, give corpus.hub_id= and corpus.revision=, "
            "or type data=files data.root=DIR."
        )
    return HubCorpus(corpus.hub_id, corpus.subset, corpus.revision, corpus.field, corpus.files)


def fingerprint(corpus: Corpus, tokenizer: str) -> str:
    """Hex digest of the first documents, the tokenizer and what the source itself says (sizes, revision)."""
    # The first documents stand for all: reading C4 (305 GB) for its digest would take hours.
    sample = islice(corpus.documents(TRAIN, 0), SAMPLE_DOCUMENTS)
    said = "\n".join([tokenizer, *corpus.identity(), *sample])
    return hashlib.sha256(said.encode(errors="surrogateescape")).hexdigest()[:16]


def shuffled(corpus: Corpus, split: str, seed: int) -> Iterator[str]:
    """Documents without end: pass after pass, each in an order drawn from (seed, pass) by a buffer of documents."""
    for epoch in itertools.count():
        held: list[str] = []
        # A buffer shuffles locally: a document comes at most its size too early. The whole corpus need not be held.
        draws = _draws(seed, f"document order {split} {epoch}")
        for document in corpus.documents(split, epoch):
            if len(held) < SHUFFLE_DOCUMENTS:
                held.append(document)
                continue
            place = int(next(draws) * SHUFFLE_DOCUMENTS)
            held[place], document = document, held[place]
            yield document
        # The pass is over: what is left in the buffer comes out in random order, so no document is lost.
        while held:
            place = int(next(draws) * len(held))
            held[place], held[-1] = held[-1], held[place]
            yield held.pop()


def _draws(seed: int, stream: str) -> Iterator[float]:
    # 4,096 draws at a time: a call of numpy for every document would be slow.
    for block in itertools.count():
        yield from uniform_array(seed, stream, np.array([block]), 4096)[0].tolist()


class PackedRows:
    """Rows of ``length`` tokens cut from a stream of documents that can be started again."""

    def __init__(
        self, documents: Callable[[], Iterator[str]], tokenizer: Tokenizer, length: int, has_ends: bool = True
    ) -> None:
        self._documents = documents
        self._end = [tokenizer.end_id] if has_ends else []
        self._tokenizer = tokenizer
        self._length = length
        self._next_row = 0
        self._stream = documents()
        self._held: list[int] = []

    def rows(self, start: int, count: int) -> Tensor:
        """int64 [count, length]: rows ``start`` onwards. Going back starts the stream again."""
        import torch

        # The validation rows are read again and again, and a resumed run starts in the middle: only forwards is cheap.
        if start < self._next_row:
            self._next_row, self._stream, self._held = 0, self._documents(), []
        while self._next_row < start:
            # Rows that were trained on before a resume are tokenised and dropped, some at a time to bound the memory.
            self._take(min(start - self._next_row, 256))
        return torch.tensor(self._take(count), dtype=torch.int64).view(count, self._length)

    def _take(self, rows: int) -> list[int]:
        wanted = rows * self._length
        while len(self._held) < wanted:
            for ids in self._tokenizer.encode_lists(list(islice(self._stream, ENCODED_TOGETHER))):
                self._held += ids + self._end
        taken, self._held = self._held[:wanted], self._held[wanted:]
        self._next_row += rows
        return taken


def _text(located: files.Located, field: str) -> str:
    text = files.require_fields(located, (field,))[field]
    if not isinstance(text, str):
        raise BadInput(f"{located.where}: field {field} is a {type(text).__name__}; it has to be text.")
    return text
