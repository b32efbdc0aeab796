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

from pausebench.report.comparisons import (
    Family,
    check_instrument,
    filler_label,
    full_label,
    missing_line,
    pretraining_label,
    primary_family,
)
from pausebench.report.export import folder_names
from pausebench.report.page import MOST_ROWS, Other
from pausebench.report.scores import Panel, Setting, Study
from pausebench.report.statistics import interval, number, p_value, plus_minus, summarise
from pausebench.report.tables import short_verdict, treatment_words, with_references

MARKS = {
    "passed": "green",
    "failed": "bold white on red",
    "incomplete": "yellow",
    "absent": "dim",
}


def print_studies(runs: Path, studies: Sequence[Study], others: Sequence[Other], console: Console) -> None:
    """Print studies for a terminal of 80 columns or a pipe, and where the files are."""
    for study in studies:
        _print_study(study, console)
    if others:
        table = _table("Other evaluated runs", ("task", "model", "arm"), ("mean ± sd", "n"))
        for setting, scores, model in others[:MOST_ROWS]:
            summary = summarise(list(scores.values.values()))
            table.add_row(
                *_texts(
                    setting.label,
                    model,
                    full_label(scores.arm),
                    plus_minus(summary),
                    str(summary.n),
                )
            )
        console.print(table)
    folders = ", ".join(f"{name}/" for name in folder_names(studies))
    beside = f"; tables and figures beside it in {folders}" if folders else ""
    console.print(Text(f"page: {runs / 'report' / 'index.html'}{beside}"), soft_wrap=True)


def _print_study(study: Study, console: Console) -> None:
    console.print(Text(f"{study.title} ({study.result})", style="bold"))
    console.print(Text(f"{len(study.seeds)} seeds; unit of replication: {study.unit}", style="dim"))
    check = check_instrument(study)
    if check.state == "failed":
        line = f"INSTRUMENT CHECK FAILED: {check.sentence}. The tables below mean nothing."
    else:
        line = f"instrument check {check.state}: {check.sentence}"
    console.print(Text(line, style=MARKS[check.state]))
    head = primary_family(study)
    console.print(Text(f"\n{head.sentence}"))
    if head.power:
        console.print(Text(head.power, style="dim"))
    if len(head.contrasts) > 1:
        console.print(_family_table(head))
    for panel in study.of_kind("variants", "placement", "controls"):
        second = any(panel.metrics(setting)[1] for setting in panel.settings())
        table = _table(
            panel.title, ("variant",), ("mean ± sd", "n", "95 % interval", "NLL", *(["second"] if second else []))
        )
        for setting in panel.settings():
            table.add_row(Text(setting.label, style="italic"))
            arms = with_references(study, panel, setting) if panel.kind == "controls" else panel.scores(setting)
            for scores in arms:
                summary = summarise(list(scores.values.values()))
                nll = summarise(list(scores.nll.values())).mean
                cells = [plus_minus(summary), str(summary.n), interval(summary.interval), number(nll)]
                if scores.second:
                    cells.append(number(summarise(list(scores.second.values())).mean))
                table.add_row(*_texts(f"  {full_label(scores.arm)}", *cells))
        console.print(table)
        for setting in panel.settings():
            metric, other = panel.metrics(setting)
            if other:
                console.print(Text(f"{setting.label}: {metric}, second {other}", style="dim"))
    for panel in study.of_kind("k_curve", "m_curve", "filler"):
        for setting in panel.settings():
            axis = {"k_curve": " (K: score)", "m_curve": " (M: score)"}.get(panel.kind, "")
            console.print(Text(f"{panel.title} · {setting.label}{axis}"))
            for name, points in _compact(panel, setting).items():
                console.print(Text(f"  {name}  {'  '.join(points)}"))
    missing = missing_line(study)
    if missing:
        console.print(Text(missing, style="yellow"), soft_wrap=True)
    console.print()


def _family_table(family: Family) -> Table:
    table = _table("Fixed in advance", ("task", "arm"), ("difference", "95 % interval", "p (Holm)", "verdict"))
    for contrast in family.contrasts:
        c = contrast.comparison
        difference = "missing" if c.difference is None else f"{c.difference:+.3f}"
        cells = [difference, interval(c.interval, signed=True), p_value(contrast.adjusted_p), short_verdict(contrast)]
        table.add_row(*_texts(contrast.setting.label, treatment_words(contrast), *cells))
    return table


def _compact(panel: Panel, setting: Setting) -> dict[str, list[str]]:
    lines: dict[str, list[str]] = {}
    arms = panel.scores(setting)
    several = len({scores.arm.k for scores in arms}) > 1
    for scores in arms:
        mean = summarise(list(scores.values.values())).mean
        arm = scores.arm
        if panel.kind == "k_curve":
            name, place = pretraining_label(arm), f"{arm.k}"
        elif panel.kind == "m_curve":
            name, place = f"{arm.variant} K={arm.k}" if several else arm.variant, f"{arm.mt}"
        else:
            name, place = arm.variant, filler_label(arm)
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
