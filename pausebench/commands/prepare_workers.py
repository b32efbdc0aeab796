"""The processes behind ``prepare``: each takes one part of the source after the other and writes its shards.

They share nothing but counters that have one writer each, so that none can be killed while it holds a lock; a Ctrl-C is
the driver's alone, and they end with it however it ends.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence, Set
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from pathlib import Path
from typing import Any, NamedTuple

from pausebench.commands.prepare_progress import PrepareProgress
from pausebench.data.corpus import TRAIN, Corpus
from pausebench.data.shard_writer import Part, temporaries, write_part
from pausebench.data.tokenizer import Tokenizer
from pausebench.errors import Interrupted, RunFailed
from pausebench.results.run_folder import disk_error
from pausebench.training import stop

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
