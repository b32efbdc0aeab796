"""Charts as inline SVG: bars, curves against pauses, loss against step.

Invariant: the same numbers give the same bytes, and nothing in an SVG points outside the page. Text stays text, ink and
series colours become CSS variables so that the page's light, dark and print styles colour the figures too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any

from pausebench.results.analysis import baseline
from pausebench.results.statistics import interval, number, plus_minus, report_extra, summarise
from pausebench.results.study import Panel, Scores, Setting, Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH_INCHES = 4.6

# Stand-ins that matplotlib can draw with; `_themed` turns them into CSS. The series are Okabe and Ito's palette.
INK, GRID, PAPER = "#010203", "#a1a2a3", "#f1f2f3"
CSS_OF = {INK: "currentColor", GRID: "var(--grid)", PAPER: "var(--paper)"}


@dataclass(frozen=True)
class Look:
    """How one series is drawn: colour, marker and hatch all differ, so that no reader depends on colour."""

    color: str
    marker: str
    hatch: str
    dash: str


GREY, ORANGE, GREEN, BLUE, PURPLE = "#6b7280", "#e69f00", "#009e73", "#0072b2", "#cc79a7"
CSS_OF |= {
    color: f"var(--{name})"
    for color, name in ((GREY, "grey"), (ORANGE, "orange"), (GREEN, "green"), (BLUE, "blue"), (PURPLE, "purple"))
}
LOOKS = {
    "StdPT_StdFT": Look(GREY, "o", "", ":"),
    "StdPT_PauseFT": Look(ORANGE, "s", "///", "--"),
    "PausePT_StdFT": Look(GREEN, "^", "\\\\", "-."),
    "PausePT_PauseFT": Look(BLUE, "D", "xx", "-"),
    "StdPT": Look(ORANGE, "s", "///", "--"),
    "PausePT": Look(BLUE, "D", "xx", "-"),
}
OTHER_LOOK = Look(PURPLE, "v", "--", "--")


@dataclass(frozen=True)
class Plot:
    """One figure: the SVG, what it shows in words, and its numbers as a table."""

    title: str
    caption: str
    svg: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def look_of(name: str) -> Look:
    """The look of a variant or a kind of pretraining."""
    return LOOKS.get(name, OTHER_LOOK)


def draw_bars(
    identifier: str,
    title: str,
    setting: Setting,
    caption: str,
    arms: Sequence[Scores],
    labels: Sequence[str],
    looks: Sequence[Look],
    chance: float | None,
) -> Plot:
    """Horizontal bars, one an arm in the order given, with interval, single seeds and, where known, chance."""
    summaries = [summarise(list(scores.values.values())) for scores in arms]
    rows = tuple(
        (label, plus_minus(summary), interval(summary.interval), str(summary.n))
        for label, summary in zip(labels, summaries, strict=True)
    )

    def paint(axes: Axes) -> None:
        for place, (scores, summary, look) in enumerate(zip(arms, summaries, looks, strict=True)):
            if summary.mean is None:
                axes.text(0.01, place, "missing", va="center", color=INK)
                continue
            axes.barh(place, summary.mean, height=0.62, color=look.color, alpha=0.28, linewidth=0)
            axes.barh(
                place, summary.mean, height=0.62, fill=False, hatch=look.hatch, edgecolor=look.color, linewidth=1.2
            )
            if summary.interval:
                low, high = (min(max(end, 0.0), 1.0) for end in summary.interval)
                axes.plot([low, high], [place - 0.14] * 2, color=INK, linewidth=1.5, marker="|", markersize=5, zorder=3)
            _dots(axes, [(value, place + 0.15) for value in scores.values.values()], INK, 4)
        if chance is not None:
            axes.axvline(chance, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
            axes.text(chance, -0.62, f"chance {chance:.2f}", ha="center", va="bottom", color=INK, fontsize=9)
        axes.set(yticks=range(len(labels)), yticklabels=labels, xlim=(0, 1.03), ylim=(len(labels) - 0.4, -0.6))
        axes.set_xlabel(_metric(arms))
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)

    svg = draw_svg(f"{identifier}-{setting.label}", f"{title}. {spoken(rows)}", 0.95 + 0.36 * len(arms), paint)
    return Plot(title, caption, svg, ("arm", "mean ± deviation", "95 % interval", "seeds"), rows)


def draw_curve(
    identifier: str,
    study: Study,
    panel: Panel,
    setting: Setting,
    caption: str,
    lines: Mapping[str, list[tuple[int, Scores]]],
    xlabel: str,
    marks: Sequence[int] = (),
) -> Plot:
    """Score against pauses: `lines` are (pauses, scores) by label, `marks` get a vertical line that says M = K."""
    reference = baseline(study, panel, setting)
    level = summarise(list(reference.values.values())).mean if reference else None
    if level is not None:
        caption += " Dashed: StdPT_StdFT, no pauses anywhere."
    rows = []
    for label, points in lines.items():
        for place, scores in points:
            summary = summarise(list(scores.values.values()))
            rows.append((label, str(place), plus_minus(summary), interval(summary.interval), str(summary.n)))

    def paint(axes: Axes) -> None:
        ticks = sorted({place for points in lines.values() for place, _ in points})
        step = (max(ticks) - min(ticks)) / 90 if len(ticks) > 1 else 0.1
        for mark in marks:
            axes.axvline(mark, color=INK, linewidth=0.9, linestyle=(0, (1, 2)))
            axes.text(mark, 1.05, f"M = K = {mark}", ha="center", va="bottom", color=INK, fontsize=9)
        if level is not None:
            draw_reference(axes, level, None)
        for order, (label, points) in enumerate(lines.items()):
            look, shift = look_of(label), (2 * order - len(lines) + 1) * step
            done = [(place + shift, scores, summarise(list(scores.values.values()))) for place, scores in points]
            known = [(place, summary.mean) for place, _, summary in done if summary.mean is not None]
            for place, scores, summary in done:
                if summary.interval:
                    ends = [min(max(end, 0.0), 1.0) for end in summary.interval]
                    axes.plot([place, place], ends, color=look.color, linewidth=1.1)
                _dots(axes, [(place, value) for value in scores.values.values()], look.color, 3.2)
            if known:
                axes.plot(
                    *zip(*known, strict=True), color=look.color, label=label, linestyle=look.dash, marker=look.marker,
                    markersize=6, zorder=5,
                )  # fmt: skip
        axes.set(xlabel=xlabel, ylabel=_metric([scores for points in lines.values() for _, scores in points]))
        axes.set(ylim=(0, 1.03), xticks=ticks)
        _legend(axes, 1.08 if marks else 1.0)

    svg = draw_svg(f"{identifier}-{setting.label}", f"{panel.title}, {setting.label}. {spoken(rows)}", 3.0, paint)
    columns = ("line", xlabel.split(",")[0], "mean ± deviation", "95 % interval", "seeds")
    return Plot(f"{panel.title} · {setting.label}", caption, svg, columns, tuple(rows))


def draw_training(
    identifier: str, title: str, caption: str, groups: Mapping[str, tuple[Look, Sequence[Mapping[int, float]]]]
) -> Plot | None:
    """Loss against step; `groups` are {name: (look, {step: loss} of each seed)}. None when no group has a curve."""
    curves = {name: members for name, (_, members) in groups.items() if members}
    if not curves:
        return None
    rows = []
    for name, members in curves.items():
        ends = [curve[max(curve)] for curve in members]
        rows.append((name, number(summarise(ends).mean), str(max(max(curve) for curve in members)), str(len(members))))

    def paint(axes: Axes) -> None:
        for name, members in curves.items():
            look = groups[name][0]
            for curve in members:
                axes.plot(*_thinned(curve), color=look.color, linewidth=0.6, alpha=0.45)
            shared = sorted(set(members[0]).intersection(*members[1:]))
            mean = {step: math.fsum(curve[step] for curve in members) / len(members) for step in shared}
            if mean:
                steps, losses = _thinned(mean)
                every = max(1, len(steps) // 6)
                axes.plot(
                    steps, losses, color=look.color, linewidth=1.8, linestyle=look.dash, label=name,
                    marker=look.marker, markersize=4, markevery=every,
                )  # fmt: skip
        axes.set(xlabel="step", ylabel="loss")
        _legend(axes)

    svg = draw_svg(identifier, f"{title} against step. {spoken(rows)}", 3.0, paint)
    return Plot(title, caption, svg, ("run", "last loss, mean over seeds", "last step", "seeds"), tuple(rows))


def draw_svg(identifier: str, label: str, height_inches: float, paint: Callable[[Axes], None]) -> str:
    """The SVG of what `paint` puts on the axes, read aloud as `label`; `identifier` is unique on the page."""
    matplotlib = report_extra("matplotlib")
    figure_module = report_extra("matplotlib.figure")
    style: dict[str, Any] = {
        "svg.fonttype": "none", "text.parse_math": False, "svg.hashsalt": identifier,
        "font.family": "sans-serif", "font.size": 10,
        "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "text.color": INK,
        "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.7, "axes.axisbelow": True,
        "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.6, "hatch.linewidth": 0.7, "lines.linewidth": 1.6,
    }  # fmt: skip
    with matplotlib.rc_context(style):
        figure = figure_module.Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")
        axes = figure.add_subplot()
        axes.patch.set_visible(False)
        figure.patch.set_visible(False)
        paint(axes)
        buffer = StringIO()
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _themed(buffer.getvalue(), identifier, label)


def draw_reference(axes: Axes, level: float, label: str | None) -> None:
    """A dashed level across the axes, with its label at the right end."""
    axes.axhline(level, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
    if label:
        axes.text(1.0, level + 0.015, label, transform=axes.get_yaxis_transform(), ha="right", color=INK, fontsize=9)


def spoken(rows: Iterable[Sequence[str]]) -> str:
    """The rows of a table as words, for readers who cannot see the figure."""
    return "; ".join(", ".join(cell for cell in row if cell != "-") for row in rows)


def _thinned(curve: Mapping[int, float], most: int = 200) -> tuple[list[int], list[float]]:
    steps = sorted(curve)
    stride = math.ceil(len(steps) / most)
    kept = [*steps[:-1:stride], steps[-1]]
    return kept, [curve[step] for step in kept]


def _dots(axes: Axes, places: Sequence[tuple[float, float]], color: str, size: float) -> None:
    for x, y in places:
        axes.plot(
            [x], [y], marker="o", markersize=size, color=PAPER, markeredgecolor=color, markeredgewidth=1, zorder=4,
            clip_on=False,
        )  # fmt: skip


def _legend(axes: Axes, bottom: float = 1.0) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower center", bbox_to_anchor=(0.45, bottom), ncols=2, frameon=False, labelcolor=INK)


def _metric(arms: Sequence[Scores]) -> str:
    names = {cell.result.metric for scores in arms for cell in scores.cells if cell.result}
    return " / ".join(sorted(names)).replace("_", " ") or "score"


def _themed(svg: str, identifier: str, label: str) -> str:
    """Cut matplotlib's file down to what may stand inside an HTML page beside its siblings."""
    slug = "f-" + re.sub(r"[^a-z0-9]+", "-", identifier.lower()).strip("-")
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;]*; ?", "", svg)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{slug}-", svg)
    for color, css in CSS_OF.items():
        svg = svg.replace(color, css)
    view_box = re.search(r'viewBox="[^"]*"', svg)
    assert view_box is not None, "matplotlib always writes a viewBox"
    escaped = report_extra("markupsafe").escape(label)
    body = svg[svg.index(">") + 1 :]
    return f'<svg {view_box.group(0)} role="img" aria-label="{escaped}">{body}'
