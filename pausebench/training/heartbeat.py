"""Which rank is gone or stuck: every rank tells the others where it is, and a thread of each one watches.

A collective that hangs says nothing about who is missing. So each rank writes a beat (a number that counts up, its
step, what it does there) into the job's key-value store. When the whole job stands still for ``hang_seconds``, the
ranks that went silent are named, or those that are furthest behind, and the process ends: torchrun and srun then end
the others.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from types import TracebackType
from typing import NamedTuple

from torch.distributed.distributed_c10d import _get_default_store

PLACES = ("starting", "reading", "training", "validating", "saving")  # in the order of a step


class Beat(NamedTuple):
    """What a rank last said."""

    host: str
    pid: int
    number: int
    step: int
    place: str

    @property
    def progress(self) -> tuple[int, int]:
        return self.step, PLACES.index(self.place)


class Heartbeat:
    """A context manager around the life of a rank."""

    def __init__(self, rank: int, ranks: int, hang_seconds: int) -> None:
        self._rank = rank
        self._ranks = ranks
        self._hang_seconds = hang_seconds
        self._every = min(5.0, hang_seconds / 10)
        self._store = _get_default_store().clone()  # type: ignore[attr-defined]  # a connection of its own
        self._now = (0, "starting")
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)
        self._seen: dict[int, tuple[Beat, float]] = {}  # each rank's last beat and when its number last changed
        self._moved = time.monotonic()

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stopped.set()
        self._thread.join(timeout=2 * self._every)

    def at(self, step: int, place: str) -> None:
        """Where this rank is now."""
        self._now = (step, place)

    def missing(self) -> str:
        """A sentence on the ranks that stopped beating; waits for a few beats to be sure."""
        deadline = time.monotonic() + 5 * self._every
        while time.monotonic() < deadline and self._thread.is_alive():
            time.sleep(self._every / 4)
            if silent := self._silent(2.5 * self._every):
                return f"Gone: {self._named(silent)}."
        return "All ranks still answer."

    def _watch(self) -> None:
        count = 0
        while not self._stopped.wait(self._every):
            count += 1
            try:
                self._beat(count)
            except RuntimeError as error:  # the store lives with the agent of the first node
                if not self._stopped.is_set():
                    self._end(f"the key-value store of the job is gone ({str(error).splitlines()[0]})")
                return
            if time.monotonic() - self._moved > self._hang_seconds:
                self._end(f"no step for {self._hang_seconds} s (train.hang_seconds): {self._stuck()}")

    def _beat(self, count: int) -> None:
        mine = Beat(socket.gethostname(), os.getpid(), count, *self._now)
        self._store.set(f"beat/{self._rank}", json.dumps(mine))
        known = [rank for rank in range(self._ranks) if self._store.check([f"beat/{rank}"])]
        now = time.monotonic()
        for rank in known:
            beat = Beat(*json.loads(self._store.get(f"beat/{rank}")))
            before, since = self._seen.get(rank, (None, now))
            if before is None or before.progress != beat.progress:
                self._moved = now
            self._seen[rank] = (beat, since if before is not None and before.number == beat.number else now)

    def _silent(self, seconds: float) -> list[int]:
        now = time.monotonic()
        return [
            rank
            for rank in range(self._ranks)
            if rank != self._rank and (rank not in self._seen or now - self._seen[rank][1] > seconds)
        ]

    def _stuck(self) -> str:
        silent = self._silent(self._hang_seconds / 2)
        if silent:
            return f"silent: {self._named(silent)}"
        behind = min(beat.progress for beat, _ in self._seen.values())
        last = [rank for rank, (beat, _) in self._seen.items() if beat.progress == behind]
        if len(last) == self._ranks:
            return f"all {self._ranks} ranks wait for each other ({self._named(last[:1])})"
        return f"furthest behind: {self._named(last)}"

    def _named(self, ranks: list[int]) -> str:
        def one(rank: int) -> str:
            if rank not in self._seen:
                return f"rank {rank} (never heard of)"
            beat = self._seen[rank][0]
            return f"rank {rank} ({beat.host}, process {beat.pid}, {beat.place} at step {beat.step})"

        return ", ".join(one(rank) for rank in ranks)

    def _end(self, why: str) -> None:
        """End this process at once: its main thread may be waiting in a collective for ever."""
        print(f"pausebench: rank {self._rank} on {socket.gethostname()} ends: {why}", file=sys.stderr, flush=True)
        os._exit(1)
