"""A running study on screen: what is done, running, failed and left, and for how long still.

Everything shown is read from the run folders, once a second; nothing is told by the processes that run the cells, so
that cells on other machines show like those here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from pausebench.errors import PausebenchError
from pausebench.runs.folder import RunFolder, read_last_metrics

STATES = ("done", "running", "failed", "stopped", "left")


class StudyView:
    """The state of a study's run folders, by command. An evaluation counts once for each M, as each has a folder.

    ``failed`` holds the names of cells whose error is known. A cell that stopped without a result before its launcher
    told why counts as stopped.
    """

    def __init__(self, folders: Mapping[str, Sequence[RunFolder]], clock: Callable[[], float] = time.monotonic) -> None:
        self.failed: set[str] = set()
        self._clock = clock
        self._states = {command: dict.fromkeys(some, "left") for command, some in folders.items()}
        # When a stage's first look was, and how many were done then: cells of earlier sessions say nothing about speed.
        self._began: dict[str, tuple[float, int]] = {}

    def refresh(self) -> None:
        """Look at every run that is not done yet."""
        for states in self._states.values():
            for folder, was in states.items():
                # A file that cannot be read is the cell's trouble, and its command says so.
                with suppress(PausebenchError):
                    states[folder] = was if was == "done" else _state(folder, was)
        for command in self._states:
            if command not in self._began and self.counts(command)["running"]:
                self._began[command] = self._clock(), self.counts(command)["done"]

    def counts(self, command: str) -> dict[str, int]:
        """Runs of a stage by state."""
        counts = dict.fromkeys(STATES, 0)
        for folder, state in self._states[command].items():
            counts["failed" if folder.name in self.failed and state != "done" else state] += 1
        return counts

    def seconds_left(self, command: str) -> float | None:
        """Runs to come at the mean pace of this session; None until one of its runs is done."""
        counts = self.counts(command)
        began, before = self._began.get(command, (0.0, counts["done"]))
        ended, to_come = counts["done"] - before, counts["running"] + counts["stopped"] + counts["left"]
        return (self._clock() - began) / ended * to_come if ended else None

    def line(self, command: str) -> str:
        """How far a stage is, in a line."""
        counts = self.counts(command)
        parts = [f"{counts['done']}/{sum(counts.values())} done"]
        parts += [f"{counts[state]} {state}" for state in ("running", "failed", "stopped") if counts[state]]
        left = self.seconds_left(command)
        return ", ".join([*parts, f"about {duration(left)} left"] if left else parts)

    def render(self, height: int) -> RenderableType:
        """The stages and the running cells, in at most ``height`` lines, each cut at the screen's width."""
        lines = [Text(f"{command:<9} {self.line(command)}") for command in self._states]
        running = [folder for states in self._states.values() for folder in states if states[folder] == "running"]
        for folder in running:
            row = read_last_metrics(folder.path / "metrics.jsonl")
            at = f"step {row['step']:>6}  loss {row['loss']:.3f}  " if row else ""
            lines.append(Text(f"  {at}{folder.name}", style="cyan"))
        if len(lines) > height:
            lines = [*lines[: height - 1], Text(f"  and {len(lines) - height + 1} more")]
        for line in lines:
            line.no_wrap, line.overflow = True, "ellipsis"
        return Group(*lines)


def _state(folder: RunFolder, was: str) -> str:
    if (folder.path / "result.json").exists():
        return "done"
    if folder.lock_owner() is not None:
        return "running"
    # A lock without a live owner was left by a kill; one that is gone was given back by an error.
    return "stopped" if was != "left" or (folder.path / "lock.json").exists() else "left"


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
                live.update(view.render(console.height), refresh=True)
            elif (done := view.counts(command)["done"]) > shown:
                shown = done
                console.print(f"{label}: {view.line(command)}", soft_wrap=True)
            # A second is what people notice; a look costs a few file lookups for each cell.
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
