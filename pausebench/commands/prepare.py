"""``pausebench prepare``: a corpus becomes shards of tokens on disk, by several processes, and survives kill -9.

Whatever is killed, the same command resumes after the last recorded shard of each part (file) of the source, and the
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
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import chain
from multiprocessing import connection
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from pausebench import __version__, stop
from pausebench.config.commands import PrepareConfig
from pausebench.config.options import plain
from pausebench.console import LiveLine
from pausebench.data import corpus, shards
from pausebench.data.corpus import TRAIN, Corpus
from pausebench.data.shards import Part
from pausebench.data.tokenizer import Tokenizer
from pausebench.data.vocabulary import open_tokenizer
from pausebench.errors import BadInput, Interrupted, RunFailed
from pausebench.runs.folder import RunFolder, disk_error, write_atomically, write_json

SHARD_TOKENS = 2**26  # 128 MiB of uint16: what a killed worker has to do again, and 3,000 shards for 200 billion tokens
POLL_SECONDS = 0.2
LINE_SECONDS = 10.0  # between two lines where there is no terminal


class Work(NamedTuple):
    """One part of a split."""

    split: str
    number: int


class Job(NamedTuple):
    """What is prepared, and where: every worker has it."""

    folder: Path
    text: Corpus
    tokenizer: Tokenizer
    shard_tokens: int

    def recorded(self, work: Work) -> Part:
        """What is on disk of a part."""
        return shards.read_part(self.folder, *work, shards.token_type(self.tokenizer.vocab_size))


def run(config: PrepareConfig) -> dict[str, Any]:
    """Write what is missing of the shards, then the index that makes the folder whole."""
    tokenizer = open_tokenizer(config.text, config.runs)
    text = corpus.open_corpus(config.text)
    folder = shards.folder_of(config.text, config.runs, tokenizer)
    parts = {split: text.parts(split) for split in text.splits}
    # Validation and test are short: were they written last, most workers would have nothing to do meanwhile.
    splits = sorted(parts, key=lambda split: split == TRAIN)
    works = [Work(split, number) for split in splits for number in range(len(parts[split]))]
    with folder.locked(), stop.watched(), LiveLine(config.quiet, LINE_SECONDS) as line:
        job = Job(folder.path, text, tokenizer, _begin(folder, config, text, tokenizer, parts))
        _write_parts(job, works, config.workers or 1, line)
        whole = {}
        for split in parts:
            recorded = [job.recorded(work).shards for work in works if work.split == split]
            whole[split] = Part(list(chain.from_iterable(recorded)))
            if not whole[split].shards:
                raise BadInput(f"the split {split} of corpus={config.corpus.name} has no documents.")
        result = _finish(folder, tokenizer, whole)
    if not config.quiet:
        tokens = ", ".join(f"{split} {count:,}" for split, count in result["tokens"].items())
        said = f"done: tokens {tokens}; {result['shards']:,} shards, fingerprint {result['fingerprint']}"
        line.say(f"{said}, {folder.path}")
    return {"names": [folder.name]}


def _begin(
    folder: RunFolder, config: PrepareConfig, text: Corpus, tokenizer: Tokenizer, parts: dict[str, list[str]]
) -> int:
    """Write config and manifest; the size of this folder's shards.

    Raises ``BadInput`` when the folder was begun with another size, or from other text.
    """
    # The first documents, and the names and sizes of all files: reading the whole text would take as long as the work.
    listed = [f"{split} {name}" for split in parts for name in parts[split]]
    said = "\n".join([corpus.fingerprint(text, tokenizer.fingerprint), *listed])
    source = hashlib.sha256(said.encode()).hexdigest()[:16]
    manifest = folder.manifest or {"source_fingerprint": source, "shard_tokens": config.shard_tokens or SHARD_TOKENS}
    if manifest["source_fingerprint"] != source:
        raise BadInput(
            f"{folder.path} was begun from other files: their fingerprint was {manifest['source_fingerprint']} and is "
            f"{source} now. Restore them, give runs=DIR for a new folder, or delete {folder.path}."
        )
    shard_tokens = int(manifest["shard_tokens"])
    if config.shard_tokens not in (None, shard_tokens):
        raise BadInput(
            f"shard_tokens={config.shard_tokens}: {folder.path} was begun with {shard_tokens}. Leave shard_tokens out, "
            f"or delete {folder.path}."
        )
    folder.create()
    write_atomically(folder.path / "config.yaml", OmegaConf.to_yaml(plain(config)))
    about = {
        "command": "prepare",
        "name": folder.name,
        "corpus": config.corpus.name,
        "tokenizer": tokenizer.fingerprint,
        "source_fingerprint": source,
        "shard_tokens": shard_tokens,
        "versions": {"pausebench": __version__, "python": platform.python_version()},
    }
    write_json(folder.path / "manifest.json", about)
    return shard_tokens


def _finish(folder: RunFolder, tokenizer: Tokenizer, whole: dict[str, Part]) -> dict[str, Any]:
    """Write the index and the result; the result."""
    records = {split: part.shards for split, part in whole.items()}
    index = shards.index_content(tokenizer.fingerprint, shards.token_type(tokenizer.vocab_size), records)
    write_atomically(folder.path / shards.INDEX, index)
    result = {
        "fingerprint": shards.index_fingerprint(index),
        "documents": {split: part.documents for split, part in whole.items()},
        "tokens": {split: part.tokens for split, part in whole.items()},
        "shards": sum(map(len, records.values())),
    }
    # Last: a folder with a result is whole.
    write_json(folder.path / "result.json", result)
    return result


def _write_parts(job: Job, works: Sequence[Work], workers: int, line: LiveLine) -> None:
    """Write every part that is not whole, side by side.

    Raises:
        Interrupted: a stop was asked for; the message says what was saved.
        RunFailed: the disk refused, or a worker was killed.
        BadInput: a document of the source cannot be read.
    """
    for path in job.folder.glob("*/.*.tmp"):  # of a killed process: the lock is ours
        path.unlink(missing_ok=True)
    recorded = [job.recorded(work) for work in works]
    left = [slot for slot, part in enumerate(recorded) if not part.done]
    if not left:
        return
    # One file alone still takes all cores: the tokenizer's own threads share what the processes leave.
    processes = min(workers, max(1, sum(works[slot].split == TRAIN for slot in left)))
    context = multiprocessing.get_context("spawn")  # a fork would switch the tokenizer's threads off
    # Documents and tokens of each part so far, which the workers count up, and last whether they are to stop.
    counters = context.RawArray("Q", [*chain.from_iterable((part.documents, part.tokens) for part in recorded), 0])
    pool = ProcessPoolExecutor(processes, context, _begin_worker, (job, counters, -(-workers // processes)))
    try:
        running = {pool.submit(_write, slot, works[slot]) for slot in left}
        began, before = time.monotonic(), sum(counters[1:-1:2])
        while running:
            finished, running = wait(running, POLL_SECONDS, FIRST_EXCEPTION)
            documents, tokens = sum(counters[0:-1:2]), sum(counters[1:-1:2])
            rate = (tokens - before) / (time.monotonic() - began)
            totals = f"{documents:,} documents  {tokens:,} tokens  {rate:,.0f} tok/s"
            line.show(f"{job.folder.name}  {totals}  {len(works) - len(running)}/{len(works)} files")
            for future in finished:
                future.result()
            if (reason := stop.reason()) is not None:
                counters[-1] = 1
                wait(running)
                raise Interrupted(f"{reason}: {_saved(job, works)} Type the same command to resume from there.")
    except BrokenProcessPool:
        raise RunFailed(
            f"a worker was killed (out of memory?). {_saved(job, works)} Type the same command to resume, with fewer "
            "workers= if memory is short."
        ) from None
    finally:
        counters[-1] = 1
        pool.shutdown(cancel_futures=True)


def _saved(job: Job, works: Sequence[Work]) -> str:
    """A sentence with what the next start finds."""
    found = Part([shard for work in works for shard in job.recorded(work).shards])
    counts = f"{len(found.shards):,} shards with {found.documents:,} documents and {found.tokens:,} tokens"
    return f"saved {counts} in {job.folder}."


class _Stopped(Exception):
    """Raised inside a worker that was told to stop."""


_job: Job
_counters: Any


def _begin_worker(job: Job, counters: Any, threads: int) -> None:
    """Set a worker up: called once, before its first part."""
    global _job, _counters
    _job, _counters = job, counters
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the driver alone decides
    threading.Thread(target=_end_with_driver, daemon=True).start()


def _end_with_driver() -> None:
    """A driver that is killed takes its workers along, or they would go on writing beside the next start's."""
    driver = multiprocessing.parent_process()
    assert driver is not None
    connection.wait([driver.sentinel])
    os._exit(1)


def _write(slot: int, work: Work) -> None:
    """Write one part. A stop leaves what was recorded."""

    def advance(documents: int, tokens: int) -> None:
        _counters[2 * slot : 2 * slot + 2] = [documents, tokens]
        if _counters[-1]:
            raise _Stopped

    folder, text, tokenizer, shard_tokens = _job
    try:
        # Before the first document, too: parts that wait in the queue when a stop is asked for are not begun.
        if not _counters[-1]:
            documents, ends = text.part(*work), text.has_ends
            shards.write_part(
                folder, *work, documents, tokenizer, has_ends=ends, shard_tokens=shard_tokens, advance=advance
            )
    except _Stopped:
        return
    except OSError as error:
        raise disk_error(folder, error) from None
