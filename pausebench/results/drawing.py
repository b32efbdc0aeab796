"""The kinds of chart: bars, curves against pauses, score against cost, loss against step.

Invariant: every chart carries its numbers as rows of text, and the published figures are told from ours by their form
(hollow, dashed), not by their colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pausebench.results import published
from pausebench.results.analysis import baseline
from pausebench.results.canvas import INK, PAPER, Drawing, Look, draw, look_of
from pausebench.results.published import Published
from pausebench.results.statistics import interval, number, plus_minus, summarise
from pausebench.results.study import Panel, Scores, Setting, Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
