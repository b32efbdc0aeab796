"""What submitit needs beside its own to run cells as jobs.

It learns from squeue that a job is over: every cluster has it, and it is asked every few seconds. submitit's own way is
sacct, which needs an accounting database (without one a killed job is waited for without end), every ten minutes.
"""

from __future__ import annotations

import os
import shutil

from submitit.core.core import InfoWatcher
from submitit.slurm.slurm import SlurmJob

from pausebench.errors import BadInput
from pausebench.results import slurm

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
