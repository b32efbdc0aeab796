"""Figures as inline SVG, each with the table of its numbers.

Invariant: the same numbers give the same bytes, and nothing in an SVG points outside the page. Text stays text, ink and
series colours become CSS variables so that the page's light, dark and print styles colour the figures too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pausebench.results.collect import Panel, Scores, Setting, Study, finite
from pausebench.results.run_folder import read_metrics
from pausebench.results.statistics import interval, number, plus_minus, report_extra, summarise
from pausebench.results.tables import (
    InstrumentCheck,
    baseline,
    filler_label,
    full_label,
    pretraining_label,
)

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


def variant_bars(study: Study, panel: Panel, setting: Setting) -> Plot:
    """Bars of the arms' means with 95 % intervals, single seeds as dots, and the chance line where it is known."""
    arms = panel.scores(setting)
    labels = [full_label(scores.arm) for scores in arms]
    looks = [look_of(scores.arm.variant) for scores in arms]
    caption = "Bars: mean over seeds. Lines: 95 % interval. Dots: single seeds."
    title = setting.label
    return _bars(f"{study.result}-{panel.id}", title, setting, caption, arms, labels, looks, panel.chance(setting))


def filler_bars(study: Study, panel: Panel, setting: Setting) -> Plot:
    """Bars for what was inserted at inference into models that may never have seen it."""
    arms = panel.scores(setting)
    several = len({scores.arm.variant for scores in arms}) > 1
    labels = [f"{scores.arm.variant + ': ' if several else ''}{filler_label(scores.arm)}" for scores in arms]
    looks = [look_of(scores.arm.variant) for scores in arms]
    caption = (
        "A control: do extra tokens help a model that was never trained with them? If they did, more time alone "
        "would be enough. Bars: mean over seeds. Lines: 95 % interval. Dots: single seeds."
    )
    title = f"{panel.title} · {setting.label}"
    return _bars(f"{study.result}-{panel.id}", title, setting, caption, arms, labels, looks, panel.chance(setting))


def k_curve(study: Study, panel: Panel, setting: Setting) -> Plot:
    """Score against K, the pauses of finetuning, one line a pretraining; M = K."""
    lines = _lines(panel, setting, lambda scores: pretraining_label(scores.arm), lambda scores: scores.arm.k)
    caption = (
        "How many pauses are best? Each model is finetuned and evaluated with its own K. "
        "Error bars: 95 % interval over seeds; dots: single seeds."
    )
    return _curve(f"{study.result}-{panel.id}", study, panel, setting, caption, lines, "K, pauses in finetuning")


def m_curve(study: Study, panel: Panel, setting: Setting) -> Plot:
    """Score against M, the pauses at inference, for models finetuned with a fixed K; M = K is marked."""
    lines = _lines(panel, setting, lambda scores: scores.arm.variant, lambda scores: scores.arm.mt)
    trained = sorted({scores.arm.k for scores in panel.scores(setting)})
    caption = (
        "What if a finished model gets fewer or more pauses than it was trained with? "
        f"All were finetuned with K = {', '.join(map(str, trained))}; only the pauses at inference change. "
        "Error bars: 95 % interval over seeds; dots: single seeds."
    )
    identifier = f"{study.result}-{panel.id}"
    return _curve(identifier, study, panel, setting, caption, lines, "M, pauses at inference", trained)


def relay_curve(study: Study, check: InstrumentCheck) -> Plot:
    """Relay's token accuracy against K with the chance line."""
    points = [(k, summary.mean) for k, summary in check.points if summary.mean is not None]
    rows = tuple((str(k), plus_minus(summary), str(summary.n)) for k, summary in check.points)

    def paint(axes: Axes) -> None:
        look = LOOKS["PausePT_PauseFT"]
        places, means = [k for k, _ in points], [mean for _, mean in points]
        axes.plot(places, means, color=look.color, marker=look.marker, markersize=5)
        _reference(axes, check.chance, "chance")
        axes.set(xlabel="K, pauses", ylabel="token accuracy", ylim=(0, 1.03), xticks=[k for k, _ in check.points])

    caption = "Relay lets the answer see the question through the pauses only. Without pauses it has to guess."
    svg = _draw(f"{study.result}-relay", f"Relay token accuracy against K. {_spoken(rows)}", 2.5, paint)
    return Plot("Relay", caption, svg, ("K", "token accuracy", "seeds"), rows)


def finetuning_curves(study: Study, panel: Panel, setting: Setting) -> Plot | None:
    """Finetuning loss against step by variant, from the finetune runs of a variants panel; None without any curve."""
    groups = {
        full_label(scores.arm): (look_of(scores.arm.variant), _runs_of(scores, study.runs, setting))
        for scores in panel.scores(setting)
    }
    caption = "Thick: mean over seeds. Thin: single seeds. Loss over the answer alone, nats a token."
    identifier = f"{study.result}-{panel.id}-finetuning-{setting.label}"
    several = f" · {panel.title}" if len(study.of_kind("variants")) > 1 else ""
    return _training(identifier, f"Finetuning loss{several} · {setting.label}", caption, groups)


def pretraining_curves(study: Study, world: str) -> Plot | None:
    """Pretraining loss against step for both kinds of pretraining in one world; None without any curve."""
    runs: dict[str, set[str]] = {}
    for cell in study.cells():
        if cell.world == world and cell.result and cell.result.pretrain_run and cell.arm.pretraining != "none":
            runs.setdefault(pretraining_label(cell.arm), set()).add(cell.result.pretrain_run)
    groups = {
        name: (look_of(name), [study.runs / "pretrain" / run for run in sorted(runs[name])])
        for name in sorted(runs, reverse=True)
    }
    caption = (
        "Thick: mean over seeds. Thin: single seeds. Nats a supervised token. The two are not over the same places: "
        "with pauses in the text, a place before a pause is not scored."
    )
    return _training(f"{study.result}-{world}-pretraining", f"Pretraining loss · {world}", caption, groups)


def read_curve(run: Path, column: str = "loss") -> dict[int, float]:
    """{step: value} of one column of a run's `metrics.jsonl`.

    A torn line (the run was killed while writing) and values that are not finite are left out; no file is no curve.
    """
    path = run / "metrics.jsonl"
    rows = read_metrics(path) if path.is_file() else []
    return {row["step"]: value for row in rows if (value := finite(row.get(column))) is not None}


def look_of(name: str) -> Look:
    """The look of a variant or a kind of pretraining."""
    return LOOKS.get(name, OTHER_LOOK)


def _runs_of(scores: Scores, runs: Path, setting: Setting) -> list[Path]:
    names = {cell.result.finetune_run for cell in scores.cells if cell.result and cell.result.finetune_run}
    return [runs / "finetune" / name for name in sorted(names)]


def _lines(
    panel: Panel, setting: Setting, name: Callable[[Scores], str], place: Callable[[Scores], int]
) -> dict[str, list[tuple[int, Scores]]]:
    lines: dict[str, list[tuple[int, Scores]]] = {}
    for scores in panel.scores(setting):
        lines.setdefault(name(scores), []).append((place(scores), scores))
    return {label: sorted(points, key=lambda point: point[0]) for label, points in lines.items()}


def _bars(
    identifier: str,
    title: str,
    setting: Setting,
    caption: str,
    arms: Sequence[Scores],
    labels: Sequence[str],
    looks: Sequence[Look],
    chance: float | None,
) -> Plot:
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

    svg = _draw(f"{identifier}-{setting.label}", f"{title}. {_spoken(rows)}", 0.95 + 0.36 * len(arms), paint)
    return Plot(title, caption, svg, ("arm", "mean ± deviation", "95 % interval", "seeds"), rows)


def _curve(
    identifier: str,
    study: Study,
    panel: Panel,
    setting: Setting,
    caption: str,
    lines: Mapping[str, list[tuple[int, Scores]]],
    xlabel: str,
    marks: Sequence[int] = (),
) -> Plot:
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
            _reference(axes, level, None)
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

    svg = _draw(f"{identifier}-{setting.label}", f"{panel.title}, {setting.label}. {_spoken(rows)}", 3.0, paint)
    columns = ("line", xlabel.split(",")[0], "mean ± deviation", "95 % interval", "seeds")
    return Plot(f"{panel.title} · {setting.label}", caption, svg, columns, tuple(rows))


def _training(
    identifier: str, title: str, caption: str, groups: Mapping[str, tuple[Look, Sequence[Path]]]
) -> Plot | None:
    curves = {name: [curve for run in runs if (curve := read_curve(run))] for name, (_, runs) in groups.items()}
    curves = {name: members for name, members in curves.items() if members}
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

    svg = _draw(identifier, f"{title} against step. {_spoken(rows)}", 3.0, paint)
    return Plot(title, caption, svg, ("run", "last loss, mean over seeds", "last step", "seeds"), tuple(rows))


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


def _reference(axes: Axes, level: float, label: str | None) -> None:
    axes.axhline(level, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
    if label:
        axes.text(1.0, level + 0.015, label, transform=axes.get_yaxis_transform(), ha="right", color=INK, fontsize=9)


def _legend(axes: Axes, bottom: float = 1.0) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower center", bbox_to_anchor=(0.45, bottom), ncols=2, frameon=False, labelcolor=INK)


def _metric(arms: Sequence[Scores]) -> str:
    names = {cell.result.metric for scores in arms for cell in scores.cells if cell.result}
    return " / ".join(sorted(names)).replace("_", " ") or "score"


def _spoken(rows: Iterable[Sequence[str]]) -> str:
    return "; ".join(", ".join(cell for cell in row if cell != "-") for row in rows)


def _draw(identifier: str, label: str, height_inches: float, paint: Callable[[Axes], None]) -> str:
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
