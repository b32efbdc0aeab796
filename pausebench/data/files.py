"""Rows of local files: ``root/DATASET/SPLIT.EXT``, or ``SPLIT-*.EXT`` for a split in several files.

EXT is jsonl (one JSON object a line), json (a list of objects), parquet or txt (documents separated by blank lines,
each a row ``{"text": ...}``); jsonl and txt may be compressed: jsonl.gz, jsonl.zst.

Invariant: rows come in the order of the files' names and of their lines; every complaint names file and line; every
string of a row can be encoded.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from itertools import chain, groupby
from pathlib import Path
from typing import IO, Any, NamedTuple

from pausebench.errors import BadInput

EXTENSIONS = ("jsonl.gz", "jsonl.zst", "jsonl", "json", "parquet", "txt.gz", "txt.zst", "txt")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # half a character, escaped: fine in a pair, no text alone


class Located(NamedTuple):
    """A row and its place (file and line), for messages."""

    row: Mapping[str, Any]
    where: str


def read_split(root: Path, dataset: str, split: str) -> Iterator[Located]:
    """The rows of a split in order.

    Raises ``BadInput`` for a missing folder, dataset or split, an empty one, and every kind of broken file.
    """
    paths = split_files(root, dataset, split)
    rows = chain.from_iterable(map(read_file, paths))
    first = next(rows, None)
    if first is None:
        raise BadInput(f"{paths[0]} has no rows. Every split needs at least one.")
    yield first
    yield from rows


def read_file(path: Path) -> Iterator[Located]:
    """The rows of one file of a split in order. Raises ``BadInput`` for every kind of broken file."""
    return _READERS[_extension(path).partition(".")[0]](path)


def has_split(root: Path, dataset: str, split: str) -> bool:
    """Whether the folder of a dataset has files of a split, broken ones among them."""
    folder = root / dataset
    return folder.is_dir() and bool(_named(folder, split))


def split_files(root: Path, dataset: str, split: str) -> list[Path]:
    """The files of a split, sorted by name. Raises ``BadInput`` when there is none, with what there is."""
    # The outermost first: each complaint says what the level that was found does hold.
    if not root.is_dir():
        raise BadInput(f"data.root={root} is no folder; it has to hold {dataset}/{split}.jsonl.gz or the like.")
    folder = root / dataset
    if not folder.is_dir():
        there = [path.name for path in _entries(root) if path.is_dir()]
        raise BadInput(f"{folder} does not exist; data.root={root} holds {', '.join(there) or 'no folder'}.")
    found = _named(folder, split)
    if not found:
        there = [path.name for path in _entries(folder)]
        raise BadInput(
            f"{folder} has no split {split}: looked for {split}.EXT and {split}-*.EXT with EXT one of "
            f"{', '.join(EXTENSIONS)}; the folder holds {', '.join(there[:8]) or 'nothing'}."
        )
    # A download beside its unpacked copy would be read twice, and no score would say so.
    names = ", ".join(path.name for path in found)
    if len({_extension(path) for path in found}) > 1:
        raise BadInput(f"{folder} has the split {split} in several formats: {names}. Keep one.")
    if len(found) > 1 and any(path.name == f"{split}.{_extension(path)}" for path in found):
        raise BadInput(f"{folder} has the split {split} whole and in parts: {names}. Keep either.")
    # Checked before the first row is read: a dangling link should not end a run in its third hour.
    for path in found:
        if not path.is_file():
            raise BadInput(f"{path} cannot be read (a folder, or a link to nothing); it has to be a file.")
    return found


def require_fields(located: Located, fields: tuple[str, ...]) -> Mapping[str, Any]:
    """The row, when each field (a dot reaches into a nested one) is there and not null. Raises ``BadInput``."""
    for name in fields:
        value: Any = located.row
        for part in name.split("."):
            if not isinstance(value, Mapping) or part not in value:
                raise BadInput(
                    f"{located.where}: field {name} is missing; the row has {', '.join(map(str, located.row))}."
                )
            value = value[part]
        # Null is what parquet gives for a column that the row lacks: no task could read it.
        if value is None:
            raise BadInput(f"{located.where}: field {name} is null; it needs a value.")
    return located.row


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise BadInput(f"{folder} cannot be read ({error.strerror or error}).") from None


def _named(folder: Path, split: str) -> list[Path]:
    """What a folder has by the names of a split, sorted."""
    name = re.compile(rf"{re.escape(split)}(-[^.]*)?\.({'|'.join(map(re.escape, EXTENSIONS))})")
    return [path for path in _entries(folder) if name.fullmatch(path.name)]


def _extension(path: Path) -> str:
    return next(extension for extension in EXTENSIONS if path.name.endswith(f".{extension}"))


def _opened(path: Path) -> IO[bytes]:
    """What a file holds, decompressed by the ending of its name."""
    if path.suffix == ".gz":
        return gzip.open(path)  # type: ignore[return-value]
    if path.suffix == ".zst":
        import pyarrow  # here anyway with ``datasets``, and Python has no zstd of its own before 3.14

        return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd"))
    return path.open("rb")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of a text file."""
    number = 0
    try:
        with _opened(path) as file:
            for number, line in enumerate(file, start=1):
                yield number, line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{path}, line {number}: byte {error.start} ({error.object[error.start]:#04x}) is not UTF-8. "
            f"Convert the file, for example: iconv -f LATIN1 -t UTF-8."
        ) from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        # Broken in its first bytes, it never was gzip; broken later, it was cut off on the way.
        if number == 0 and isinstance(error, gzip.BadGzipFile):
            raise BadInput(f"{path} is no gzip file ({error}). If it is plain text, name it without .gz.") from None
        raise BadInput(
            f"{path}: the gzip data breaks off after line {number} ({error}). The file is incomplete: copy or "
            "download it again."
        ) from None
    except OSError as error:
        if path.suffix == ".zst" and error.errno is None:  # pyarrow's word for broken data
            raise BadInput(
                f"{path}: the zstd data is broken after line {number} ({error}). Copy or download it again."
            ) from None
        raise BadInput(f"{path} cannot be read ({error.strerror or error}).") from None


def _json_lines(path: Path) -> Iterator[Located]:
    for number, line in _lines(path):
        # A blank line at the end is what many tools leave.
        if not line.strip():
            continue
        row, where = _parsed(line.rstrip(), path, number), f"{path}, line {number}"
        if not isinstance(row, dict):
            raise BadInput(f"{where} is a JSON {type(row).__name__}; every line has to be an object.")
        yield Located(row, where)


def _json_list(path: Path) -> Iterator[Located]:
    # The whole file at once: the format of small test sets. A corpus has a line for each document.
    rows = _parsed("".join(line for _, line in _lines(path)), path, 1, " For one object a line name it .jsonl.")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise BadInput(f"{path} has to be a JSON list of objects; for one object a line name it .jsonl.")
    for number, row in enumerate(rows, start=1):
        yield Located(row, f"{path}, row {number}")


def _parsed(text: str, path: Path, line: int, advice: str = "") -> Any:
    """The JSON value that starts in a line of a file."""
    try:
        value = json.loads(text)
        # json.loads takes half a character without complaint; the tokenizer would fail on it hours later.
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        where = f"{path}, line {line + error.lineno - 1}"
        raise BadInput(f"{where} is not JSON ({error.msg} at column {error.colno}).{advice}") from None
    except (ValueError, RecursionError) as error:  # half a character; thousands of digits or of brackets
        raise BadInput(f"{path}, line {line} cannot be read ({error}).") from None
    return value


def _parquet(path: Path) -> Iterator[Located]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            # 1,024 rows at a time: a file of passages would not fit in memory as Python objects.
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield Located(row, f"{path}, row {number}")
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:  # ValueError: bytes that are no text
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise BadInput(f"{path} is no readable parquet file ({reason}, after row {number}).") from None


def _text(path: Path) -> Iterator[Located]:
    # The first line of a document is its place: that is where an editor jumps to.
    for blank, block in groupby(_lines(path), lambda numbered: not numbered[1].strip()):
        if not blank:
            numbers, lines = zip(*block, strict=True)
            yield Located({"text": "".join(lines).rstrip("\r\n")}, f"{path}, line {numbers[0]}")


_READERS = {"jsonl": _json_lines, "json": _json_list, "parquet": _parquet, "txt": _text}
