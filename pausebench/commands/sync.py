"""``pausebench sync``: upload the W&B runs that were kept offline, run folder by run folder.

``wandb sync`` does the uploading and leaves a ``.synced`` file beside what it has uploaded; that file alone says what
is done, here as there.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from pausebench.config.commands import SyncConfig
from pausebench.errors import BadInput, RunFailed
from pausebench.runs.folder import RunFolder
from pausebench.training import tracking


def run(config: SyncConfig) -> dict[str, Any]:
    """Upload whatever is not uploaded yet; runs that a live process still writes are left for later.

    Raises ``BadInput`` without W&B, login or network, ``RunFailed`` when an upload did not succeed.
    """
    waiting, busy = offline_runs(Path(config.runs))
    for folder in busy:
        _say(f"still running, left for later: {folder}", config.quiet)
    if config.dry_run:
        for folder, files in waiting.items():
            for file in files:
                print(f"{folder}  {file.parent.name}  {file.stat().st_size} bytes")
        _say(f"{len(waiting)} run folders to upload from {config.runs}.", config.quiet)
        return {"names": [folder.name for folder in waiting]}
    if waiting:
        _check_connection()
    for number, (folder, files) in enumerate(waiting.items(), start=1):
        said = upload([file.parent for file in files])
        if not all(is_uploaded(file) for file in files):
            raise RunFailed(
                f"{folder} was not uploaded; {number - 1} of {len(waiting)} run folders were. W&B says:\n{said}\n"
                "Type the same command again: it goes on with this one."
            )
        _say(f"{number}/{len(waiting)} uploaded: {folder}", config.quiet)
    _say(f"{len(waiting)} run folders uploaded from {config.runs}; none is left.", config.quiet)
    return {"names": [folder.name for folder in waiting]}


def offline_runs(runs: Path) -> tuple[dict[Path, list[Path]], list[Path]]:
    """(Each run folder's .wandb files that are not uploaded, oldest first; the run folders that are in use)."""
    files = sorted(runs.glob("*/*/wandb/offline-run-*/*.wandb"))
    waiting: dict[Path, list[Path]] = {}
    busy = []
    for folder, group in groupby((file for file in files if not is_uploaded(file)), key=lambda file: file.parents[2]):
        if RunFolder(runs, folder.parent.name, folder.name).lock_owner() is None:
            waiting[folder] = list(group)
        else:
            busy.append(folder)
    return waiting, busy


def is_uploaded(file: Path) -> bool:
    """Whether ``wandb sync`` has marked a .wandb file."""
    return file.with_name(f"{file.name}.synced").exists()


def upload(directories: Sequence[Path]) -> str:
    """``wandb sync`` of one run's offline directories; returns the end of what it printed."""
    command = [sys.executable, "-m", "wandb", "sync", *map(str, directories)]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return "\n".join(f"  {line}" for line in done.stdout.strip().splitlines()[-3:])


def _check_connection() -> None:
    """Raise ``BadInput`` for what would make every upload fail, ``wandb sync`` itself after minutes of trying."""
    try:
        import wandb

        url = tracking.server_url(wandb)
    except ImportError:
        raise BadInput("wandb is not installed. Type: pip install wandb") from None
    except Exception as error:  # an address or a settings file that W&B cannot read
        raise BadInput(f"W&B's settings cannot be read ({type(error).__name__}). Check WANDB_BASE_URL.") from None
    if not tracking.logged_in(url):
        raise BadInput(f"nobody is logged in at {url}. Type: wandb login")
    if (problem := tracking.unreachable(url)) is not None:
        raise BadInput(f"{url} cannot be reached ({problem}). Type the same command again where there is a network.")


def _say(line: str, quiet: bool) -> None:
    if not quiet:
        print(line, file=sys.stderr)
