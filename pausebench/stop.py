"""Requests to stop: Ctrl-C, SIGTERM, a job near its time limit, a dead parent.

They are noted here, and the trainer obeys after its step. A request stays for the life of the process, so the cells
that a sweep's worker would start next stop as well.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from pausebench.errors import Interrupted

_reason: str | None = None
_parent = os.getppid()  # at import: when the parent dies, init or a subreaper takes its place


def reason() -> str | None:
    """Why this process has to stop; None if it need not."""
    # Workers only: a command in a shell may outlive it, as under nohup. A worker whose driver was killed would go on
    # for hours with nobody to collect its result, and hold its run's lock.
    if _reason is None and _is_worker() and os.getppid() != _parent:
        return "the process that started this worker died"
    return _reason


def _is_worker() -> bool:
    return multiprocessing.parent_process() is not None or "TORCHELASTIC_RUN_ID" in os.environ


@contextmanager
def watched(also: Callable[[], None] | None = None, saves: bool = True) -> Iterator[None]:
    """Within it the first SIGINT or SIGTERM is noted, and a second Ctrl-C interrupts at once.

    ``also`` is called at the first request (a driver passes it on to its workers). ``saves=False`` is for work without
    checkpoints. Raises ``Interrupted`` if this process was already asked to stop.
    """
    if (asked := reason()) is not None:
        raise Interrupted(f"{asked}: not started. Type the same command to resume.")
    # Python lets only the main thread set handlers.
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    # submitit sends SIGUSR2 (or SIGUSR1) before the time limit, and its handler requeues the job and exits. Work that
    # saves takes the signal over and calls that handler when its checkpoint is written.
    user_signals = (signal.SIGUSR1, signal.SIGUSR2) if saves else ()
    launcher = {int(number): handler for number in user_signals if callable(handler := signal.getsignal(number))}
    requeue: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        global _reason
        if number in launcher:
            requeue.append(number)
        if _reason is None:
            _reason = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
            if also is not None:
                also()
        elif number == signal.SIGINT:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM, *launcher)}
    try:
        yield
    except Interrupted:
        if requeue:
            launcher[requeue[0]](requeue[0], None)
        raise
    finally:
        # A sweep's worker keeps the handlers: a Ctrl-C between two cells would kill it, and joblib then kills the rest.
        if multiprocessing.parent_process() is None:
            for number, handler in before.items():
                signal.signal(number, handler)


def clear() -> None:
    """Forget a request: for a process that catches ``Interrupted`` and continues, as the tests do."""
    global _reason
    _reason = None
