"""Read run folders into studies: what a plan asked for, what is there, what is missing.

Invariant: a cell that a plan names is never dropped. Without a readable `result.json` it stays in its panel as missing.
Only `plan.json` of studies and `result.json` of evaluated cells are read.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pausebench.errors import BadInput
from pausebench.results.run_folder import read_json
from pausebench.results.study import PRETRAINING_NAMES, Arm, Cell, Panel, Primary, Result, Stage, Study

PAUSE = "<pause>"


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
    return [_study(runs, plans[name]) for name in names if study in (None, name)]


def load_unplanned(runs: Path, studies: Sequence[Study]) -> list[Cell]:
    """Evaluated runs that no study asked for, by name."""
    planned = frozenset().union(*(study.planned_names for study in studies))
    cells = []
    for path in sorted(_evaluated(runs)):
        name = path.parent.name
        raw = None if name in planned else read_if_whole(path)
        if isinstance(raw, dict):
            result, problem = _result(raw)
            cells.append(_cell({**raw, "name": name}, result, problem))
    return cells


def _study(runs: Path, path: Path) -> Study:
    plan = read_if_whole(path)
    try:
        if not isinstance(plan, dict):
            raise TypeError("not a JSON object")
        panels = tuple(
            Panel(
                panel["id"],
                panel["kind"],
                panel["title"],
                tuple(_planned_cell(runs, raw) for raw in panel["cells"]),
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


def _planned_cell(runs: Path, raw: dict[str, Any]) -> Cell:
    path = runs / "evaluate" / raw["name"] / "result.json"
    if not path.is_file():
        return _cell(raw, None, "not run")
    found = read_if_whole(path)
    if not isinstance(found, dict):
        return _cell(raw, None, "result.json is unreadable")
    return _cell(raw, *_result(found))


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
            model=str(raw.get("model") or ""),
            finetune_run=raw.get("finetune_run"),
            pretrain_run=raw.get("pretrain_run"),
        ),
        None,
    )


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
