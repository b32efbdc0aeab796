"""Weights & Biases as a view of the run folder: the same numbers, never a reason to stop.

Offline unless logged in; absent or broken W&B costs one line.
"""

from __future__ import annotations

import netrc
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from pausebench.groups import TrackingConfig
from pausebench.training.progress import Progress


class Tracker:
    """Logs rows to W&B, or does nothing."""

    def __init__(
        self, config: TrackingConfig, run: Path, group: str, resolved: dict[str, Any], progress: Progress
    ) -> None:
        self._run: Any = None
        self._progress = progress
        if not config.enabled:
            return
        try:
            import wandb

            self._run = wandb.init(
                project=config.project,
                group=config.group or group,
                job_type=run.parent.name,
                name=run.name,
                id=run.name.replace(".", "-"),  # the same command resumes the same W&B run
                resume="allow",
                dir=run,
                config=resolved,
                mode=os.environ.get("WANDB_MODE") or ("online" if _logged_in() else "offline"),  # type: ignore[arg-type]
                settings=wandb.Settings(console="off", silent=True),
            )
        except Exception as error:  # W&B may fail in any way it likes
            self._give_up(error)

    def log(self, row: dict[str, Any]) -> None:
        if self._run is not None:
            try:
                self._run.log(row, step=row["step"])
            except Exception as error:
                self._give_up(error)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._run is not None:
            try:
                self._run.finish(exit_code=0 if error is None else 1)
            except Exception as failure:
                self._give_up(failure)

    def _give_up(self, error: Exception) -> None:
        self._run = None
        self._progress.say(f"W&B failed and is left out ({type(error).__name__}: {error}); the run folder has it all.")


def _logged_in() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
