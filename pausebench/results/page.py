"""The report: one HTML file that opens from disk, with everything inside it, and a folder of exports for each study.

Invariant: the same runs give the same bytes (no clock, no absolute path), every run folder is read once, and every text
that comes from a run is escaped by the template or embedded as JSON that only scripts of ours read.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from pausebench.results import analysis, export, figures, layouts, predictions, statistics
from pausebench.results.analysis import Contrast
from pausebench.results.collect import load_studies, load_unplanned
from pausebench.results.controls import controls_sheet
from pausebench.results.drawing import Plot
from pausebench.results.layouts import Group, Line, Sheet
from pausebench.results.origin import Provenance, missing_cells, provenance
from pausebench.results.predictions import Pair
from pausebench.results.run_folder import disk_error, write_atomically
from pausebench.results.statistics import report_extra
from pausebench.results.study import Cell, Panel, Scores, Setting, Study

EXAMPLE_ROWS = 5
# What keeps the page of a large study small and quick; each cut is said where it is made.
MOST_FIGURES = 150
MOST_FIGURES_A_STUDY = 60
FEWEST_FIGURES_A_STUDY = 12
MOST_ROWS = 200
MOST_TRAINING_SETTINGS = 12
MOST_TRAINING_RUNS = 1_000

Other = tuple[Setting, Scores, str]


@dataclass(frozen=True)
class Part:
    """A panel of arms as the page shows it: its table, its plots, and the long table behind a short one."""

    sheet: Sheet
    plots: tuple[Plot, ...]
    detail: Sheet | None


@dataclass(frozen=True)
class StudyView:
    """Everything the template needs of one study, computed. `undrawn` counts the figures there was no room for."""

    study: Study
    folder: str
    instrument: analysis.InstrumentCheck
    relay: Plot | None
    family: analysis.Family
    comparisons: Sheet | None
    parts: tuple[Part, ...]
    curves: tuple[Plot, ...]
    costs: tuple[Plot, ...]
    training: tuple[Plot, ...]
    untrained: str | None
    undrawn: int
    pairs: tuple[Pair, ...]
    embedded: str
    secondary: tuple[Contrast, ...]
    missing: tuple[tuple[Cell, str], ...]
    provenance: Provenance

    def plots(self) -> list[Plot]:
        """Every figure of the study, in the page's order."""
        own = [plot for part in self.parts for plot in part.plots]
        return [*([self.relay] if self.relay else []), *own, *self.curves, *self.costs, *self.training]

    def sheets(self) -> list[Sheet]:
        """Every table that is exported: what is on the page, and the numbers of each curve."""
        found = [self.comparisons] if self.comparisons else []
        for part in self.parts:
            found += [part.sheet, *([part.detail] if part.detail else [])]
        return found + [_numbers(plot) for plot in (*self.curves, *self.costs)]


def read_runs(runs: Path, result: str | None) -> tuple[list[Study], list[Other]]:
    """The studies under `runs`, or the one named `result`; in the first case also the evaluated runs outside any plan.

    Raises BadInput when there is nothing to report.
    """
    studies = load_studies(runs, result)
    return studies, analysis.group_unplanned(load_unplanned(runs, studies)) if result is None else []


def write_page(runs: Path, studies: Sequence[Study], others: Sequence[Other]) -> Path:
    """Write `runs/report/index.html` and a folder of exports for each study; each file in one step.

    Returns the path of the page. Raises RunFailed when the disk does not take a file.
    """
    each = min(MOST_FIGURES_A_STUDY, max(FEWEST_FIGURES_A_STUDY, MOST_FIGURES // max(1, len(studies))))
    most_bytes = min(predictions.MOST_BYTES, predictions.MOST_BYTES_A_PAGE // max(1, len(studies)))
    names = export.folder_names(studies)
    views = [_view(study, name, _Easel(each), most_bytes) for study, name in zip(studies, names, strict=True)]
    script = _template_text("browser.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = (
        _environment()
        .get_template("page.html.jinja")
        .render(
            views=views,
            others=others[:MOST_ROWS],
            others_left=max(0, len(others) - MOST_ROWS),
            style=_template_text("style.css"),
            script=script,
            script_hash=digest,
            example_rows=EXAMPLE_ROWS,
            most_rows=MOST_ROWS,
        )
    )
    path = runs / "report" / "index.html"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(path, error) from None
    for view in views:
        drawings = [plot.drawing for plot in view.plots()]
        export.write_exports(
            path.parent / view.folder, view.study, view.sheets(), view.family, view.secondary, drawings
        )
    # A lone surrogate in a run's text is valid in JSON and in no file.
    write_atomically(path, page.encode("utf-8", "replace"))
    return path


def _template_text(name: str) -> str:
    return files("pausebench.results").joinpath("templates", name).read_text(encoding="utf-8")


def _environment() -> Any:
    jinja2 = report_extra("jinja2")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template_text),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=statistics.number,
        plus_minus=statistics.plus_minus,
        interval=statistics.interval,
        effect=layouts.effect_text,
        p_value=statistics.p_value,
        label=analysis.full_label,
        capfirst=lambda text: text[:1].upper() + text[1:],
        summary=lambda values: statistics.summarise(list(values.values())),
        markup=report_extra("markupsafe").Markup,
    )
    return environment


class _Easel:
    """Draws up to `most` figures and counts the rest."""

    def __init__(self, most: int) -> None:
        self.most, self.drawn, self.undrawn = most, 0, 0

    def draw(self, jobs: Iterable[Callable[[], Plot | None]]) -> tuple[Plot, ...]:
        plots = []
        for job in jobs:
            if self.drawn >= self.most:
                self.undrawn += 1
            elif plot := job():
                self.drawn += 1
                plots.append(plot)
        return tuple(plots)


def _view(study: Study, folder: str, easel: _Easel, most_bytes: int) -> StudyView:
    instrument = analysis.check_instrument(study)
    family = analysis.primary_family(study)
    panels = study.of_kind("variants", "placement", "controls")
    pairs = tuple(predictions.primary_pairs(study, family))
    # In the order of their worth: what is drawn last is left out first.
    parts = tuple(_part(study, panel, easel) for panel in panels)
    curves = easel.draw(_curve_jobs(study))
    costs = easel.draw(
        partial(figures.cost, study, panel, setting)
        for panel in study.of_kind("variants", "placement")
        for setting in panel.settings()
    )
    training, untrained = _training(study, easel)
    return StudyView(
        study=study,
        folder=folder,
        instrument=instrument,
        relay=figures.relay_curve(study, instrument) if instrument.points else None,
        family=family,
        comparisons=layouts.family_sheet(study, family) if len(family.contrasts) > 1 else None,
        parts=parts,
        curves=curves,
        costs=costs,
        training=training,
        untrained=untrained,
        undrawn=easel.undrawn,
        pairs=pairs,
        embedded=predictions.embedded(pairs, most_bytes),
        secondary=tuple(analysis.secondary_contrasts(study)),
        missing=missing_cells(study, MOST_ROWS),
        provenance=provenance(study),
    )


def _part(study: Study, panel: Panel, easel: _Easel) -> Part:
    sheet: Callable[[], Sheet]
    bars: Callable[[Study, Panel, Setting], Plot]
    detail = None
    if panel.kind == "controls":
        sheet, bars = partial(controls_sheet, study, panel), figures.control_bars
    elif panel.kind == "placement":
        sheet, bars = partial(layouts.table2, study, panel), figures.placement_bars
        detail = layouts.arms_sheet(panel)
    elif layouts.like_table1(study, panel):
        sheet, bars = partial(layouts.table1, study, panel), figures.better_bars
        detail = layouts.arms_sheet(panel)
    else:
        sheet, bars = partial(layouts.arms_sheet, panel), figures.variant_bars
    return Part(sheet(), easel.draw(partial(bars, study, panel, setting) for setting in panel.settings()), detail)


def _curve_jobs(study: Study) -> Iterable[Callable[[], Plot | None]]:
    for panel in study.of_kind("k_curve", "m_curve", "filler"):
        for setting in panel.settings():
            if panel.kind == "m_curve":
                for k in figures.counts_of(panel, setting):
                    yield partial(figures.m_curve, study, panel, setting, k)
            else:
                draw = figures.k_curve if panel.kind == "k_curve" else figures.filler_bars
                yield partial(draw, study, panel, setting)


def _training(study: Study, easel: _Easel) -> tuple[tuple[Plot, ...], str | None]:
    """The training curves, or why there are none."""
    panels = study.of_kind("variants")
    settings = [(panel, setting) for panel in panels for setting in panel.settings() if len(setting.worlds) == 1]
    runs = {cell.result.finetune_run for panel in panels for cell in panel.cells if cell.result}
    if len(settings) > MOST_TRAINING_SETTINGS or len(runs) > MOST_TRAINING_RUNS:
        return (), f"Training curves are left out: {len(settings)} settings and {len(runs)} runs are too many to read."
    worlds = dict.fromkeys(cell.world for panel in panels for cell in panel.cells)
    jobs: list[Callable[[], Plot | None]] = [partial(figures.pretraining_curves, study, world) for world in worlds]
    jobs += [partial(figures.finetuning_curves, study, panel, setting) for panel, setting in settings]
    return easel.draw(jobs), None


def _numbers(plot: Plot) -> Sheet:
    lines = tuple(Line(row[0], row[1:]) for row in plot.rows)
    return Sheet(plot.title, plot.columns[0], plot.columns[1:], (Group("", lines),), (plot.caption,))
