"""What Slurm's queue says: which jobs still hold a run's lock, and which cells of a study are already queued.

``squeue`` is asked the same question at most once in ``ASK_EVERY_SECONDS``. While it does not answer, its last answer
is used. If it never answered, nothing is known about any job.
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
from typing import Any

from pausebench.errors import BadInput

FOLDER = "slurm"  # inside the runs folder: job logs, submitit's requests, and the cells of each array
GONE = "GONE"  # our own state, none of Slurm's

# A waiting study asks about each of its cells once a second. Slurm's manual warns of squeue in loops: every call
# locks the controller that all users share.
ASK_EVERY_SECONDS = 5.0

_answers: dict[str, tuple[float, list[Job] | None]] = {}


@dataclass(frozen=True)
class Job:
    """A line of the queue: a job, or one task of an array.

    id: its SLURM_JOB_ID (tasks that have not started share one). label: 12, or 12_3 for task 3 of array 12.
    """

    id: str
    label: str
    state: str
    name: str

    @property
    def task(self) -> int:
        return int(self.label.partition("_")[2] or 0)


def my_jobs() -> list[Job] | None:
    """This user's pending and running jobs; None if Slurm cannot be asked."""
    return _squeue(f"--user={os.getuid()}")


def forget() -> None:
    """Drop the remembered answers, so that the next question reaches squeue."""
    _answers.clear()


def may_run(job_id: str, cluster: str | None) -> bool:
    """Whether a job may still be running and so hold its lock. When in doubt the answer is yes."""
    # Another cluster's squeue cannot be asked, and two runs in one folder do more harm than one that waits.
    if cluster is not None and cluster != _cluster():
        return True
    # Our own jobs first: one answer serves every lock. Only another user's job costs a question of its own.
    for ask in (my_jobs, lambda: _squeue(f"--jobs={job_id}")):
        jobs = ask()
        if jobs is None:
            return True
        if states := [job.state for job in jobs if job.id == job_id]:
            # A requeued job keeps its id and is pending again: the process that wrote the lock is gone.
            return any(state != "PENDING" for state in states)
    return False


def record(runs: str, name: str, cells: Sequence[str]) -> str:
    """Write down which cells the tasks of an array run, in order; returns the job name that ``queued`` looks for."""
    # The job name is all that squeue reports of what we submitted, so it carries the key to the list of cells.
    name = f"{name}-{uuid.uuid4().hex[:8]}"
    folder = Path(runs) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(list(cells), indent=1) + "\n")
    return name


def queued(runs: str) -> dict[str, Job]:
    """The pending or running job of each cell, by the cell's name. Jobs of an earlier driver count too."""
    folder = Path(runs) / FOLDER
    found = {}
    for job in (my_jobs() or []) if folder.is_dir() else []:
        path = folder / f"{job.name}.json"
        cells = json.loads(path.read_text()) if path.parent == folder and path.is_file() else []
        if job.task < len(cells):
            found[cells[job.task]] = job
    return found


def own_log() -> Path | None:
    """The file that this process's job prints to; None if submitit did not start it."""
    folder, job = os.environ.get("SUBMITIT_FOLDER"), os.environ.get("SLURM_JOB_ID")
    if folder is None or job is None:
        return None
    # submitit names files after ARRAY_TASK, while SLURM_JOB_ID is a number of its own for every task of an array.
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return Path(folder.replace("%j", job)) / f"{job}_0_log.out"


def _squeue(option: str) -> list[Job] | None:
    """The jobs that squeue lists, or listed when it last answered; None if it never answered."""
    asked, jobs = _answers.get(option, (-ASK_EVERY_SECONDS, None))
    if time.monotonic() - asked >= ASK_EVERY_SECONDS:
        # --array: without it the pending tasks of an array share one line. The name comes last, it may contain a bar.
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
    # "Invalid job id" is an answer: this is how squeue says that a job is gone.
    if done.returncode and "Invalid job id" not in done.stderr:
        return None
    return done.stdout


@cache
def _cluster() -> str | None:
    """The name of the cluster that Slurm's commands reach from this machine."""
    for line in (_ask("scontrol", "show", "config") or "").splitlines():
        name, _, value = line.partition("=")
        if name.strip() == "ClusterName":
            return value.strip()
    return None


def queue_watcher() -> Any:
    """submitit's watcher of job states, fed by squeue: a job that squeue does not list is over.

    submitit's own watcher asks sacct. On a cluster without accounting a killed job would then never be over.
    """
    # Inside, because submitit is an extra, and because every command imports this module to read locks.
    from submitit.core.core import InfoWatcher

    class QueueWatcher(InfoWatcher):
        def register_job(self, job_id: str) -> None:
            super().register_job(job_id)
            forget()  # the remembered answer may be older than the job, which would then seem to be over

        def get_state(self, job_id: str, mode: str = "standard") -> str:
            jobs = my_jobs()
            if jobs is None:
                return "UNKNOWN"
            return next((job.state for job in jobs if job.label == job_id), GONE)

        def is_done(self, job_id: str, mode: str = "standard") -> bool:
            return self.get_state(job_id, mode) == GONE

    return QueueWatcher()


def prepare(cpus_per_task: int | None) -> None:
    """Make this process ready to submit. Raises ``BadInput`` if Slurm is not installed here."""
    if shutil.which("sbatch") is None:
        raise BadInput(
            "hydra/launcher=slurm needs Slurm's commands (sbatch, squeue), which are not on this machine. Type the "
            "command on the cluster's login node, or run cells side by side here with hydra/launcher=joblib."
        )
    from submitit.slurm.slurm import SlurmJob

    SlurmJob.watcher = queue_watcher()
    if cpus_per_task is not None:
        # Since Slurm 22.05 srun ignores --cpus-per-task of the job: without this every cell computes on one core.
        os.environ["SRUN_CPUS_PER_TASK"] = str(cpus_per_task)
