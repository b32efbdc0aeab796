"""Writing prepared text: one part of the source (a file) at a time, so that parts can be written side by side.

Invariant: what a part's documents become does not depend on who writes it, nor on how often the writing was killed: a
shard is closed by its number of tokens alone, is whole under its name, and is recorded only then.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from pausebench.data.shards import BLOCK, Shard, damaged, sums_path, token_type
from pausebench.data.tokenizer import Tokenizer
from pausebench.whole_files import temporary_path, write_whole

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
