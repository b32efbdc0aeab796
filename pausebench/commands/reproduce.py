"""``pausebench reproduce``: plan, run, resume and report a study.

The plan (``commands.study_plan``) is at most three stages of cells; each cell is the overrides of ONE command that a
user could type. Unfinished cells of a stage go to the Hydra launcher named on the command line; what is done stands in
the run folders, so the same command picks up whatever an earlier one left.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from pausebench.commands.study_plan import Cell, Cells, Plan, as_commands, build_plan, chosen_names
from pausebench.config import ReproduceConfig
from pausebench.errors import Interrupted, PausebenchError, RunFailed
from pausebench.groups import Source, plain
from pausebench.results.page import write_report
from pausebench.results.run_folder import RunFolder, read_json, read_last_metrics, run_name, write_json
from pausebench.results.tables import print_report
from pausebench.training import checkpoint, stop

console = Console(stderr=True, highlight=False)


def run(config: ReproduceConfig, cells: Cells) -> dict[str, Any]:
    """Run what is missing, then write and print the report.

    Raises ``RunFailed`` when cells failed, ``Interrupted`` after a stop (with what was saved), ``BadInput`` when a
    cell cannot even be composed, before any of them starts.
    """
    plan = build_plan(config, cells)
    if config.dry_run:
        print(dry_run(plan, config))
        return {"names": []}
    folder = RunFolder(config.runs, "reproduce", study_name(config))
    config = replace(config, tracking=replace(config.tracking, group=config.tracking.group or folder.name))
    folder.create()
    write_json(folder.path / "plan.json", plan.as_json(folder.name))
    errors: dict[str, str] = {}
    for number, (command, stage) in enumerate(plan.stages.items(), start=1):
        ready = [cell for cell in stage if not errors or _parents_done(cell)]
        label = f"stage {number}/{len(plan.stages)} {command}"
        errors |= _run_stage(label, ready, cells, config, plan)
    done = [cell for cell in plan.cells() if cell.done()]
    if done:
        write_report(Path(config.runs))
        print_report(Path(config.runs), folder.name, Console(highlight=False))
    if errors:
        listed = "\n".join(f"  {name}: {error}" for name, error in errors.items())
        raise RunFailed(
            f"{len(errors)} cells failed, {len(done)} of {len(plan.cells())} are done:\n{listed}\n"
            "The same command retries only what is missing."
        )
    if len(done) < len(plan.cells()):
        raise RunFailed(f"{len(done)} of {len(plan.cells())} cells are done; the rest is left to other processes.")
    return {"names": [cell.name for cell in plan.cells()]}


def study_name(config: ReproduceConfig) -> str:
    """The study's name: the result's, the chosen model and data, and a hash of whatever else narrows it.

    No study replaces the plan of another.
    """
    name = "-".join([str(config.result["name"]), *chosen_names(config)])
    own_tokenizer = config.tokenizer is not None and (config.data is None or config.data.source is not Source.embedded)
    narrowed = {
        "seeds": config.seeds,
        "overrides": config.overrides,
        "limit": config.limit,
        "tokenizer": plain(config.tokenizer) if own_tokenizer else None,
    }
    return run_name(name, narrowed) if any(narrowed.values()) else name


def dry_run(plan: Plan, config: ReproduceConfig) -> str:
    """The cells as commands to paste, with how many are done, running and to do."""
    lines = []
    for command, stage in plan.stages.items():
        states = Counter("done" if c.done() else "running" if c.running() else "to do" for c in stage)
        counts = ", ".join(f"{states[state]} {state}" for state in ("done", "running", "to do"))
        lines.append(f"# {command}: {len(stage)} cells ({counts})")
        lines += as_commands(command, [cell.overrides for cell in stage], config.runs)
    return "\n".join(lines)


def _parents_done(cell: Cell) -> bool:
    return all(parent.result is not None for parent in cell.parents)


def _run_stage(label: str, stage: Sequence[Cell], cells: Cells, config: ReproduceConfig, plan: Plan) -> dict[str, str]:
    """Bring every cell of a stage to its end; returns the errors of those that failed, by name.

    A worker that is killed takes the launcher's pool with it. The other cells lose nothing but time: whatever was in
    flight goes on from its checkpoint. A cell that was in flight in two such breakdowns is the likely culprit and
    counts as failed.
    """
    errors: dict[str, str] = {}
    breakdowns: Counter[str] = Counter()
    while True:
        missing = [cell for cell in stage if not cell.done() and cell.name not in errors]
        elsewhere = [cell for cell in missing if cell.running()]
        todo = [cell for cell in missing if cell not in elsewhere]
        if not todo:
            if not elsewhere or not config.wait:
                return errors
            console.print(f"{label}: waiting for {elsewhere[0].describe_owner()}", soft_wrap=True)
            _wait_while_running(elsewhere)
            continue
        with stop.watched(also=lambda: _pass_on(stage)), _progress(label, stage):
            try:
                outcomes = cells.launch(todo[0].command, [cell.launch_overrides(config) for cell in todo])
            except RunFailed as error:
                outcomes = []
                in_flight = [cell for cell in todo if cell.died() and not cell.done()]
                breakdowns.update(cell.name for cell in in_flight)
                culprits = [cell for cell in in_flight if breakdowns[cell.name] >= 2]
                errors |= {cell.name: f"its worker died twice ({error})" for cell in culprits}
                if not in_flight and stop.reason() is None:
                    errors |= {cell.name: str(error) for cell in todo if not cell.done()}
        if stop.reason() is not None:
            raise Interrupted(_saved(plan, label))
        errors |= {
            cell.name: str(outcome.error) if isinstance(outcome.error, PausebenchError) else repr(outcome.error)
            for cell, outcome in zip(todo, outcomes, strict=False)
            if outcome.error is not None
        }


def _wait_while_running(waited_for: Sequence[Cell]) -> None:
    with stop.watched():
        while any(cell.running() for cell in waited_for):
            if stop.reason() is not None:
                raise Interrupted(f"{stop.reason()}: stopped waiting; nothing of this process was in flight.")
            time.sleep(1)


def _pass_on(stage: Sequence[Cell]) -> None:
    """Ask this process's own workers, known by the locks they hold, to save and stop."""
    for cell in stage:
        for folder in cell.folders:
            owner = read_json(folder.path / "lock.json")
            if owner and owner["parent_pid"] == os.getpid():
                with suppress(ProcessLookupError):
                    os.kill(owner["pid"], signal.SIGTERM)


def _saved(plan: Plan, label: str) -> str:
    """What is done and what a checkpoint holds, after a stop."""
    everything = plan.cells()
    lines = [f"{stop.reason()} in {label}: {sum(c.done() for c in everything)} of {len(everything)} cells are done."]
    for cell in everything:
        steps = [] if cell.done() or cell.command == "evaluate" else checkpoint.steps_of(cell.folders[0].path)
        if steps:
            lines.append(f"  saved: {cell.name} at step {steps[-1]}")
    return "\n".join([*lines, "Type the same command to go on from there."])


@contextmanager
def _progress(label: str, stage: Sequence[Cell]) -> Iterator[None]:
    """A live line about the stage on a terminal, a plain line a finished cell elsewhere, read from the run folders."""
    over = threading.Event()
    began, before = time.monotonic(), sum(cell.done() for cell in stage)
    live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None

    def status() -> tuple[int, str]:
        done = sum(cell.done() for cell in stage)
        line = f"{label}: {done}/{len(stage)} done"
        if done > before:
            left = (time.monotonic() - began) / (done - before) * (len(stage) - done)
            line += f", about {int(left) // 60}:{int(left) % 60:02d} left"
        for cell in stage:
            if cell.running():
                row = read_last_metrics(cell.folders[0].path / "metrics.jsonl")
                line += f"\n  {cell.name}" + (f"  step {row['step']}  loss {row['loss']:.3f}" if row else "")
        return done, line

    def watch() -> None:
        shown = before
        while not over.wait(1):
            done, line = status()
            if live is not None:
                live.update(Text(line))
            elif done > shown:
                shown = done
                console.print(line.splitlines()[0], soft_wrap=True)

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
        console.print(status()[1].splitlines()[0].partition(", about")[0], soft_wrap=True)
