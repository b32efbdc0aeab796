"""What submitit is told about jobs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("submitit", reason="needs the extra pausebench[slurm]")

from submitit.slurm.slurm import SlurmJob

from pausebench import cli
from pausebench.errors import BadInput
from pausebench.runs import slurm

Queue = Callable[..., None]


def test_a_job_is_over_when_the_queue_no_longer_lists_it(queue: Queue) -> None:
    watcher = slurm.queue_watcher()
    queue(mine="6|5_0|RUNNING|a\n5|5_1|PENDING|a")
    assert not watcher.is_done("5_0")
    assert not watcher.is_done("5_1")
    assert watcher.is_done("5_2")


def test_a_job_is_not_over_while_slurm_does_not_answer(queue: Queue) -> None:
    queue(fails=True)
    assert not slurm.queue_watcher().is_done("5_0")


def test_a_new_job_is_not_looked_for_in_an_old_answer(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "ASK_EVERY_SECONDS", 1000.0)
    watcher = slurm.queue_watcher()
    assert watcher.is_done("5_0")
    queue(mine="5|5_0|PENDING|a")
    watcher.register_job("5_0")
    assert not watcher.is_done("5_0")


def test_without_slurm_the_launcher_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput, match="login node"):
        slurm.prepare(None)


def test_a_sweep_is_one_array_with_the_options_of_the_preset(
    tmp_path: Path, queue: Queue, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    programs = Path(os.environ["PATH"].split(os.pathsep)[0])
    for name in ("sbatch", "srun"):
        (programs / name).write_text("#!/bin/sh\necho Submitted batch job 5\n")
        (programs / name).chmod(0o755)
    monkeypatch.setattr(SlurmJob, "_results_timeout_s", 0)
    monkeypatch.setenv("SRUN_CPUS_PER_TASK", "set and given back")
    sweep = ["pretrain", "-m", "world=count16", "pause=on,off", f"runs={tmp_path}", "hydra/launcher=slurm"]
    assert cli.run([*sweep, "hydra.launcher.partition=gpu", "hydra.launcher.gpus_per_node=1"]) == 1
    assert "5_0 (task: 0)" in capsys.readouterr().err  # the job that was never run
    script = (tmp_path / "slurm" / "5_submission.sh").read_text()
    asked = {line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")}
    assert {
        "array=0-1%2",
        "partition=gpu",
        "gpus-per-node=1",
        "cpus-per-task=2",
        "time=240",
        "signal=USR2@120",
        "requeue",
        "job-name=pausebench-pretrain",
        f"output={tmp_path}/slurm/%A_%a_0_log.out",
    } <= asked
