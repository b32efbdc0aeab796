"""``pausebench reproduce``: plan, run, resume and report a study.

The plan (``study.plan``) has at most three stages of cells. A cell is the overrides of one command that a user could
type. Unfinished cells of a stage go to the Hydra launcher named on the command line. The run folders alone tell what is
done, so the same command resumes whatever an earlier one left.
"""

from __future__ import annotations

import os
import signal
import socket
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from pausebench import stop
from pausebench.config.commands import ReproduceConfig
from pausebench.config.groups import Source
from pausebench.config.options import plain
from pausebench.errors import Interrupted, PausebenchError, RunFailed
from pausebench.report.page import read_runs, write_page
from pausebench.report.terminal import print_studies
from pausebench.runs import slurm
from pausebench.runs.folder import RunFolder, read_json, run_name, write_json
from pausebench.study.plan import Cells, Plan, PlannedCommand, as_commands, build_plan, chosen_names, study_precision
from pausebench.study.trainings import typed_lists
from pausebench.study.view import StudyView, watching

console = Console(stderr=True, highlight=False)


def run(config: ReproduceConfig, cells: Cells) -> dict[str, Any]:
    """Run what is missing, then write and print the report.

    Raises ``RunFailed`` if cells failed, ``Interrupted`` after a stop (with what was saved), and ``BadInput`` if a cell
    cannot be composed, before any of them starts.
    """
    folder = RunFolder(config.runs, "reproduce", study_name(config))
    # A study keeps the precision it was planned with: auto on another machine would name other runs and start over.
    plan = build_plan(config, cells, study_precision(config, cells, read_json(folder.path / "plan.json")))
    if config.dry_run:
        print(dry_run(plan, config))
        return {"names": []}
    # Only now, so that the group is no part of the study's name.
    config = replace(config, tracking=replace(config.tracking, group=config.tracking.group or folder.name))
    folder.create()
    planned = plan.study(folder.name).to_json()
    write_json(folder.path / "plan.json", planned)
    view = StudyView({command: [f for cell in stage for f in cell.folders] for command, stage in plan.stages.items()})
    errors: dict[str, Exception] = {}
    for number, (command, stage) in enumerate(plan.stages.items(), start=1):
        ready = [cell for cell in stage if _parents_done(cell)]  # the others failed, or are left to other processes
        label = f"stage {number}/{len(plan.stages)} {command}"
        errors |= _run_stage(label, ready, cells, config, plan, view)
    done = [cell for cell in plan.cells() if cell.done()]
    logs = {cell.name: _log(cell, errors.get(cell.name), folder, config.runs) for cell in plan.cells()}
    if done:
        root = Path(config.runs)
        studies, others = read_runs(root, None)
        write_page(root, studies, others)
        own = [scored for scored in studies if scored.study.result == folder.name]
        print_studies(root, own, [], Console(highlight=False))
    if errors:
        listed = "\n".join(f"  {name}: {_said(error)}\n    log: {logs[name]}" for name, error in errors.items())
        raise RunFailed(
            f"{len(errors)} cells failed, {len(done)} of {len(plan.cells())} are done:\n{listed}\n"
            "The same command retries only what is missing."
        )
    if len(done) < len(plan.cells()):
        raise RunFailed(f"{len(done)} of {len(plan.cells())} cells are done; the rest is left to other processes.")
    return {"names": [cell.name for cell in plan.cells()]}


def study_name(config: ReproduceConfig) -> str:
    """The study's name: the result's, the chosen model and data, and a hash of whatever else narrows it."""
    # The name is the folder's, so no study overwrites the plan of another.
    name = "-".join([str(config.result["name"]), *chosen_names(config)])
    own_tokenizer = config.tokenizer is not None and (config.data is None or config.data.source is not Source.embedded)
    narrowed = {
        "seeds": config.seeds,
        "overrides": config.overrides,
        "limit": config.limit,
        "tokenizer": plain(config.tokenizer) if own_tokenizer else None,
    }
    narrowed |= {"lists": lists} if (lists := typed_lists(config)) else {}
    for stage in ("pretrain_overrides", "finetune_overrides"):
        narrowed |= {stage: given} if (given := getattr(config, stage)) else {}
    return run_name(name, narrowed) if any(narrowed.values()) else name


def dry_run(plan: Plan, config: ReproduceConfig) -> str:
    """The cells as commands to paste, with the number done, running and to do."""
    lines = []
    for command, stage in plan.stages.items():
        taken = {cell.name for cell in _taken(stage, config.runs)}
        states = Counter("done" if c.done() else "running" if c.name in taken else "to do" for c in stage)
        counts = ", ".join(f"{states[state]} {state}" for state in ("done", "running", "to do"))
        lines.append(f"# {command}: {len(stage)} cells ({counts})")
        lines += as_commands(command, [cell.overrides for cell in stage], config.runs)
    return "\n".join(lines)


def _parents_done(cell: PlannedCommand) -> bool:
    return all(parent.result is not None for parent in cell.parents)


def _run_stage(
    label: str,
    stage: Sequence[PlannedCommand],
    cells: Cells,
    config: ReproduceConfig,
    plan: Plan,
    view: StudyView,
) -> dict[str, Exception]:
    """Run every cell of a stage to its end; returns the errors of those that failed, by name."""
    errors: dict[str, Exception] = {}
    unsettled: dict[str, Exception] = {}  # of cells that another process or a requeued job may still finish
    breakdowns: Counter[str] = Counter()
    while True:
        missing = [cell for cell in stage if not cell.done() and cell.name not in errors]
        elsewhere = _taken(missing, config.runs)
        theirs = {cell.name for cell in elsewhere}
        todo = [cell for cell in missing if cell.name not in theirs]
        if settled := {cell.name: unsettled.pop(cell.name) for cell in todo if cell.name in unsettled}:
            errors |= settled
            continue
        view.failed |= errors.keys()
        if not todo:
            if not elsewhere or not config.wait:
                return errors
            console.print(f"{label}: waiting for {_described(elsewhere[0], config.runs)}", soft_wrap=True)
            with watching(view, elsewhere[0].command, label, console):
                _wait_while_running(elsewhere, config.runs)
            continue
        with stop.watched(also=lambda: _pass_on(stage, config.runs)), watching(view, todo[0].command, label, console):
            try:
                overrides = [cell.launch_overrides(config) for cell in todo]
                outcomes = cells.launch(todo[0].command, overrides, [cell.name for cell in todo])
            except KeyboardInterrupt:  # a second Ctrl-C, or one before a worker noted them
                raise Interrupted(_saved(plan, label)) from None
            except RunFailed as error:
                # A killed worker takes the launcher's pool with it. The cells in flight resume from their checkpoints
                # in the next round. One that was in flight twice is the likely culprit (out of memory, say).
                outcomes = []
                in_flight = [cell for cell in todo if cell.died() and not cell.done()]
                breakdowns.update(cell.name for cell in in_flight)
                culprits = [cell for cell in in_flight if breakdowns[cell.name] >= 2]
                errors |= {cell.name: RunFailed(f"its worker died twice ({error})") for cell in culprits}
                if not in_flight and stop.reason() is None:
                    taken = {cell.name for cell in _taken(todo, config.runs)}
                    errors |= {cell.name: error for cell in todo if not cell.done() and cell.name not in taken}
        if stop.reason() is not None:
            raise Interrupted(_saved(plan, label))
        ended = {cell.name: end.error for cell, end in zip(todo, outcomes, strict=False) if end.error is not None}
        again = {cell.name for cell in _taken([cell for cell in todo if cell.name in ended], config.runs)}
        unsettled |= {name: error for name, error in ended.items() if name in again}
        errors |= {name: error for name, error in ended.items() if name not in again}


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, PausebenchError) else repr(error)


def _log(cell: PlannedCommand, error: Exception | None, study: RunFolder, runs: str) -> Path | None:
    """Write a failed cell's command, error and traceback; returns the file. Removes the log of a cell that is done."""
    # The run folder is the place to look. The study's own is for cells that failed since theirs cannot be written.
    places = [cell.folders[0].path / "error.log", study.path / "errors" / f"{cell.name}.log"]
    if error is None:
        if cell.done():
            for place in places:
                with suppress(OSError):
                    place.unlink(missing_ok=True)
        return None
    (command,) = as_commands(cell.command, [cell.overrides], runs)
    for place in places:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(f"{command}\n{''.join(traceback.format_exception_only(error))}")
        except OSError:
            continue
        return place
    return None


def _taken(cells: Sequence[PlannedCommand], runs: str) -> list[PlannedCommand]:
    """The cells that a live process runs, or a pending or running job of Slurm."""
    queued = slurm.queued(runs) if cells else {}
    return [cell for cell in cells if cell.running() or cell.name in queued]


def _described(cell: PlannedCommand, runs: str) -> str:
    job = slurm.queued(runs).get(cell.name)
    return cell.describe_owner() if job is None else f"{cell.name}, job {job.label} of Slurm ({job.state.lower()})"


def _wait_while_running(waited_for: Sequence[PlannedCommand], runs: str) -> None:
    with stop.watched():
        while _taken([cell for cell in waited_for if not cell.done()], runs):
            if stop.reason() is not None:
                raise Interrupted(f"{stop.reason()}: stopped waiting; nothing of this process was in flight.")
            time.sleep(1)


def _pass_on(stage: Sequence[PlannedCommand], runs: str) -> None:
    """Ask this process's workers to save and stop. Raises ``KeyboardInterrupt`` if the cells are jobs of Slurm."""
    # Jobs continue without this process, and the launcher would wait for them; raising leaves it.
    queued = slurm.queued(runs)
    if any(cell.name in queued for cell in stage):
        raise KeyboardInterrupt
    # Launchers do not tell their workers' pids. The locks do, and name the parent that started each worker.
    for cell in stage:
        for folder in cell.folders:
            owner = read_json(folder.path / "lock.json")
            if owner and (owner["host"], owner["parent_pid"]) == (socket.gethostname(), os.getpid()):
                with suppress(ProcessLookupError):
                    os.kill(owner["pid"], signal.SIGTERM)


def _saved(plan: Plan, label: str) -> str:
    """What is done and what the checkpoints hold, after a stop."""
    # Inside: the checkpoints import torch, and a study that is done needs none.
    from pausebench.training import checkpoint

    everything = plan.cells()
    done = sum(cell.done() for cell in everything)
    lines = [f"{stop.reason() or 'Ctrl-C'} in {label}: {done} of {len(everything)} cells are done."]
    for cell in everything:
        steps = [] if cell.done() or cell.command == "evaluate" else checkpoint.steps_of(cell.folders[0].path)
        if steps:
            lines.append(f"  saved: {cell.name} at step {steps[-1]}")
    queued = slurm.queued(plan.config.runs)
    jobs = [queued[cell.name].label for cell in everything if cell.name in queued]
    if jobs:
        arrays = " ".join(sorted({job.partition("_")[0] for job in jobs}))
        lines.append(f"{len(jobs)} of them go on as jobs of Slurm, without this process; scancel {arrays} ends them.")
    return "\n".join([*lines, "Type the same command to resume."])
