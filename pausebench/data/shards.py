"""Prepared text: a corpus as token ids on disk, read at any place at once.

    SPLIT/00000-00000.bin   ids of whole documents, little-endian uint16 or uint32, an end token behind each document
    SPLIT/00000.json        a record for every shard that one part (file) of the source has given
    index.json              all records in the order of the source; written last

Invariant: no token is handed out of a shard that was not checked. The fingerprint is that of the index, and a record
has the size and the checksum of its shard.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from itertools import chain, islice
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
from pausebench.runs.folder import RunFolder, write_whole

if TYPE_CHECKING:
    from torch import Tensor

INDEX = "index.json"
LAYOUT = 2  # of the files above; part of the folder's name, so that files of another layout are never read
ENCODED_TOGETHER = 128  # documents: enough to keep the tokenizer's threads busy


class Shard(NamedTuple):
    """A record of the index. file: relative to the prepared folder. checksum: xxh3 (128 bits) of the file, in hex."""

    file: str
    first_document: int
    documents: int
    tokens: int
    checksum: str


def token_type(vocab_size: int) -> str:
    """The smallest type that holds every id."""
    return "<u2" if vocab_size <= 2**16 else "<u4"


def index_content(tokenizer: str, dtype: str, splits: dict[str, list[Shard]]) -> bytes:
    """The content of an index: it does not depend on the machine, the workers or the day."""
    records = {split: [shard._asdict() for shard in shards] for split, shards in splits.items()}
    return (json.dumps({"tokenizer": tokenizer, "dtype": dtype, "splits": records}, indent=1) + "\n").encode()


def index_fingerprint(index: bytes) -> str:
    """Hex digest that changes with any token of any shard."""
    return hashlib.sha256(index).hexdigest()[:16]


def damaged(folder: Path, shard: Shard, dtype: str) -> str | None:
    """What is wrong with a shard as far as its size tells; None where nothing is."""
    path, size = folder / shard.file, shard.tokens * np.dtype(dtype).itemsize
    if not path.is_file():
        return f"{path} is missing"
    if path.stat().st_size != size:
        return f"{path} has {path.stat().st_size:,} bytes; {size:,} were written"
    return None


class PreparedText:
    """The splits of a prepared folder. ``remedy`` is the command that makes a deleted shard again.

    Raises ``BadInput`` for an index with another fingerprint, and for a shard that is missing or has another size.
    """

    def __init__(self, folder: Path, fingerprint: str, remedy: str) -> None:
        self.folder, self.fingerprint = folder, fingerprint
        index = (folder / INDEX).read_bytes() if (folder / INDEX).is_file() else b""
        # One digest over all: the index has every shard's checksum, so a shard cannot be swapped unnoticed.
        if index_fingerprint(index) != fingerprint:
            raise BadInput(
                f"{folder / INDEX} is not what was prepared (its fingerprint is {index_fingerprint(index)}, not "
                f"{fingerprint}). Delete it and type\n  {remedy}\nwhich writes it again."
            )
        about: dict[str, Any] = json.loads(index)
        self._dtype, self._remedy = about["dtype"], remedy
        self._splits = {split: [Shard(**record) for record in records] for split, records in about["splits"].items()}
        # Sizes now, checksums when a shard is first read: a missing file should not end a run in its third hour.
        for shard in chain.from_iterable(self._splits.values()):
            if (wrong := damaged(folder, shard, self._dtype)) is not None:
                raise BadInput(f"{wrong}. Delete {folder / shard.file} and type\n  {remedy}\nwhich makes it again.")

    def rows(self, split: str, seed: int, length: int) -> PreparedRows:
        """Rows of ``length`` tokens of a split. Raises ``BadInput`` where it has no full one."""
        if split not in self._splits:
            raise BadInput(f"{self.folder} has no split {split}; it has {', '.join(self._splits)}.")
        shards = self._splits[split]
        if (tokens := Part(shards).tokens) < length:
            raise BadInput(
                f"the split {split} of {self.folder} has {tokens:,} tokens, less than one row of {length:,}. "
                "Prepare more text, or take a shorter sequence_length."
            )
        return PreparedRows(self, shards, seed, length)

    def open(self, shard: Shard) -> NDArray[Any]:
        """A shard's tokens, after the whole file was compared with its checksum. Raises ``RunFailed`` where it differs.

        Rows are drawn from everywhere, so the first steps of a run read every shard once: minutes for the 400 GB of
        the paper's pretraining on a disk of 2 GB/s, and nothing after that.
        """
        if (wrong := damaged(self.folder, shard, self._dtype)) is None:
            # Mapped, not read: the kernel keeps what memory allows, and processes of one machine share it.
            tokens = np.memmap(self.folder / shard.file, self._dtype, "r")
            if xxhash.xxh3_128_hexdigest(tokens.data) == shard.checksum:
                return tokens
            wrong = "its bytes were altered"
        raise RunFailed(
            f"{self.folder / shard.file} is not what was prepared: {wrong}. Nothing of it was trained on. "
            f"Delete it and type\n  {self._remedy}\nwhich makes it again; then type this command again."
        )


class PreparedRows:
    """The blocks of ``length`` tokens of a split: pass after pass, each in an order drawn from (seed, pass).

    Any row is found at once, and only the rows asked for are read. The tokens behind the last full block are left out.
    """

    def __init__(self, text: PreparedText, shards: list[Shard], seed: int, length: int) -> None:
        self._text, self._shards, self._seed, self._length = text, shards, seed, length
        self._ends = np.cumsum([shard.tokens for shard in shards], dtype=np.int64)
        self._opened: dict[int, NDArray[Any]] = {}
        self.blocks = int(self._ends[-1]) // length

    def rows(self, start: int, count: int) -> Tensor:
        """int64 [count, length]: rows ``start`` onwards."""
        import torch

        numbers = torch.arange(start, start + count)
        blocks = permuted(self._seed, "block order", numbers // self.blocks, numbers % self.blocks, self.blocks)
        firsts = (blocks * self._length).numpy()
        # The shard of each first token, by bisection: 3,000 shards cost 12 comparisons.
        holding = np.searchsorted(self._ends, firsts, side="right").tolist()
        rows = np.empty((count, self._length), dtype=np.int64)
        for row, first, number in zip(rows, firsts.tolist(), holding, strict=True):
            self._fill(row, first, number)
        return torch.from_numpy(rows)

    def _fill(self, block: NDArray[np.int64], first: int, number: int) -> None:
        """Read the block that begins with token ``first`` of the split, which shard ``number`` holds."""
        filled = 0
        while filled < self._length:  # a block may cross from one shard into the next
            if number not in self._opened:
                self._opened[number] = self._text.open(self._shards[number])
            offset = first + filled - (int(self._ends[number]) - self._shards[number].tokens)
            found = self._opened[number][offset : offset + self._length - filled]
            block[filled : filled + len(found)] = found
            filled += len(found)
            number += 1


def folder_of(source: TextSource, runs: str, tokenizer: Tokenizer) -> RunFolder:
    """runs/prepare/CORPUS-TOKENIZER-HASH: the same for every command with this corpus, source and tokenizer."""
    # Without the options that say how a training reads the text: those trainings share one folder.
    fields = identity_fields(source.corpus)
    corpus = {name: value for name, value in fields.items() if name not in ("prepared", "document_mask")}
    identity = {"corpus": corpus, "source": source.data.source.value, "tokenizer": tokenizer.fingerprint}
    slug = f"{source.corpus.name}-{source.tokenizer.kind.value}"
    return RunFolder.of(runs, "prepare", slug, identity | {"layout": LAYOUT})


def find(source: TextSource, runs: str, tokenizer: Tokenizer) -> PreparedText:
    """The prepared text of a source. Raises ``BadInput`` where it is absent, unfinished or damaged."""
    folder = folder_of(source, runs, tokenizer)
    words = lineage.source_overrides(source.data) + lineage.corpus_overrides(source.corpus)
    words += lineage.tokenizer_overrides(source.tokenizer) + lineage.runs_override(runs)
    command = " ".join(["pausebench prepare", *words])
    if (result := folder.result) is None:
        state = "is not finished" if folder.path.exists() else "does not exist"
        raise BadInput(
            f"corpus.prepared=true: {folder.path} {state}. Make it with\n  {command}\n"
            "or leave corpus.prepared out: the text is then read and tokenised while training."
        )
    return PreparedText(folder.path, result["fingerprint"], command)


class Part(NamedTuple):
    """What is recorded of a part of the source (a file): its shards so far, and whether they are all."""

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
        shards, done = [Shard(**record) for record in content["shards"]], bool(content["done"])
    # A record that cannot be read only costs time: its shards are written again.
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return Part([])
    # What follows a missing shard is written again, too: where its documents began is then certain.
    whole = next((count for count, shard in enumerate(shards) if damaged(folder, shard, dtype)), len(shards))
    return Part(shards[:whole], done and whole == len(shards))


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
    encoded_together: int = ENCODED_TOGETHER,
) -> None:
    """Write what is missing of a part. A shard is closed before the document with which it would pass ``shard_tokens``;
    a longer document has a shard of its own.

    ``advance`` is told the part's documents and tokens so far, unsaved ones included; what it raises ends the writing.
    Raises ``OSError`` where the disk refuses; what was recorded stays.
    """
    dtype, end = token_type(tokenizer.vocab_size), [tokenizer.end_id] if has_ends else []
    part = read_part(folder, split, number, dtype)
    if part.done:
        return
    # In memory until it is whole: 128 MiB a worker with the usual ``shard_tokens``, and no half shard on the disk.
    held, held_documents = bytearray(), 0
    size = np.dtype(dtype).itemsize

    def close(done: bool) -> None:
        if held:
            name = f"{split}/{number:05d}-{len(part.shards):05d}.bin"
            write_whole(folder / name, held)
            checksum = xxhash.xxh3_128_hexdigest(held)
            part.shards.append(Shard(name, part.documents, held_documents, len(held) // size, checksum))
        # After its shards, each on the disk by now: the record must never name bytes that a power cut can still lose.
        content = {"done": done, "shards": [shard._asdict() for shard in part.shards]}
        write_whole(part_path(folder, split, number), (json.dumps(content, indent=1) + "\n").encode())

    (folder / split).mkdir(parents=True, exist_ok=True)
    # Documents that are recorded are read again and skipped: a compressed file has no place to jump to.
    rest = islice(documents, part.documents, None)
    while texts := list(islice(rest, encoded_together)):
        for ids in tokenizer.encode_lists(texts):
            content = np.array(ids + end, dtype).tobytes()
            if held and len(held) + len(content) > shard_tokens * size:
                close(done=False)
                held, held_documents = bytearray(), 0
            held += content
            held_documents += 1
        advance(part.documents + held_documents, part.tokens + len(held) // size)
    close(done=True)
