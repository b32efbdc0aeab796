"""Prepared text: a corpus as token ids on disk, read at any place at once.

    SPLIT/00000-00000.bin   ids of whole documents, little-endian uint16 or uint32, an end token behind each document
    SPLIT/00000-00000.sums  xxh3 (64 bits, little-endian) of every ``BLOCK`` bytes of it
    SPLIT/00000.json        a record for every shard that one part of the source has given
    index.json              all records in the order of the source; written last

Invariant: no token is handed out that was not checked. The fingerprint is that of the index, a record has the checksum
of the sums, the sums are those of the blocks, and the blocks of a row are checked each time it is read.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from pausebench.config.options import identity_fields
from pausebench.config.source import TextSource
from pausebench.counter_rng import permuted
from pausebench.data.tokenizer import Tokenizer
from pausebench.errors import BadInput, RunFailed
from pausebench.runs import lineage
from pausebench.runs.folder import RunFolder, temporary_path, write_whole

if TYPE_CHECKING:
    from torch import Tensor


# A row of 2048 uint16 tokens lies in one or two blocks: checking it reads 5 times as much as the row on average,
# and the sums of 200 billion tokens take 200 MB. With blocks of 64 KiB it were 17 times and 50 MB.
BLOCK = 16384
INDEX = "index.json"


class Shard(NamedTuple):
    """A record of the index. file: relative to the prepared folder. checksum: xxh3 (128 bits) of the sums, in hex."""

    file: str
    first_document: int
    documents: int
    tokens: int
    checksum: str


def token_type(vocab_size: int) -> str:
    """The smallest type that holds every id."""
    return "<u2" if vocab_size <= 2**16 else "<u4"


def sums_path(shard: Path) -> Path:
    return shard.with_suffix(".sums")


def index_content(tokenizer: str, dtype: str, splits: dict[str, list[Shard]]) -> bytes:
    """The content of an index: nothing of it depends on the machine, the workers or the day."""
    records = {split: [shard._asdict() for shard in shards] for split, shards in splits.items()}
    about = {"tokenizer": tokenizer, "dtype": dtype, "block_bytes": BLOCK, "splits": records}
    return (json.dumps(about, indent=1) + "\n").encode()


def index_fingerprint(index: bytes) -> str:
    """Hex digest that changes with any token of any shard."""
    return hashlib.sha256(index).hexdigest()[:16]


def damaged(folder: Path, shard: Shard, dtype: str) -> str | None:
    """What is wrong with a shard as far as sizes tell; None where nothing is."""
    path = folder / shard.file
    wanted = shard.tokens * np.dtype(dtype).itemsize
    for file, size in ((path, wanted), (sums_path(path), 8 * -(-wanted // BLOCK))):
        if not file.is_file():
            return f"{file} is missing"
        if file.stat().st_size != size:
            return f"{file} has {file.stat().st_size:,} bytes; {size:,} were written"
    return None


class PreparedText:
    """The splits of a prepared folder. ``remedy`` is the command that makes a deleted shard again.

    Raises ``BadInput`` for an index with another fingerprint, and for a shard that is missing or has another size.
    """

    def __init__(self, folder: Path, fingerprint: str, remedy: str) -> None:
        self.folder, self.fingerprint = folder, fingerprint
        index = (folder / INDEX).read_bytes() if (folder / INDEX).is_file() else b""
        if index_fingerprint(index) != fingerprint:
            raise BadInput(
                f"{folder / INDEX} is not what was prepared (its fingerprint is {index_fingerprint(index)}, not "
                f"{fingerprint}). Delete it and type\n  {remedy}\nwhich writes it again."
            )
        about: dict[str, Any] = json.loads(index)
        self._streams = {}
        for split, records in about["splits"].items():
            shards = [Shard(**record) for record in records]
            for shard in shards:
                if (wrong := damaged(folder, shard, about["dtype"])) is not None:
                    raise BadInput(f"{wrong}. Delete {folder / shard.file} and type\n  {remedy}\nwhich makes it again.")
            self._streams[split] = TokenStream(folder, shards, about["dtype"], remedy)

    def rows(self, split: str, seed: int, length: int) -> PreparedRows:
        """Rows of ``length`` tokens of a split. Raises ``BadInput`` where it has no full one."""
        if split not in self._streams:
            raise BadInput(f"{self.folder} has no split {split}; it has {', '.join(self._streams)}.")
        stream = self._streams[split]
        if stream.tokens < length:
            raise BadInput(
                f"the split {split} of {self.folder} has {stream.tokens:,} tokens, less than one row of {length:,}. "
                "Prepare more text, or take a shorter sequence_length."
            )
        return PreparedRows(stream, seed, length)


class TokenStream:
    """All tokens of a split, shard after shard."""

    def __init__(self, folder: Path, shards: list[Shard], dtype: str, remedy: str) -> None:
        self._folder, self._shards, self._dtype, self._remedy = folder, shards, np.dtype(dtype), remedy
        self._ends = np.cumsum([shard.tokens for shard in shards], dtype=np.int64)
        self._opened: dict[int, tuple[NDArray[Any], memoryview, NDArray[np.uint64]]] = {}
        self.tokens = int(self._ends[-1]) if shards else 0

    def read(self, starts: NDArray[np.int64], length: int) -> NDArray[np.int64]:
        """int64 [R, length]: so many tokens from each of R places on. Raises ``RunFailed`` for an altered shard."""
        rows = np.empty((len(starts), length), dtype=np.int64)
        holding = np.searchsorted(self._ends, starts, side="right")
        for row, start, number in zip(rows, starts.tolist(), holding.tolist(), strict=True):
            filled = 0
            while filled < length:
                offset = start + filled - (int(self._ends[number]) - self._shards[number].tokens)
                count = min(length - filled, self._shards[number].tokens - offset)
                row[filled : filled + count] = self._checked(number, offset, count)
                filled += count
                number += 1
        return rows

    def _checked(self, number: int, offset: int, count: int) -> NDArray[Any]:
        """Tokens of one shard, after their blocks were compared with the sums."""
        if number not in self._opened:
            self._opened[number] = self._open(number)
        tokens, raw, sums = self._opened[number]
        size = self._dtype.itemsize
        for block in range(offset * size // BLOCK, ((offset + count) * size - 1) // BLOCK + 1):
            if xxhash.xxh3_64_intdigest(raw[block * BLOCK : (block + 1) * BLOCK]) != sums[block]:
                raise self._altered(number, f"bytes {block * BLOCK:,} to {(block + 1) * BLOCK:,} were altered")
        return tokens[offset : offset + count]

    def _open(self, number: int) -> tuple[NDArray[Any], memoryview, NDArray[np.uint64]]:
        shard = self._shards[number]
        path = self._folder / shard.file
        if (wrong := damaged(self._folder, shard, self._dtype.str)) is not None:
            raise self._altered(number, wrong)
        sums = sums_path(path).read_bytes()
        if xxhash.xxh3_128_hexdigest(sums) != shard.checksum:
            raise self._altered(number, f"{sums_path(path)} was altered")
        with path.open("rb") as file:
            raw = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return np.frombuffer(raw, self._dtype), memoryview(raw), np.frombuffer(sums, "<u8")

    def _altered(self, number: int, what: str) -> RunFailed:
        path = self._folder / self._shards[number].file
        return RunFailed(
            f"{path} is not what was prepared: {what}. Nothing of it was trained on. Delete it and type\n"
            f"  {self._remedy}\nwhich makes it again; then go on with this command."
        )


class PreparedRows:
    """The blocks of ``length`` tokens of a stream: pass after pass, each in an order drawn from (seed, pass).

    Any row is found at once, and only the rows asked for are read. The tokens behind the last full block are left out.
    """

    def __init__(self, stream: TokenStream, seed: int, length: int) -> None:
        self._stream, self._seed, self._length = stream, seed, length
        self.blocks = stream.tokens // length

    def rows(self, start: int, count: int) -> Tensor:
        """int64 [count, length]: rows ``start`` onwards."""
        import torch

        numbers = torch.arange(start, start + count)
        blocks = permuted(self._seed, "block order", numbers // self.blocks, numbers % self.blocks, self.blocks)
        return torch.from_numpy(self._stream.read((blocks * self._length).numpy(), self._length))


# ------------------------------
# Where prepared text stands in the run root, and how a pretraining finds it: by corpus, source and tokenizer.


def folder_of(source: TextSource, runs: str, tokenizer: Tokenizer) -> RunFolder:
    """runs/prepare/CORPUS-TOKENIZER-HASH: the same for every command with this corpus, source and tokenizer."""
    corpus = identity_fields(source.corpus)
    for name in ("prepared", "document_mask"):  # how a training reads it
        corpus.pop(name, None)
    identity = {"corpus": corpus, "source": source.data.source.value, "tokenizer": tokenizer.fingerprint}
    return RunFolder.of(runs, "prepare", f"{source.corpus.name}-{source.tokenizer.kind.value}", identity)


def command(source: TextSource, runs: str) -> str:
    """What to type to prepare this text."""
    words = [
        *lineage.source_overrides(source.data),
        *lineage.corpus_overrides(source.corpus),
        *lineage.tokenizer_overrides(source.tokenizer),
        *lineage.runs_override(runs),
    ]
    return " ".join(["pausebench prepare", *words])


def find(source: TextSource, runs: str, tokenizer: Tokenizer) -> PreparedText:
    """The prepared text of a source. Raises ``BadInput`` where it is absent, unfinished or damaged."""
    folder = folder_of(source, runs, tokenizer)
    result = folder.result
    if result is None:
        state = "is not finished" if folder.path.exists() else "does not exist"
        raise BadInput(
            f"corpus.prepared=true: {folder.path} {state}. Make it with\n  {command(source, runs)}\n"
            "or leave corpus.prepared out: the text is then read and tokenised while training."
        )
    return PreparedText(folder.path, result["fingerprint"], command(source, runs))


# ------------------------------
# Writing prepared text: one part of the source (a file) at a time, so that parts can be written side by side.

ENCODED_TOGETHER = 128  # documents; what is lost when the writing is stopped ends with the shard, not here


class Part(NamedTuple):
    """What is recorded of a part: its shards so far, and whether they are all."""

    shards: list[Shard]
    done: bool = False

    @property
    def documents(self) -> int:
        return sum(shard.documents for shard in self.shards)

    @property
    def tokens(self) -> int:
        return sum(shard.tokens for shard in self.shards)


def part_path(folder: Path, split: str, number: int) -> Path:
    return folder / split / f"{number:05d}.json"


def read_part(folder: Path, split: str, number: int, dtype: str) -> Part:
    """The record of a part, cut off at the first shard that is gone or has another size; it can be written again."""
    try:
        content = json.loads(part_path(folder, split, number).read_text())
        shards = [Shard(**record) for record in content["shards"]]
        done = bool(content["done"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return Part([])
    whole = next((count for count, shard in enumerate(shards) if damaged(folder, shard, dtype)), len(shards))
    return Part(shards[:whole], done and whole == len(shards))


def recorded_totals(folder: Path) -> tuple[int, int, int]:
    """(shards, documents, tokens) of all records in a prepared folder."""
    shards = [
        Shard(**record) for path in folder.glob("*/[0-9]*.json") for record in json.loads(path.read_text())["shards"]
    ]
    return len(shards), sum(shard.documents for shard in shards), sum(shard.tokens for shard in shards)


def temporaries(folder: Path) -> list[Path]:
    """What a killed process has left unnamed."""
    return list(folder.glob("*/.*.tmp"))


def write_part(
    folder: Path,
    split: str,
    number: int,
    documents: Iterator[str],
    tokenizer: Tokenizer,
    *,
    has_ends: bool,
    shard_tokens: int,
    advance: Callable[[int, int], None],
) -> None:
    """Write what is missing of a part. A shard is closed before the document with which it would pass ``shard_tokens``;
    a longer document has a shard of its own.

    ``advance`` is told the part's documents and tokens so far, unsaved ones included; what it raises ends the writing.
    Raises ``OSError`` where the disk refuses; what was recorded stays.
    """
    dtype = token_type(tokenizer.vocab_size)
    part = read_part(folder, split, number, dtype)
    if part.done:
        return
    shards, end = part.shards, [tokenizer.end_id] if has_ends else []
    open_shard = _OpenShard(folder, f"{split}/{number:05d}-{len(shards):05d}.bin", part.documents)
    rest = islice(documents, part.documents, None)
    try:
        while texts := list(islice(rest, ENCODED_TOGETHER)):
            for ids in tokenizer.encode_lists(texts):
                tokens = np.array(ids + end, dtype)
                if open_shard.documents and open_shard.tokens + len(tokens) > shard_tokens:
                    shards.append(open_shard.close())
                    _write_record(part_path(folder, split, number), Part(shards))
                    name = f"{split}/{number:05d}-{len(shards):05d}.bin"
                    open_shard = _OpenShard(folder, name, part.documents)
                open_shard.add(tokens)
            advance(part.documents + open_shard.documents, part.tokens + open_shard.tokens)
        if open_shard.tokens:
            shards.append(open_shard.close())
        _write_record(part_path(folder, split, number), Part(shards, done=True))
    finally:
        open_shard.discard()


def _write_record(path: Path, part: Part) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"done": part.done, "shards": [shard._asdict() for shard in part.shards]}
    write_whole(path, (json.dumps(content, indent=1) + "\n").encode())


class _OpenShard:
    """A shard that is being written under another name; the file is made with its first token."""

    def __init__(self, folder: Path, name: str, first_document: int) -> None:
        self.name, self.path, self.first_document = name, folder / name, first_document
        self.documents = self.tokens = 0
        self._file: Any = None
        self._unsummed = bytearray()
        self._sums: list[int] = []

    def add(self, tokens: NDArray[Any]) -> None:
        """One document."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = temporary_path(self.path).open("wb")
        content = tokens.tobytes()
        self._file.write(content)
        self._unsummed += content
        self._sum(len(self._unsummed) // BLOCK)
        self.documents += 1
        self.tokens += len(tokens)

    def close(self) -> Shard:
        """Give the shard its name; what is returned may then be recorded."""
        self._sum(-(-len(self._unsummed) // BLOCK))
        sums = np.array(self._sums, "<u8").tobytes()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        write_whole(sums_path(self.path), sums)
        os.replace(temporary_path(self.path), self.path)
        checksum = xxhash.xxh3_128_hexdigest(sums)
        return Shard(self.name, self.first_document, self.documents, self.tokens, checksum)

    def discard(self) -> None:
        """Remove what has no name yet."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            with suppress(OSError):
                temporary_path(self.path).unlink(missing_ok=True)

    def _sum(self, blocks: int) -> None:
        for block in range(blocks):
            self._sums.append(xxhash.xxh3_64_intdigest(self._unsummed[block * BLOCK : (block + 1) * BLOCK]))
        del self._unsummed[: blocks * BLOCK]
