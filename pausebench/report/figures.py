"""The report's figures, one function each: which runs it shows, in what order and with what caption.

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

from pausebench.report import published
from pausebench.report.comparisons import InstrumentCheck, baseline, filler_label, full_label, pretraining_label
from pausebench.report.published import Published
from pausebench.report.scores import Panel, Scores, Setting, Study, finite
from pausebench.report.statistics import interval, number, plus_minus, report_extra, summarise
from pausebench.report.tables import better_arms, placed_label, with_references
from pausebench.runs.folder import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes


BARS = "Bars: mean over seeds. Lines: 95 % interval. Dots: single seeds."


def variant_bars(study: Study, panel: Panel, setting: Setting) -> Plot:
    """Bars of the arms' means with 95 % intervals, single seeds as dots, and the chance line where it is known."""
    arms = panel.scores(setting)
    labels = [full_label(scores.arm) for scores in arms]
    return _bars(study, panel, setting, setting.label, BARS, arms, labels)


def better_bars(study: Study, panel: Panel, setting: Setting) -> Plot:
    """Figures 3 and 5: a bar a variant at its better K, the published bars beside."""
    arms, chosen = better_arms(panel.scores(setting))
    labels = [full_label(scores.arm) for scores in arms]
    caption = f"{f'PauseFT: {chosen}. ' if chosen else ''}{BARS}"
    return _bars(
        study, panel, setting, setting.label, caption, arms, labels, _printed_at_better_k(study, panel, setting, arms)
    )


def placement_bars(study: Study, panel: Panel, setting: Setting) -> Plot:
    """Table 2 as bars: pauses before and after the question, the published bars beside."""
    arms = panel.scores(setting)
    labels = [f"{placed_label(scores.arm)}{f', K={scores.arm.k}' if scores.arm.k else ''}" for scores in arms]
    metric = panel.metrics(setting)[0]
    printed = [published.of_arm(study.published, setting.task, metric, scores.arm) for scores in arms]
    return _bars(study, panel, setting, f"{panel.title} · {setting.label}", BARS, arms, labels, printed)


def control_bars(study: Study, panel: Panel, setting: Setting) -> Plot:
    """Bars of the full method, the baseline, and every control."""
    arms = with_references(study, panel, setting)
    labels = [scores.arm.control or full_label(scores.arm) for scores in arms]
    caption = f"What is left of the gain when one part of the method is taken away? {BARS}"
    return _bars(study, panel, setting, f"{panel.title} · {setting.label}", caption, arms, labels)


def cost(study: Study, panel: Panel, setting: Setting) -> Plot | None:
    """Score against inference FLOPs an answer, where two arms or more tell them."""
    arms = panel.scores(setting)
    caption = "Up is better, left is cheaper. Lines: 95 % interval over seeds."
    title = f"Score against cost · {setting.label}"
    identifier = f"{study.result}-{panel.id}-cost-{setting.label}"
    return draw_cost(identifier, title, caption, arms, [full_label(scores.arm) for scores in arms])


def filler_bars(study: Study, panel: Panel, setting: Setting) -> Plot:
    """Bars for what was inserted at inference into models that may never have seen it."""
    arms = panel.scores(setting)
    several = len({scores.arm.variant for scores in arms}) > 1
    labels = [f"{scores.arm.variant + ': ' if several else ''}{filler_label(scores.arm)}" for scores in arms]
    metric = panel.metrics(setting)[0]
    printed = [published.of_arm(study.published, setting.task, metric, scores.arm) for scores in arms]
    caption = (
        "A control: do extra tokens help a model that was never trained with them? If they did, more time alone "
        f"would be enough. {BARS}"
    )
    return _bars(study, panel, setting, f"{panel.title} · {setting.label}", caption, arms, labels, printed)


def k_curve(study: Study, panel: Panel, setting: Setting) -> Plot:
    """Score against K, the pauses of finetuning, one line a pretraining; M = K."""
    lines = _lines(panel, setting, lambda scores: pretraining_label(scores.arm), lambda scores: scores.arm.k)
    caption = (
        "How many pauses are best? Each model is finetuned and evaluated with its own K. "
        "Error bars: 95 % interval over seeds; dots: single seeds."
    )
    return draw_curve(f"{study.result}-{panel.id}", study, panel, setting, caption, lines, "K, pauses in finetuning")


def m_curve(study: Study, panel: Panel, setting: Setting, k: int) -> Plot:
    """Score against M, the pauses at inference, for models finetuned with `k` pauses; M = K is marked."""
    lines = _lines(panel, setting, lambda scores: scores.arm.variant, lambda scores: scores.arm.mt, k)
    caption = (
        "What if a finished model gets fewer or more pauses than it was trained with? "
        f"All were finetuned with K = {k}; only the pauses at inference change. "
        "Error bars: 95 % interval over seeds; dots: single seeds."
    )
    several = len(counts_of(panel, setting)) > 1
    title = f"{panel.title}, K = {k}" if several else panel.title
    identifier = f"{study.result}-{panel.id}" + (f"-k{k}" if several else "")
    return draw_curve(identifier, study, panel, setting, caption, lines, "M, pauses at inference", [k], title)


def counts_of(panel: Panel, setting: Setting) -> list[int]:
    """The K of finetuning in a setting; each has a curve over M of its own."""
    return sorted({scores.arm.k for scores in panel.scores(setting)})


def relay_curve(study: Study, check: InstrumentCheck) -> Plot:
    """Relay's token accuracy against K with the chance line."""
    points = [(k, summary.mean) for k, summary in check.points if summary.mean is not None]
    rows = tuple((str(k), plus_minus(summary), str(summary.n)) for k, summary in check.points)

    def paint(axes: Axes) -> None:
        look = LOOKS["PausePT_PauseFT"]
        places, means = [k for k, _ in points], [mean for _, mean in points]
        axes.plot(places, means, color=look.color, marker=look.marker, markersize=5)
        draw_reference(axes, check.chance, "chance")
        axes.set(xlabel="K, pauses", ylabel="token accuracy", ylim=(0, 1.03), xticks=[k for k, _ in check.points])

    caption = "Relay lets the answer see the question through the pauses only. Without pauses it has to guess."
    drawing = draw(f"{study.result}-relay", f"Relay token accuracy against K. {spoken(rows)}", 2.5, paint)
    return Plot("Relay", caption, drawing, ("K", "token accuracy", "seeds"), rows)


def _bars(
    study: Study,
    panel: Panel,
    setting: Setting,
    title: str,
    caption: str,
    arms: Sequence[Scores],
    labels: Sequence[str],
    printed: Sequence[Published | None] = (),
) -> Plot:
    looks = [look_of(scores.arm.variant) for scores in arms]
    chance = panel.chance(setting)
    return draw_bars(f"{study.result}-{panel.id}", title, setting, caption, arms, labels, looks, chance, printed)


def _printed_at_better_k(
    study: Study, panel: Panel, setting: Setting, arms: Sequence[Scores]
) -> list[Published | None]:
    """Of each variant the better of the published figures: the paper chose its K too, and need not have chosen ours."""
    metric = panel.metrics(setting)[0]
    found: list[Published | None] = []
    for chosen in arms:
        same = [scores for scores in panel.scores(setting) if scores.arm.variant == chosen.arm.variant]
        figures = [published.of_arm(study.published, setting.task, metric, scores.arm) for scores in same]
        found.append(max((figure for figure in figures if figure), key=lambda figure: figure.mean, default=None))
    return found


def finetuning_curves(study: Study, panel: Panel, setting: Setting) -> Plot | None:
    """Finetuning loss against step by variant, from the finetune runs of a variants panel; None without any curve."""
    groups = {
        full_label(scores.arm): (look_of(scores.arm.variant), _curves(_runs_of(scores, study.runs, setting)))
        for scores in panel.scores(setting)
    }
    caption = "Thick: mean over seeds. Thin: single seeds. Loss over the answer alone, nats a token."
    identifier = f"{study.result}-{panel.id}-finetuning-{setting.label}"
    several = f" · {panel.title}" if len(study.of_kind("variants")) > 1 else ""
    return draw_training(identifier, f"Finetuning loss{several} · {setting.label}", caption, groups)


def pretraining_curves(study: Study, world: str) -> Plot | None:
    """Pretraining loss against step for both kinds of pretraining in one world; None without any curve."""
    runs: dict[str, set[str]] = {}
    for cell in study.cells():
        if cell.world == world and cell.result and cell.result.pretrain_run and cell.arm.pretraining != "none":
            runs.setdefault(pretraining_label(cell.arm), set()).add(cell.result.pretrain_run)
    groups = {
        name: (look_of(name), _curves(study.runs / "pretrain" / run for run in sorted(runs[name])))
        for name in sorted(runs, reverse=True)
    }
    caption = (
        "Thick: mean over seeds. Thin: single seeds. Nats a supervised token. The two are not over the same places: "
        "with pauses in the text, a place before a pause is not scored."
    )
    return draw_training(f"{study.result}-{world}-pretraining", f"Pretraining loss · {world}", caption, groups)


def read_curve(run: Path, column: str = "loss") -> dict[int, float]:
    """{step: value} of one column of a run's `metrics.jsonl`.

    A torn line (the run was killed while writing) and values that are not finite are left out; no file is no curve.
    """
    path = run / "metrics.jsonl"
    rows = read_metrics(path) if path.is_file() else []
    return {row["step"]: value for row in rows if (value := finite(row.get(column))) is not None}


def _curves(runs: Iterable[Path]) -> list[dict[int, float]]:
    return [curve for run in runs if (curve := read_curve(run))]


def _runs_of(scores: Scores, runs: Path, setting: Setting) -> list[Path]:
    names = {cell.result.finetune_run for cell in scores.cells if cell.result and cell.result.finetune_run}
    return [runs / "finetune" / name for name in sorted(names)]


def _lines(
    panel: Panel,
    setting: Setting,
    name: Callable[[Scores], str],
    place: Callable[[Scores], int],
    k: int | None = None,
) -> dict[str, list[tuple[int, Scores]]]:
    lines: dict[str, list[tuple[int, Scores]]] = {}
    for scores in panel.scores(setting):
        if k in (None, scores.arm.k):
            lines.setdefault(name(scores), []).append((place(scores), scores))
    return {label: sorted(points, key=lambda point: point[0]) for label, points in lines.items()}


# ------------------------------
# The kinds of chart: bars, curves against pauses, score against cost, loss against step.


@dataclass(frozen=True)
class Plot:
    """One figure: the picture, what it shows in words, and its numbers as a table."""

    title: str
    caption: str
    drawing: Drawing
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def draw_bars(
    identifier: str,
    title: str,
    setting: Setting,
    caption: str,
    arms: Sequence[Scores],
    labels: Sequence[str],
    looks: Sequence[Look],
    chance: float | None,
    printed: Sequence[Published | None] = (),
) -> Plot:
    """Horizontal bars, one an arm in the order given, with interval, single seeds and, where known, chance.

    printed: the published figure of each arm, drawn as a thin hollow bar below ours.
    """
    summaries = [summarise(list(scores.values.values())) for scores in arms]
    beside = list(printed) if any(printed) else [None] * len(arms)
    rows = tuple(
        (label, plus_minus(summary), interval(summary.interval), str(summary.n))
        + ((figure.text if figure else "-",) if any(beside) else ())
        for label, summary, figure in zip(labels, summaries, beside, strict=True)
    )
    columns = ("arm", "mean ± deviation", "95 % interval", "seeds") + ((published.LABEL,) if any(beside) else ())
    if any(beside):
        caption += f" Hollow, dashed: {published.LABEL}, with its deviation."

    def paint(axes: Axes) -> None:
        for place, (scores, summary, look, figure) in enumerate(zip(arms, summaries, looks, beside, strict=True)):
            if figure is not None:
                _published_bar(axes, place + 0.34, figure)
            if summary.mean is None:
                axes.text(0.01, place, "missing", va="center", color=INK, transform=axes.get_yaxis_transform())
                continue
            middle, height = (place - 0.1, 0.5) if any(beside) else (place, 0.62)
            axes.barh(middle, summary.mean, height=height, color=look.color, alpha=0.28, linewidth=0)
            axes.barh(
                middle, summary.mean, height=height, fill=False, hatch=look.hatch, edgecolor=look.color, linewidth=1.2
            )
            if summary.interval:
                ends = [min(max(end, 0.0), 1.0) for end in summary.interval]
                axes.plot(ends, [middle - 0.14] * 2, color=INK, linewidth=1.5, marker="|", markersize=5, zorder=3)
            _dots(axes, [(value, middle + 0.13) for value in scores.values.values()], INK, 4)
        if chance is not None:
            axes.axvline(chance, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
            axes.text(chance, -0.62, f"chance {chance:.2f}", ha="center", va="bottom", color=INK, fontsize=9)
        axes.set(yticks=range(len(labels)), yticklabels=labels, ylim=(len(labels) - 0.4, -0.6))
        axes.set(xlim=(0, _top(arms, [figure for figure in beside if figure], chance)))
        axes.set_xlabel(_metric(arms))
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)

    height = 0.95 + (0.44 if any(beside) else 0.36) * len(arms)
    drawing = draw(f"{identifier}-{setting.label}", f"{title}. {spoken(rows)}", height, paint)
    return Plot(title, caption, drawing, columns, rows)


def draw_curve(
    identifier: str,
    study: Study,
    panel: Panel,
    setting: Setting,
    caption: str,
    lines: Mapping[str, list[tuple[int, Scores]]],
    xlabel: str,
    marks: Sequence[int] = (),
    title: str | None = None,
) -> Plot:
    """Score against pauses: `lines` are (pauses, scores) by label, `marks` get a vertical line that says M = K.

    Points that the paper prints (Table 1) stand beside ours as hollow squares.
    """
    reference = baseline(study, panel, setting)
    level = summarise(list(reference.values.values())).mean if reference else None
    if level is not None:
        caption += " Dashed: StdPT_StdFT, no pauses anywhere."
    metric = panel.metrics(setting)[0]
    printed = {
        (label, place): figure
        for label, points in lines.items()
        for place, scores in points
        if (figure := published.of_arm(study.published, setting.task, metric, scores.arm))
    }
    if printed:
        caption += f" Hollow squares with a thin line: {published.LABEL}, with its deviation."
    rows = []
    for label, points in lines.items():
        for place, scores in points:
            summary = summarise(list(scores.values.values()))
            row = (label, str(place), plus_minus(summary), interval(summary.interval), str(summary.n))
            figure = printed.get((label, place))
            rows.append((*row, figure.text if figure else "-") if printed else row)

    def paint(axes: Axes) -> None:
        ticks = sorted({place for points in lines.values() for place, _ in points})
        step = (max(ticks) - min(ticks)) / 90 if len(ticks) > 1 else 0.1
        top = _top([scores for points in lines.values() for _, scores in points], list(printed.values()), level)
        for mark in marks:
            axes.axvline(mark, color=INK, linewidth=0.9, linestyle=(0, (1, 2)))
            axes.text(mark, 1.02 * top, f"M = K = {mark}", ha="center", va="bottom", color=INK, fontsize=9)
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
            for place, _ in points:
                if figure := printed.get((label, place)):
                    _published_mark(axes, place + 2.2 * shift, figure, look.color)
            if known:
                axes.plot(
                    *zip(*known, strict=True), color=look.color, label=label, linestyle=look.dash, marker=look.marker,
                    markersize=6, zorder=5,
                )  # fmt: skip
        axes.set(xlabel=xlabel, ylabel=_metric([scores for points in lines.values() for _, scores in points]))
        axes.set(ylim=(0, top), xticks=_spread(ticks), xticklabels=[str(tick) for tick in _spread(ticks)])
        _legend(axes, 1.08 if marks else 1.0)

    title = title or panel.title
    drawing = draw(f"{identifier}-{setting.label}", f"{title}, {setting.label}. {spoken(rows)}", 3.0, paint)
    columns = ["line", xlabel.split(",")[0], "mean ± deviation", "95 % interval", "seeds"]
    columns += [published.LABEL] if printed else []
    return Plot(f"{title} · {setting.label}", caption, drawing, tuple(columns), tuple(rows))


def draw_cost(identifier: str, title: str, caption: str, arms: Sequence[Scores], labels: Sequence[str]) -> Plot | None:
    """Score against the arithmetic of an answer, one mark an arm; None below two arms that tell both."""
    points = [
        (cost, mean, scores, label)
        for scores, label in zip(arms, labels, strict=True)
        if (cost := scores.inference_flops) and (mean := summarise(list(scores.values.values())).mean) is not None
    ]
    if len(points) < 2:
        return None
    rows = tuple(
        (label, f"{cost:.3g}", plus_minus(summarise(list(scores.values.values())))) for cost, _, scores, label in points
    )

    def paint(axes: Axes) -> None:
        for cost, mean, scores, _ in points:
            look = look_of(scores.arm.variant)
            bounds = summarise(list(scores.values.values())).interval
            if bounds:
                axes.plot([cost] * 2, [min(max(end, 0.0), 1.0) for end in bounds], color=look.color, linewidth=1.1)
            axes.plot([cost], [mean], color=look.color, marker=look.marker, markersize=7, linestyle="")
            if scores.arm.k:
                axes.annotate(
                    f"K={scores.arm.k}", (cost, mean), xytext=(6, 4), textcoords="offset points", color=INK, fontsize=8
                )
        for name in dict.fromkeys(scores.arm.variant for _, _, scores, _ in points):
            look = look_of(name)
            axes.plot([], [], color=look.color, marker=look.marker, linestyle="", label=name)
        axes.set(xlabel="FLOPs an answer at inference", ylabel=_metric(arms))
        axes.set(ylim=(0, _top(arms, [], None)), xlim=(0, 1.12 * max(cost for cost, *_ in points)))
        _legend(axes)

    drawing = draw(identifier, f"{title}. {spoken(rows)}", 3.0, paint)
    return Plot(title, caption, drawing, ("arm", "FLOPs an answer", "mean ± deviation"), rows)


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
        drawn: list[Look] = []
        for name, members in curves.items():
            look = groups[name][0]
            # Two K of one variant share its look; the second has hollow marks.
            fill = PAPER if look in drawn else look.color
            drawn.append(look)
            for curve in members:
                axes.plot(*_thinned(curve), color=look.color, linewidth=0.6, alpha=0.45)
            shared = sorted(set(members[0]).intersection(*members[1:]))
            mean = {step: math.fsum(curve[step] for curve in members) / len(members) for step in shared}
            if mean:
                steps, losses = _thinned(mean)
                every = max(1, len(steps) // 6)
                axes.plot(
                    steps, losses, color=look.color, linewidth=1.8, linestyle=look.dash, label=name,
                    marker=look.marker, markersize=5, markerfacecolor=fill, markevery=every,
                )  # fmt: skip
        axes.set(xlabel="step", ylabel="loss")
        _legend(axes)

    drawing = draw(identifier, f"{title} against step. {spoken(rows)}", 3.0, paint)
    return Plot(title, caption, drawing, ("run", "last loss, mean over seeds", "last step", "seeds"), tuple(rows))


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
    if places:
        axes.plot(
            *zip(*places, strict=True), linestyle="", marker="o", markersize=size, color=PAPER, markeredgecolor=color,
            markeredgewidth=1, zorder=4, clip_on=False,
        )  # fmt: skip


def _legend(axes: Axes, bottom: float = 1.0) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower center", bbox_to_anchor=(0.45, bottom), ncols=2, frameon=False, labelcolor=INK)


def _metric(arms: Sequence[Scores]) -> str:
    names = {cell.result.metric for scores in arms for cell in scores.cells if cell.result}
    return " / ".join(sorted(names)).replace("_", " ") or "score"


def _top(arms: Sequence[Scores], printed: Sequence[Published], other: float | None) -> float:
    """Where an axis of scores ends: at 1 for high scores, a little above the highest for low ones."""
    highest = max(
        [
            *(value for scores in arms for value in scores.values.values()),
            *(min(bounds[1], 1.0) for scores in arms if (bounds := summarise(list(scores.values.values())).interval)),
            *(figure.mean + figure.deviation for figure in printed),
            *([other] if other is not None else []),
        ],
        default=1.0,
    )
    return 1.03 if highest > 0.6 or highest <= 0 else 1.2 * highest


def _spread(ticks: Sequence[int]) -> list[int]:
    """The places that get a tick: without those that would run into their neighbour, the last one always kept."""
    room = (max(ticks) - min(ticks)) / 26 if ticks else 0
    kept: list[int] = []
    for tick in sorted(ticks, reverse=True):
        if not kept or kept[-1] - tick >= room:
            kept.append(tick)
    return kept[::-1]


def _published_bar(axes: Axes, place: float, figure: Published) -> None:
    axes.barh(place, figure.mean, height=0.2, fill=False, edgecolor=INK, linewidth=0.9, linestyle=(0, (3, 2)))
    ends = [max(figure.mean - figure.deviation, 0.0), figure.mean + figure.deviation]
    axes.plot(ends, [place] * 2, color=INK, linewidth=0.9, marker="|", markersize=4)


def _published_mark(axes: Axes, place: float, figure: Published, color: str) -> None:
    ends = [max(figure.mean - figure.deviation, 0.0), figure.mean + figure.deviation]
    axes.plot([place] * 2, ends, color=color, linewidth=0.8, linestyle=(0, (2, 2)))
    axes.plot([place], [figure.mean], marker="s", markersize=6, color=PAPER, markeredgecolor=color, linestyle="")


# ------------------------------
# The canvas of a chart: the looks of the series, and one drawing as SVG for the page, SVG file and PNG.

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
