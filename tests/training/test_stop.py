"""Who asks a run to stop, and what happens when it has saved."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType

import pytest

from pausebench import stop
from pausebench.errors import Interrupted


@pytest.fixture
def launcher() -> Iterator[list[str]]:
    """A launcher's handler of SIGUSR2, as submitit's, that notes when it is called; also forgets every request."""
    calls: list[str] = []

    def handler(number: int, frame: FrameType | None) -> None:
        calls.append("queued again")

    before = signal.signal(signal.SIGUSR2, handler)
    yield calls
    signal.signal(signal.SIGUSR2, before)
    stop.clear()


def test_a_job_is_queued_again_after_it_has_saved(launcher: list[str]) -> None:
    with pytest.raises(Interrupted), stop.watched():
        os.kill(os.getpid(), signal.SIGUSR2)
        assert stop.reason() == "SIGUSR2"
        launcher.append("saved")
        raise Interrupted("saved")
    assert launcher == ["saved", "queued again"]


def test_a_job_is_queued_again_although_a_plain_stop_came_first(launcher: list[str]) -> None:
    with pytest.raises(Interrupted), stop.watched():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR2)
        raise Interrupted("saved")
    assert launcher == ["queued again"]


def test_a_job_that_was_cancelled_is_not_queued_again(launcher: list[str]) -> None:
    with pytest.raises(Interrupted), stop.watched():
        os.kill(os.getpid(), signal.SIGTERM)
        raise Interrupted("saved")
    assert launcher == []


def test_a_job_that_ends_by_itself_is_not_queued_again(launcher: list[str]) -> None:
    with stop.watched():
        os.kill(os.getpid(), signal.SIGUSR2)
    assert launcher == []


def test_work_with_nothing_to_save_is_queued_again_at_once(launcher: list[str]) -> None:
    with stop.watched(saves=False):
        os.kill(os.getpid(), signal.SIGUSR2)
        assert launcher == ["queued again"]


def test_the_launchers_handler_is_back_afterwards(launcher: list[str]) -> None:
    with stop.watched():
        pass
    os.kill(os.getpid(), signal.SIGUSR2)
    assert launcher == ["queued again"]


WORKER = """
    import sys, time
    from pausebench import stop
    assert stop.reason() is None
    print("began", flush=True)
    for _ in range(1000):  # an end of its own: torchrun's workers have a process group of their own
        if stop.reason() is not None:
            break
        time.sleep(0.05)
    print(stop.reason(), flush=True)
"""


def said_by_the_orphan(worker: Path, *parent: str, within_seconds: float) -> str:
    """The line that a worker prints after its parent, which started it with ``parent``, was killed."""
    worker.write_text(textwrap.dedent(WORKER))
    process = subprocess.Popen([sys.executable, *parent, worker], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"began\n"
        process.kill()
        ready, _, _ = select.select([process.stdout], [], [], within_seconds)
        return process.stdout.readline().decode() if ready else ""
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_worker_of_torchrun_stops_when_its_agent_died(tmp_path: Path) -> None:
    parent = ("-m", "torch.distributed.run", "--nproc-per-node=1")
    said = said_by_the_orphan(tmp_path / "worker.py", *parent, within_seconds=60)
    assert said == "the process that started this worker died\n"


def test_a_command_goes_on_when_its_shell_is_gone(tmp_path: Path) -> None:
    parent = ("-c", "import subprocess, sys; subprocess.run([sys.executable, sys.argv[1]])")
    assert said_by_the_orphan(tmp_path / "worker.py", *parent, within_seconds=1) == ""
