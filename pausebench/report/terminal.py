"""The terminal report: every study as tables and lines of text.

Invariant: texts that come from a run are printed as they are, never read as markup.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pausebench.report.comparisons import Family, check_instrument, missing_line, primary_family
from pausebench.report.export import folder_names
from pausebench.report.page import LIMITS
from pausebench.report.scores import Other, ScoredStudy, Setting
from pausebench.report.statistics import interval, number, p_value, plus_minus
from pausebench.report.tables import short_verdict, with_references
from pausebench.study.study import Panel

MARKS = {"passed": "green", "failed": "bold white on red", "incomplete": "yellow", "absent": "dim"}


def print_studies(runs: Path, studies: Sequence[ScoredStudy], others: Sequence[Other], console: Console) -> None:
    """Print studies for a terminal of 80 columns or a pipe, and where the files are."""
    for scored in studies:
        _print_study(scored, console)
    if others:
        table = _table("Other evaluated runs", ("task", "model", "arm"), ("mean ± std", "n"))
        for other in others[: LIMITS.rows]:
            summary = other.scores.summary()
            arm = other.scores.arm.label
            table.add_row(*_texts(other.place, other.model, arm, plus_minus(summary), str(summary.n)))
        console.print(table)
    folders = ", ".join(f"{name}/" for name in folder_names([scored.study for scored in studies]))
    beside = f"; tables and figures beside it in {folders}" if folders else ""
    console.print(Text(f"page: {runs / 'report' / 'index.html'}{beside}"), soft_wrap=True)


def _print_study(scored: ScoredStudy, console: Console) -> None:
    study = scored.study
    console.print(Text(f"{study.title} ({study.result})", style="bold"))
    console.print(Text(f"{len(study.seeds)} seeds; unit of replication: {study.unit}", style="dim"))
    check = check_instrument(scored)
    if check.state == "failed":
        line = f"INSTRUMENT CHECK FAILED: {check.sentence}. The tables below mean nothing."
    else:
        line = f"instrument check {check.state}: {check.sentence}"
    console.print(Text(line, style=MARKS[check.state]))
    family = primary_family(scored)
    console.print(Text(f"\n{family.sentence}"))
    if family.power:
        console.print(Text(family.power, style="dim"))
    if len(family.contrasts) > 1:
        console.print(_family_table(family))
    for panel in study.of_kind("variants", "placement", "controls"):
        settings = scored.settings(panel)
        console.print(_scores_table(panel, settings))
        for setting in settings:
            if setting.second:
                console.print(Text(f"{setting.label}: {setting.metric}, second {setting.second}", style="dim"))
    for setting in scored.settings_of("k_curve", "m_curve", "filler"):
        axis = {"k_curve": " (K: score)", "m_curve": " (M: score)"}.get(setting.panel.kind, "")
        console.print(Text(f"{setting.panel.title} · {setting.label}{axis}"))
        for name, points in _compact(setting).items():
            console.print(Text(f"  {name}  {'  '.join(points)}"))
    missing = missing_line(scored)
    if missing:
        console.print(Text(missing, style="yellow"), soft_wrap=True)
    console.print()


def _scores_table(panel: Panel, settings: Sequence[Setting]) -> Table:
    second = any(setting.second for setting in settings)
    columns = ("mean ± std", "n", "95 % interval", "NLL", *(["second"] if second else []))
    table = _table(panel.title, ("variant",), columns)
    for setting in settings:
        table.add_row(Text(setting.label, style="italic"))
        for scores in with_references(setting) if panel.kind == "controls" else setting.arms:
            summary = scores.summary()
            cells = [plus_minus(summary), str(summary.n), interval(summary.interval), number(scores.nll.mean)]
            if scores.second:
                cells.append(number(scores.second.mean))
            table.add_row(*_texts(f"  {scores.arm.label}", *cells))
    return table


def _family_table(family: Family) -> Table:
    table = _table("Fixed in advance", ("task", "arm"), ("difference", "95 % interval", "p (Holm)", "verdict"))
    for contrast in family.contrasts:
        c = contrast.comparison
        difference = "missing" if c.difference is None else f"{c.difference:+.3f}"
        cells = [difference, interval(c.interval, signed=True), p_value(contrast.adjusted_p), short_verdict(contrast)]
        table.add_row(*_texts(contrast.setting.label, contrast.treatment_words, *cells))
    return table


def _compact(setting: Setting) -> dict[str, list[str]]:
    """The points of each line of a curve, as `8: 0.910`."""
    lines: dict[str, list[str]] = {}
    several = len({scores.arm.counts for scores in setting.arms}) > 1
    for scores in setting.arms:
        arm, mean = scores.arm, scores.summary().mean
        if setting.panel.kind == "k_curve":
            name, place = arm.stage, arm.counts
        elif setting.panel.kind == "m_curve":
            name, place = f"{arm.variant} {arm.pauses}" if several else arm.variant, str(arm.mt)
        else:
            name, place = arm.variant, arm.inserted
        lines.setdefault(name, []).append(f"{place}: {'missing' if mean is None else f'{mean:.3f}'}")
    return lines


def _table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    table = Table(title=Text(title), title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for name in left:
        table.add_column(name)
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _texts(*cells: str) -> tuple[Text, ...]:
    return tuple(Text(cell) for cell in cells)
