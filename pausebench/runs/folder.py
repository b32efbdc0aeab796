"""A run folder, runs/<command>/<name>/: its name, its lock, and files that are whole or absent.

Invariant: ``result.json`` exists exactly when the run is done. Nothing here imports torch.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pausebench.errors import BadInput, RunFailed
from pausebench.runs import slurm

NUMERICS_VERSION = 2  # raised when the same command gives other numbers; part of every run's name


def run_name(slug: str, identity: dict[str, Any]) -> str:
    """Readable slug + short hash of what determines the result: the same command finds its folder again."""
    canonical = json.dumps(identity | {"numerics": NUMERICS_VERSION}, sort_keys=True)
    return f"{re.sub(r'[^A-Za-z0-9_.-]', '_', slug)}-{hashlib.sha256(canonical.encode()).hexdigest()[:8]}"


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write to a neighbour, sync, rename. Raises ``RunFailed`` where the disk refuses (full, read-only)."""
    try:
        write_whole(path, content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise disk_error(path, error) from None


def disk_error(path: Path, error: OSError) -> RunFailed:
    """The message for a disk that does not take a file."""
    return RunFailed(
        f"{path} could not be written ({error.strerror}). What was saved before is intact. "
        "Free the disk or give another folder with runs=DIR, then type the same command again: it goes on from there."
    )


def write_json(path: Path, content: Any) -> None:
    write_atomically(path, json.dumps(content, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """Parsed file, or None where it is absent. Raises ``BadInput`` where it is not JSON."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        raise BadInput(f"{path} cannot be read ({error}). Delete it and type the same command again.") from None


def read_if_whole(path: Path) -> Any:
    """The content of a JSON file, or None where it is absent or unreadable."""
    try:
        return read_json(path)
    except BadInput:
        return None


def finite(value: Any) -> float | None:
    """A finite number as float, or None for anything else that a run may have written."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


class RunFolder:
    """Access to one run's files."""

    def __init__(self, runs: str | Path, command: str, name: str) -> None:
        self.path = Path(runs) / command / name
        self.command = command
        self.name = name

    @classmethod
    def of(cls, runs: str | Path, command: str, slug: str, identity: dict[str, Any]) -> RunFolder:
        """The folder of a run by what determines its result."""
        return cls(runs, command, run_name(slug, identity))

    @property
    def result(self) -> Any:
        return read_json(self.path / "result.json")

    @property
    def manifest(self) -> Any:
        return read_json(self.path / "manifest.json")

    def create(self) -> None:
        """Make the folder. Raises ``BadInput`` where that is impossible."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(
                f"the run folder {self.path} cannot be made ({error.strerror}). Give a writable one with runs=DIR."
            ) from None

    def check_fingerprint(self, fingerprint: str, allow_changed: bool, override: str) -> None:
        """Raise ``BadInput`` when the manifest of an earlier start names other data."""
        known = (self.manifest or {}).get("data_fingerprint", fingerprint)
        if known != fingerprint and not allow_changed:
            raise BadInput(
                f"{self.path} was made from data with fingerprint {known}; the data is now {fingerprint}. "
                f"Restore the data, give runs=DIR for a new folder, or accept the mixture with {override}."
            )

    def cut_metrics(self, step: int) -> None:
        """Drop the lines of metrics.jsonl past ``step``, and a torn last one."""
        path = self.path / "metrics.jsonl"
        if path.exists():
            rows = [row for row in read_metrics(path) if row["step"] <= step]
            write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))

    def append_metrics(self, row: dict[str, Any]) -> None:
        try:
            with open(self.path / "metrics.jsonl", "a") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise disk_error(self.path / "metrics.jsonl", error) from None

    def lock_owner(self) -> dict[str, Any] | None:
        """The live process that holds this folder; None when there is none or it is gone."""
        owner = read_json(self.path / "lock.json")
        return owner if owner is not None and _is_alive(owner) else None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder. Raises ``BadInput`` that names the process that already does."""
        self.create()
        path = self.path / "lock.json"
        guard = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(guard, fcntl.LOCK_EX)  # two processes must not both find a dead owner's lock
            slurm.forget()  # a job may have begun, and locked this folder, since the queue was last looked at
            owner = self.lock_owner()
            if owner is not None:
                raise BadInput(
                    f"{self.path} is in use by process {owner['pid']} on {owner['host']}"
                    + (f" (job {owner['job_id']})" if owner["job_id"] else "")
                    + f". Wait for it, or stop it first; if it no longer exists, delete {path}."
                )
            mine = {
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "parent_pid": os.getppid(),
                "started": _start_time(os.getpid()),
                **_own_job(),
            }
            write_json(path, mine)
        finally:
            os.close(guard)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics.jsonl; a torn last line is left out."""
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def read_last_metrics(path: Path) -> dict[str, Any] | None:
    """The newest whole row of a metrics.jsonl that may be growing; None when there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        with suppress(ValueError):
            row: dict[str, Any] = json.loads(line)
            return row
    return None


def _start_time(pid: int) -> int | None:
    """Start of a process in clock ticks since boot, where the system tells: it unmasks a reused pid. -1: a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return -1 if fields[0] == "Z" else int(fields[19])


def _own_job() -> dict[str, str | None]:
    """The Slurm job this process belongs to. A job that is queued again keeps its id, and counts its restarts."""
    job_id = os.environ.get("SLURM_JOB_ID")
    restarts = os.environ.get("SLURM_RESTART_COUNT", "0") if job_id else None
    return {"job_id": job_id, "restarts": restarts, "cluster": os.environ.get("SLURM_CLUSTER_NAME")}


def _is_alive(owner: dict[str, Any]) -> bool:
    """Whether a lock's process still exists. Of one on another host its Slurm job tells; without one it is taken to."""
    if owner["host"] != socket.gethostname():
        if owner["job_id"] is None or "cluster" not in owner:  # the latter: written by an earlier version
            return True
        mine = _own_job()
        if (owner["job_id"], owner["cluster"]) == (mine["job_id"], mine["cluster"]):
            return bool(owner["restarts"] == mine["restarts"])
        return slurm.may_run(owner["job_id"], owner["cluster"])
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return bool(_start_time(owner["pid"]) == owner["started"])


# ------------------------------
# Files that are whole or absent: written under another name, synced, renamed.


def write_whole(path: Path, content: bytes) -> None:
    """Write to a neighbour, sync, rename; no neighbour is left behind. Raises ``OSError``."""
    temporary = temporary_path(path)
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def temporary_path(path: Path) -> Path:
    """What a file is called while this process writes it."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")
