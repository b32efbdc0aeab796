"""The report's figures, one function each: which runs it shows, in what order and with what caption.

Invariant: every figure carries the table of its numbers. A figure of scores keeps a planned arm without a result, as
missing; a figure of losses shows the runs that have a curve.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pausebench.results import published
from pausebench.results.analysis import InstrumentCheck, filler_label, full_label, pretraining_label
from pausebench.results.canvas import LOOKS, draw, look_of
from pausebench.results.collect import finite
from pausebench.results.controls import with_references
from pausebench.results.drawing import (
    Plot,
    draw_bars,
    draw_cost,
    draw_curve,
    draw_reference,
    draw_training,
    spoken,
)
from pausebench.results.layouts import better_arms, placed_label
from pausebench.results.published import Published
from pausebench.results.run_folder import read_metrics
from pausebench.results.statistics import plus_minus
from pausebench.results.study import Panel, Scores, Setting, Study

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
