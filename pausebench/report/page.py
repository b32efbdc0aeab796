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
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

from pausebench.report import comparisons, export, figures, statistics, tables
from pausebench.report.comparisons import Contrast, Family
from pausebench.report.figures import Plot
from pausebench.report.scores import Other, ScoredStudy, Scores, load_studies, load_unplanned
from pausebench.report.statistics import report_extra
from pausebench.report.tables import Group, Line, Sheet
from pausebench.runs.folder import disk_error, read_if_whole, write_atomically
from pausebench.study.study import Panel, Study

EXAMPLE_ROWS = 5


@dataclass(frozen=True)
class Limits:
    """What keeps the page of a large study small and quick; each cut is said where it is made.

    figures: of the page, shared between its studies within the two bounds of one study.
    """

    figures: int = 150
    most_of_a_study: int = 60
    fewest_of_a_study: int = 12
    rows: int = 200
    training_settings: int = 12
    training_runs: int = 1_000

    def figures_of(self, studies: int) -> int:
        return min(self.most_of_a_study, max(self.fewest_of_a_study, self.figures // max(1, studies)))


LIMITS = Limits()


@dataclass(frozen=True)
class Part:
    """A panel of arms as the page shows it: its table, its plots, and the long table behind a short one."""

    sheet: Sheet
    plots: tuple[Plot, ...]
    detail: Sheet | None


@dataclass(frozen=True)
class StudyView:
    """Everything the template needs of one study, computed. `undrawn` counts the figures there was no room for."""

    scored: ScoredStudy
    folder: str
    instrument: comparisons.InstrumentCheck
    relay: Plot | None
    family: Family
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
    missing: tuple[MissingCell, ...]
    origins: dict[str, tuple[str, ...]]

    @property
    def study(self) -> Study:
        return self.scored.study

    def plots(self) -> list[Plot]:
        """Every figure of the study, in the page's order."""
        own = [plot for part in self.parts for plot in part.plots]
        return [*([self.relay] if self.relay else []), *own, *self.curves, *self.costs, *self.training]

    def sheets(self) -> list[Sheet]:
        """Every table that is exported: what is on the page, and the numbers of each curve."""
        own = [sheet for part in self.parts for sheet in (part.sheet, part.detail)]
        curves = [_numbers(plot) for plot in (*self.curves, *self.costs)]
        return [sheet for sheet in (self.comparisons, *own, *curves) if sheet]


def read_runs(runs: Path, result: str | None) -> tuple[list[ScoredStudy], list[Other]]:
    """The studies under `runs`, or the one named `result`; in the first case also the evaluated runs outside any plan.

    Raises BadInput when there is nothing to report.
    """
    studies = load_studies(runs, result)
    return studies, load_unplanned(runs, studies) if result is None else []


def write_page(runs: Path, studies: Sequence[ScoredStudy], others: Sequence[Other], limits: Limits = LIMITS) -> Path:
    """Write `runs/report/index.html` and a folder of exports for each study; each file in one step.

    Returns the path of the page. Raises RunFailed when the disk does not take a file.
    """
    names = export.folder_names([scored.study for scored in studies])
    views = [_view(scored, name, limits, len(studies)) for scored, name in zip(studies, names, strict=True)]
    script = _template_text("browser.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = (
        _environment()
        .get_template("page.html.jinja")
        .render(
            views=views,
            others=others[: limits.rows],
            others_left=max(0, len(others) - limits.rows),
            style=_template_text("style.css"),
            script=script,
            script_hash=digest,
            example_rows=EXAMPLE_ROWS,
            most_rows=limits.rows,
        )
    )
    path = runs / "report" / "index.html"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(path, error) from None
    for view in views:
        drawings = [plot.drawing for plot in view.plots()]
        contrasts = {"primary": view.family.contrasts, "secondary": view.secondary}
        export.write_exports(path.parent / view.folder, view.scored, view.sheets(), contrasts, drawings)
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
        capfirst=lambda text: text[:1].upper() + text[1:],
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


def _view(scored: ScoredStudy, folder: str, limits: Limits, studies: int) -> StudyView:
    study, easel = scored.study, _Easel(limits.figures_of(studies))
    instrument = comparisons.check_instrument(scored)
    family = comparisons.primary_family(scored)
    pairs = tuple(primary_pairs(scored, family))
    # In the order of their worth: what is drawn last is left out first.
    parts = tuple(_part(scored, panel, easel) for panel in study.of_kind("variants", "placement", "controls"))
    curves = easel.draw(_curve_jobs(scored))
    costs = easel.draw(partial(figures.cost, setting) for setting in scored.settings_of("variants", "placement"))
    training, untrained = _training(scored, easel, limits)
    return StudyView(
        scored=scored,
        folder=folder,
        instrument=instrument,
        relay=figures.relay_curve(study.result, instrument) if instrument.points else None,
        family=family,
        comparisons=tables.family_sheet(family, study.published) if len(family.contrasts) > 1 else None,
        parts=parts,
        curves=curves,
        costs=costs,
        training=training,
        untrained=untrained,
        undrawn=easel.undrawn,
        pairs=pairs,
        embedded=embedded(pairs, min(MOST_BYTES, MOST_BYTES_A_PAGE // max(1, studies))),
        secondary=tuple(comparisons.secondary_contrasts(scored)),
        missing=missing_cells(scored, limits.rows),
        origins=origins(scored),
    )


def _part(scored: ScoredStudy, panel: Panel, easel: _Easel) -> Part:
    detail = None
    if panel.kind == "controls":
        sheet, bars = tables.controls_sheet(scored, panel), figures.control_bars
    elif panel.kind == "placement":
        sheet, bars, detail = tables.table2(scored, panel), figures.placement_bars, tables.arms_sheet(scored, panel)
    elif tables.like_table1(scored, panel):
        sheet, bars, detail = tables.table1(scored, panel), figures.better_bars, tables.arms_sheet(scored, panel)
    else:
        sheet, bars = tables.arms_sheet(scored, panel), figures.variant_bars
    return Part(sheet, easel.draw(partial(bars, setting) for setting in scored.settings(panel)), detail)


def _curve_jobs(scored: ScoredStudy) -> Iterator[Callable[[], Plot | None]]:
    for setting in scored.settings_of("k_curve", "m_curve", "filler"):
        if setting.panel.kind == "m_curve":
            yield from (partial(figures.m_curve, setting, counts) for counts in figures.counts_of(setting))
        else:
            yield partial(figures.k_curve if setting.panel.kind == "k_curve" else figures.filler_bars, setting)


def _training(scored: ScoredStudy, easel: _Easel, limits: Limits) -> tuple[tuple[Plot, ...], str | None]:
    """The training curves, or why there are none."""
    settings = [setting for setting in scored.settings_of("variants") if len(setting.worlds) == 1]
    panels = [panel.id for panel in scored.study.of_kind("variants")]
    cells = scored.table[scored.table.panel.isin(panels)]
    runs = cells[cells.problem.isna()].finetune_run.nunique(dropna=False)
    if len(settings) > limits.training_settings or runs > limits.training_runs:
        return (), f"Training curves are left out: {len(settings)} settings and {runs} runs are too many to read."
    jobs: list[Callable[[], Plot | None]] = [
        partial(figures.pretraining_curves, scored, world) for world in cells.world.unique()
    ]
    return easel.draw([*jobs, *(partial(figures.finetuning_curves, setting) for setting in settings)]), None


def _numbers(plot: Plot) -> Sheet:
    lines = tuple(Line(row[0], row[1:]) for row in plot.rows)
    return Sheet(plot.title, plot.columns[0], plot.columns[1:], (Group("", lines),), (plot.caption,))


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


def primary_pairs(scored: ScoredStudy, family: Family) -> list[Pair]:
    """Of each primary comparison the finished seeds, the first ones where there are many; at most `MOST_PAIRS`."""
    pairs: list[Pair] = []
    # Only the controls of the task at hand are kept, and rows that runs share are kept once: rows of text add up.
    task, controls = "", dict[str, list[dict[str, Any]]]()
    shared: dict[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]] = {}
    seeds = max(1, MOST_PAIRS // max(1, len(family.contrasts)))
    evaluate = scored.runs / "evaluate"
    for contrast in family.contrasts[:MOST_PAIRS]:
        if contrast.setting.task != task:
            task, controls = contrast.setting.task, {}
        both = _done(contrast.control).merge(_done(contrast.treatment), on=["seed", "world"], suffixes=("", "_paused"))
        for row in both.sort_values(["seed", "world"]).head(seeds).itertuples():
            if row.name not in controls:
                controls[row.name] = read_predictions(evaluate / row.name, ROWS_A_PAIR)
            texts, answers = _side_by_side(
                controls[row.name], read_predictions(evaluate / row.name_paused, ROWS_A_PAIR)
            )
            if not answers:
                continue
            several = len(contrast.setting.worlds) > 1
            place = f"{task} · {row.world}" if several else contrast.setting.label
            pairs.append(
                Pair(
                    group=f"{place} · {contrast.treatment_words}",
                    seed=row.seed,
                    control=contrast.control.arm.label,
                    treatment=contrast.treatment.arm.label,
                    total=row.n_paused,
                    texts=shared.setdefault(texts, texts),
                    answers=answers,
                )
            )
    return pairs


def _done(scores: Scores) -> Any:
    return scores.cells[scores.cells.problem.isna()][["name", "seed", "world", "n"]]


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


def _side_by_side(
    plain: Sequence[dict[str, Any]], pausing: Sequence[dict[str, Any]]
) -> tuple[tuple[tuple[str, str], ...], tuple[Answer, ...]]:
    texts, answers = [], []
    for without, paused in zip(plain, pausing, strict=False):
        complete = all({"prefix", "target", "prediction"} <= row.keys() for row in (without, paused))
        if complete and without["prefix"] == paused["prefix"]:
            texts.append((_text(paused["prefix"]), _text(paused["target"])))
            right = bool(without.get("correct")), bool(paused.get("correct"))
            answers.append((_text(without["prediction"]), _text(paused["prediction"]), *right))
    return tuple(texts), tuple(answers)


def _text(value: Any) -> str:
    # A lone surrogate is valid in JSON and in no file.
    text = str(value).encode("utf-8", "replace").decode()
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}… ({len(text) - LONGEST_TEXT:,} more)"


def _as_json(pairs: Sequence[Pair], rows: int) -> str:
    # Seeds and K mostly share the test rows, which are much longer than the answers.
    texts: dict[tuple[tuple[str, str], ...], int] = {}
    shown = [
        vars(pair) | {"texts": texts.setdefault(pair.texts[:rows], len(texts)), "answers": pair.answers[:rows]}
        for pair in pairs
    ]
    text = json.dumps({"texts": list(texts), "pairs": shown}, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


@dataclass(frozen=True)
class MissingCell:
    """A cell without a result, and the command that fills it."""

    label: str
    place: str
    seed: int
    problem: str
    name: str
    command: str


def missing_cells(scored: ScoredStudy, most: int) -> tuple[MissingCell, ...]:
    """The first `most` missing cells, each with the command that fills it: its own where the plan tells one."""
    study = scored.study
    planned = {
        (stage.command, name): shlex.join(words) for stage in study.stages for name, words in stage.overrides.items()
    }
    root = re.search(r" '?runs=.*$", study.command)
    suffix = root.group(0) if root else ""
    rows = []
    for cell in scored.missing().head(most).itertuples():
        overrides = planned.get(("evaluate", cell.name))
        command = f"pausebench evaluate {overrides}{suffix}" if overrides else study.command
        words = shlex.split(overrides or "")
        run = next((Path(word[4:].strip("'")).name for word in words if word.startswith("run=")), "")
        trained = planned.get(("finetune", run))
        if trained and not (scored.runs / "finetune" / run / "result.json").is_file():
            command = f"pausebench finetune {trained}{suffix} && {command}"
        place = f"{cell.task} {cell.world}"
        rows.append(MissingCell(cell.arm.label, place, cell.seed, cell.problem, cell.name, command))
    return tuple(rows)


def origins(scored: ScoredStudy) -> dict[str, tuple[str, ...]]:
    """The devices and the versions that the manifests of a study's finetune runs name, each with its number of runs."""
    names = sorted(set(scored.cells.finetune_run.dropna()))
    manifests = [read_if_whole(scored.runs / "finetune" / name / "manifest.json") for name in names]
    found = {}
    for key in ("device", "versions"):
        told = Counter(_inline(m[key]) for m in manifests if isinstance(m, dict) and m.get(key))
        listed = [f"{value} ({count} runs)" for value, count in sorted(told.items())]
        found[key] = tuple(listed if len(told) > 1 else told)
    return found


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_inline(value[name])}" for name in sorted(value))
    return str(value)
