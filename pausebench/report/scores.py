"""The scores of a study as one table, and views of it: a task of a panel (`Setting`), an arm of that (`Scores`).

The table has a row for every panel, cell and metric; a cell without a result has one row without a metric. Invariant:
scores follow from the cells alone, and a seed that lacks one of a setting's worlds has no score in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas

from pausebench.errors import BadInput
from pausebench.report.statistics import Summary, summarise
from pausebench.runs.folder import finite, read_if_whole
from pausebench.study.study import Arm, Cell, Panel, Study, read_study
from pausebench.tasks import published

NLL = "target_nll"  # nats a target token: a metric among the others, though no task has it as its headline
NOT_RUN = "not run"
# What a row tells of its run, beside coordinates and score; `problem` says why there is no result.
OF_RUN = (
    "problem", "headline", "second", "stderr", "n", "inference_flops", "chance", "data", "model", "finetune_run",
    "pretrain_run",
)  # fmt: skip
COLUMNS = ("panel", "name", "task", "world", "seed", "arm", *OF_RUN, "metric", "value")


@dataclass(frozen=True)
class Result:
    """What a `result.json` holds: facts of the run, a score for each metric, and the cell it belongs to.

    cell: None where the file is unreadable.
    """

    about: dict[str, Any]
    scores: dict[str, float]
    cell: Cell | None


@dataclass(frozen=True, eq=False)
class Scores:
    """One arm in one setting: the table's rows of its planned cells.

    by_metric: {metric: {seed: mean over the worlds}}, for the seeds that have the metric in all worlds.
    """

    arm: Arm
    rows: Any
    by_metric: dict[str, dict[int, float]]

    @cached_property
    def cells(self) -> Any:
        """One row for each planned cell, done or not."""
        return self.rows.drop_duplicates("name")

    @cached_property
    def headline(self) -> str | None:
        """The metric that decides; None without any result."""
        return _first(self.cells.headline)

    def values(self, metric: str | None = None) -> dict[int, float]:
        """{seed: score} in one metric, the headline unless another is named."""
        return self.by_metric.get(metric or self.headline or "", {})

    def summary(self, metric: str | None = None) -> Summary:
        """Mean and interval over seeds."""
        return summarise(list(self.values(metric).values()))

    @cached_property
    def second(self) -> Summary | None:
        """The metric that a task shows beside its headline (F1, Rouge-1), where it has one."""
        name = _first(self.cells.second)
        return self.summary(name) if name and self.values(name) else None

    @cached_property
    def nll(self) -> Summary:
        return self.summary(NLL)

    @cached_property
    def names(self) -> frozenset[str]:
        """The evaluate runs behind these scores, done or not."""
        return frozenset(self.cells.name)

    @cached_property
    def seeds(self) -> frozenset[int]:
        """The planned seeds."""
        return frozenset(self.cells.seed)

    @property
    def missing(self) -> int:
        """How many planned cells have no result."""
        return int(self.cells.problem.notna().sum())

    def mean_of(self, column: str) -> float | None:
        """A number of the single runs (`inference_flops`, `stderr`), averaged over the runs that tell it."""
        known = self.cells[column].dropna()
        return fmean(known) if len(known) else None


@dataclass(frozen=True, eq=False)
class Setting:
    """A task of a panel in one world, or averaged over several."""

    scored: ScoredStudy
    panel: Panel
    task: str
    worlds: tuple[str, ...]

    @property
    def label(self) -> str:
        """For people: `parity · count20`."""
        if len(self.worlds) > 1:
            return f"{self.task} · mean of {', '.join(self.worlds)}"
        return place_label(self.task, self.worlds[0])

    @cached_property
    def rows(self) -> Any:
        table = self.scored.table
        return table[(table.panel == self.panel.id) & (table.task == self.task) & table.world.isin(self.worlds)]

    @cached_property
    def arms(self) -> list[Scores]:
        """In the plan's order."""
        return _arms(self.rows, len(self.worlds))

    @cached_property
    def metric(self) -> str | None:
        """The headline metric; None where no result tells."""
        return _first(self.rows.headline)

    @cached_property
    def second(self) -> str | None:
        """The metric beside the headline, where the task has one."""
        return _first(self.rows.second)

    @cached_property
    def chance(self) -> float | None:
        """The score of blind guessing, averaged over the worlds; None unless every world tells one."""
        found = self.rows.dropna(subset="chance").groupby("world").chance.last()
        return fmean(found[list(self.worlds)]) if set(found.index) == set(self.worlds) else None

    def elsewhere(self, panels: Iterable[Panel]) -> Iterator[Setting]:
        """The same task and worlds in other panels of the study."""
        return (self.scored.setting(panel, self.task, self.worlds) for panel in panels)

    def published(self, arm: Arm, metric: str | None = None) -> published.Published | None:
        """The paper's figure for an arm, in the headline metric unless another is named."""
        return published_score(self.scored.study.published, self.task, metric or self.metric, arm)


@dataclass(frozen=True, eq=False)
class ScoredStudy:
    """A study and the table of its scores."""

    study: Study
    runs: Path
    table: Any
    _settings: dict[tuple[str, str, tuple[str, ...]], Setting] = field(default_factory=dict)

    @cached_property
    def cells(self) -> Any:
        """One row for each cell; panels share cells."""
        return self.table.drop_duplicates("name")

    @cached_property
    def models(self) -> list[str]:
        """The models of the finished runs."""
        return sorted(set(self.cells.model.dropna()) - {""})

    def missing(self) -> Any:
        """The rows of the cells that have no result yet."""
        return self.cells[self.cells.problem.notna()]

    def done(self, command: str) -> tuple[int, int]:
        """How many runs of a stage are done, and how many there are."""
        if command == "evaluate":
            # One evaluate command scores a list of M, each in a folder of its own; the panels know every folder.
            return len(self.cells) - len(self.missing()), len(self.cells)
        names = next(stage.overrides for stage in self.study.stages if stage.command == command)
        return sum((self.runs / command / name / "result.json").is_file() for name in names), len(names)

    def setting(self, panel: Panel, task: str, worlds: tuple[str, ...]) -> Setting:
        # Comparisons, tables and figures ask for the same few settings again and again; each averages once.
        key = panel.id, task, worlds
        return self._settings.setdefault(key, Setting(self, panel, task, worlds))

    def settings(self, panel: Panel) -> list[Setting]:
        """Tasks in the plan's order; a task with several worlds comes first as their mean, then world by world."""
        worlds: dict[str, dict[str, None]] = {}
        for cell in panel.cells:
            worlds.setdefault(cell.task, {})[cell.world] = None
        return [
            self.setting(panel, task, names)
            for task, found in worlds.items()
            for names in dict.fromkeys([tuple(found), *((world,) for world in found)])
        ]

    def settings_of(self, *kinds: str) -> list[Setting]:
        """The settings of all panels of these kinds."""
        return [setting for panel in self.study.of_kind(*kinds) for setting in self.settings(panel)]


@dataclass(frozen=True, eq=False)
class Other:
    """Runs outside any plan that differ in their seed alone."""

    place: str
    model: str
    scores: Scores


def load_studies(runs: Path, study: str | None = None) -> list[ScoredStudy]:
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
    if not names and next(runs.glob("evaluate/*/result.json"), None) is None:
        raise BadInput(
            f"runs={runs} holds no study and no evaluated run; allowed: a folder that pausebench filled; "
            "next: pausebench reproduce result=demo"
        )
    found = []
    for planned in (read_study(plans[name]) for name in names if study in (None, name)):
        pairs = [(panel.id, cell) for panel in planned.panels for cell in panel.cells]
        found.append(ScoredStudy(planned, runs, _table(runs, pairs)))
    return found


def load_unplanned(runs: Path, studies: Sequence[ScoredStudy]) -> list[Other]:
    """Evaluated runs that no study asked for, grouped by everything but the seed."""
    planned: set[str] = set().union(*(scored.study.names() for scored in studies))
    names = [
        path.parent.name for path in sorted(runs.glob("evaluate/*/result.json")) if path.parent.name not in planned
    ]
    cells = [result.cell for name in names if (result := read_result(runs, name)) and result.cell]
    table = _table(runs, [("", cell) for cell in cells]).fillna({"model": ""})
    groups = table.groupby(["task", "world", "model"], sort=False)
    others = [
        Other(place_label(task, world), model, scores)
        for (task, world, model), rows in groups
        for scores in _arms(rows, worlds=1)
    ]
    return sorted(others, key=lambda other: (other.place, other.model, other.scores.arm.label))


def read_result(runs: Path, name: str) -> Result | None:
    """The result of an evaluate run, None where it has none. A file is read again only if it was written again."""
    path = runs / "evaluate" / name / "result.json"
    try:
        state = path.stat()
    except OSError:
        return None
    return _read_version(path, name, (state.st_ino, state.st_mtime_ns, state.st_size))


@lru_cache(maxsize=1 << 16)
def _read_version(path: Path, name: str, version: tuple[int, int, int]) -> Result:
    raw = read_if_whole(path)
    if not isinstance(raw, dict):
        return Result({"problem": "result.json is unreadable"}, {}, None)
    cell, value = Cell.from_json({**raw, "name": name}), finite(raw.get("value"))
    if value is None:
        return Result({"problem": "result.json has no finite value"}, {}, cell)
    headline = str(raw.get("metric") or "score")
    metrics = raw["metrics"] if isinstance(raw.get("metrics"), dict) else {}
    scores = {headline: value}
    for metric, number in {**metrics, NLL: raw.get(NLL)}.items():
        if metric != headline and (score := finite(number)) is not None:
            scores[str(metric)] = score
    about = {
        "headline": headline,
        "second": next((metric for metric in scores if metric not in (headline, NLL)), None),
        "n": raw["n"] if isinstance(raw.get("n"), int) else None,
        **{name: finite(raw.get(name)) for name in ("stderr", "inference_flops", "chance")},
        **{name: str(raw.get(name) or "") for name in ("data", "model")},
        **{name: raw.get(name) for name in ("finetune_run", "pretrain_run")},
    }
    return Result(about, scores, cell)


def published_score(table: str | None, task: str, metric: str | None, arm: Arm) -> published.Published | None:
    """The printed figure of an arm: of the paper's own variants, evaluated with the pauses they were finetuned with."""
    if metric is None or not arm.is_own or (table == "table1" and arm.placement == "prepend"):
        return None
    column: int | str | None = arm.placement if table == "table2" else arm.k
    return published.lookup(table, task, metric, arm.variant, column if arm.k else None)


def place_label(task: str, world: str) -> str:
    """`parity · count20`; the task alone where rows have no world."""
    return f"{task} · {world}" if world else task


def _table(runs: Path, cells: Sequence[tuple[str, Cell]]) -> Any:
    """Rows for (panel, cell) pairs, in their order; of a cell the headline comes first and the likelihood last."""
    rows = []
    for panel, cell in cells:
        result = read_result(runs, cell.name)
        about, scores = (result.about, result.scores) if result else ({"problem": NOT_RUN}, {})
        told = [about.get(name) for name in OF_RUN]
        rows += [
            (panel, cell.name, cell.task, cell.world, cell.seed, cell.arm, *told, metric, value)
            for metric, value in scores.items() or [(None, None)]
        ]
    # Columns of objects keep None apart from numbers and our integers whole.
    return pandas.DataFrame(rows, columns=COLUMNS, dtype=object)


def _arms(rows: Any, worlds: int) -> list[Scores]:
    known = rows.dropna(subset="value").drop_duplicates(["arm", "metric", "seed", "world"], keep="last")
    found: dict[Arm, dict[str, dict[int, float]]] = {}
    means = known.sort_values("seed").groupby(["arm", "metric", "seed"], sort=False).value.agg(["size", fmean])
    for (arm, metric, seed), size, mean in means.itertuples():
        # A seed that lacks a world would shift the mean by the worlds' difficulty, so it waits until it is complete.
        if size == worlds:
            found.setdefault(arm, {}).setdefault(metric, {})[int(seed)] = float(mean)
    return [Scores(arm, own, found.get(arm, {})) for arm, own in rows.groupby("arm", sort=False)]


def _first(column: Any) -> str | None:
    known = column.dropna()
    return None if known.empty else str(known.iloc[0])
