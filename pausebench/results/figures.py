"""The report's figures, one function each: which runs it shows, in what order and with what caption.

Invariant: every figure carries the table of its numbers. A figure of scores keeps a planned arm without a result, as
missing; a figure of losses shows the runs that have a curve.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from pausebench.results.analysis import InstrumentCheck, filler_label, full_label, pretraining_label
from pausebench.results.collect import finite
from pausebench.results.drawing import (
    LOOKS,
    Plot,
    draw_bars,
    draw_curve,
    draw_reference,
    draw_svg,
    draw_training,
    look_of,
    spoken,
)
from pausebench.results.run_folder import read_metrics
from pausebench.results.statistics import plus_minus
from pausebench.results.study import Panel, Scores, Setting, Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def variant_bars(study: Study, panel: Panel, setting: Setting) -> Plot:
    """Bars of the arms' means with 95 % intervals, single seeds as dots, and the chance line where it is known."""
    arms = panel.scores(setting)
    labels = [full_label(scores.arm) for scores in arms]
    looks = [look_of(scores.arm.variant) for scores in arms]
    caption = "Bars: mean over seeds. Lines: 95 % interval. Dots: single seeds."
    title = setting.label
    return draw_bars(f"{study.result}-{panel.id}", title, setting, caption, arms, labels, looks, panel.chance(setting))


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
    return draw_bars(f"{study.result}-{panel.id}", title, setting, caption, arms, labels, looks, panel.chance(setting))


def k_curve(study: Study, panel: Panel, setting: Setting) -> Plot:
    """Score against K, the pauses of finetuning, one line a pretraining; M = K."""
    lines = _lines(panel, setting, lambda scores: pretraining_label(scores.arm), lambda scores: scores.arm.k)
    caption = (
        "How many pauses are best? Each model is finetuned and evaluated with its own K. "
        "Error bars: 95 % interval over seeds; dots: single seeds."
    )
    return draw_curve(f"{study.result}-{panel.id}", study, panel, setting, caption, lines, "K, pauses in finetuning")


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
    return draw_curve(identifier, study, panel, setting, caption, lines, "M, pauses at inference", trained)


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
    svg = draw_svg(f"{study.result}-relay", f"Relay token accuracy against K. {spoken(rows)}", 2.5, paint)
    return Plot("Relay", caption, svg, ("K", "token accuracy", "seeds"), rows)


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
    panel: Panel, setting: Setting, name: Callable[[Scores], str], place: Callable[[Scores], int]
) -> dict[str, list[tuple[int, Scores]]]:
    lines: dict[str, list[tuple[int, Scores]]] = {}
    for scores in panel.scores(setting):
        lines.setdefault(name(scores), []).append((place(scores), scores))
    return {label: sorted(points, key=lambda point: point[0]) for label, points in lines.items()}
