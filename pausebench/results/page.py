"""The report page: one HTML file that opens from disk, with everything inside it.

Invariant: the same runs give the same bytes (no clock, no absolute path), and every text that comes from a run is
escaped by the template.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from pausebench.results import analysis, figures, statistics
from pausebench.results.collect import load_studies, load_unplanned, read_if_whole
from pausebench.results.drawing import Plot
from pausebench.results.run_folder import disk_error, write_atomically
from pausebench.results.statistics import report_extra, summarise
from pausebench.results.study import Panel, Scores, Setting, Study

EXAMPLE_ROWS = 5


@dataclass(frozen=True)
class PanelView:
    """A panel as the page shows it: per setting its rows and plots."""

    panel: Panel
    settings: tuple[tuple[Setting, tuple[Scores, ...], float | None], ...]
    plots: tuple[Plot, ...]


@dataclass(frozen=True)
class Example:
    """One test row with what treatment and control answered."""

    prefix: str
    target: str
    control: str
    treatment: str


@dataclass(frozen=True)
class Provenance:
    """Where the numbers come from: values seen in the finetune runs' manifests, with how many runs had each."""

    finetune_runs: int
    devices: tuple[str, ...]
    versions: tuple[str, ...]


@dataclass(frozen=True)
class StudyView:
    """Everything the template needs of one study, computed."""

    study: Study
    instrument: analysis.InstrumentCheck
    relay: Plot | None
    family: analysis.Family
    examples: tuple[Example, ...]
    variants: tuple[PanelView, ...]
    curves: tuple[Plot, ...]
    training: tuple[Plot, ...]
    secondary: tuple[analysis.Contrast, ...]
    missing: str | None
    provenance: Provenance


def write_report(runs: Path, result: str | None = None) -> Path:
    """Read the run folders under `runs`, write `runs/report/index.html` in one step and return its path.

    `result` selects one study; without it every study is shown, and the evaluated runs outside any plan.
    Raises BadInput when there is nothing to report, RunFailed when the disk does not take the page.
    """
    studies = load_studies(runs, result)
    others = analysis.group_unplanned(load_unplanned(runs, studies)) if result is None else []
    jinja2 = report_extra("jinja2")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        number=statistics.number,
        plus_minus=statistics.plus_minus,
        interval=statistics.interval,
        p_value=statistics.p_value,
        label=analysis.full_label,
        capfirst=lambda text: text[:1].upper() + text[1:],
        summary=lambda values: summarise(list(values.values())),
        svg=report_extra("markupsafe").Markup,
    )
    template = environment.from_string(
        files("pausebench.results").joinpath("page.html.jinja").read_text(encoding="utf-8")
    )
    page = template.render(views=[_view(study) for study in studies], others=others)
    path = runs / "report" / "index.html"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(path, error) from None
    write_atomically(path, page)
    return path


def _view(study: Study) -> StudyView:
    instrument = analysis.check_instrument(study)
    family = analysis.primary_family(study)
    draw = {"k_curve": figures.k_curve, "m_curve": figures.m_curve, "filler": figures.filler_bars}
    return StudyView(
        study=study,
        instrument=instrument,
        relay=figures.relay_curve(study, instrument) if instrument.points else None,
        family=family,
        examples=_examples(study, family),
        variants=tuple(
            _panel_view(panel, [figures.variant_bars(study, panel, setting) for setting in panel.settings()])
            for panel in study.of_kind("variants")
        ),
        curves=tuple(
            draw[panel.kind](study, panel, setting) for panel in study.of_kind(*draw) for setting in panel.settings()
        ),
        training=_training(study),
        secondary=tuple(analysis.secondary_contrasts(study)),
        missing=analysis.missing_line(study),
        provenance=_provenance(study),
    )


def _panel_view(panel: Panel, plots: Sequence[Plot]) -> PanelView:
    settings = tuple((setting, tuple(panel.scores(setting)), panel.chance(setting)) for setting in panel.settings())
    return PanelView(panel, settings, tuple(plots))


def _training(study: Study) -> tuple[Plot, ...]:
    panels = study.of_kind("variants")
    worlds = list(dict.fromkeys(cell.world for panel in panels for cell in panel.cells))
    plots = [figures.pretraining_curves(study, world) for world in worlds]
    for panel in panels:
        single = [setting for setting in panel.settings() if len(setting.worlds) == 1]
        plots += [figures.finetuning_curves(study, panel, setting) for setting in single]
    return tuple(plot for plot in plots if plot is not None)


def _examples(study: Study, family: analysis.Family) -> tuple[Example, ...]:
    """The first rows of the test set, unselected, from the first seed that both primary arms have."""
    if not family.contrasts:
        return ()
    by_seed = [
        {(cell.world, cell.seed): cell.name for cell in arm.cells if cell.result}
        for arm in (family.contrasts[0].control, family.contrasts[0].treatment)
    ]
    shared = sorted(by_seed[0].keys() & by_seed[1].keys(), key=lambda key: (key[1], key[0]))
    if not shared:
        return ()
    control, treatment = (
        read_predictions(study.runs / "evaluate" / names[shared[0]], EXAMPLE_ROWS) for names in by_seed
    )
    return tuple(
        Example(*(str(value) for value in (ours["prefix"], ours["target"], other["prediction"], ours["prediction"])))
        for ours, other in zip(treatment, control, strict=False)
        if {"prefix", "target", "prediction"} <= ours.keys()
        and other.get("prefix") == ours["prefix"]
        and "prediction" in other
    )


def read_predictions(run: Path, count: int) -> list[dict[str, Any]]:
    """The first `count` rows of a run's `predictions.jsonl`, in file order; unreadable rows are left out."""
    rows: list[dict[str, Any]] = []
    try:
        with open(run / "predictions.jsonl", encoding="utf-8", errors="replace") as lines:
            for _, line in zip(range(count), lines, strict=False):
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                if isinstance(row, dict):
                    rows.append(row)
    except OSError:
        pass
    return rows


def _provenance(study: Study) -> Provenance:
    names = sorted({cell.result.finetune_run for cell in study.cells() if cell.result and cell.result.finetune_run})
    devices: dict[str, int] = {}
    versions: dict[str, int] = {}
    for name in names:
        manifest = read_if_whole(study.runs / "finetune" / name / "manifest.json")
        if not isinstance(manifest, dict):
            continue
        if manifest.get("device"):
            device = _inline(manifest["device"])
            devices[device] = devices.get(device, 0) + 1
        if manifest.get("versions"):
            version = _inline(manifest["versions"])
            versions[version] = versions.get(version, 0) + 1
    return Provenance(len(names), _counted(devices), _counted(versions))


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_inline(value[name])}" for name in sorted(value))
    return str(value)


def _counted(seen: dict[str, int]) -> tuple[str, ...]:
    if len(seen) < 2:
        return tuple(seen)
    return tuple(f"{value} ({count} runs)" for value, count in sorted(seen.items()))
