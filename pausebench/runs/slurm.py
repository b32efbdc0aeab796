"""What Slurm's queue says: which jobs still hold a run's lock, and which cells of a study it will run anyway.

``squeue`` is asked the same thing at most once in ``ASK_EVERY_SECONDS``. While it does not answer its last answer
stands; where it never did, nothing is known of any job.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from submitit.core.core import InfoWatcher
from submitit.slurm.slurm import SlurmJob

from pausebench.errors import BadInput
from pausebench.runs import slurm

FOLDER = "slurm"  # in the runs folder: what jobs printed, their requests, and which cells they run
ASK_EVERY_SECONDS = 5.0

_answers: dict[str, tuple[float, list[Job] | None]] = {}


@dataclass(frozen=True)
class Job:
    """A line of the queue: a job, or one task of an array.

    id: its SLURM_JOB_ID (tasks that never started share one). label: 12, or 12_3 for task 3 of array 12.
    """

    id: str
    label: str
    state: str
    name: str

    @property
    def task(self) -> int:
        return int(self.label.partition("_")[2] or 0)


def my_jobs() -> list[Job] | None:
    """This user's jobs that wait or run; None where nobody can tell."""
    return _squeue(f"--user={os.getuid()}")


def forget() -> None:
    """Let the next question be asked anew."""
    _answers.clear()


def may_run(job_id: str, cluster: str | None) -> bool:
    """Whether a job may be running, so that what it locked is still locked: a job that was queued again is not."""
    if cluster is not None and cluster != _cluster():
        return True
    for ask in (my_jobs, lambda: _squeue(f"--jobs={job_id}")):  # one answer for all of one's own, then somebody else's
        jobs = ask()
        if jobs is None:
            return True
        if states := [job.state for job in jobs if job.id == job_id]:
            return any(state != "PENDING" for state in states)
    return False


def record(runs: str, name: str, cells: Sequence[str]) -> str:
    """Note which cells the tasks of an array will run, in order; returns the job name that ``queued`` knows it by."""
    name = f"{name}-{uuid.uuid4().hex[:8]}"
    folder = Path(runs) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(list(cells), indent=1) + "\n")
    return name


def queued(runs: str) -> dict[str, Job]:
    """The jobs that run or will run a cell, of this driver or an earlier one, by the cell's name."""
    folder = Path(runs) / FOLDER
    found = {}
    for job in (my_jobs() or []) if folder.is_dir() else []:
        path = folder / f"{job.name}.json"
        cells = json.loads(path.read_text()) if path.parent == folder and path.is_file() else []
        if job.task < len(cells):
            found[cells[job.task]] = job
    return found


def own_log() -> Path | None:
    """What the job of this process prints to, where submitit started it."""
    folder, job = os.environ.get("SUBMITIT_FOLDER"), os.environ.get("SLURM_JOB_ID")
    if folder is None or job is None:
        return None
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return Path(folder.replace("%j", job)) / f"{job}_0_log.out"


def _squeue(option: str) -> list[Job] | None:
    """The jobs that squeue lists, or listed when it last answered. None: there is no Slurm, or it never did."""
    asked, jobs = _answers.get(option, (-ASK_EVERY_SECONDS, None))
    if time.monotonic() - asked >= ASK_EVERY_SECONDS:
        answer = _ask("squeue", "--noheader", "--array", "--format=%A|%i|%T|%j", option)
        if answer is not None:
            jobs = [Job(*line.split("|", 3)) for line in answer.splitlines()]
        _answers[option] = time.monotonic(), jobs
    return jobs


def _ask(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode and "Invalid job id" not in done.stderr:  # that is how squeue says that a job is gone
        return None
    return done.stdout


@cache
def _cluster() -> str | None:
    """The name of the cluster that commands reach from here."""
    for line in (_ask("scontrol", "show", "config") or "").splitlines():
        name, _, value = line.partition("=")
        if name.strip() == "ClusterName":
            return value.strip()
    return None


# ------------------------------
# What submitit needs beside its own to run cells as jobs.

GONE = "GONE"


class QueueWatcher(InfoWatcher):
    """The states of jobs by squeue; a job that it does not list is over."""

    def register_job(self, job_id: str) -> None:
        super().register_job(job_id)
        slurm.forget()  # the last look at the queue may be older than the job

    def get_state(self, job_id: str, mode: str = "standard") -> str:
        jobs = slurm.my_jobs()
        if jobs is None:
            return "UNKNOWN"
        return next((job.state for job in jobs if job.label == job_id), GONE)

    def is_done(self, job_id: str, mode: str = "standard") -> bool:
        return self.get_state(job_id, mode) == GONE


def prepare(cpus_per_task: int | None) -> None:
    """Make this process ready to submit. Raises ``BadInput`` where there is no Slurm."""
    if shutil.which("sbatch") is None:
        raise BadInput(
            "hydra/launcher=slurm needs Slurm's commands (sbatch, squeue), which are not on this machine. Type the "
            "command on the cluster's login node, or run cells side by side here with hydra/launcher=joblib."
        )
    SlurmJob.watcher = QueueWatcher()  # type: ignore[assignment]
    if cpus_per_task is not None:
        os.environ["SRUN_CPUS_PER_TASK"] = str(cpus_per_task)  # since Slurm 22.05 srun does not take over the job's own
