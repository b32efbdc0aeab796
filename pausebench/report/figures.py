"""The report's figures: which runs each shows, in what order and with what caption; and how it is drawn.

Invariant: every figure carries the table of its numbers. A figure of scores keeps a planned arm without a result, as
missing; a figure of losses shows the runs that have a curve.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO, StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pausebench.config.pauses import PRETRAINING_NAMES
from pausebench.report.comparisons import InstrumentCheck, baseline
from pausebench.report.scores import ScoredStudy, Scores, Setting
from pausebench.report.statistics import Summary, interval, number, plus_minus, report_extra, summarise
from pausebench.report.tables import better_arms, placed_label, with_references
from pausebench.runs.folder import finite, read_metrics
from pausebench.study.study import Arm
from pausebench.tasks import published
from pausebench.tasks.published import Published

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BARS = "Bars: mean over seeds. Lines: 95 % interval. Dots: single seeds."
LINES = "Error bars: 95 % interval over seeds; dots: single seeds."
CURVES = "Thick: mean over seeds. Thin: single seeds."
FIRST, SECOND, THIRD = "mean ± deviation", "95 % interval", "seeds"
DASHED, DOTTED = (0, (4, 3)), (0, (1, 2))


@dataclass(frozen=True)
class Plot:
    """One figure: the picture, what it shows in words, and its numbers as a table."""

    title: str
    caption: str
    drawing: Drawing
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


# One mark of a figure of scores: where it is drawn, under which name, and the paper's figure that belongs to it.
@dataclass(frozen=True)
class Point:
    name: str
    place: int
    scores: Scores
    printed: Published | None = None

    @property
    def summary(self) -> Summary:
        return self.scores.summary()


def variant_bars(setting: Setting) -> Plot:
    """Bars of the arms' means with 95 % intervals, single seeds as dots, and the chance line where it is known."""
    return _bars(setting, setting.label, BARS, [Point(s.arm.label, 0, s) for s in setting.arms])


def better_bars(setting: Setting) -> Plot:
    """Figures 3 and 5: a bar a variant at its better K, the published bars beside."""
    arms, chosen = better_arms(setting.arms)
    points = []
    for scores in arms:
        # The paper chose its K too, and need not have chosen ours.
        same = [other.arm for other in setting.arms if other.arm.variant == scores.arm.variant]
        figures = [figure for arm in same if (figure := setting.published(arm))]
        points.append(Point(scores.arm.label, 0, scores, max(figures, key=lambda figure: figure.mean, default=None)))
    return _bars(setting, setting.label, f"{f'PauseFT: {chosen}. ' if chosen else ''}{BARS}", points)


def placement_bars(setting: Setting) -> Plot:
    """Table 2 as bars: pauses before and after the question, the published bars beside."""

    def label(arm: Arm) -> str:
        return f"{placed_label(arm)}{f', {arm.pauses}' if arm.k else ''}"

    points = [Point(label(s.arm), 0, s, setting.published(s.arm)) for s in setting.arms]
    return _bars(setting, f"{setting.panel.title} · {setting.label}", BARS, points)


def control_bars(setting: Setting) -> Plot:
    """Bars of the full method, the baseline, and every control."""
    points = [Point(s.arm.control or s.arm.label, 0, s) for s in with_references(setting)]
    caption = f"What is left of the gain when one part of the method is taken away? {BARS}"
    return _bars(setting, f"{setting.panel.title} · {setting.label}", caption, points)


def filler_bars(setting: Setting) -> Plot:
    """Bars for what was inserted at inference into models that may never have seen it."""
    several = len({scores.arm.variant for scores in setting.arms}) > 1
    points = [
        Point(f"{s.arm.variant + ': ' if several else ''}{s.arm.inserted}", 0, s, setting.published(s.arm))
        for s in setting.arms
    ]
    caption = (
        "A control: do extra tokens help a model that was never trained with them? If they did, more time alone "
        f"would be enough. {BARS}"
    )
    return _bars(setting, f"{setting.panel.title} · {setting.label}", caption, points)


def k_curve(setting: Setting) -> Plot:
    """Score against K, the pauses of finetuning, one line a pretraining; M = K."""

    def name(arm: Arm) -> str:
        # A K that was drawn is no point of the curve of fixed ones: it is drawn at the largest, under its own name.
        return f"{arm.stage}, {arm.pauses}" if arm.k_range else arm.stage

    points = [Point(name(s.arm), s.arm.k, s, setting.published(s.arm)) for s in setting.arms]
    caption = f"How many pauses are best? Each model is finetuned and evaluated with its own K. {LINES}"
    identifier, title = f"{setting.scored.study.result}-{setting.panel.id}", setting.panel.title
    return _curve(identifier, setting, title, caption, points, "K, pauses in finetuning")


def m_curve(setting: Setting, counts: str) -> Plot:
    """Score against M, the pauses at inference, for models finetuned with `counts` pauses; M = K is marked."""
    arms = [scores for scores in setting.arms if scores.arm.counts == counts]
    points = [Point(s.arm.variant, s.arm.mt, s, setting.published(s.arm)) for s in arms]
    drawn = arms[0].arm.k_range is not None
    words = arms[0].arm.pauses if drawn else f"K = {counts}"
    caption = (
        "What if a finished model gets fewer or more pauses than it was trained with? "
        f"All were finetuned with {words}; only the pauses at inference change. {LINES}"
    )
    identifier, title = f"{setting.scored.study.result}-{setting.panel.id}", setting.panel.title
    if len(counts_of(setting)) > 1:
        identifier, title = f"{identifier}-k{counts}", f"{title}, {words}"
    mark = None if drawn else arms[0].arm.k
    return _curve(identifier, setting, title, caption, points, "M, pauses at inference", mark)


def counts_of(setting: Setting) -> list[str]:
    """The K of finetuning in a setting; each has a curve over M of its own."""
    return list(dict.fromkeys(arm.counts for arm in sorted((s.arm for s in setting.arms), key=lambda arm: arm.k)))


def relay_curve(result: str, check: InstrumentCheck) -> Plot:
    """Relay's token accuracy against K with the chance line."""
    points = [(k, summary.mean) for k, summary in check.points if summary.mean is not None]
    rows = tuple((str(k), plus_minus(summary), str(summary.n)) for k, summary in check.points)

    def paint(axes: Axes) -> None:
        look = LOOKS["PausePT_PauseFT"]
        axes.plot(
            [k for k, _ in points], [mean for _, mean in points], color=look.color, marker=look.marker, markersize=5
        )
        _level(axes, check.chance)
        axes.text(
            1.0, check.chance + 0.015, "chance", transform=axes.get_yaxis_transform(), ha="right", color=INK, fontsize=9
        )
        axes.set(xlabel="K, pauses", ylabel="token accuracy", ylim=(0, 1.03), xticks=[k for k, _ in check.points])

    caption = "Relay lets the answer see the question through the pauses only. Without pauses it has to guess."
    drawing = draw(f"{result}-relay", f"Relay token accuracy against K. {_spoken(rows)}", 2.5, paint)
    return Plot("Relay", caption, drawing, ("K", "token accuracy", "seeds"), rows)


def _bars(setting: Setting, title: str, caption: str, points: Sequence[Point]) -> Plot:
    """Horizontal bars in the order given, each published figure as a thin hollow bar below ours."""
    printed = any(point.printed for point in points)
    rows = tuple((point.name, *_numbers(point, printed)) for point in points)
    if printed:
        caption += f" Hollow, dashed: {published.LABEL}, with its deviation."

    def paint(axes: Axes) -> None:
        for place, point in enumerate(points):
            _bar(axes, place, point, printed)
        if setting.chance is not None:
            axes.axvline(setting.chance, color=INK, linewidth=0.9, linestyle=DASHED)
            text = f"chance {setting.chance:.2f}"
            axes.text(setting.chance, -0.62, text, ha="center", va="bottom", color=INK, fontsize=9)
        axes.set(yticks=range(len(points)), yticklabels=[point.name for point in points])
        axes.set(ylim=(len(points) - 0.4, -0.6), xlim=(0, _top(points, setting.chance)))
        axes.set_xlabel(_metric(points))
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)

    height = 0.95 + (0.44 if printed else 0.36) * len(points)
    identifier = f"{setting.scored.study.result}-{setting.panel.id}-{setting.label}"
    drawing = draw(identifier, f"{title}. {_spoken(rows)}", height, paint)
    return Plot(title, caption, drawing, ("arm", *_columns(printed)), rows)


def _bar(axes: Axes, place: int, point: Point, printed: bool) -> None:
    summary, look = point.summary, look_of(point.scores.arm.variant)
    if (figure := point.printed) is not None:
        box: dict[str, Any] = {"fill": False, "edgecolor": INK, "linewidth": 0.9, "linestyle": (0, (3, 2))}
        axes.barh(place + 0.34, figure.mean, height=0.2, **box)
        axes.plot(_ends(figure), [place + 0.34] * 2, color=INK, linewidth=0.9, marker="|", markersize=4)
    if summary.mean is None:
        axes.text(0.01, place, "missing", va="center", color=INK, transform=axes.get_yaxis_transform())
        return
    middle, height = (place - 0.1, 0.5) if printed else (place, 0.62)
    axes.barh(middle, summary.mean, height=height, color=look.color, alpha=0.28, linewidth=0)
    axes.barh(middle, summary.mean, height=height, fill=False, hatch=look.hatch, edgecolor=look.color, linewidth=1.2)
    if summary.interval:
        ends = _clipped(summary.interval)
        axes.plot(ends, [middle - 0.14] * 2, color=INK, linewidth=1.5, marker="|", markersize=5, zorder=3)
    _dots(axes, [(value, middle + 0.13) for value in point.scores.values().values()], INK, 4)


def _curve(
    identifier: str, setting: Setting, title: str, caption: str, points: Sequence[Point], xlabel: str,
    mark: int | None = None,
) -> Plot:  # fmt: skip
    """Score against pauses, a line for each name; `mark` gets a vertical line that says M = K.

    Points that the paper prints (Table 1) are beside ours as hollow squares.
    """
    lines: dict[str, list[Point]] = {}
    for point in sorted(points, key=lambda point: point.place):
        lines.setdefault(point.name, []).append(point)
    lines = {name: lines[name] for name in dict.fromkeys(point.name for point in points)}
    reference = baseline(setting)
    level = reference.summary().mean if reference else None
    if level is not None:
        caption += " Dashed: StdPT_StdFT, no pauses anywhere."
    printed = any(point.printed for point in points)
    if printed:
        caption += f" Hollow squares with a thin line: {published.LABEL}, with its deviation."
    rows = tuple((p.name, str(p.place), *_numbers(p, printed)) for line in lines.values() for p in line)

    def paint(axes: Axes) -> None:
        ticks, top = _spread({point.place for point in points}), _top(points, level)
        places = [point.place for point in points]
        step = (max(places) - min(places)) / 90 if len(set(places)) > 1 else 0.1
        if mark is not None:
            axes.axvline(mark, color=INK, linewidth=0.9, linestyle=DOTTED)
            axes.text(mark, 1.02 * top, f"M = K = {mark}", ha="center", va="bottom", color=INK, fontsize=9)
        if level is not None:
            _level(axes, level)
        for order, (name, line) in enumerate(lines.items()):
            # Lines are moved apart, so that their intervals do not cover each other.
            _line(axes, name, line, (2 * order - len(lines) + 1) * step)
        axes.set(xlabel=xlabel, ylabel=_metric(points), ylim=(0, top), xticks=ticks, xticklabels=map(str, ticks))
        _legend(axes, 1.0 if mark is None else 1.08)

    drawing = draw(f"{identifier}-{setting.label}", f"{title}, {setting.label}. {_spoken(rows)}", 3.0, paint)
    columns = ("line", xlabel.split(",")[0], *_columns(printed))
    return Plot(f"{title} · {setting.label}", caption, drawing, columns, rows)


def _line(axes: Axes, name: str, line: Sequence[Point], shift: float) -> None:
    look = look_of(name.partition(",")[0])
    for point in line:
        if bounds := point.summary.interval:
            axes.plot([point.place + shift] * 2, _clipped(bounds), color=look.color, linewidth=1.1)
        _dots(axes, [(point.place + shift, value) for value in point.scores.values().values()], look.color, 3.2)
    for point in line:
        if (figure := point.printed) is not None:
            place = point.place + 2.2 * shift
            axes.plot([place] * 2, _ends(figure), color=look.color, linewidth=0.8, linestyle=(0, (2, 2)))
            square: dict[str, Any] = {"marker": "s", "markersize": 6, "color": PAPER, "markeredgecolor": look.color}
            axes.plot([place], [figure.mean], linestyle="", **square)
    known = [(point.place + shift, mean) for point in line if (mean := point.summary.mean) is not None]
    if known:
        style: dict[str, Any] = {"color": look.color, "linestyle": look.dash, "marker": look.marker, "markersize": 6}
        axes.plot(*zip(*known, strict=True), label=name, zorder=5, **style)


def cost(setting: Setting) -> Plot | None:
    """Score against the arithmetic of an answer, one mark an arm; None below two arms that tell both."""
    points = [
        (scores, flops, mean)
        for scores in setting.arms
        if (flops := scores.mean_of("inference_flops")) and (mean := scores.summary().mean) is not None
    ]
    if len(points) < 2:
        return None
    rows = tuple((scores.arm.label, f"{flops:.3g}", plus_minus(scores.summary())) for scores, flops, _ in points)

    def paint(axes: Axes) -> None:
        for scores, flops, mean in points:
            look = look_of(scores.arm.variant)
            if bounds := scores.summary().interval:
                axes.plot([flops] * 2, _clipped(bounds), color=look.color, linewidth=1.1)
            axes.plot([flops], [mean], color=look.color, marker=look.marker, markersize=7, linestyle="")
            if scores.arm.k:
                beside: dict[str, Any] = {"xytext": (6, 4), "textcoords": "offset points"}
                axes.annotate(scores.arm.pauses, (flops, mean), color=INK, fontsize=8, **beside)
        for name in dict.fromkeys(scores.arm.variant for scores, _, _ in points):
            look = look_of(name)
            axes.plot([], [], color=look.color, marker=look.marker, linestyle="", label=name)
        every = [Point("", 0, scores) for scores in setting.arms]
        axes.set(xlabel="FLOPs an answer at inference", ylabel=_metric(every))
        axes.set(ylim=(0, _top(every, None)), xlim=(0, 1.12 * max(flops for _, flops, _ in points)))
        _legend(axes)

    title = f"Score against cost · {setting.label}"
    identifier = f"{setting.scored.study.result}-{setting.panel.id}-cost-{setting.label}"
    caption = "Up is better, left is cheaper. Lines: 95 % interval over seeds."
    return Plot(
        title,
        caption,
        draw(identifier, f"{title}. {_spoken(rows)}", 3.0, paint),
        ("arm", "FLOPs an answer", FIRST),
        rows,
    )


def finetuning_curves(setting: Setting) -> Plot | None:
    """Finetuning loss against step by variant, from the finetune runs of a variants panel; None without any curve."""
    scored = setting.scored
    groups = {
        s.arm.label: (look_of(s.arm.variant), _curves(scored.runs / "finetune", s.cells.finetune_run))
        for s in setting.arms
    }
    identifier = f"{scored.study.result}-{setting.panel.id}-finetuning-{setting.label}"
    several = f" · {setting.panel.title}" if len(list(scored.study.of_kind("variants"))) > 1 else ""
    caption = f"{CURVES} Loss over the answer alone, nats a token."
    return _training(identifier, f"Finetuning loss{several} · {setting.label}", caption, groups)


def pretraining_curves(scored: ScoredStudy, world: str) -> Plot | None:
    """Pretraining loss against step for both kinds of pretraining in one world; None without any curve."""
    cells = scored.cells[scored.cells.world == world].dropna(subset="pretrain_run")
    stages = [arm.stage for arm in cells.arm]
    runs = cells.pretrain_run.groupby(stages).apply(list)
    names = [name for name in sorted(set(stages), reverse=True) if name != PRETRAINING_NAMES["none"]]
    groups = {name: (look_of(name), _curves(scored.runs / "pretrain", runs[name])) for name in names}
    caption = (
        f"{CURVES} Nats a supervised token. The two are not over the same places: "
        "with pauses in the text, a place before a pause is not scored."
    )
    return _training(f"{scored.study.result}-{world}-pretraining", f"Pretraining loss · {world}", caption, groups)


def read_curve(run: Path, column: str = "loss") -> dict[int, float]:
    """{step: value} of one column of a run's `metrics.jsonl`.

    A torn line (the run was killed while writing) and values that are not finite are left out; no file is no curve.
    """
    path = run / "metrics.jsonl"
    rows = read_metrics(path) if path.is_file() else []
    return {row["step"]: value for row in rows if (value := finite(row.get(column))) is not None}


def _curves(folder: Path, names: Iterable[str]) -> list[dict[int, float]]:
    return [curve for name in sorted({name for name in names if name}) if (curve := read_curve(folder / name))]


def _training(
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
            _loss(axes, name, look, curves, hollow=look in drawn)
            drawn.add(look)
        axes.set(xlabel="step", ylabel="loss")
        _legend(axes)

    drawing = draw(identifier, f"{title} against step. {_spoken(rows)}", 3.0, paint)
    return Plot(title, caption, drawing, ("run", "last loss, mean over seeds", "last step", "seeds"), tuple(rows))


def _loss(axes: Axes, name: str, look: Look, curves: Sequence[Mapping[int, float]], hollow: bool) -> None:
    for curve in curves:
        axes.plot(*_thinned(curve), color=look.color, linewidth=0.6, alpha=0.45)
    shared = sorted(set(curves[0]).intersection(*curves[1:]))
    mean = {step: math.fsum(curve[step] for curve in curves) / len(curves) for step in shared}
    if mean:
        steps, losses = _thinned(mean)
        fill = PAPER if hollow else look.color
        mark: dict[str, Any] = {"marker": look.marker, "markersize": 5, "markerfacecolor": fill}
        every = max(1, len(steps) // 6)
        axes.plot(
            steps, losses, color=look.color, linewidth=1.8, linestyle=look.dash, label=name, markevery=every, **mark
        )


def _thinned(curve: Mapping[int, float], most: int = 200) -> tuple[list[int], list[float]]:
    steps = sorted(curve)
    stride = math.ceil(len(steps) / most)
    kept = [*steps[:-1:stride], steps[-1]]
    return kept, [curve[step] for step in kept]


def _columns(printed: bool) -> tuple[str, ...]:
    return (FIRST, SECOND, THIRD, *([published.LABEL] if printed else []))


def _numbers(point: Point, printed: bool) -> tuple[str, ...]:
    """A point's cells in the columns of `_columns`."""
    summary, figure = point.summary, point.printed
    theirs = [figure.text if figure else "-"] if printed else []
    return (plus_minus(summary), interval(summary.interval), str(summary.n), *theirs)


def _spoken(rows: Iterable[Sequence[str]]) -> str:
    """The rows of a table as words, for readers who cannot see the figure."""
    return "; ".join(", ".join(cell for cell in row if cell != "-") for row in rows)


def _metric(points: Sequence[Point]) -> str:
    names = {name for point in points for name in point.scores.cells.headline.dropna()}
    return " / ".join(sorted(names)).replace("_", " ") or "score"


def _top(points: Sequence[Point], other: float | None) -> float:
    """Where an axis of scores ends: at 1 for high scores, a little above the highest for low ones."""
    highest = max(
        [
            *(value for point in points for value in point.scores.values().values()),
            *(min(bounds[1], 1.0) for point in points if (bounds := point.summary.interval)),
            *(_ends(point.printed)[1] for point in points if point.printed),
            *([other] if other is not None else []),
        ],
        default=1.0,
    )
    return 1.03 if highest > 0.6 or highest <= 0 else 1.2 * highest


def _spread(places: Iterable[int]) -> list[int]:
    """The places that get a tick: without those that would run into their neighbour, the last one always kept."""
    ticks = sorted(places, reverse=True)
    room = (ticks[0] - ticks[-1]) / 26 if ticks else 0
    kept: list[int] = []
    for tick in ticks:
        if not kept or kept[-1] - tick >= room:
            kept.append(tick)
    return kept[::-1]


def _clipped(bounds: tuple[float, float]) -> list[float]:
    """A t interval may leave the scale of scores; its line does not."""
    return [min(max(end, 0.0), 1.0) for end in bounds]


def _ends(figure: Published) -> list[float]:
    return [max(figure.mean - figure.deviation, 0.0), figure.mean + figure.deviation]


def _level(axes: Axes, level: float) -> None:
    axes.axhline(level, color=INK, linewidth=0.9, linestyle=DASHED)


def _dots(axes: Axes, places: Sequence[tuple[float, float]], color: str, size: float) -> None:
    if places:
        style: dict[str, Any] = {"color": PAPER, "markeredgecolor": color, "markeredgewidth": 1, "markersize": size}
        axes.plot(*zip(*places, strict=True), linestyle="", marker="o", zorder=4, clip_on=False, **style)


def _legend(axes: Axes, bottom: float = 1.0) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower center", bbox_to_anchor=(0.45, bottom), ncols=2, frameon=False, labelcolor=INK)


WIDTH_INCHES = 4.6

PNG_DOTS_PER_INCH = 200

# The light theme; `_themed` turns each into its CSS variable. The series are Okabe and Ito's palette.
INK, GRID, PAPER = "#1b1f24", "#e3e6ea", "#fcfcfa"
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
class Drawing:
    """One picture three times: `svg` for inside the page, `standalone` and `png` for files named `name`."""

    name: str
    svg: str
    standalone: str
    png: bytes


def look_of(name: str) -> Look:
    """The look of a variant or a kind of pretraining."""
    return LOOKS.get(name, OTHER_LOOK)


def draw(identifier: str, label: str, height_inches: float, paint: Callable[[Axes], None]) -> Drawing:
    """The picture of what `paint` puts on the axes, read aloud as `label`; `identifier` is unique on the page."""
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
        svg, png = StringIO(), BytesIO()
        # `savefig` would draw each picture twice and find its layout again.
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        report_extra("matplotlib.backends.backend_svg").FigureCanvasSVG(figure).print_svg(svg, metadata=metadata)
        figure.set_layout_engine("none")
        figure.set_dpi(PNG_DOTS_PER_INCH)
        figure.patch.set(visible=True, facecolor=PAPER)
        canvas = report_extra("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
        canvas.print_png(png, metadata={"Software": None})
    slug = re.sub(r"[^a-z0-9]+", "-", identifier.lower()).strip("-")
    return Drawing(slug, _themed(svg.getvalue(), slug, label), _standalone(svg.getvalue(), label), png.getvalue())


def _standalone(svg: str, label: str) -> str:
    """A file of its own: a title for readers who cannot see it, a background, no name of an outside document."""
    svg = svg[svg.index("<svg") :]
    head, body = svg[: svg.index(">") + 1], svg[svg.index(">") + 1 :]
    escaped = report_extra("markupsafe").escape(label)
    start = f'<?xml version="1.0" encoding="utf-8"?>\n{head}\n <title>{escaped}</title>'
    return f'{start}<rect width="100%" height="100%" fill="{PAPER}"/>{body}'


def _themed(svg: str, slug: str, label: str) -> str:
    """Cut matplotlib's file down to what may stand inside an HTML page beside its siblings."""
    slug = f"f-{slug}"
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
