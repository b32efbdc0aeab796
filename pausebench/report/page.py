"""The report: one HTML file that opens from disk, with everything inside it, and a folder of exports for each study.

Invariant: the same runs give the same bytes (no clock, no absolute path), every run folder is read once, and every text
that comes from a run is escaped by the template or embedded as JSON that only scripts of ours read.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

from pausebench.report import comparisons, export, figures, statistics, tables
from pausebench.report.comparisons import Contrast, Family, full_label
from pausebench.report.figures import Plot
from pausebench.report.scores import Cell, Panel, Scores, Setting, Study, load_studies, load_unplanned, read_if_whole
from pausebench.report.statistics import report_extra
from pausebench.report.tables import Group, Line, Sheet, controls_sheet, treatment_words
from pausebench.runs.folder import disk_error, write_atomically

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
    instrument: comparisons.InstrumentCheck
    relay: Plot | None
    family: comparisons.Family
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
    return studies, comparisons.group_unplanned(load_unplanned(runs, studies)) if result is None else []


def write_page(runs: Path, studies: Sequence[Study], others: Sequence[Other]) -> Path:
    """Write `runs/report/index.html` and a folder of exports for each study; each file in one step.

    Returns the path of the page. Raises RunFailed when the disk does not take a file.
    """
    each = min(MOST_FIGURES_A_STUDY, max(FEWEST_FIGURES_A_STUDY, MOST_FIGURES // max(1, len(studies))))
    most_bytes = min(MOST_BYTES, MOST_BYTES_A_PAGE // max(1, len(studies)))
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
    return files("pausebench.report").joinpath("templates", name).read_text(encoding="utf-8")


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
        effect=tables.effect_text,
        p_value=statistics.p_value,
        label=comparisons.full_label,
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
    instrument = comparisons.check_instrument(study)
    family = comparisons.primary_family(study)
    panels = study.of_kind("variants", "placement", "controls")
    pairs = tuple(primary_pairs(study, family))
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
        comparisons=tables.family_sheet(study, family) if len(family.contrasts) > 1 else None,
        parts=parts,
        curves=curves,
        costs=costs,
        training=training,
        untrained=untrained,
        undrawn=easel.undrawn,
        pairs=pairs,
        embedded=embedded(pairs, most_bytes),
        secondary=tuple(comparisons.secondary_contrasts(study)),
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
        sheet, bars = partial(tables.table2, study, panel), figures.placement_bars
        detail = tables.arms_sheet(panel)
    elif tables.like_table1(study, panel):
        sheet, bars = partial(tables.table1, study, panel), figures.better_bars
        detail = tables.arms_sheet(panel)
    else:
        sheet, bars = partial(tables.arms_sheet, panel), figures.variant_bars
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


# ------------------------------
# What the models answered: treatment and control side by side on the first rows of the test set.

ROWS_A_PAIR = 200
MOST_PAIRS = 100
MOST_BYTES = 4_000_000  # a study; `MOST_BYTES_A_PAGE` is shared between its studies
MOST_BYTES_A_PAGE = 12_000_000
LONGEST_TEXT = 4_000

Answer = tuple[str, str, bool, bool]


@dataclass(frozen=True)
class Pair:
    """Two runs over the same test rows: `texts` (question, answer), `answers` (control, treatment, right, right)."""

    group: str
    seed: int
    control: str
    treatment: str
    total: int | None
    texts: tuple[tuple[str, str], ...]
    answers: tuple[Answer, ...]


def primary_pairs(study: Study, family: Family) -> list[Pair]:
    """Of each primary comparison the finished seeds, the first ones where there are many; at most `MOST_PAIRS`."""
    pairs: list[Pair] = []
    # Only the controls of the task at hand are kept, and rows that runs share are kept once: rows of text add up.
    task, controls = "", dict[str, list[dict[str, Any]]]()
    shared: dict[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]] = {}
    seeds = max(1, MOST_PAIRS // max(1, len(family.contrasts)))
    for contrast in family.contrasts[:MOST_PAIRS]:
        if contrast.setting.task != task:
            task, controls = contrast.setting.task, {}
        for control, treatment in islice(_shared(contrast), seeds):
            if control.name not in controls:
                controls[control.name] = read_predictions(study.runs / "evaluate" / control.name, ROWS_A_PAIR)
            paused = read_predictions(study.runs / "evaluate" / treatment.name, ROWS_A_PAIR)
            pair = _pair(contrast, control, treatment, controls[control.name], paused)
            if pair.answers:
                pairs.append(replace(pair, texts=shared.setdefault(pair.texts, pair.texts)))
    return pairs


def embedded(pairs: Sequence[Pair], most_bytes: int = MOST_BYTES) -> str:
    """The pairs as JSON that may stand in a script element, each cut to so many rows that all fit `most_bytes`."""
    rows = ROWS_A_PAIR
    text = _as_json(pairs, rows)
    while len(text) > most_bytes and rows > 1:
        rows = max(1, min(rows - 1, int(rows * most_bytes / len(text))))
        text = _as_json(pairs, rows)
    return text


def read_predictions(run: Path, count: int) -> list[dict[str, Any]]:
    """The first `count` rows of a run's `predictions.jsonl`, in file order; unreadable rows are left out."""
    rows: list[dict[str, Any]] = []
    try:
        with open(run / "predictions.jsonl", encoding="utf-8", errors="replace") as lines:
            for line in islice(lines, count):
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                if isinstance(row, dict):
                    rows.append(row)
    except OSError:
        pass
    return rows


def _shared(contrast: Contrast) -> Iterator[tuple[Cell, Cell]]:
    control, treatment = (
        {(cell.seed, cell.world): cell for cell in arm.cells if cell.result}
        for arm in (contrast.control, contrast.treatment)
    )
    for key in sorted(control.keys() & treatment.keys()):
        yield control[key], treatment[key]


def _pair(
    contrast: Contrast, control: Cell, treatment: Cell, plain: list[dict[str, Any]], pausing: list[dict[str, Any]]
) -> Pair:
    texts, answers = [], []
    for without, paused in zip(plain, pausing, strict=False):
        complete = all({"prefix", "target", "prediction"} <= row.keys() for row in (without, paused))
        if complete and without["prefix"] == paused["prefix"]:
            texts.append((_text(paused["prefix"]), _text(paused["target"])))
            right = bool(without.get("correct")), bool(paused.get("correct"))
            answers.append((_text(without["prediction"]), _text(paused["prediction"]), *right))
    several = len(contrast.setting.worlds) > 1
    place = f"{control.task} · {control.world}" if several else contrast.setting.label
    return Pair(
        group=f"{place} · {treatment_words(contrast)}",
        seed=control.seed,
        control=full_label(control.arm),
        treatment=full_label(treatment.arm),
        total=treatment.result.n if treatment.result else None,
        texts=tuple(texts),
        answers=tuple(answers),
    )


def _text(value: Any) -> str:
    # A lone surrogate is valid in JSON and in no file.
    text = str(value).encode("utf-8", "replace").decode()
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}… ({len(text) - LONGEST_TEXT:,} more)"


def _as_json(pairs: Sequence[Pair], rows: int) -> str:
    # Seeds and K mostly share the test rows, which are much longer than the answers.
    texts: dict[tuple[tuple[str, str], ...], int] = {}
    shown = []
    for pair in pairs:
        place = texts.setdefault(pair.texts[:rows], len(texts))
        shown.append(
            {
                "group": pair.group,
                "seed": pair.seed,
                "control": pair.control,
                "treatment": pair.treatment,
                "total": pair.total,
                "texts": place,
                "answers": pair.answers[:rows],
            }
        )
    text = json.dumps({"texts": list(texts), "pairs": shown}, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


# ------------------------------
# What a study still lacks, with the commands that fill it, and where its numbers come from.


@dataclass(frozen=True)
class Provenance:
    """Where the numbers come from: values seen in the finetune runs' manifests, with how many runs had each."""

    finetune_runs: int
    devices: tuple[str, ...]
    versions: tuple[str, ...]


def missing_cells(study: Study, most: int) -> tuple[tuple[Cell, str], ...]:
    """The first `most` missing cells, each with the command that fills it: its own where the plan tells one."""
    missing = study.missing()[:most]
    if not missing:
        return ()
    plan = read_if_whole(study.runs / "reproduce" / study.result / "plan.json")
    stages = plan["stages"] if isinstance(plan, dict) else []
    planned = {
        (stage["command"], cell["name"]): shlex.join(map(str, cell["overrides"]))
        for stage in stages
        for cell in stage["cells"]
    }
    root = re.search(r" '?runs=.*$", study.command)
    suffix = root.group(0) if root else ""
    rows = []
    for cell in missing:
        overrides = planned.get(("evaluate", cell.name))
        command = f"pausebench evaluate {overrides}{suffix}" if overrides else study.command
        words = shlex.split(overrides or "")
        run = next((Path(word[4:].strip("'")).name for word in words if word.startswith("run=")), "")
        trained = planned.get(("finetune", run))
        if trained and not (study.runs / "finetune" / run / "result.json").is_file():
            command = f"pausebench finetune {trained}{suffix} && {command}"
        rows.append((cell, command))
    return tuple(rows)


def provenance(study: Study) -> Provenance:
    """What the manifests of a study's finetune runs say of device and versions."""
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
