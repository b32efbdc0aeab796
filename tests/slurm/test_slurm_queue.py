"""What locks and studies learn from Slurm's queue; a program named squeue stands in for it here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pausebench.errors import BadInput
from pausebench.runs import slurm
from pausebench.runs.folder import RunFolder

Queue = Callable[..., None]


def lock(root: Path, **changes: str | None) -> RunFolder:
    """A folder that a process of job 7 on another node locked."""
    folder = RunFolder(root, "finetune", "run")
    folder.create()
    owner = {
        "host": "node9",
        "pid": 1,
        "parent_pid": 1,
        "started": 1,
        "job_id": "7",
        "restarts": "0",
        "cluster": "here",
    }
    (folder.path / "lock.json").write_text(json.dumps(owner | changes))
    return folder


def can_be_locked(folder: RunFolder) -> bool:
    try:
        with folder.locked():
            return True
    except BadInput:
        return False


def test_the_lock_of_a_job_that_runs_is_held(tmp_path: Path, queue: Queue) -> None:
    queue(mine="7|7|RUNNING|a")
    assert not can_be_locked(lock(tmp_path))


def test_the_lock_of_a_job_that_is_gone_is_free(tmp_path: Path, queue: Queue) -> None:
    queue(mine="8|8|RUNNING|a")
    assert can_be_locked(lock(tmp_path))


def test_the_lock_of_a_job_that_was_queued_again_is_free(tmp_path: Path, queue: Queue) -> None:
    queue(mine="7|7|PENDING|a")
    assert can_be_locked(lock(tmp_path))


def test_the_lock_of_somebody_elses_job_is_held(tmp_path: Path, queue: Queue) -> None:
    queue(theirs="7|7|RUNNING|a")
    assert not can_be_locked(lock(tmp_path))


def test_a_job_of_another_cluster_is_not_looked_for_here(tmp_path: Path, queue: Queue) -> None:
    queue(mine="")
    assert not can_be_locked(lock(tmp_path, cluster="there"))


def test_the_lock_is_held_while_slurm_does_not_answer(tmp_path: Path, queue: Queue) -> None:
    queue(fails=True)
    assert not can_be_locked(lock(tmp_path))


def test_the_lock_of_another_host_without_a_job_is_held(tmp_path: Path, queue: Queue) -> None:
    queue(mine="")
    assert not can_be_locked(lock(tmp_path, job_id=None))


def test_a_restarted_job_finds_its_own_lock_free(tmp_path: Path, queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    queue(mine="7|7|RUNNING|a")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "here")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert can_be_locked(lock(tmp_path))


def test_another_node_of_the_same_job_holds_its_lock(
    tmp_path: Path, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue(mine="7|7|RUNNING|a")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "here")
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    assert not can_be_locked(lock(tmp_path))


def test_locking_asks_anew_whether_a_job_has_begun(
    tmp_path: Path, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "ASK_EVERY_SECONDS", 1000.0)
    queue(mine="7|7|PENDING|a")
    assert lock(tmp_path).lock_owner() is None
    queue(mine="7|7|RUNNING|a")
    assert not can_be_locked(lock(tmp_path))


def test_the_queue_is_not_asked_the_same_thing_at_once_again(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "ASK_EVERY_SECONDS", 1000.0)
    queue(mine="7|7|PENDING|a")
    first = slurm.my_jobs()
    queue(mine="")
    assert first is not None and slurm.my_jobs() is first


def test_the_tasks_of_an_array_are_known_by_their_cells(tmp_path: Path, queue: Queue) -> None:
    runs = str(tmp_path)
    name = slurm.record(runs, "pausebench-finetune", ["first", "second", "third"])
    queue(mine=f"6|5_0|RUNNING|{name}\n5|5_2|PENDING|{name}\n9|9|RUNNING|bash")
    assert {cell: job.label for cell, job in slurm.queued(runs).items()} == {"first": "5_0", "third": "5_2"}


def test_a_single_job_is_known_by_its_cell(tmp_path: Path, queue: Queue) -> None:
    name = slurm.record(str(tmp_path), "pausebench-finetune", ["only"])
    queue(mine=f"5|5|PENDING|{name}")
    assert slurm.queued(str(tmp_path))["only"].state == "PENDING"


def test_two_submissions_do_not_share_a_name(tmp_path: Path) -> None:
    assert slurm.record(str(tmp_path), "a", ["x"]) != slurm.record(str(tmp_path), "a", ["x"])


def test_a_job_is_not_forgotten_while_slurm_does_not_answer(tmp_path: Path, queue: Queue) -> None:
    name = slurm.record(str(tmp_path), "pausebench-finetune", ["only"])
    queue(mine=f"5|5|PENDING|{name}")
    assert "only" in slurm.queued(str(tmp_path))
    queue(fails=True)
    assert "only" in slurm.queued(str(tmp_path))
