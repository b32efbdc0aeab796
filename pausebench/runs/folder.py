"""A run folder, runs/<command>/<name>/: its name, its lock, and files that are complete or absent.

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

# Part of every run's name. Raise it when the same command gives other numbers: old results then get company, they are
# never mistaken for new ones.
NUMERICS_VERSION = 2


def run_name(slug: str, identity: dict[str, Any]) -> str:
    """Readable slug and a short hash of what determines the result, so the same command finds its folder again."""
    # Keys are sorted: the order of a config's fields must not rename every run.
    canonical = json.dumps(identity | {"numerics": NUMERICS_VERSION}, sort_keys=True)
    return f"{re.sub(r'[^A-Za-z0-9_.-]', '_', slug)}-{hashlib.sha256(canonical.encode()).hexdigest()[:8]}"


def temporary_path(path: Path) -> Path:
    """The name of a file while this process writes it."""
    # In the same folder, since a rename is atomic within one file system only; hidden, so that no glob finds it.
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def write_whole(path: Path, content: bytes | bytearray) -> None:
    """Write a temporary file, sync it, rename it. Leaves no temporary file behind. Raises ``OSError``."""
    temporary = temporary_path(path)
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # otherwise a power cut can leave the new name with no content
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes | str) -> None:
    """``write_whole`` that raises ``RunFailed`` when the disk is full or read-only."""
    try:
        write_whole(path, content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise disk_error(path, error) from None


def disk_error(path: Path, error: OSError) -> RunFailed:
    """The error for a file that could not be written."""
    return RunFailed(
        f"{path} could not be written ({error.strerror}). What was saved before is intact. "
        "Free the disk or give another folder with runs=DIR, then type the same command again: it goes on from there."
    )


def write_json(path: Path, content: Any) -> None:
    write_atomically(path, json.dumps(content, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """The parsed file, or None if it is absent. Raises ``BadInput`` if it is not JSON."""
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
    """The files of one run."""

    def __init__(self, runs: str | Path, command: str, name: str) -> None:
        self.path = Path(runs) / command / name
        self.command = command
        self.name = name

    @classmethod
    def of(cls, runs: str | Path, command: str, slug: str, identity: dict[str, Any]) -> RunFolder:
        """The folder of the run that ``identity`` determines."""
        return cls(runs, command, run_name(slug, identity))

    @property
    def result(self) -> Any:
        return read_json(self.path / "result.json")

    @property
    def manifest(self) -> Any:
        return read_json(self.path / "manifest.json")

    def create(self) -> None:
        """Make the folder. Raises ``BadInput`` if that is impossible."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(
                f"the run folder {self.path} cannot be made ({error.strerror}). Give a writable one with runs=DIR."
            ) from None

    def check_fingerprint(self, fingerprint: str, allow_changed: bool, override: str) -> None:
        """Raise ``BadInput`` if the run was started on other data."""
        known = (self.manifest or {}).get("data_fingerprint", fingerprint)
        if known != fingerprint and not allow_changed:
            raise BadInput(
                f"{self.path} was made from data with fingerprint {known}; the data is now {fingerprint}. "
                f"Restore the data, give runs=DIR for a new folder, or accept the mixture with {override}."
            )

    def cut_metrics(self, step: int) -> None:
        """Drop the rows of metrics.jsonl after ``step``, and an incomplete last line."""
        # A killed run logged steps after its last checkpoint. Resuming computes them again.
        path = self.path / "metrics.jsonl"
        if path.exists():
            rows = [row for row in read_metrics(path) if row["step"] <= step]
            write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))

    def append_metrics(self, row: dict[str, Any]) -> None:
        try:
            with open(self.path / "metrics.jsonl", "a") as file:  # no sync: a lost row is computed again
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise disk_error(self.path / "metrics.jsonl", error) from None

    def lock_owner(self) -> dict[str, Any] | None:
        """The live process that holds this folder, or None."""
        owner = read_json(self.path / "lock.json")
        return owner if owner is not None and _is_alive(owner) else None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder. Raises ``BadInput`` that names the process which already holds it."""
        # The lock is a file that says who holds it. A flock held for the whole run would vanish with its process, but
        # network file systems do not pass it on between hosts reliably, and it cannot say whose it is.
        self.create()
        path = self.path / "lock.json"
        guard = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(guard, fcntl.LOCK_EX)  # or two processes could both take over a dead owner's lock
            slurm.forget()  # a job may have started and locked this folder since squeue was last asked
            if (owner := self.lock_owner()) is not None:
                raise BadInput(
                    f"{self.path} is in use by process {owner['pid']} on {owner['host']}"
                    + (f" (job {owner['job_id']})" if owner["job_id"] else "")
                    + f". Wait for it, or stop it first; if it no longer exists, delete {path}."
                )
            pid = os.getpid()
            # parent_pid: by it ``reproduce`` recognises its own workers, to pass a Ctrl-C on to them.
            mine = {"host": socket.gethostname(), "pid": pid, "parent_pid": os.getppid(), "started": _start_time(pid)}
            write_json(path, mine | _own_job())
        finally:
            os.close(guard)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, without an incomplete last line."""
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def read_last_metrics(path: Path) -> dict[str, Any] | None:
    """The last complete row of a metrics.jsonl that may be growing; None if there is none."""
    try:
        with open(path, "rb") as file:
            # Its end only: the live view reads this file several times a second. A row has about 300 bytes.
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
    """When a process started, in clock ticks since boot: it tells a reused pid apart. -1: a zombie; None: unknown."""
    try:
        # Fields count from behind the last ")": a program's name may contain blanks and brackets itself.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return -1 if fields[0] == "Z" else int(fields[19])


def _own_job() -> dict[str, str | None]:
    """The Slurm job of this process. A requeued job keeps its id and counts its restarts."""
    job_id = os.environ.get("SLURM_JOB_ID")
    restarts = os.environ.get("SLURM_RESTART_COUNT", "0") if job_id else None
    return {"job_id": job_id, "restarts": restarts, "cluster": os.environ.get("SLURM_CLUSTER_NAME")}


def _is_alive(owner: dict[str, Any]) -> bool:
    """Whether the process that wrote a lock still exists."""
    if owner["host"] != socket.gethostname():
        # Only Slurm can tell about another host. Without a job the owner is assumed to be alive.
        if owner["job_id"] is None:
            return True
        mine = _own_job()
        # Our own job, requeued onto this host: the lock is from before the restart.
        if (owner["job_id"], owner["cluster"]) == (mine["job_id"], mine["cluster"]):
            return bool(owner["restarts"] == mine["restarts"])
        return slurm.may_run(owner["job_id"], owner["cluster"])
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it exists, and belongs to another user
        return True
    return bool(_start_time(owner["pid"]) == owner["started"])
