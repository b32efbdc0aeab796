"""The report: one HTML file that opens from disk, with everything inside it, and a folder of exports for each study.

Invariant: the same runs give the same bytes (no clock, no absolute path), every run folder is read once, and every text
that comes from a run is escaped by the template or embedded as JSON that only our script reads.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

from pausebench.report import comparisons, export, figures, statistics, tables
from pausebench.report.comparisons import Family
from pausebench.report.figures import Plot
from pausebench.report.scores import Other, ScoredStudy, load_studies, load_unplanned
from pausebench.report.statistics import report_extra
from pausebench.report.tables import Sheet
from pausebench.runs.folder import read_if_whole
from pausebench.study.study import Panel

EXAMPLE_ROWS = 5
ROWS_A_PAIR = 200
MOST_PAIRS = 100
# The page holds its data, so the studies of a page share a bound: ten of 4 MB are more than a phone likes to open.
MOST_BYTES = 4_000_000
MOST_BYTES_A_PAGE = 12_000_000
LONGEST_TEXT = 4_000


@dataclass(frozen=True)
class Limits:
    """What keeps the page of a large study small; each cut is stated where it is made. `figures`: of the whole page."""

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


class StudyView:
    """Everything the template needs of one study, computed once."""

    def __init__(self, scored: ScoredStudy, folder: str, limits: Limits, studies: int) -> None:
        self.scored, self.study, self.folder, self.limits = scored, scored.study, folder, limits
        self.room, self.undrawn = limits.figures_of(studies), 0
        self.instrument = comparisons.check_instrument(scored)
        self.relay = figures.relay_curve(self.study.result, self.instrument) if self.instrument.points else None
        self.family = comparisons.primary_family(scored)
        contrasts = self.family.contrasts
        self.comparisons = tables.family_sheet(self.family, self.study.published) if len(contrasts) > 1 else None
        self.secondary = comparisons.secondary_contrasts(scored)
        # The order is that of importance: when there is no room for more figures, the last ones are left out.
        self.parts = [self._part(panel) for panel in self.study.of_kind("variants", "placement", "controls")]
        curves = scored.settings_of("k_curve", "m_curve", "filler")
        self.curves = self._draw(job for setting in curves for job in figures.jobs(setting))
        compared = scored.settings_of("variants", "placement")
        self.costs = self._draw(partial(figures.cost, setting) for setting in compared)
        self.untrained, self.training = self._training()
        self.pairs = primary_pairs(scored, self.family)
        self.embedded = embedded(self.pairs, min(MOST_BYTES, MOST_BYTES_A_PAGE // max(1, studies)))
        self.missing, self.origins = missing_cells(scored, limits.rows), origins(scored)

    def plots(self) -> list[Plot]:
        """Every figure, in the page's order."""
        own = [plot for part in self.parts for plot in part.plots]
        return [*([self.relay] if self.relay else []), *own, *self.curves, *self.costs, *self.training]

    def sheets(self) -> list[Sheet]:
        """Every table that is exported: those of the page, and the numbers of each curve."""
        own = [sheet for part in self.parts for sheet in (part.sheet, part.detail)]
        return [sheet for sheet in (self.comparisons, *own, *(p.sheet for p in (*self.curves, *self.costs))) if sheet]

    def _draw(self, jobs: Iterable[Callable[[], Plot | None]]) -> tuple[Plot, ...]:
        plots = []
        for job in jobs:
            # A figure takes about 0.2 s: those without room are counted, not drawn and thrown away.
            if self.room <= 0:
                self.undrawn += 1
            elif plot := job():
                self.room -= 1
                plots.append(plot)
        return tuple(plots)

    def _part(self, panel: Panel) -> Part:
        detail = tables.arms_sheet(self.scored, panel)
        plots = self._draw(job for setting in self.scored.settings(panel) for job in figures.jobs(setting))
        if panel.kind == "controls":
            return Part(tables.controls_sheet(self.scored, panel), plots, None)
        if panel.kind == "placement":
            return Part(tables.table2(self.scored, panel), plots, detail)
        if tables.like_table1(self.scored, panel):
            return Part(tables.table1(self.scored, panel), plots, detail)
        return Part(detail, plots, None)

    def _training(self) -> tuple[str | None, tuple[Plot, ...]]:
        """The training curves, or why there are none."""
        scored, limits = self.scored, self.limits
        # A pooled setting would show each curve of its worlds a second time.
        settings = [setting for setting in scored.settings_of("variants") if len(setting.worlds) == 1]
        cells = scored.table[scored.table.panel.isin([panel.id for panel in self.study.of_kind("variants")])]
        runs = cells[cells.problem.isna()].finetune_run.nunique(dropna=False)
        if len(settings) > limits.training_settings or runs > limits.training_runs:
            return f"Training curves are left out: {len(settings)} settings and {runs} runs are too many to read.", ()
        pretraining = [partial(figures.pretraining_curves, scored, world) for world in cells.world.unique()]
        return None, self._draw([*pretraining, *(partial(figures.finetuning_curves, setting) for setting in settings)])


def read_runs(runs: Path, result: str | None) -> tuple[list[ScoredStudy], list[Other]]:
    """The studies under `runs` and the evaluated runs outside any plan, or only the study named `result`.

    Raises BadInput when there is nothing to report.
    """
    studies = load_studies(runs, result)
    return studies, load_unplanned(runs, studies) if result is None else []


def write_page(runs: Path, studies: Sequence[ScoredStudy], others: Sequence[Other], limits: Limits = LIMITS) -> Path:
    """Write `runs/report/index.html` and a folder of exports for each study; returns the path of the page.

    Raises RunFailed when the disk does not take a file.
    """
    names = export.folder_names([scored.study for scored in studies])
    views = [StudyView(scored, name, limits, len(studies)) for scored, name in zip(studies, names, strict=True)]
    script = _template_text("browser.js")
    page = (
        _environment()
        .get_template("page.html.jinja")
        .render(
            views=views,
            others=others[: limits.rows],
            others_left=max(0, len(others) - limits.rows),
            style=_template_text("style.css"),
            script=script,
            # The page's security policy runs only the script with this hash: text from a run that got past the
            # escaping would still not be executed.
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            example_rows=EXAMPLE_ROWS,
            most_rows=limits.rows,
        )
    )
    report = runs / "report"
    for view in views:
        contrasts = {"primary": view.family.contrasts, "secondary": view.secondary}
        export.write_exports(report / view.folder, view.scored, view.sheets(), contrasts, view.plots())
    # The page last: once it is there, so are the files that it links to.
    export.write_files(report, {"index.html": page})
    return report / "index.html"


def _template_text(name: str) -> str:
    return files("pausebench.report").joinpath("templates", name).read_text(encoding="utf-8")


def _environment() -> Any:
    jinja2 = report_extra("jinja2")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template_text),
        autoescape=True,
        # A misspelt field is an error: by default it would be an empty cell.
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


Texts = tuple[tuple[str, str], ...]
Answer = tuple[str, str, bool, bool]


@dataclass(frozen=True)
class Pair:
    """Two runs over the same test rows: `texts` (question, answer), `answers` (control, treatment, correct, correct).

    total: how many test rows there are.
    """

    group: str
    seed: int
    control: str
    treatment: str
    total: int | None
    texts: Texts
    answers: tuple[Answer, ...]


def primary_pairs(scored: ScoredStudy, family: Family) -> list[Pair]:
    """The finished seeds of each primary comparison, the first ones if there are many; at most `MOST_PAIRS`."""
    pairs: list[Pair] = []
    # A study may have thousands of runs of long texts: only one task's controls are in memory, and equal rows once.
    task, controls = "", dict[str, list[dict[str, Any]]]()
    shared: dict[Texts, Texts] = {}
    seeds = max(1, MOST_PAIRS // max(1, len(family.contrasts)))
    for contrast in family.contrasts[:MOST_PAIRS]:
        setting = contrast.setting
        if setting.task != task:
            task, controls = setting.task, {}
        plain, paused = (
            side.cells[side.cells.problem.isna()][["name", "seed", "world", "n"]]
            for side in (contrast.control, contrast.treatment)
        )
        both = plain.merge(paused, on=["seed", "world"], suffixes=("", "_paused")).sort_values(["seed", "world"])
        for row in both.head(seeds).itertuples():
            if row.name not in controls:
                controls[row.name] = _predictions(scored.runs / "evaluate" / row.name)
            found = _predictions(scored.runs / "evaluate" / row.name_paused)
            texts, answers = _side_by_side(controls[row.name], found)
            place = f"{task} · {row.world}" if len(setting.worlds) > 1 else setting.label
            group, texts = f"{place} · {contrast.treatment_words}", shared.setdefault(texts, texts)
            control, treatment = contrast.control.arm.label, contrast.treatment.arm.label
            if answers:
                pairs.append(Pair(group, row.seed, control, treatment, row.n_paused, texts, answers))
    return pairs


def embedded(pairs: Sequence[Pair], most_bytes: int = MOST_BYTES) -> str:
    """The pairs as JSON for a script element, each cut to the same number of rows so that all fit `most_bytes`."""
    rows = ROWS_A_PAIR
    text = _as_json(pairs, rows)
    while len(text) > most_bytes and rows > 1:
        # Rows differ in length, so one proportional cut may be too little; each further one drops at least a row.
        rows = max(1, min(rows - 1, int(rows * most_bytes / len(text))))
        text = _as_json(pairs, rows)
    return text


def _predictions(run: Path) -> list[dict[str, Any]]:
    """The first rows of a run's `predictions.jsonl`, in file order; unreadable rows are left out."""
    rows: list[dict[str, Any]] = []
    try:
        with open(run / "predictions.jsonl", encoding="utf-8", errors="replace") as lines:
            for line in islice(lines, ROWS_A_PAIR):
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                if isinstance(row, dict):
                    rows.append(row)
    except OSError:
        # Predictions may have been deleted to save space; the scores do not need them.
        pass
    return rows


def _side_by_side(
    plain: Sequence[dict[str, Any]], paused: Sequence[dict[str, Any]]
) -> tuple[Texts, tuple[Answer, ...]]:
    texts, answers = [], []
    for without, with_pauses in zip(plain, paused, strict=False):
        complete = all({"prefix", "target", "prediction"} <= row.keys() for row in (without, with_pauses))
        # Runs of different data versions may differ in their rows; two questions must not appear as one.
        if complete and without["prefix"] == with_pauses["prefix"]:
            texts.append((_text(with_pauses["prefix"]), _text(with_pauses["target"])))
            correct = bool(without.get("correct")), bool(with_pauses.get("correct"))
            answers.append((_text(without["prediction"]), _text(with_pauses["prediction"]), *correct))
    return tuple(texts), tuple(answers)


def _text(value: Any) -> str:
    # JSON may hold a lone surrogate, which no file can.
    text = str(value).encode("utf-8", "replace").decode()
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}… ({len(text) - LONGEST_TEXT:,} more)"


def _as_json(pairs: Sequence[Pair], rows: int) -> str:
    # Seeds and K mostly share the test rows, which are much longer than the answers: each list of rows is there once.
    texts: dict[Texts, int] = {}
    shown = [
        vars(pair) | {"texts": texts.setdefault(pair.texts[:rows], len(texts)), "answers": pair.answers[:rows]}
        for pair in pairs
    ]
    text = json.dumps({"texts": list(texts), "pairs": shown}, separators=(",", ":"))
    # An answer of "</script>" would end the element; JSON reads the escapes back.
    return re.sub("[<>&]", lambda found: f"\\u{ord(found[0]):04x}", text)


@dataclass(frozen=True)
class MissingCell:
    """A cell without a result, and the command that fills it."""

    label: str
    place: str
    seed: int
    problem: str
    name: str
    command: str


def missing_cells(scored: ScoredStudy, most: int) -> list[MissingCell]:
    """The first `most` missing cells, each with the command that fills it: its own if the plan has one."""
    study = scored.study
    planned = {(stage.command, name): words for stage in study.stages for name, words in stage.overrides.items()}
    # The plan's commands are relative to the runs folder, which only the command of the whole study names.
    root = re.search(r" '?runs=.*$", study.command)
    suffix = root.group(0) if root else ""
    rows = []
    for cell in scored.missing().head(most).itertuples():
        words = planned.get(("evaluate", cell.name), [])
        command = f"pausebench evaluate {shlex.join(words)}{suffix}" if words else study.command
        run = next((Path(word[4:].strip("'")).name for word in words if word.startswith("run=")), "")
        trained = planned.get(("finetune", run))
        if trained and not (scored.runs / "finetune" / run / "result.json").is_file():
            command = f"pausebench finetune {shlex.join(trained)}{suffix} && {command}"
        rows.append(
            MissingCell(cell.arm.label, f"{cell.task} {cell.world}", cell.seed, cell.problem, cell.name, command)
        )
    return rows


def origins(scored: ScoredStudy) -> dict[str, list[str]]:
    """The devices and versions in the manifests of a study's finetune runs, with their numbers of runs if several."""
    names = sorted(set(scored.cells.finetune_run.dropna()))
    manifests = [read_if_whole(scored.runs / "finetune" / name / "manifest.json") for name in names]
    found = {}
    for key in ("device", "versions"):
        told = Counter(_inline(m[key]) for m in manifests if isinstance(m, dict) and m.get(key))
        # Runs on different devices or versions differ by more than the seed; the page must show it.
        found[key] = [f"{value} ({count} runs)" for value, count in sorted(told.items())] if len(told) > 1 else [*told]
    return found


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_inline(value[name])}" for name in sorted(value))
    return str(value)
