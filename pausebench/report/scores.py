"""A study in memory: its panels, their cells, and the scores of an arm in a setting.

Invariant: scores follow from the cells alone, and a seed that lacks one of a setting's worlds has no score in it.
Nothing here reads a file.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

from pausebench.errors import BadInput
from pausebench.runs.folder import read_json

PRETRAINING_NAMES = {"std": "StdPT", "pause": "PausePT", "none": "NoPT"}


@dataclass(frozen=True)
class Result:
    """One evaluated run: the task's metric, its test-set standard error, `target_nll` in nats a token.

    interval: 95 % bootstrap interval over the test rows; None in results that lack it.
    inference_flops: floating-point operations of an answer, mean over the test rows; None in results that lack it.
    """

    value: float
    stderr: float | None
    n: int | None
    metric: str
    metrics: dict[str, float]
    target_nll: float | None
    inference_flops: float | None
    chance: float | None
    data: str
    model: str
    finetune_run: str | None
    pretrain_run: str | None
    interval: tuple[float, float] | None = None

    @property
    def second(self) -> str | None:
        """The metric that a task shows beside its headline (F1, Rouge-1), where it has one."""
        return next((name for name in self.metrics if name != self.metric), None)


@dataclass(frozen=True)
class Arm:
    """Everything that tells two cells of a panel apart except the world and the seed.

    control: the name of the control that a cell belongs to (`report.tables`), "" for the paper's own variants.
    control_k: the K whose positions or FLOPs a control without pauses matches.
    """

    pretraining: str
    variant: str
    k: int
    mt: int
    filler: str
    placement: str
    prefix: str
    control: str = ""
    control_k: int = 0


@dataclass(frozen=True)
class Cell:
    """One evaluation, asked for by a plan or found on disk. `problem` says why there is no result."""

    name: str
    task: str
    world: str
    seed: int
    arm: Arm
    result: Result | None
    problem: str | None


@dataclass(frozen=True)
class Setting:
    """A task in one world, or averaged over several."""

    task: str
    worlds: tuple[str, ...]

    @property
    def label(self) -> str:
        """For people: `parity · count20`."""
        if len(self.worlds) > 1:
            return f"{self.task} · mean of {', '.join(self.worlds)}"
        return f"{self.task} · {self.worlds[0]}" if self.worlds[0] else self.task


@dataclass(frozen=True)
class Scores:
    """One arm in one setting: its planned cells, and {seed: mean over the worlds} for seeds that have all of them.

    values: the headline metric; nll: nats a target token; second: the task's second metric.
    """

    arm: Arm
    cells: tuple[Cell, ...]
    values: dict[int, float]
    nll: dict[int, float]
    second: dict[int, float]

    @cached_property
    def names(self) -> frozenset[str]:
        """The evaluate runs behind these scores, done or not."""
        return frozenset(cell.name for cell in self.cells)

    @property
    def missing(self) -> int:
        """How many planned cells have no result."""
        return sum(cell.result is None for cell in self.cells)

    @property
    def inference_flops(self) -> float | None:
        """Mean over the runs that tell it."""
        known = [flops for cell in self.cells if cell.result and (flops := cell.result.inference_flops) is not None]
        return math.fsum(known) / len(known) if known else None

    @property
    def stderr(self) -> float | None:
        """Mean test-set standard error of the single runs: the noise of a fixed model, not of training."""
        known = [cell.result.stderr for cell in self.cells if cell.result and cell.result.stderr is not None]
        return math.fsum(known) / len(known) if known else None

    @property
    def test_set_half_width(self) -> float | None:
        """Mean half width of the single runs' 95 % bootstrap intervals over test rows; None where no run tells it.

        How far the score of a finished model would move with another test set of this size. It knows nothing of
        training luck, so it is never a verdict: two arms whose test-set intervals lie apart may differ by seed alone.
        """
        ends = [cell.result.interval for cell in self.cells if cell.result and cell.result.interval]
        return math.fsum((high - low) / 2.0 for low, high in ends) / len(ends) if ends else None


@dataclass(frozen=True)
class Panel:
    """A part of a study: `kind` is variants, k_curve, m_curve, filler, placement, controls or bottleneck."""

    id: str
    kind: str
    title: str
    cells: tuple[Cell, ...]

    def settings(self) -> list[Setting]:
        """Tasks in the plan's order; a task with several worlds comes first as their mean, then world by world."""
        return list(self._settings)

    @cached_property
    def _settings(self) -> list[Setting]:
        worlds: dict[str, list[str]] = {}
        for cell in self.cells:
            seen = worlds.setdefault(cell.task, [])
            if cell.world not in seen:
                seen.append(cell.world)
        settings = []
        for task, names in worlds.items():
            if len(names) > 1:
                settings.append(Setting(task, tuple(names)))
            settings.extend(Setting(task, (name,)) for name in names)
        return settings

    def pooled(self, task: str) -> Setting | None:
        """The setting that covers every world of `task`: what a primary comparison is about."""
        return next((setting for setting in self._settings if setting.task == task), None)

    def scores(self, setting: Setting) -> list[Scores]:
        """The arms of a setting, in the plan's order."""
        if setting not in self._known_scores:
            arms: dict[Arm, list[Cell]] = {}
            for cell in self._cells_of.get(setting.task, ()):
                if cell.world in setting.worlds:
                    arms.setdefault(cell.arm, []).append(cell)
            self._known_scores[setting] = [
                Scores(
                    arm,
                    tuple(cells),
                    by_seed(cells, setting.worlds, lambda result: result.value),
                    by_seed(cells, setting.worlds, lambda result: result.target_nll),
                    by_seed(cells, setting.worlds, lambda result: result.metrics.get(result.second or "")),
                )
                for arm, cells in arms.items()
            ]
        return self._known_scores[setting]

    @cached_property
    def _cells_of(self) -> dict[str, list[Cell]]:
        cells: dict[str, list[Cell]] = {}
        for cell in self.cells:
            cells.setdefault(cell.task, []).append(cell)
        return cells

    @cached_property
    def _known_scores(self) -> dict[Setting, list[Scores]]:
        """Every comparison and figure asks for the same few settings, again and again."""
        return {}

    def metrics(self, setting: Setting) -> tuple[str | None, str | None]:
        """Names of the headline and the second metric of a setting; None where no result tells."""
        for cell in self.cells:
            if cell.task == setting.task and cell.world in setting.worlds and cell.result:
                return cell.result.metric, cell.result.second
        return None, None

    def chance(self, setting: Setting) -> float | None:
        """The score of blind guessing, averaged over the worlds; None unless every world tells one."""
        found = {
            cell.world: cell.result.chance
            for cell in self.cells
            if cell.task == setting.task and cell.result and cell.result.chance is not None
        }
        if any(world not in found for world in setting.worlds):
            return None
        return math.fsum(found[world] for world in setting.worlds) / len(setting.worlds)


@dataclass(frozen=True)
class Primary:
    """The comparisons fixed before the runs started: treatment against control, for every K of a panel.

    task: the one task they are about; None is every task of the panel.
    """

    panel: str
    treatment: str
    control: str
    task: str | None = None


@dataclass(frozen=True)
class Stage:
    """One stage of a plan: its runs, planned and finished, and the commands a user could type for them."""

    command: str
    planned: int
    done: int
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Study:
    """One `runs/reproduce/<result>` folder with the state of everything its plan asks for.

    published: the paper's table whose figures stand beside ours, None where it has none.
    """

    runs: Path
    result: str
    title: str
    seeds: tuple[int, ...]
    unit: str
    notes: tuple[str, ...]
    command: str
    primary: Primary | None
    panels: tuple[Panel, ...]
    stages: tuple[Stage, ...]
    published: str | None
    planned_names: frozenset[str]

    def of_kind(self, *kinds: str) -> list[Panel]:
        """The panels of these kinds, in the plan's order."""
        return [panel for panel in self.panels if panel.kind in kinds]

    def cells(self) -> list[Cell]:
        """Every evaluated cell once; panels share cells."""
        return list({cell.name: cell for panel in self.panels for cell in panel.cells}.values())

    def models(self) -> list[str]:
        """The models of the finished runs."""
        return sorted({cell.result.model for cell in self.cells() if cell.result and cell.result.model})

    def generated(self) -> bool:
        """Whether any finished run was scored on rows of an embedded world."""
        return any(cell.result.data == "embedded" for cell in self.cells() if cell.result)

    def missing(self) -> list[Cell]:
        """The cells that have no result yet."""
        return [cell for cell in self.cells() if cell.result is None]


def by_seed(cells: Sequence[Cell], worlds: Sequence[str], pick: Callable[[Result], float | None]) -> dict[int, float]:
    """{seed: mean over `worlds`} of what `pick` reads from each result, for the seeds that have it in all of them."""
    found: dict[int, dict[str, float]] = {}
    for cell in cells:
        value = pick(cell.result) if cell.result else None
        if value is not None:
            found.setdefault(cell.seed, {})[cell.world] = value
    # A seed that lacks a world would shift the mean by the worlds' difficulty, so it waits until it is complete.
    return {
        seed: math.fsum(values.values()) / len(values)
        for seed, values in sorted(found.items())
        if len(values) == len(worlds)
    }


# ------------------------------
# Read run folders into studies: what a plan asked for, what is there, what is missing.

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
