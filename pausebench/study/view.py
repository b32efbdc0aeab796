"""A running study on screen: what is done, running, failed and left, until when, and the scores so far.

Everything shown is read from the study's plan and the run folders, once a second: a finished run is read once, a
running one when its metrics.jsonl has changed, so that hundreds of cells cost a few file lookups each time.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pausebench.errors import PausebenchError
from pausebench.runs.folder import RunFolder, finite, read_if_whole, read_last_metrics

SETTING = ("task", "world")
NO_ARM = ("name", "seed", "pretraining", *SETTING)  # coordinates of a cell that do not tell two arms apart


@dataclass
class _Run:
    """What is known of one run folder. seconds: how long it took, where this session saw it end."""

    folder: RunFolder
    state: str = "left"
    began: float | None = None
    seconds: float | None = None
    value: float | None = None
    metrics: dict[str, Any] | None = None
    read: int = 0  # mtime of metrics.jsonl when it was read


class StudyView:
    """The state of a study's run folders. An evaluation counts once for each M, as each has a folder.

    ``failed`` holds the names of the cells whose error is known. A cell that stopped without a result before its
    launcher told why counts as stopped.
    """

    def __init__(self, runs: str, plan: dict[str, Any], clock: Callable[[], float] = time.monotonic) -> None:
        self.failed: set[str] = set()
        self._clock = clock
        self._refreshed: float | None = None
        panels = plan["panels"]
        evaluated = dict.fromkeys(entry["name"] for panel in panels for entry in panel["cells"])
        self._stages: dict[str, dict[str, _Run]] = {}
        for stage in plan["stages"]:
            command = stage["command"]
            names = evaluated if command == "evaluate" else [cell["name"] for cell in stage["cells"]]
            self._stages[command] = {name: _Run(RunFolder(runs, command, name)) for name in names}
        self._side_by_side = dict.fromkeys(self._stages, 1)
        shown = (plan.get("primary") or {}).get("panel")
        cells: list[dict[str, Any]] = next((panel["cells"] for panel in panels if panel["id"] == shown), [])
        self._places = {entry["name"]: (_setting(entry), _arm(entry, cells)) for entry in cells}

    def refresh(self) -> None:
        """Look at every run that is not done yet."""
        now, before = self._clock(), self._refreshed
        for command, runs in self._stages.items():
            unseen = []  # began and ended since the last look
            for run in runs.values():
                if run.state == "done":
                    continue
                with suppress(PausebenchError):  # a file that cannot be read is the cell's trouble, not the view's
                    _look(run, now)
                if run.state == "done" and run.began is not None:
                    run.seconds = now - run.began
                elif run.state == "done":
                    unseen.append(run)
            running = sum(run.state == "running" for run in runs.values())
            self._side_by_side[command] = max(self._side_by_side[command], running)
            if before is not None:
                for run in unseen:
                    run.seconds = (now - before) * self._side_by_side[command] / len(unseen)
        self._refreshed = now

    def counts(self, command: str) -> dict[str, int]:
        """Runs of a stage by state."""
        counts = dict.fromkeys(("done", "running", "failed", "stopped", "left"), 0)
        for name, run in self._stages[command].items():
            known = name in self.failed and run.state != "done"
            counts["failed" if known else run.state] += 1
        return counts

    def seconds_left(self, command: str) -> float | None:
        """Runs to come, times the median of those that ended in this session, over those side by side; None before."""
        ended = [run.seconds for run in self._stages[command].values() if run.seconds is not None]
        counts = self.counts(command)
        to_come = counts["running"] + counts["stopped"] + counts["left"]
        return statistics.median(ended) * to_come / self._side_by_side[command] if ended else None

    def line(self, command: str) -> str:
        """How far a stage is, in a line."""
        counts = self.counts(command)
        total = sum(counts.values())
        parts = [f"{counts['done']}/{total} done"]
        parts += [f"{counts[state]} {state}" for state in ("running", "failed", "stopped") if counts[state]]
        left = self.seconds_left(command)
        if left is not None and counts["done"] + counts["failed"] < total:
            parts.append(f"about {duration(left)} left")
        return ", ".join(parts)

    def render(self, width: int, height: int) -> RenderableType:
        """The stages, the running cells and the primary panel's scores, in at most ``height`` lines."""
        lines = [Text(f"{command:<9} {self.line(command)}") for command in self._stages]
        running = [run for runs in self._stages.values() for run in runs.values() if run.state == "running"]
        room = max(1, height // 3)
        for run in running[:room]:
            row = run.metrics
            at = f"step {row['step']:>6}  loss {row['loss']:.3f}  " if row else ""
            lines.append(Text(f"  {at}{run.folder.name}", style="cyan"))
        if running[room:]:
            lines.append(Text(f"  and {len(running) - room} more running"))
        for line in lines:
            line.no_wrap, line.overflow = True, "ellipsis"
        table = self._scores(width, height - len(lines) - 1)
        return Group(*lines[:height], *([table] if table is not None else []))

    def _scores(self, width: int, height: int) -> Table | None:
        """Settings by arms where that fits the width, else a row an arm; "mean (n)", n the seeds so far."""
        if not self._places or height < 6:
            return None
        found: dict[tuple[str, str], list[float]] = {}
        for name, place in self._places.items():
            values, run = found.setdefault(place, []), self._stages["evaluate"][name]
            if run.value is not None:
                values.append(run.value)
        shown = {place: f"{statistics.fmean(v):.3f} ({len(v)})" if v else "-" for place, v in found.items()}
        settings = list(dict.fromkeys(setting for setting, _ in shown))
        arms = list(dict.fromkeys(arm for _, arm in shown))
        widths = [max(9, *map(len, arm.split("\n"))) + 2 for arm in arms]
        table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, title_justify="left")
        table.add_column(Text("mean (n)", style="dim"))
        if max(map(len, settings)) + 2 + sum(widths) <= width:
            for arm in arms:
                table.add_column(Text(arm), justify="right", no_wrap=True)
            rows = [[setting, *(shown.get((setting, arm), "") for arm in arms)] for setting in settings]
            head = 1 + max(arm.count("\n") + 1 for arm in arms)
        else:
            table.add_column("score", justify="right", no_wrap=True)
            rows = [[f"{setting} {arm}".replace("\n", " "), score] for (setting, arm), score in shown.items()]
            head = 2
        fits = height - head
        if len(rows) > fits:
            rows = [*rows[: fits - 1], [f"and {len(rows) - fits + 1} more", *[""] * (len(rows[0]) - 1)]]
        for row in rows:
            table.add_row(*(Text(cell, no_wrap=True, overflow="ellipsis") for cell in row))
        return table


def _look(run: _Run, now: float) -> None:
    """Bring a run that was not done up to date."""
    path = run.folder.path
    if (path / "result.json").exists():
        run.state = "done"
        if run.folder.command == "evaluate":
            result = read_if_whole(path / "result.json")
            run.value = finite(result.get("value")) if isinstance(result, dict) else None
    elif not (path / "lock.json").exists():
        run.state = "left" if run.state == "left" else "stopped"
    elif run.folder.lock_owner() is None:
        run.state = "stopped"
    else:
        if run.state != "running":
            run.state, run.began = "running", now
        with suppress(FileNotFoundError):
            changed = (path / "metrics.jsonl").stat().st_mtime_ns
            if changed != run.read:
                run.read, run.metrics = changed, read_last_metrics(path / "metrics.jsonl")


def _setting(entry: dict[str, Any]) -> str:
    return " · ".join(str(entry[name]) for name in SETTING if entry.get(name))


def _arm(entry: dict[str, Any], panel: list[dict[str, Any]]) -> str:
    """The arm's name in two or three lines: variant, K, and whatever else differs within the panel."""
    pauses = f"K={entry['k']}"
    if any(other["mt"] != other["k"] for other in panel):
        pauses += f" M={entry['mt']}"
    others = [name for name in entry if name not in (*NO_ARM, "variant", "k", "mt")]
    differing = [str(entry[name]) for name in others if len({str(other.get(name)) for other in panel}) > 1]
    return "\n".join([*str(entry["variant"]).split("_"), " ".join([pauses, *differing])])


def duration(seconds: float) -> str:
    """For people: 3:20, and 2.5 h from an hour upwards."""
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


@contextmanager
def watching(view: StudyView, command: str, label: str, console: Console) -> Iterator[None]:
    """Show a stage while it runs: the view in place on a terminal, elsewhere a plain line a finished cell.

    The terminal is restored whatever ends the stage; the last line stays.
    """
    view.refresh()
    over, shown = threading.Event(), view.counts(command)["done"]
    live = None
    if console.is_terminal:
        live = Live(console=console, auto_refresh=False, transient=True, vertical_overflow="crop")

    def watch() -> None:
        nonlocal shown
        while True:
            if live is not None:
                live.update(view.render(console.width, console.height), refresh=True)
            elif (done := view.counts(command)["done"]) > shown:
                shown = done
                console.print(f"{label}: {view.line(command)}", soft_wrap=True)
            if over.wait(1):
                return
            view.refresh()

    thread = threading.Thread(target=watch, daemon=True)
    if live is not None:
        live.start()
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        if live is not None:
            live.stop()
        view.refresh()
        console.print(f"{label}: {view.line(command).partition(', about')[0]}", soft_wrap=True)
