"""How submitit learns that a job is over: from squeue, which every cluster has, in seconds.

Its own way is sacct, which needs an accounting database (without one a killed job is waited for without end) and is
asked every ten minutes.
"""

from __future__ import annotations

from submitit.core.core import InfoWatcher
from submitit.slurm.slurm import SlurmJob

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


def install() -> None:
    """Let submitit's jobs be watched that way, in this process."""
    SlurmJob.watcher = QueueWatcher()  # type: ignore[assignment]
