"""Read run folders into studies: what a plan asked for, what is there, what is missing.

Invariant: a cell that a plan names is never dropped. Without a readable `result.json` it stays in its panel as missing.
Only `plan.json` of studies and `result.json` of evaluated cells are read. A `result.json` is read once: every panel,
the page and the terminal share what was found, until the file on disk is another one.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

from pausebench.errors import BadInput
from pausebench.results.run_folder import read_json
from pausebench.results.study import PRETRAINING_NAMES, Arm, Cell, Panel, Primary, Result, Stage, Study

PAUSE = "<pause>"
COORDINATES = ("task", "world", "pretraining", "variant", "k", "mt", "filler", "placement", "prefix", "control", "seed")


@dataclass(frozen=True)
class Found:
    """What a `result.json` holds: a result or the problem with it, and its own coordinates, None if unreadable."""

    result: Result | None
    problem: str | None
    coordinates: dict[str, Any] | None


Reader = Callable[[str], Found | None]


def load_studies(runs: Path, study: str | None = None) -> list[Study]:
    """The studies planned under `runs`, the demo first; only `study` when it is given.

    The list is empty when runs were evaluated outside any plan (`load_unplanned` has them).
    Raises BadInput when there is nothing to report, when `study` was never planned, or when a plan is unreadable.
    """
    plans = {path.parent.name: path for path in runs.glob("reproduce/*/plan.json")}
    names = sorted(plans, key=lambda name: (name != "demo", name))
    if study is not None and study not in plans:
        raise BadInput(
            f"study={study} has no plan in {runs / 'reproduce'}; allowed here: {', '.join(names) or 'none yet'}; "
            f"next: pausebench reproduce result={study}"
        )
    if not names and next(_evaluated(runs), None) is None:
        raise BadInput(
            f"runs={runs} holds no study and no evaluated run; allowed: a folder that pausebench filled; "
            "next: pausebench reproduce result=demo"
        )
    read = cache(partial(_read_result, runs / "evaluate"))
    return [_study(runs, plans[name], read) for name in names if study in (None, name)]


def load_unplanned(runs: Path, studies: Sequence[Study]) -> list[Cell]:
    """Evaluated runs that no study asked for, by name."""
    planned = frozenset().union(*(study.planned_names for study in studies))
    cells = []
    for path in sorted(_evaluated(runs)):
        name = path.parent.name
        found = None if name in planned else _read_result(path.parents[1], name)
        if found is not None and found.coordinates is not None:
            cells.append(_cell({**found.coordinates, "name": name}, found.result, found.problem))
    return cells


def _study(runs: Path, path: Path, read: Reader) -> Study:
    plan = read_if_whole(path)
    try:
        if not isinstance(plan, dict):
            raise TypeError("not a JSON object")
        panels = tuple(
            Panel(
                panel["id"],
                panel["kind"],
                panel["title"],
                tuple(_planned_cell(read, raw) for raw in panel["cells"]),
            )
            for panel in plan["panels"]
        )
        primary = plan.get("primary")
        evaluated = {
            cell["name"] for stage in plan["stages"] if stage["command"] == "evaluate" for cell in stage["cells"]
        }
        return Study(
            runs=runs,
            result=plan["result"],
            title=plan["title"],
            seeds=tuple(plan["seeds"]),
            unit=plan["unit"],
            notes=tuple(plan["notes"]),
            command=plan["command"],
            primary=Primary(**primary) if primary else None,
            panels=panels,
            stages=tuple(_stage(runs, stage, panels) for stage in plan["stages"]),
            published=plan.get("published"),
            planned_names=frozenset(evaluated | {cell.name for panel in panels for cell in panel.cells}),
        )
    except (KeyError, TypeError, ValueError) as broken:
        raise BadInput(
            f"{path} is not a readable plan ({type(broken).__name__}: {broken}); allowed: what reproduce writes; "
            f"next: pausebench reproduce result={path.parent.name} (it writes the plan again and keeps finished runs)"
        ) from broken


def _stage(runs: Path, raw: dict[str, Any], panels: Sequence[Panel]) -> Stage:
    command = raw["command"]
    if command == "evaluate":
        # One evaluate command scores a list of M, each in a folder of its own; the panels know every folder.
        done = {cell.name: cell.result is not None for panel in panels for cell in panel.cells}
    else:
        done = {cell["name"]: (runs / command / cell["name"] / "result.json").is_file() for cell in raw["cells"]}
    lines = raw.get("commands") or [f"pausebench {command} {shlex.join(cell['overrides'])}" for cell in raw["cells"]]
    return Stage(command, len(done), sum(done.values()), tuple(lines))


def _planned_cell(read: Reader, raw: dict[str, Any]) -> Cell:
    found = read(raw["name"])
    return _cell(raw, None, "not run") if found is None else _cell(raw, found.result, found.problem)


def _read_result(folder: Path, name: str) -> Found | None:
    """None where the run has no result."""
    path = folder / name / "result.json"
    try:
        state = path.stat()
    except OSError:
        return None
    return _read_version(str(path), (state.st_ino, state.st_mtime_ns, state.st_size))


@lru_cache(maxsize=1 << 16)
def _read_version(path: str, version: tuple[int, int, int]) -> Found:
    raw = read_if_whole(Path(path))
    if not isinstance(raw, dict):
        return Found(None, "result.json is unreadable", None)
    return Found(*_result(raw), {name: raw[name] for name in COORDINATES if name in raw})


def _cell(raw: dict[str, Any], result: Result | None, problem: str | None) -> Cell:
    pretraining, k = str(raw.get("pretraining") or "none"), int(raw.get("k") or 0)
    mt = int(raw["mt"]) if raw.get("mt") is not None else k
    variant = raw.get("variant") or f"{PRETRAINING_NAMES.get(pretraining, pretraining)}_{'PauseFT' if k else 'StdFT'}"
    arm = Arm(
        pretraining=pretraining,
        variant=str(variant),
        k=k,
        mt=mt,
        # With nothing inserted there is no filler and no place for it: such cells are one arm.
        filler=str(raw.get("filler") or PAUSE) if mt else "",
        placement=str(raw.get("placement") or "append") if mt else "",
        prefix=str(raw.get("prefix") or ""),
        control=str(raw.get("control") or ""),
        control_k=int(raw.get("control_k") or 0),
    )
    task, world = str(raw.get("task") or "unknown task"), str(raw.get("world") or "")
    return Cell(str(raw["name"]), task, world, int(raw.get("seed") or 0), arm, result, problem)


def _result(raw: dict[str, Any]) -> tuple[Result | None, str | None]:
    value, n = finite(raw.get("value")), raw.get("n")
    if value is None:
        return None, "result.json has no finite value"
    metrics = raw.get("metrics")
    numbers = {str(name): finite(number) for name, number in metrics.items()} if isinstance(metrics, dict) else {}
    return (
        Result(
            value=value,
            stderr=finite(raw.get("stderr")),
            n=n if isinstance(n, int) else None,
            metric=str(raw.get("metric") or "score"),
            metrics={name: number for name, number in numbers.items() if number is not None},
            target_nll=finite(raw.get("target_nll")),
            inference_flops=finite(raw.get("inference_flops")),
            chance=finite(raw.get("chance")),
            data=str(raw.get("data") or ""),
            model=str(raw.get("model") or ""),
            finetune_run=raw.get("finetune_run"),
            pretrain_run=raw.get("pretrain_run"),
            interval=_ends(raw.get("interval")),
        ),
        None,
    )


def _ends(raw: Any) -> tuple[float, float] | None:
    ends = [end for value in raw if (end := finite(value)) is not None] if isinstance(raw, list) else []
    return (ends[0], ends[1]) if len(ends) == 2 else None


def _evaluated(runs: Path) -> Iterator[Path]:
    return runs.glob("evaluate/*/result.json")


def read_if_whole(path: Path) -> Any:
    """The content of a JSON file; None when it is absent or unreadable."""
    try:
        return read_json(path)
    except BadInput:
        return None


def finite(value: Any) -> float | None:
    """A finite number as float; None for anything else a run may have written."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
