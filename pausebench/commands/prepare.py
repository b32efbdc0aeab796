"""``pausebench prepare``: a corpus becomes shards of tokens on disk, by several processes, and survives kill -9.

Whatever is killed, the same command goes on behind the last recorded shard of each part (file) of the source, and the
bytes are those of an uninterrupted run with any number of workers.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import platform
import signal
import threading
import time
from collections.abc import Sequence, Set
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from omegaconf import OmegaConf
from rich.console import Console
from rich.live import Live
from rich.text import Text

from pausebench import __version__, stop
from pausebench.config.commands import PrepareConfig
from pausebench.config.options import plain
from pausebench.data import corpus
from pausebench.data.corpus import TRAIN, Corpus
from pausebench.data.shards import (
    INDEX,
    Part,
    folder_of,
    index_content,
    index_fingerprint,
    read_part,
    recorded_totals,
    temporaries,
    token_type,
    write_part,
)
from pausebench.data.tokenizer import Tokenizer
from pausebench.data.vocabulary import open_tokenizer
from pausebench.errors import BadInput, Interrupted, RunFailed
from pausebench.runs.folder import RunFolder, disk_error, write_atomically, write_json

SHARD_TOKENS = 2**26  # 128 MiB of uint16: what a killed worker has to do again, and 3,000 shards for 200 billion tokens


def run(config: PrepareConfig) -> dict[str, Any]:
    """Write what is missing of the shards, then the index that makes the folder whole."""
    tokenizer = open_tokenizer(config.text, config.runs)
    text = corpus.open_corpus(config.text)
    folder = folder_of(config.text, config.runs, tokenizer)
    dtype = token_type(tokenizer.vocab_size)
    parts = {split: text.parts(split) for split in text.splits}
    # Validation and test are short: while they are written last, most workers would have nothing to do.
    splits = sorted(parts, key=lambda split: split == corpus.TRAIN)
    works = [Work(split, number) for split in splits for number in range(len(parts[split]))]
    source = _fingerprint(text, tokenizer, parts)
    with folder.locked(), stop.watched():
        shard_tokens = _shard_tokens(folder, config, source)
        _write_manifest(folder, config, tokenizer, source, shard_tokens)
        recorded = [read_part(folder.path, work.split, work.number, dtype) for work in works]
        with PrepareProgress(folder, len(parts[corpus.TRAIN]), config.quiet) as progress:
            write_parts(config.workers or 1, folder.path, text, tokenizer, shard_tokens, works, recorded, progress)
        shards = {
            split: [
                shard
                for number in range(len(parts[split]))
                for shard in read_part(folder.path, split, number, dtype).shards
            ]
            for split in parts
        }
        for split, found in shards.items():
            if not found:
                raise BadInput(f"the split {split} of corpus={config.corpus.name} has no documents.")
        index = index_content(tokenizer.fingerprint, dtype, shards)
        write_atomically(folder.path / INDEX, index)
        result = {
            "fingerprint": index_fingerprint(index),
            "documents": {split: sum(shard.documents for shard in found) for split, found in shards.items()},
            "tokens": {split: sum(shard.tokens for shard in found) for split, found in shards.items()},
            "shards": sum(map(len, shards.values())),
        }
        write_json(folder.path / "result.json", result)
    progress.done(result)
    return {"names": [folder.name]}


def _fingerprint(text: corpus.Corpus, tokenizer: Tokenizer, parts: dict[str, list[str]]) -> str:
    """Hex digest of what is prepared: the first documents, the names and sizes of all files."""
    listed = [f"{split} {name}" for split in parts for name in parts[split]]
    said = "\n".join([corpus.fingerprint(text, tokenizer.fingerprint), *listed])
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def _shard_tokens(folder: RunFolder, config: PrepareConfig, source: str) -> int:
    """The size of this folder's shards. Raises ``BadInput`` when it was begun with another, or from other text."""
    manifest = folder.manifest
    if manifest is None:
        return SHARD_TOKENS if config.shard_tokens is None else config.shard_tokens
    if manifest["source_fingerprint"] != source:
        raise BadInput(
            f"{folder.path} was begun from other files: their fingerprint was {manifest['source_fingerprint']} and is "
            f"{source} now. Restore them, give runs=DIR for a new folder, or delete {folder.path}."
        )
    begun = int(manifest["shard_tokens"])
    if config.shard_tokens not in (None, begun):
        raise BadInput(
            f"shard_tokens={config.shard_tokens}: {folder.path} was begun with {begun}. Leave shard_tokens out, or "
            f"delete {folder.path}."
        )
    return begun


def _write_manifest(
    folder: RunFolder, config: PrepareConfig, tokenizer: Tokenizer, source: str, shard_tokens: int
) -> None:
    folder.create()
    write_atomically(folder.path / "config.yaml", OmegaConf.to_yaml(plain(config)))
    write_json(
        folder.path / "manifest.json",
        {
            "command": "prepare",
            "name": folder.name,
            "corpus": config.corpus.name,
            "tokenizer": tokenizer.fingerprint,
            "source_fingerprint": source,
            "shard_tokens": shard_tokens,
            "versions": {"pausebench": __version__, "python": platform.python_version()},
        },
    )


# ------------------------------
# What ``prepare`` says while it works: one live line on a terminal, a line every ten seconds elsewhere.

LINE_SECONDS = 10.0  # between two lines where there is no terminal


class PrepareProgress:
    """A context manager; ``update`` takes the totals so far. ``parts``: of the training split, its files."""

    def __init__(self, folder: RunFolder, parts: int, quiet: bool) -> None:
        self._folder, self._parts, self._quiet = folder, parts, quiet
        self._console = Console(stderr=True, highlight=False)
        live = self._console.is_terminal and not quiet
        self._live = Live(console=self._console, refresh_per_second=4) if live else None
        self._began: tuple[float, int, int] | None = None
        self._spoke = time.monotonic()

    def __enter__(self) -> PrepareProgress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, documents: int, tokens: int, done: int) -> None:
        """Documents and tokens so far, those that are not recorded yet included, and training parts that are done."""
        now = time.monotonic()
        began, tokens_before, done_before = self._began = self._began or (now, tokens, done)
        if self._live is None and (self._quiet or now - self._spoke < LINE_SECONDS):
            return
        self._spoke = now
        rate = (tokens - tokens_before) / max(now - began, 1e-9)
        line = f"{self._folder.name}  {documents:,} documents  {tokens:,} tokens  {rate:,.0f} tok/s"
        if self._parts > 1:
            line += f"  {done}/{self._parts} files"
        if done > done_before:
            seconds = int((now - began) / (done - done_before) * (self._parts - done))
            line += f"  eta {seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
        if self._live is not None:
            self._live.update(Text(line, overflow="ellipsis", no_wrap=True))
        else:
            self._console.print(line, soft_wrap=True, markup=False)

    def saved(self) -> str:
        """A sentence with what a next start finds."""
        shards, documents, tokens = recorded_totals(self._folder.path)
        return f"saved {shards:,} shards with {documents:,} documents and {tokens:,} tokens in {self._folder.path}."

    def done(self, result: dict[str, Any]) -> None:
        """Say what stands there now."""
        if not self._quiet:
            tokens = ", ".join(f"{split} {count:,}" for split, count in result["tokens"].items())
            line = f"done: tokens {tokens}; {result['shards']:,} shards, fingerprint {result['fingerprint']}"
            self._console.print(f"{line}, {self._folder.path}", soft_wrap=True, markup=False)


# ------------------------------
# The processes behind ``prepare``: each takes one part of the source after the other and writes its shards.

POLL_SECONDS = 0.2


class Work(NamedTuple):
    """One part of a split."""

    split: str
    number: int


class _Job(NamedTuple):
    """What every worker knows. counters: documents and tokens of each part so far, and last whether to stop."""

    folder: Path
    text: Corpus
    tokenizer: Tokenizer
    shard_tokens: int
    counters: Any


class _Stopped(Exception):
    """Raised inside a worker that was told to stop."""


def write_parts(
    workers: int,
    folder: Path,
    text: Corpus,
    tokenizer: Tokenizer,
    shard_tokens: int,
    works: Sequence[Work],
    recorded: Sequence[Part],
    progress: PrepareProgress,
) -> None:
    """Write every part that is not whole, side by side.

    Raises:
        Interrupted: a stop was asked for; the message says what was saved.
        RunFailed: the disk refused, or a worker was killed.
        BadInput: a document of the source cannot be read.
    """
    for path in temporaries(folder):  # of a killed process: the lock is ours
        path.unlink(missing_ok=True)
    left = [slot for slot, part in enumerate(recorded) if not part.done]
    if not left:
        return
    # One file alone still takes all cores: the tokenizer's own threads share what the processes leave.
    processes = min(workers, max(1, sum(works[slot].split == TRAIN for slot in left)))
    context = multiprocessing.get_context("spawn")  # a fork would switch the tokenizer's threads off
    counters = context.RawArray("Q", 2 * len(works) + 1)
    for slot, part in enumerate(recorded):
        counters[2 * slot : 2 * slot + 2] = [part.documents, part.tokens]
    job = _Job(folder, text, tokenizer, shard_tokens, counters)
    pool = ProcessPoolExecutor(processes, context, _begin, (job, -(-workers // processes)))
    try:
        futures = [pool.submit(_write, slot, works[slot]) for slot in left]
        training = {future for future, slot in zip(futures, left, strict=True) if works[slot].split == TRAIN}
        whole = sum(part.done for work, part in zip(works, recorded, strict=True) if work.split == TRAIN)
        _watch(futures, training, whole, counters, progress)
    finally:
        counters[-1] = 1
        pool.shutdown(cancel_futures=True)


def _watch(
    futures: Sequence[Future[None]],
    training: Set[Future[None]],
    whole: int,
    counters: Any,
    progress: PrepareProgress,
) -> None:
    """Wait for the workers, show what they have done, and pass a stop on to them. ``whole``: training parts before."""
    left = set(futures)
    while left:
        finished, left = wait(left, POLL_SECONDS, FIRST_EXCEPTION)
        done = whole + sum(future.done() for future in training)
        progress.update(sum(counters[0:-1:2]), sum(counters[1:-1:2]), done)
        try:
            for future in finished:
                future.result()
        except BrokenProcessPool:
            raise RunFailed(
                f"a worker was killed (out of memory?). {progress.saved()} Type the same command to go on, with fewer "
                "workers= if memory is short."
            ) from None
        if (reason := stop.reason()) is not None:
            counters[-1] = 1
            wait(left)
            raise Interrupted(f"{reason}: {progress.saved()} Type the same command to go on from there.")


_job: _Job


def _begin(job: _Job, threads: int) -> None:
    """Set a worker up: called once, before its first part."""
    global _job
    _job = job
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_driver, daemon=True).start()


def _end_with_driver() -> None:
    driver = multiprocessing.parent_process()
    assert driver is not None
    connection.wait([driver.sentinel])
    os._exit(1)


def _write(slot: int, work: Work) -> None:
    """Write one part. A stop leaves what was recorded."""

    def advance(documents: int, tokens: int) -> None:
        _job.counters[2 * slot : 2 * slot + 2] = [documents, tokens]
        if _job.counters[-1]:
            raise _Stopped

    try:
        if _job.counters[-1]:
            return
        write_part(
            _job.folder,
            work.split,
            work.number,
            _job.text.part(work.split, work.number),
            _job.tokenizer,
            has_ends=_job.text.has_ends,
            shard_tokens=_job.shard_tokens,
            advance=advance,
        )
    except _Stopped:
        return
    except OSError as error:
        raise disk_error(_job.folder, error) from None
