"""What submitit is told about jobs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("submitit", reason="needs the extra pausebench[slurm]")

from pausebench.commands import slurm_jobs
from pausebench.errors import BadInput
from pausebench.results import slurm

Queue = Callable[..., None]


def test_a_job_is_over_when_the_queue_no_longer_lists_it(queue: Queue) -> None:
    watcher = slurm_jobs.QueueWatcher()
    queue(mine="6|5_0|RUNNING|a\n5|5_1|PENDING|a")
    assert not watcher.is_done("5_0")
    assert not watcher.is_done("5_1")
    assert watcher.is_done("5_2")


def test_a_job_is_not_over_while_slurm_does_not_answer(queue: Queue) -> None:
    queue(fails=True)
    assert not slurm_jobs.QueueWatcher().is_done("5_0")


def test_a_new_job_is_not_looked_for_in_an_old_answer(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "ASK_EVERY_SECONDS", 1000.0)
    watcher = slurm_jobs.QueueWatcher()
    assert watcher.is_done("5_0")
    queue(mine="5|5_0|PENDING|a")
    watcher.register_job("5_0")
    assert not watcher.is_done("5_0")


def test_without_slurm_the_launcher_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput, match="login node"):
        slurm_jobs.prepare(None)
