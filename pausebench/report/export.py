"""The report's files beside the page: Markdown, CSV and LaTeX tables, and every figure as SVG and PNG.

Invariant: the same runs give the same bytes, each file is complete or absent, and no text from a run is interpreted as
markup, as a LaTeX command or as a spreadsheet formula.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from io import StringIO
from pathlib import Path
from typing import Any

from pausebench.report.comparisons import Contrast
from pausebench.report.figures import Plot
from pausebench.report.scores import NLL, ScoredStudy, Scores, Setting
from pausebench.report.tables import Sheet
from pausebench.runs.folder import disk_error, write_atomically
from pausebench.study.study import Study
from pausebench.tasks import published

COORDINATES = ("task", "world", "variant", "k", "m", "placement", "filler", "control", "prefix")
COMPARISON_COLUMNS = (
    "family", "panel", "task", "world", "treatment", "control", "n", "difference", "low", "high", "p", "p_holm",
    "effect_size", "smallest_detectable", "published_difference",
)  # fmt: skip
# From this many columns on, a table is wider than the text of a LaTeX article and is scaled down.
WIDE = 5


def write_exports(
    folder: Path,
    scored: ScoredStudy,
    sheets: Sequence[Sheet],
    contrasts: Mapping[str, Sequence[Contrast]],
    plots: Sequence[Plot],
) -> None:
    """Write a study's files and delete the figures of an earlier report that it no longer has.

    Raises RunFailed when the disk does not take a file.
    """
    title, pictures = scored.study.title, folder / "figures"
    tables = {"table.md": as_markdown(title, sheets), "table.tex": as_latex(title, sheets), "table.csv": as_csv(scored)}
    write_files(folder, tables | {"comparisons.csv": comparisons_csv(contrasts)})
    current: dict[str, str | bytes] = {f"{plot.name}.svg": plot.standalone for plot in plots}
    current |= {f"{plot.name}.png": plot.png for plot in plots}
    write_files(pictures, current)
    for path in pictures.iterdir():
        # Only what a report writes is deleted: notes that a user left beside the figures stay.
        if path.suffix in (".svg", ".png") and path.name not in current:
            with suppress(OSError):
                path.unlink()


def write_files(folder: Path, contents: Mapping[str, str | bytes]) -> None:
    """Write each {name: content} into a folder, which is made. Raises RunFailed when the disk does not take it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(folder, error) from None
    for name, content in contents.items():
        # "replace", because JSON may hold a lone surrogate, which UTF-8 cannot encode.
        write_atomically(folder / name, content if isinstance(content, bytes) else content.encode("utf-8", "replace"))


def folder_names(studies: Sequence[Study]) -> list[str]:
    """A folder name for each study: its own, made safe and unique, never that of the page."""
    # Compared in lower case: on macOS and Windows `Demo` and `demo` are one folder.
    taken, names = {"index.html"}, []
    for study in studies:
        safe = re.sub(r"[^A-Za-z0-9._-]+", "_", study.result).strip(".") or "study"
        name = next(name for name in (safe, *(f"{safe}-{n}" for n in range(2, 10_000))) if name.lower() not in taken)
        taken.add(name.lower())
        names.append(name)
    return names


def _rows(sheet: Sheet, escape: Callable[[str], str]) -> Iterator[list[str]]:
    """The rows of a table, its head first; the title of a group is a row of one cell."""
    yield [escape(sheet.corner), *map(escape, sheet.columns)]
    for group in sheet.groups:
        if group.title:
            yield [escape(group.title)]
        yield from ([escape(line.head), *map(escape, line.cells)] for line in group.lines)


def as_markdown(title: str, sheets: Iterable[Sheet]) -> str:
    """Every table in GitHub's Markdown under a heading; groups are rows in bold."""
    blocks = [f"# {markdown(title)}"]
    for sheet in sheets:
        width = len(sheet.columns)
        # Markdown has no cell that spans columns: a group's title is in the first cell of an otherwise empty row.
        head, *rows = (
            f"| {' | '.join(cells)} |" if len(cells) > 1 else f"| **{cells[0]}** |{' |' * width}"
            for cells in _rows(sheet, markdown)
        )
        table = "\n".join([head, f"|---|{'---:|' * width}", *rows])
        blocks += [f"## {markdown(sheet.title)}", table, *(markdown(note) for note in sheet.notes if note)]
    return "\n\n".join(blocks) + "\n"


def markdown(text: str) -> str:
    """Text that Markdown shows as it is: one line, its special characters escaped."""
    flat = " ".join(text.split())
    # An interval such as [0.432, 0.928] cannot be a link and stays readable in the source.
    return flat if re.fullmatch(r"[\[\]()+±0-9., -]*", flat) else re.sub(r"([\\`*_{}\[\]<>#|~$&])", r"\\\1", flat)


LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", "±": r"$\pm$", "−": r"$-$", "·": r"$\cdot$", "×": r"$\times$",
    "–": "--", "—": "---", "…": r"\dots{}", "‘": "`", "’": "'", "“": "``", "”": "''", "\u00a0": "~",
}  # fmt: skip


def latex(text: str) -> str:
    """Text that LaTeX sets as it is; a character that pdfLaTeX cannot set is named by its code point."""
    out = (
        LATEX.get(c) or (c if " " <= c <= "~" or "\u00c0" <= c <= "\u017f" else f"U+{ord(c):04X}")
        for c in " ".join(text.split())
    )
    # After \\\\ a bracket would be an optional argument, the height of the gap.
    return "".join(out).replace("[", "{[}").replace("]", "{]}")


def as_latex(title: str, sheets: Iterable[Sheet]) -> str:
    r"""Every table as a `table` with booktabs' rules, to be read with \input."""
    blocks = [f"% {latex(title)}\n% needs \\usepackage[T1]{{fontenc}}, booktabs and graphicx"]
    for sheet in sheets:
        width = len(sheet.columns)
        space, span = "\\addlinespace\n", f"\\multicolumn{{{width + 1}}}{{l}}{{\\textbf"
        head, *rows = (
            f"{' & '.join(cells)} \\\\" if len(cells) > 1 else f"{space}{span}{{{cells[0]}}}}} \\\\"
            for cells in _rows(sheet, latex)
        )
        # Space is between groups; above the first one there is the rule already.
        table = "\n".join([head, "\\midrule", *rows]).replace(f"\\midrule\n{space}", "\\midrule\n")
        begin, end = f"\\begin{{tabular}}{{l{'r' * width}}}\n\\toprule", "\\bottomrule\n\\end{tabular}"
        body = f"{begin}\n{table}\n{end}"
        if width >= WIDE:
            body = f"\\resizebox{{\\linewidth}}{{!}}{{%\n{body}}}"
        caption = latex(". ".join([sheet.title, *(note.rstrip(".") for note in sheet.notes if note)]))
        blocks.append(f"\\begin{{table}}[tbp]\n\\centering\\small\n{body}\n\\caption{{{caption}.}}\n\\end{{table}}")
    return "\n\n".join(blocks) + "\n"


def as_csv(scored: ScoredStudy) -> str:
    """Long form: one row for each arm of a task and metric, `target_nll` (nats per token) among the metrics."""
    seeds = sorted({*scored.table.seed, *scored.study.seeds})
    head = [
        "study", "panel", "kind", *COORDINATES, "metric", "mean", "deviation", "n", "planned",
        "published_mean", "published_deviation", "published_metric", "inference_flops", *(f"seed_{s}" for s in seeds),
    ]  # fmt: skip
    rows = [
        [scored.study.result, panel.id, panel.kind, *row]
        for panel in scored.study.panels
        for setting in scored.settings(panel)
        for scores in setting.arms
        for row in _metric_rows(setting, scores, seeds)
    ]
    return _csv([head, *rows])


def _metric_rows(setting: Setting, scores: Scores, seeds: Sequence[int]) -> Iterator[list[Any]]:
    arm = scores.arm
    k = arm.counts if arm.k_range else arm.k
    where = [setting.task, "+".join(setting.worlds), arm.variant, k, arm.mt, arm.placement, arm.filler]
    names = dict.fromkeys([setting.metric or "", *scores.rows.metric.dropna()])
    if names.pop(NLL, True) is None and scores.values(NLL):
        names[NLL] = None  # last, whatever the order in which a run's metrics came
    for name in names:
        values, summary = scores.values(name), scores.summary(name)
        figure = setting.published(arm, name)
        printed = (
            [figure.mean, figure.deviation, published.name_of_metric(setting.task, name)] if figure else [None] * 3
        )
        ours = [name, summary.mean, summary.std, summary.n, len(scores.seeds)]
        single = [values.get(seed) for seed in seeds]
        yield [*where, arm.control, arm.prefix, *ours, *printed, scores.mean_of("inference_flops"), *single]


def comparisons_csv(contrasts: Mapping[str, Sequence[Contrast]]) -> str:
    """One row for each planned comparison; `p_holm` is corrected over its family (`primary` or `secondary`)."""
    rows = []
    for family, members in contrasts.items():
        for contrast in members:
            c, setting = contrast.comparison, contrast.setting
            low, high = c.interval or (None, None)
            where = [setting.panel.title, setting.task, "+".join(setting.worlds)]
            sides = [contrast.treatment.arm.label, contrast.control.arm.label]
            tested = [c.n, c.difference, low, high, c.p, contrast.adjusted_p, c.effect_size, c.detectable]
            rows.append([family, *where, *sides, *tested, contrast.published_difference])
    return _csv([list(COMPARISON_COLUMNS), *rows])


def _csv(rows: Iterable[Sequence[Any]]) -> str:
    out = StringIO()
    csv.writer(out, lineterminator="\n").writerows([[_csv_cell(value) for value in row] for row in rows])
    return out.getvalue()


def _csv_cell(value: Any) -> Any:
    # A spreadsheet executes text that starts like a formula. Negative numbers are floats here and keep their sign.
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else value
