"""The report's files beside the page: Markdown, CSV and LaTeX tables, and every figure as SVG and PNG.

Invariant: the same runs give the same bytes, each file is whole or absent, and no text from a run is read as markup, as
a LaTeX command or as a spreadsheet's formula.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from io import StringIO
from pathlib import Path
from typing import Any

from pausebench.report.comparisons import Contrast
from pausebench.report.figures import Drawing
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
WIDE = 5  # so many columns do not fit a page's text width


def write_exports(
    folder: Path,
    scored: ScoredStudy,
    sheets: Sequence[Sheet],
    contrasts: Mapping[str, Sequence[Contrast]],
    drawings: Sequence[Drawing],
) -> None:
    """Fill a study's folder and drop the figures of an earlier report that it no longer has.

    Raises RunFailed where the disk does not take a file.
    """
    pictures = folder / "figures"
    try:
        pictures.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(pictures, error) from None
    write_atomically(folder / "table.md", _bytes(as_markdown(scored.study.title, sheets)))
    write_atomically(folder / "table.tex", _bytes(as_latex(scored.study.title, sheets)))
    write_atomically(folder / "table.csv", _bytes(as_csv(scored)))
    write_atomically(folder / "comparisons.csv", _bytes(comparisons_csv(contrasts)))
    for drawing in drawings:
        write_atomically(pictures / f"{drawing.name}.svg", _bytes(drawing.standalone))
        write_atomically(pictures / f"{drawing.name}.png", drawing.png)
    current = {f"{drawing.name}{ending}" for drawing in drawings for ending in (".svg", ".png")}
    for path in pictures.iterdir():
        if path.suffix in (".svg", ".png") and path.name not in current:
            with suppress(OSError):
                path.unlink()


def folder_names(studies: Sequence[Study]) -> list[str]:
    """A folder name for each study: its own, made safe and unique, never that of the page."""
    taken, names = {"index.html"}, []
    for study in studies:
        safe = re.sub(r"[^A-Za-z0-9._-]+", "_", study.result).strip(".") or "study"
        name = next(name for name in (safe, *(f"{safe}-{n}" for n in range(2, 10_000))) if name.lower() not in taken)
        taken.add(name.lower())
        names.append(name)
    return names


def as_markdown(title: str, sheets: Iterable[Sheet]) -> str:
    """Every sheet as a table of GitHub's Markdown under a heading; groups are rows in bold."""
    blocks = [f"# {markdown(title)}"]
    for sheet in sheets:
        width = len(sheet.columns) + 1
        rows = [
            _markdown_row([sheet.corner, *sheet.columns]),
            f"|{'|'.join(['---', *('---:' for _ in sheet.columns)])}|",
        ]
        for group in sheet.groups:
            if group.title:
                rows.append(f"| **{markdown(group.title)}** |{' |' * (width - 1)}")
            rows += [_markdown_row([line.head, *line.cells]) for line in group.lines]
        blocks += [f"## {markdown(sheet.title)}", "\n".join(rows), *(markdown(note) for note in sheet.notes if note)]
    return "\n\n".join(blocks) + "\n"


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(markdown(cell) for cell in cells)} |"


def markdown(text: str) -> str:
    """Text that Markdown shows as it is: one line, its marks escaped; numbers need none."""
    flat = " ".join(text.split())
    return flat if re.fullmatch(r"[\[\]()+±0-9., -]*", flat) else re.sub(r"([\\`*_{}\[\]<>#|~$&])", r"\\\1", flat)


LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", "±": r"$\pm$", "−": r"$-$", "·": r"$\cdot$", "×": r"$\times$",
    "–": "--", "—": "---", "…": r"\dots{}", "‘": "`", "’": "'", "“": "``", "”": "''", "\u00a0": "~",
}  # fmt: skip


def latex(text: str) -> str:
    """Text that LaTeX sets as it is; a character that pdfLaTeX cannot set is named by its code point."""
    out = []
    for character in " ".join(text.split()):
        if character in LATEX:
            out.append(LATEX[character])
        elif " " <= character <= "~" or "\u00c0" <= character <= "\u017f":
            out.append(character)
        else:
            out.append(f"U+{ord(character):04X}")
    return "".join(out).replace("[", "{[}").replace("]", "{]}")  # after \\ a bracket would be an option


def as_latex(title: str, sheets: Iterable[Sheet]) -> str:
    r"""Every sheet as a `table` with booktabs' rules, to be read with \input."""
    blocks = [f"% {latex(title)}\n% needs \\usepackage[T1]{{fontenc}}, booktabs and graphicx"]
    for sheet in sheets:
        width = len(sheet.columns) + 1
        lines = [f"{latex(sheet.corner)} & {' & '.join(map(latex, sheet.columns))} \\\\", "\\midrule"]
        for place, group in enumerate(sheet.groups):
            if place:
                lines.append("\\addlinespace")
            if group.title:
                lines.append(f"\\multicolumn{{{width}}}{{l}}{{\\textbf{{{latex(group.title)}}}}} \\\\")
            lines += [f"{' & '.join(map(latex, (line.head, *line.cells)))} \\\\" for line in group.lines]
        body = "\n".join(
            [
                f"\\begin{{tabular}}{{l{'r' * len(sheet.columns)}}}",
                "\\toprule",
                *lines,
                "\\bottomrule",
                "\\end{tabular}",
            ]
        )
        if len(sheet.columns) >= WIDE:
            body = f"\\resizebox{{\\linewidth}}{{!}}{{%\n{body}}}"
        caption = latex(". ".join([sheet.title, *(note.rstrip(".") for note in sheet.notes if note)]))
        blocks.append(f"\\begin{{table}}[tbp]\n\\centering\\small\n{body}\n\\caption{{{caption}.}}\n\\end{{table}}")
    return "\n\n".join(blocks) + "\n"


def as_csv(scored: ScoredStudy) -> str:
    """Long form: one row an arm of a task and metric, `target_nll` (nats a token) among the metrics."""
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
        names[NLL] = None  # the last, in every arm
    for name in names:
        values, summary = scores.values(name), scores.summary(name)
        figure = setting.published(arm, name)
        printed = (
            [figure.mean, figure.deviation, published.name_of_metric(setting.task, name)] if figure else [None] * 3
        )
        ours = [name, summary.mean, summary.deviation, summary.n, len(scores.seeds)]
        single = [values.get(seed) for seed in seeds]
        yield [*where, arm.control, arm.prefix, *ours, *printed, scores.mean_of("inference_flops"), *single]


def comparisons_csv(contrasts: Mapping[str, Sequence[Contrast]]) -> str:
    """One row a planned comparison; `p_holm` is corrected over its family (`primary` or `secondary`)."""
    rows = []
    for family, members in contrasts.items():
        for contrast in members:
            c, setting = contrast.comparison, contrast.setting
            low, high = c.interval or (None, None)
            where = [setting.panel.title, setting.task, "+".join(setting.worlds)]
            sides = [contrast.treatment.arm.label, contrast.control.arm.label]
            tested = [c.n, c.difference, low, high, c.p, contrast.adjusted_p, c.effect_size, c.smallest_detectable]
            rows.append([family, *where, *sides, *tested, contrast.published_difference])
    return _csv([list(COMPARISON_COLUMNS), *rows])


def _csv(rows: Iterable[Sequence[Any]]) -> str:
    out = StringIO()
    csv.writer(out, lineterminator="\n").writerows([[_csv_cell(value) for value in row] for row in rows])
    return out.getvalue()


def _csv_cell(value: Any) -> Any:
    # A spreadsheet runs text that starts like a formula; numbers of ours, signed ones too, are no text.
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else value


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "replace")
