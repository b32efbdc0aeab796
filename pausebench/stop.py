"""Ctrl-C, SIGTERM, a job that nears its time limit, a dead parent: noted here, obeyed by the trainer after its step.

The request stays set for the life of the process: the cells that a sweep's worker would start next stop as well.
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
_parent = os.getppid()


def reason() -> str | None:
    """Why this process has to stop (None: it has not). A sweep's or torchrun's worker has to when its parent died."""
    if _reason is None and _is_worker() and os.getppid() != _parent:
        return "the process that started this worker died"
    return _reason


def _is_worker() -> bool:
    return multiprocessing.parent_process() is not None or "TORCHELASTIC_RUN_ID" in os.environ


@contextmanager
def watched(also: Callable[[], None] | None = None, saves: bool = True) -> Iterator[None]:
    """Within: the first SIGINT or SIGTERM is noted, a second Ctrl-C interrupts at once. Restores the handlers, but in a
    sweep's worker: there a Ctrl-C between two cells would kill the worker, and the launcher its neighbour with it.

    ``also`` is called with the first one (a driver passes the word on to its workers). Raises ``Interrupted`` when
    this process was already asked to stop.

    A launcher's own handler of SIGUSR1 or SIGUSR2 queues the job again and exits: it is called when the work has saved
    and raised ``Interrupted``. Work that saves nothing on its way (``saves=False``) leaves it in place.
    """
    if (asked := reason()) is not None:
        raise Interrupted(f"{asked}: not started. Type the same command to go on.")
    if threading.current_thread() is not threading.main_thread():
        yield
        return

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
        if multiprocessing.parent_process() is None:
            for number, handler in before.items():
                signal.signal(number, handler)


def clear() -> None:
    """Forget a request (a process that catches ``Interrupted`` and goes on, as the tests do)."""
    global _reason
    _reason = None
