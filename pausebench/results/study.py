"""A study in memory: its panels, their cells, and the scores of an arm in a setting.

Invariant: scores follow from the cells alone, and a seed that lacks one of a setting's worlds has no score in it.
Nothing here reads a file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

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

    control: the name of the control that a cell belongs to (`results.controls`), "" for the paper's own variants.
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
