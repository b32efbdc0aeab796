"""Weights & Biases as a view of the run folder: the same numbers, never a reason to stop.

A cell of a study is a W&B run. Its group is the study, its job type the stage, and its config says which cell it is.
Invariant: absent, broken or unreachable, W&B costs one line and no run.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from pausebench.config.groups import TrackingConfig
from pausebench.console import Progress
from pausebench.tasks import TASKS, published

CELL = ("variant", "task", "k", "mt", "seed", "placement", "filler")
SCORES = ("value", "stderr", "target_nll", "n")  # of an evaluation, beside all metrics of its task
LEAST_FREE_BYTES = 10_000_000  # W&B is silent when its files stop growing, so it is dropped below this
PUBLISHED = "Goyal et al. 2024, Table 1: 1B, mean of 5 seeds"

_said: set[str] = set()  # a sweep trains many cells in one process: what is wrong with W&B is said once


class Tracker:
    """Logs rows to W&B, or does nothing.

    ``cell``: its ``CELL`` entries are added to the ``resolved`` config of the W&B run; absent ones are None.
    ``published``: the paper's figure for this cell as a fraction, drawn as the constant ``published_value``.
    """

    def __init__(
        self,
        config: TrackingConfig,
        run: Path,
        group: str,
        resolved: dict[str, Any],
        cell: dict[str, Any],
        progress: Progress,
        published: float | None = None,
    ) -> None:
        self._run: Any = None
        self._folder = run
        self._progress = progress
        self._constant = {} if published is None else {"published_value": published}
        self._start: Callable[[], None] | None = None
        if config.enabled:
            compared = {"published": None if published is None else PUBLISHED}
            described = resolved | {name: cell.get(name) for name in CELL} | compared
            self._start = partial(self._begin, config.project, config.group or group, described)

    def _begin(self, project: str, group: str, described: dict[str, Any]) -> None:
        # Called with the first row, not before training: W&B starts slower than a small model takes its first steps.
        try:
            import wandb

            self._check_disk()
            # Inside `wandb agent` the agent has chosen the id; elsewhere the same command resumes the same W&B run.
            own_id: dict[str, Any] = {"id": self._folder.name.replace(".", "-"), "resume": "allow"}
            if "WANDB_SWEEP_ID" in os.environ:
                own_id = {}
            self._run = wandb.init(
                project=project,
                group=group,
                job_type=self._folder.parent.name,
                name=self._folder.name,
                dir=self._folder,
                config=described,
                mode=self._mode(wandb),
                settings=wandb.Settings(console="off", silent=True, init_timeout=30, finish_timeout=60),
                **own_id,
            )
            # Its debug log would print a page of traceback for each line that a full disk loses.
            for handler in logging.getLogger("wandb").handlers:
                handler.handleError = lambda record: None  # type: ignore[method-assign]
        except Exception as error:  # of any kind: W&B must not stop a run
            self._give_up(error)

    def log(self, row: dict[str, Any]) -> None:
        """A row of metrics.jsonl, or the scores of an evaluation, which have no step."""
        if self._start is not None:
            self._start()
            self._start = None
        if self._run is not None:
            try:
                self._check_disk()
                self._run.log(row | self._constant, step=row.get("step"))
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

    def _check_disk(self) -> None:
        if shutil.disk_usage(self._folder).free < LEAST_FREE_BYTES:
            raise OSError(f"less than {LEAST_FREE_BYTES // 10**6} MB are free on its disk")

    def _mode(self, wandb: Any) -> Any:
        """WANDB_MODE, or online if W&B finds a login and its server accepts it."""
        if chosen := os.environ.get("WANDB_MODE"):
            return chosen
        try:
            # Without credentials it returns False at once; with them it asks the server, for about ten seconds.
            return "online" if wandb.login(prompt=False) else "offline"
        except Exception as error:
            self._say(f"W&B is kept offline ({_first_line(error)}); docs/tracking.md says how to upload it later.")
            return "offline"

    def _give_up(self, error: Exception) -> None:
        self._run = None
        self._say(f"W&B failed and is left out ({_first_line(error)}); the run folder has it all.")

    def _say(self, line: str) -> None:
        if line not in _said:
            _said.add(line)
            self._progress.say(line)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def reference(cell: dict[str, Any]) -> float | None:
    """The paper's figure for a cell, as a fraction. None if the cell is not what Table 1 measured."""
    # Measured there: the tasks' own rows, M = K, `<pause>` tokens, appended, no control.
    as_published = (
        cell.get("data") != "embedded"
        and cell.get("mt") in (None, cell.get("k"))
        and cell.get("filler") in (None, "<pause>")
        and not (cell.get("k") and cell.get("placement") == "prepend")
        and not cell.get("shift")
        and all(cell.get(name) in (None, "all") for name in ("pause_visibility", "pretraining_visibility"))
    )
    return published_value(str(cell.get("task")), str(cell.get("variant")), cell.get("k")) if as_published else None


def published_value(task: str, variant: str, k: int | None) -> float | None:
    """Table 1's figure of the 1B model as a fraction, None where the paper has none."""
    if task not in TASKS:
        return None
    found = published.lookup("table1", task, TASKS[task].metrics[0], variant, k or None)
    return found.mean if found else None
