"""The figures of the report: which runs each shows, in what order and how it is drawn.

Invariant: every figure carries the table of its numbers. A figure of scores shows a planned arm without a result as
missing; a figure of losses shows the runs that have a curve.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO, StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pausebench.config.pauses import PRETRAINING_NAMES
from pausebench.report.comparisons import InstrumentCheck, baseline
from pausebench.report.scores import ScoredStudy, Scores, Setting
from pausebench.report.statistics import Summary, interval, number, plus_minus, report_extra, summarise
from pausebench.report.tables import Group, Line, Sheet, better_arms, like_table1, placed_label, with_references
from pausebench.runs.folder import finite, read_metrics
from pausebench.study.study import Arm
from pausebench.tasks import published
from pausebench.tasks.published import Published

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BARS = "Bars: mean over seeds. Lines: 95 % interval. Dots: single seeds."
LINES = "Error bars: 95 % interval over seeds; dots: single seeds."
CURVES = "Thick: mean over seeds. Thin: single seeds."
MEAN = "mean ± std"
WIDTH_INCHES = 4.6
# 920 pixels: sharp at half the width of a page in print.
PNG_DOTS_PER_INCH = 200

# The light theme. `_for_page` turns each colour into a CSS variable, so that the page's dark theme recolours figures.
INK, GRID, PAPER = "#1b1f24", "#e3e6ea", "#fcfcfa"
# Okabe and Ito's palette, which stays distinct in the common kinds of colour blindness.
GREY, ORANGE, GREEN, BLUE, PURPLE = "#6b7280", "#e69f00", "#009e73", "#0072b2", "#cc79a7"
CSS_OF = {
    INK: "currentColor", GRID: "var(--grid)", PAPER: "var(--paper)", GREY: "var(--grey)", ORANGE: "var(--orange)",
    GREEN: "var(--green)", BLUE: "var(--blue)", PURPLE: "var(--purple)",
}  # fmt: skip
THIN: dict[str, Any] = {"color": INK, "linewidth": 0.9}
DASHED, DOTTED = (0, (4, 3)), (0, (1, 2))


@dataclass(frozen=True)
class Look:
    """How one series is drawn: marker, hatch and dash differ as well as colour, so that nobody depends on colour."""

    color: str
    marker: str
    hatch: str
    dash: str


LOOKS = {
    "StdPT_StdFT": Look(GREY, "o", "", ":"),
    "StdPT_PauseFT": Look(ORANGE, "s", "///", "--"),
    "PausePT_StdFT": Look(GREEN, "^", "\\\\", "-."),
    "PausePT_PauseFT": Look(BLUE, "D", "xx", "-"),
}
# A line over K covers variants with and without pauses; it has the look of the variant with them.
LOOKS |= {"StdPT": LOOKS["StdPT_PauseFT"], "PausePT": LOOKS["PausePT_PauseFT"]}


def look_of(name: str) -> Look:
    """The look of a variant or a kind of pretraining."""
    return LOOKS.get(name, Look(PURPLE, "v", "--", "--"))


@dataclass(frozen=True)
class Plot:
    """One figure three times, `svg` for inside the page, `standalone` and `png` for files called `name`; its numbers.

    sheet: the numbers as a table, with the figure's title, and its caption as the note.
    """

    name: str
    svg: str
    standalone: str
    png: bytes
    sheet: Sheet


@dataclass(frozen=True)
class Point:
    """One mark of a figure of scores: its series, its x, the arm behind it, and the paper's figure beside it."""

    name: str
    x: int
    scores: Scores
    printed: Published | None = None

    @property
    def summary(self) -> Summary:
        return self.scores.summary()

    @property
    def seeds(self) -> list[float]:
        """The single seeds."""
        return list(self.scores.values().values())


def jobs(setting: Setting) -> list[partial[Plot]]:
    """The figures of scores that belong to a setting, each still to be drawn: drawing is most of a report's time."""
    panel = setting.panel
    if panel.kind == "k_curve":
        return [partial(k_curve, setting)]
    if panel.kind == "m_curve":
        # Models finetuned with 10 and with 50 pauses have their optimum at different M, and share no axis.
        return [partial(m_curve, setting, counts) for counts in _counts_of(setting)]
    return [partial(better_bars if like_table1(setting.scored, panel) else bars, setting)]


def bars(setting: Setting) -> Plot:
    """A bar for each arm of a panel of variants, placements, controls or fillers."""
    kind, title, caption = setting.panel.kind, f"{setting.panel.title} · {setting.label}", ""
    several = len({scores.arm.variant for scores in setting.arms}) > 1

    def name(arm: Arm) -> str:
        if kind == "placement":
            return f"{placed_label(arm)}{f', {arm.pauses}' if arm.k else ''}"
        if kind == "filler":
            return f"{arm.variant + ': ' if several else ''}{arm.inserted}"
        return arm.control or arm.label

    if kind == "variants":
        title = setting.label
    elif kind == "controls":
        caption = "What is left of the gain when one part of the method is taken away? "
        # A control has no published figure, and one beside the references alone would look like their control.
        return _bars(setting, title, caption, [Point(name(s.arm), 0, s) for s in with_references(setting)])
    elif kind == "filler":
        caption = (
            "A control: do extra tokens help a model that was never trained with them? If they did, more time alone "
            "would be enough. "
        )
    points = [Point(name(s.arm), 0, s, setting.published(s.arm)) for s in setting.arms]
    return _bars(setting, title, caption, points)


def better_bars(setting: Setting) -> Plot:
    """Figures 3 and 5: each variant at its better K."""
    arms, chosen = better_arms(setting.arms)
    points = []
    for scores in arms:
        # The paper chose its K by its own scores, and need not have chosen ours.
        same = [other.arm for other in setting.arms if other.arm.variant == scores.arm.variant]
        figures = [figure for arm in same if (figure := setting.published(arm))]
        points.append(Point(scores.arm.label, 0, scores, max(figures, key=lambda figure: figure.mean, default=None)))
    return _bars(setting, setting.label, f"PauseFT: {chosen}. " if chosen else "", points)


def k_curve(setting: Setting) -> Plot:
    """Score against K, the pauses of finetuning, one line for each pretraining; M = K."""

    def name(arm: Arm) -> str:
        # A random K is no point of the line of fixed ones: it is drawn at its maximum, under its own name.
        return f"{arm.stage}, {arm.pauses}" if arm.k_range else arm.stage

    points = [Point(name(s.arm), s.arm.k, s, setting.published(s.arm)) for s in setting.arms]
    caption = f"How many pauses are best? Each model is finetuned and evaluated with its own K. {LINES}"
    identifier, title = f"{setting.scored.study.result}-{setting.panel.id}", setting.panel.title
    return _curve(setting, (identifier, title, caption), points, "K, pauses in finetuning")


def m_curve(setting: Setting, counts: str) -> Plot:
    """Score against M, the pauses at inference, for models finetuned with `counts` pauses; M = K is marked."""
    arms = [scores for scores in setting.arms if scores.arm.counts == counts]
    points = [Point(s.arm.variant, s.arm.mt, s, setting.published(s.arm)) for s in arms]
    random = arms[0].arm.k_range is not None
    words = arms[0].arm.pauses if random else f"K = {counts}"
    caption = (
        "What if a finished model gets fewer or more pauses than it was trained with? "
        f"All were finetuned with {words}; only the pauses at inference change. {LINES}"
    )
    identifier, title = f"{setting.scored.study.result}-{setting.panel.id}", setting.panel.title
    if len(_counts_of(setting)) > 1:
        identifier, title = f"{identifier}-k{counts}", f"{title}, {words}"
    mark = None if random else arms[0].arm.k
    return _curve(setting, (identifier, title, caption), points, "M, pauses at inference", mark)


def _counts_of(setting: Setting) -> list[str]:
    return list(dict.fromkeys(arm.counts for arm in sorted((s.arm for s in setting.arms), key=lambda arm: arm.k)))


def relay_curve(result: str, check: InstrumentCheck) -> Plot:
    """Relay's token accuracy against K with the chance line."""
    means = [(k, summary.mean) for k, summary in check.points if summary.mean is not None]
    rows = [(str(k), plus_minus(summary), str(summary.n)) for k, summary in check.points]

    def paint(axes: Axes) -> None:
        look = LOOKS["PausePT_PauseFT"]
        axes.plot(*zip(*means, strict=True) if means else ([], []), color=look.color, marker=look.marker, markersize=5)
        axes.axhline(check.chance, linestyle=DASHED, **THIN)
        right: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "ha": "right"}
        axes.text(1.0, check.chance + 0.015, "chance", color=INK, fontsize=9, **right)
        # The whole scale, because the check is about two ends of it: guessing, and copying without error.
        axes.set(xlabel="K, pauses", ylabel="token accuracy", ylim=(0, 1.03), xticks=[k for k, _ in check.points])

    caption = "Relay lets the answer see the question through the pauses only. Without pauses it has to guess."
    return _plot(f"{result}-relay", "Relay", caption, ("K", "token accuracy", "seeds"), rows, 2.5, paint)


def _bars(setting: Setting, title: str, caption: str, points: Sequence[Point]) -> Plot:
    """Horizontal bars in the order given, each published figure as a thin hollow bar below ours."""
    printed = any(point.printed for point in points)
    rows = [(point.name, *_numbers(point, printed)) for point in points]
    caption += BARS + (f" Hollow, dashed: {published.LABEL}, with its std." if printed else "")

    def paint(axes: Axes) -> None:
        for y, point in enumerate(points):
            _bar(axes, y, point, printed)
        if setting.chance is not None:
            axes.axvline(setting.chance, linestyle=DASHED, **THIN)
            text = f"chance {setting.chance:.2f}"
            axes.text(setting.chance, -0.62, text, ha="center", va="bottom", color=INK, fontsize=9)
        # The limits run downwards: the first arm is at the top, as in the table.
        axes.set(yticks=range(len(points)), yticklabels=[point.name for point in points])
        axes.set(ylim=(len(points) - 0.4, -0.6), xlim=(0, _top(points, setting.chance)), xlabel=_metric(points))
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)

    # A bar keeps its thickness however many there are: the figure grows instead.
    height = 0.95 + (0.44 if printed else 0.36) * len(points)
    identifier = f"{setting.scored.study.result}-{setting.panel.id}-{setting.label}"
    return _plot(identifier, title, caption, ("arm", *_columns(printed)), rows, height, paint)


def _bar(axes: Axes, y: float, point: Point, printed: bool) -> None:
    summary, look = point.summary, look_of(point.scores.arm.variant)
    if (figure := point.printed) is not None:
        axes.barh(y + 0.34, figure.mean, height=0.2, fill=False, edgecolor=INK, linewidth=0.9, linestyle=(0, (3, 2)))
        axes.plot(_ends(figure), [y + 0.34] * 2, marker="|", markersize=4, **THIN)
    if summary.mean is None:
        axes.text(0.01, y, "missing", va="center", color=INK, transform=axes.get_yaxis_transform())
        return
    middle, height = (y - 0.1, 0.5) if printed else (y, 0.62)
    # Twice, because alpha would fade the edge and the hatch too.
    axes.barh(middle, summary.mean, height=height, color=look.color, alpha=0.28, linewidth=0)
    axes.barh(middle, summary.mean, height=height, fill=False, hatch=look.hatch, edgecolor=look.color, linewidth=1.2)
    if summary.interval:
        ends = _clipped(summary.interval)
        axes.plot(ends, [middle - 0.14] * 2, color=INK, linewidth=1.5, marker="|", markersize=5, zorder=3)
    # Below the interval, not on it: with three seeds the dots are the data and the interval a summary.
    _dots(axes, [(value, middle + 0.13) for value in point.seeds], INK, 4)


def _curve(
    setting: Setting, texts: tuple[str, str, str], points: Sequence[Point], xlabel: str, mark: int | None = None
) -> Plot:
    """Score against pauses, a line for each name; `texts` are identifier, title and caption.

    `mark` gets a vertical line that says M = K. Points that the paper prints (Table 1) are hollow squares beside ours.
    """
    identifier, title, caption = texts
    names = list(dict.fromkeys(point.name for point in points))
    lines = [sorted((p for p in points if p.name == name), key=lambda p: p.x) for name in names]
    reference = baseline(setting)
    level = reference.summary().mean if reference else None
    if level is not None:
        caption += " Dashed: StdPT_StdFT, no pauses anywhere."
    printed = any(point.printed for point in points)
    if printed:
        caption += f" Hollow squares with a thin line: {published.LABEL}, with its std."
    rows = [(p.name, str(p.x), *_numbers(p, printed)) for line in lines for p in line]

    def paint(axes: Axes) -> None:
        xs, top = {point.x for point in points}, _top(points, level)
        step = (max(xs) - min(xs)) / 90 if len(xs) > 1 else 0.1
        if mark is not None:
            axes.axvline(mark, linestyle=DOTTED, **THIN)
            axes.text(mark, 1.02 * top, f"M = K = {mark}", ha="center", va="bottom", color=INK, fontsize=9)
        if level is not None:
            axes.axhline(level, linestyle=DASHED, **THIN)
        for order, line in enumerate(lines):
            # Lines are moved apart by about a marker's width, so that their intervals do not cover each other.
            _line(axes, line, (2 * order - len(lines) + 1) * step)
        ticks = _spread(xs)
        axes.set(xlabel=xlabel, ylabel=_metric(points), ylim=(0, top), xticks=ticks, xticklabels=map(str, ticks))
        _legend(axes, 1.0 if mark is None else 1.08)

    columns = ("line", xlabel.split(",")[0], *_columns(printed))
    identifier = f"{identifier}-{setting.label}"
    return _plot(identifier, f"{title} · {setting.label}", caption, columns, rows, 3.0, paint)


def _line(axes: Axes, line: Sequence[Point], shift: float) -> None:
    look = look_of(line[0].name.partition(",")[0])
    for point in line:
        if bounds := point.summary.interval:
            axes.plot([point.x + shift] * 2, _clipped(bounds), color=look.color, linewidth=1.1)
        _dots(axes, [(point.x + shift, value) for value in point.seeds], look.color, 3.2)
    for point in line:
        if (figure := point.printed) is not None:
            # Further out than ours, on the same side: each line has its published points beside it.
            x = point.x + 2.2 * shift
            axes.plot([x] * 2, _ends(figure), color=look.color, linewidth=0.8, linestyle=(0, (2, 2)))
            square: dict[str, Any] = {"marker": "s", "markersize": 6, "color": PAPER, "markeredgecolor": look.color}
            axes.plot([x], [figure.mean], linestyle="", **square)
    known = [(point.x + shift, mean) for point in line if (mean := point.summary.mean) is not None]
    if known:
        style: dict[str, Any] = {"color": look.color, "linestyle": look.dash, "marker": look.marker, "markersize": 6}
        axes.plot(*zip(*known, strict=True), label=line[0].name, zorder=5, **style)


def cost(setting: Setting) -> Plot | None:
    """Score against the FLOPs of an answer, one mark for each arm; None if fewer than two arms have both."""
    found = [(s, s.mean_of("inference_flops"), s.summary()) for s in setting.arms]
    points = [(s.arm, flops, ours.mean, ours) for s, flops, ours in found if flops and ours.mean is not None]
    if len(points) < 2:
        return None
    rows = [(arm.label, f"{flops:.3g}", plus_minus(ours)) for arm, flops, _, ours in points]

    def paint(axes: Axes) -> None:
        for arm, flops, mean, ours in points:
            look = look_of(arm.variant)
            if ours.interval:
                axes.plot([flops] * 2, _clipped(ours.interval), color=look.color, linewidth=1.1)
            axes.plot([flops], [mean], color=look.color, marker=look.marker, markersize=7, linestyle="")
            if arm.k:
                beside: dict[str, Any] = {"xytext": (6, 4), "textcoords": "offset points"}
                axes.annotate(arm.pauses, (flops, mean), color=INK, fontsize=8, **beside)
        for name in dict.fromkeys(arm.variant for arm, *_ in points):
            look = look_of(name)
            axes.plot([], [], color=look.color, marker=look.marker, linestyle="", label=name)
        every = [Point("", 0, scores) for scores in setting.arms]
        # From zero on both axes: a pause costs a few per cent of an answer, and must look like it.
        axes.set(xlabel="FLOPs an answer at inference", ylabel=_metric(every))
        axes.set(ylim=(0, _top(every, None)), xlim=(0, 1.12 * max(flops for _, flops, *_ in points)))
        _legend(axes)

    identifier = f"{setting.scored.study.result}-{setting.panel.id}-cost-{setting.label}"
    caption = "Up is better, left is cheaper. Lines: 95 % interval over seeds."
    columns = ("arm", "FLOPs an answer", MEAN)
    return _plot(identifier, f"Score against cost · {setting.label}", caption, columns, rows, 3.0, paint)


def finetuning_curves(setting: Setting) -> Plot | None:
    """Finetuning loss against step by variant, from the finetune runs of a variants panel; None without any curve."""
    scored = setting.scored
    groups = {
        s.arm.label: (look_of(s.arm.variant), _curves(scored.runs / "finetune", s.cells.finetune_run))
        for s in setting.arms
    }
    identifier = f"{scored.study.result}-{setting.panel.id}-finetuning-{setting.label}"
    several = f" · {setting.panel.title}" if len(list(scored.study.of_kind("variants"))) > 1 else ""
    caption = f"{CURVES} Loss over the answer alone, nats per token."
    return _losses(identifier, f"Finetuning loss{several} · {setting.label}", caption, groups)


def pretraining_curves(scored: ScoredStudy, world: str) -> Plot | None:
    """Pretraining loss against step for both kinds of pretraining in one world; None without any curve."""
    cells = scored.cells[scored.cells.world == world].dropna(subset="pretrain_run")
    stages = [arm.stage for arm in cells.arm]
    runs = cells.pretrain_run.groupby(stages).apply(list)
    names = [name for name in sorted(set(stages), reverse=True) if name != PRETRAINING_NAMES["none"]]
    groups = {name: (look_of(name), _curves(scored.runs / "pretrain", runs[name])) for name in names}
    caption = (
        f"{CURVES} Nats per supervised token. The two are averages over different positions: "
        "with pauses in the text, a position before a pause is not scored."
    )
    return _losses(f"{scored.study.result}-{world}-pretraining", f"Pretraining loss · {world}", caption, groups)


def read_curve(run: Path) -> dict[int, float]:
    """{step: loss} of a run's `metrics.jsonl`, without losses that are not finite; {} without a file."""
    path = run / "metrics.jsonl"
    rows = read_metrics(path) if path.is_file() else []
    return {row["step"]: loss for row in rows if (loss := finite(row.get("loss"))) is not None}


def _curves(folder: Path, names: Iterable[str]) -> list[dict[int, float]]:
    # Cells that differ in M alone share a run; its curve must not count twice in the mean.
    return [curve for name in sorted({name for name in names if name}) if (curve := read_curve(folder / name))]


def _losses(
    identifier: str, title: str, caption: str, groups: Mapping[str, tuple[Look, Sequence[Mapping[int, float]]]]
) -> Plot | None:
    """Loss against step; `groups` are {name: (look, {step: loss} of each seed)}. None when no group has a curve."""
    groups = {name: (look, curves) for name, (look, curves) in groups.items() if curves}
    if not groups:
        return None
    rows = []
    for name, (_, curves) in groups.items():
        last = [max(curve) for curve in curves]
        losses = [curve[step] for curve, step in zip(curves, last, strict=True)]
        rows.append((name, number(summarise(losses).mean), str(max(last)), str(len(curves))))

    def paint(axes: Axes) -> None:
        drawn: set[Look] = set()
        for name, (look, curves) in groups.items():
            # Two K of one variant share its look; the second has hollow marks.
            _loss(axes, name, look, curves, fill=PAPER if look in drawn else look.color)
            drawn.add(look)
        axes.set(xlabel="step", ylabel="loss")
        _legend(axes)

    columns = ("run", "last loss, mean over seeds", "last step", "seeds")
    return _plot(identifier, title, caption, columns, rows, 3.0, paint)


def _loss(axes: Axes, name: str, look: Look, curves: Sequence[Mapping[int, float]], fill: str) -> None:
    for curve in curves:
        axes.plot(*_thinned(curve), color=look.color, linewidth=0.6, alpha=0.45)
    # A seed that has not finished would bend the mean where it ends, so the mean ends with the shortest curve.
    shared = set(curves[0]).intersection(*curves[1:])
    if shared:
        steps, losses = _thinned({step: math.fsum(curve[step] for curve in curves) / len(curves) for step in shared})
        mark: dict[str, Any] = {"marker": look.marker, "markersize": 5, "markerfacecolor": fill}
        mark["markevery"] = max(1, len(steps) // 6)
        axes.plot(steps, losses, color=look.color, linewidth=1.8, linestyle=look.dash, label=name, **mark)


def _thinned(curve: Mapping[int, float], most: int = 200) -> tuple[list[int], list[float]]:
    # The figure is 331 points wide: 200 steps of each curve look the same and keep a page of many curves small.
    steps = sorted(curve)
    kept = [*steps[: -1 : math.ceil(len(steps) / most)], steps[-1]]
    return kept, [curve[step] for step in kept]


def _columns(printed: bool) -> tuple[str, ...]:
    return (MEAN, "95 % interval", "seeds", *([published.LABEL] if printed else []))


def _numbers(point: Point, printed: bool) -> tuple[str, ...]:
    """A point's cells in the columns of `_columns`."""
    summary, figure = point.summary, point.printed
    theirs = [figure.text if figure else "-"] if printed else []
    return (plus_minus(summary), interval(summary.interval), str(summary.n), *theirs)


def _metric(points: Sequence[Point]) -> str:
    names = {name for point in points for name in point.scores.cells.headline.dropna()}
    return " / ".join(sorted(names)).replace("_", " ") or "score"


def _top(points: Sequence[Point], other: float | None) -> float:
    """Where an axis of scores ends: at 1 for high scores, a little above the highest for low ones."""
    highest = max(
        [
            *(value for point in points for value in point.seeds),
            *(min(bounds[1], 1.0) for point in points if (bounds := point.summary.interval)),
            *(_ends(point.printed)[1] for point in points if point.printed),
            *([other] if other is not None else []),
        ],
        default=1.0,
    )
    # Figures of high scores share one scale and can be compared by eye; scores of 0.08 would be a flat line on it.
    return 1.03 if highest > 0.6 or highest <= 0 else 1.2 * highest


def _spread(xs: Iterable[int]) -> list[int]:
    """The x that get a tick: without those that would run into their neighbour, the last one always kept."""
    ticks = sorted(xs, reverse=True)
    room = (ticks[0] - ticks[-1]) / 26 if ticks else 0
    kept: list[int] = []
    for tick in ticks:
        if not kept or kept[-1] - tick >= room:
            kept.append(tick)
    return kept[::-1]


def _clipped(bounds: tuple[float, float]) -> list[float]:
    # A t interval of few seeds may leave the scale of scores; drawn so, it would stretch the axis past 1.
    return [min(max(end, 0.0), 1.0) for end in bounds]


def _ends(figure: Published) -> list[float]:
    return [max(figure.mean - figure.deviation, 0.0), figure.mean + figure.deviation]


def _dots(axes: Axes, places: Sequence[tuple[float, float]], color: str, size: float) -> None:
    if places:
        style: dict[str, Any] = {"color": PAPER, "markeredgecolor": color, "markeredgewidth": 1, "markersize": size}
        axes.plot(*zip(*places, strict=True), linestyle="", marker="o", zorder=4, clip_on=False, **style)


def _legend(axes: Axes, bottom: float = 1.0) -> None:
    # Above the axes: inside, it would cover points in one study or another.
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower center", bbox_to_anchor=(0.45, bottom), ncols=2, frameon=False, labelcolor=INK)


def _plot(
    identifier: str, title: str, caption: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]],
    height_inches: float, paint: Callable[[Axes], None],
) -> Plot:  # fmt: skip
    """The figure of what `paint` puts on the axes, with its numbers; `identifier` is unique on the page."""
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
        figure = figure_module.Figure(figsize=(WIDTH_INCHES, height_inches), dpi=72, layout="constrained")
        axes = figure.add_subplot()
        axes.patch.set_visible(False)
        figure.patch.set_visible(False)
        paint(axes)
        buffer, png = StringIO(), BytesIO()
        # Not `savefig`, which would draw each picture twice and find its layout again. No date, so that the same runs
        # give the same bytes.
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        report_extra("matplotlib.backends.backend_svg").FigureCanvasSVG(figure).print_svg(buffer, metadata=metadata)
        figure.set_layout_engine("none")
        figure.set_dpi(PNG_DOTS_PER_INCH)
        figure.patch.set(visible=True, facecolor=PAPER)
        canvas = report_extra("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
        canvas.print_png(png, metadata={"Software": None})
    spoken = "; ".join(", ".join(cell for cell in row if cell != "-") for row in rows)
    label = report_extra("markupsafe").escape(f"{title}. {spoken}")
    slug = re.sub(r"[^a-z0-9]+", "-", identifier.lower()).strip("-")
    svg = buffer.getvalue()[buffer.getvalue().index("<svg") :]
    lines = tuple(Line(row[0], row[1:]) for row in rows)
    sheet = Sheet(title, columns[0], columns[1:], (Group("", lines),), (caption,))
    return Plot(slug, _for_page(svg, f"f-{slug}", label), _for_file(svg, label), png.getvalue(), sheet)


def _for_file(svg: str, label: str) -> str:
    """A file of its own: a title for readers who cannot see it, a background, no name of an outside document."""
    head, body = svg[: svg.index(">") + 1], svg[svg.index(">") + 1 :]
    start = f'<?xml version="1.0" encoding="utf-8"?>\n{head}\n <title>{label}</title>'
    return f'{start}<rect width="100%" height="100%" fill="{PAPER}"/>{body}'


def _for_page(svg: str, slug: str, label: str) -> str:
    """Cut matplotlib's file down to what may stand inside an HTML page beside its siblings."""
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;]*; ?", "", svg)
    # All figures share one document, so ids that are referred to get the figure's name and all others go.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{slug}-", svg)
    for color, css in CSS_OF.items():
        svg = svg.replace(color, css)
    view_box = re.search(r'viewBox="[^"]*"', svg)
    assert view_box is not None, "matplotlib always writes a viewBox"
    return f'<svg {view_box.group(0)} role="img" aria-label="{label}">{svg[svg.index(">") + 1 :]}'
