"""The report's tables as data: the paper's two layouts, the primary family, the plain list of arms.

Invariant: a sheet holds text alone, so that page, Markdown and LaTeX show the same; a planned arm without a result
stands in it as `missing`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pausebench.report import published
from pausebench.report.comparisons import Contrast, Family, baseline, full_label, selection
from pausebench.report.scores import Arm, Panel, Result, Scores, Setting, Study, by_seed
from pausebench.report.statistics import (
    ALPHA,
    Comparison,
    interval,
    number,
    p_value,
    paired_comparison,
    plus_minus,
    summarise,
)

MISSING = "missing"
VARIANTS = ("StdPT_StdFT", "StdPT_PauseFT", "PausePT_StdFT", "PausePT_PauseFT")


@dataclass(frozen=True)
class Line:
    """One row of a sheet; `kind` is ours, published or cost."""

    head: str
    cells: tuple[str, ...]
    kind: str = "ours"


@dataclass(frozen=True)
class Group:
    """Rows that belong together under a title; an empty title needs none."""

    title: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Sheet:
    """A table: `corner` heads the column of row names, `notes` stand below it. `prose`: columns of words."""

    title: str
    corner: str
    columns: tuple[str, ...]
    groups: tuple[Group, ...]
    notes: tuple[str, ...] = ()
    prose: frozenset[str] = frozenset()

    @property
    def short_heads(self) -> bool:
        """Whether the row names are short enough to stay in sight while a narrow screen scrolls sideways."""
        return all(len(line.head) <= 22 for group in self.groups for line in group.lines)


def whole_label(arm: Arm) -> str:
    """`full_label` with the prefix's attention as well."""
    return f"{full_label(arm)}, {arm.prefix} prefix"


def like_table1(study: Study, panel: Panel) -> bool:
    """Whether a panel of variants is laid out as Table 1: arms as columns, tasks as rows."""
    trained = [(cell.arm.variant, cell.arm.k) for cell in panel.cells if cell.arm.k]
    several = len(set(trained)) > len({variant for variant, _ in trained})
    return panel.kind == "variants" and (study.published == "table1" or several)


def table1(study: Study, panel: Panel) -> Sheet:
    """Variants and their K as columns; for each task and metric our line, the published one, and the cost."""
    return _arms_as_columns(study, panel, f"{panel.title}: every variant and K", full_label)


def table2(study: Study, panel: Panel) -> Sheet:
    """The same with the pauses prepended and appended as columns; K may differ from task to task and has a line."""
    title = f"{panel.title}: pauses before and after the question"
    return _arms_as_columns(study, panel, title, placed_label, k_line=True)


def placed_label(arm: Arm) -> str:
    """A variant with where its pauses stand: `PausePT_PauseFT prepended`."""
    return f"{arm.variant} {arm.placement}ed" if arm.k and arm.placement else arm.variant


def _arms_as_columns(
    study: Study, panel: Panel, title: str, label: Callable[[Arm], str], k_line: bool = False
) -> Sheet:
    settings = panel.settings()
    by_setting = [{scores.arm: scores for scores in panel.scores(setting)} for setting in settings]
    if any(len({label(arm) for arm in arms}) < len(arms) for arms in by_setting):
        label = whole_label  # two arms must not share a column
    labels = {label(arm): arm for arms in by_setting for arm in sorted(arms, key=_order)}
    columns = sorted(labels, key=lambda name: _order(labels[name]))
    groups = []
    for setting, arms in zip(settings, by_setting, strict=True):
        row = {label(arm): scores for arm, scores in arms.items()}
        metric, _ = panel.metrics(setting)
        printed = published.metrics_of(study.published, setting.task)
        shown = [metric] if metric else []
        shown += [name for name in printed if name not in shown]
        for place, name in enumerate(shown or [None]):
            lines = [Line("ours", tuple(ours_text(row.get(column), setting, name) for column in columns))]
            if name in printed:
                found = [published.of_arm(study.published, setting.task, name, labels[column]) for column in columns]
                known = tuple(figure.text if figure else "-" for figure in found)
                lines.append(Line(published.LABEL, known, "published"))
            if k_line and place == 0:
                counts = tuple(str(row[column].arm.k) if column in row else "-" for column in columns)
                lines.append(Line("K", counts, "cost"))
            if place == 0:
                cost = tuple(flops(row[column].inference_flops) if column in row else "-" for column in columns)
                lines.append(Line("FLOPs an answer", cost, "cost"))
            groups.append(Group(metric_title(setting, name, name in printed), tuple(lines)))
    notes = [
        "Ours: mean ± deviation over seeds (seeds; 4/5 where one of five is missing). FLOPs an answer: at inference."
    ]
    if study.published:
        notes.append(published.beside(study.published, study.models(), study.generated()))
    else:
        notes.append("The paper prints no figures for this study, so none stand beside ours.")
    return Sheet(title, "task and metric", tuple(columns), tuple(groups), tuple(notes))


def _order(arm: Arm) -> tuple[int, str, str, int, int]:
    known = VARIANTS.index(arm.variant) if arm.variant in VARIANTS else len(VARIANTS)
    return known, arm.control, "" if arm.placement == "prepend" else "z", arm.k, arm.mt


def metric_title(setting: Setting, metric: str | None, printed: bool) -> str:
    """A task with the metric, and how the paper calls it where it prints it."""
    if metric is None:
        return setting.label
    theirs = published.name_of_metric(setting.task, metric) if printed else None
    return f"{setting.label} · {metric.replace('_', ' ')}{f' (published as {theirs})' if theirs else ''}"


def ours_text(scores: Scores | None, setting: Setting, metric: str | None) -> str:
    """`0.364 ± 0.025 (5)`: mean, deviation and seeds of one metric of an arm."""
    if scores is None:
        return "-"
    values = metric_values(scores, setting, metric)
    if not values:
        return MISSING
    planned = len({cell.seed for cell in scores.cells})
    count = f"{len(values)}" if len(values) == planned else f"{len(values)}/{planned}"
    return f"{plus_minus(summarise(list(values.values())))} ({count})"


def metric_values(scores: Scores, setting: Setting, metric: str | None) -> dict[int, float]:
    """{seed: mean over the worlds} of any metric of an arm, for the seeds that have it in all worlds."""

    def pick(result: Result) -> float | None:
        return result.value if metric in (None, result.metric) else result.metrics.get(metric)

    return by_seed(scores.cells, setting.worlds, pick)


def better_arms(arms: Sequence[Scores]) -> tuple[list[Scores], str | None]:
    """One arm a variant, that with the better mean where there are several K; and the words that say it was chosen."""
    groups: dict[tuple[str, str], list[Scores]] = {}
    for scores in arms:
        groups.setdefault((scores.arm.variant, scores.arm.control), []).append(scores)
    chosen = [max(group, key=_mean) for group in groups.values()]
    several = [scores for group in groups.values() if len(group) > 1 for scores in group]
    return chosen, selection(several) if several else None


def _mean(scores: Scores) -> float:
    mean = summarise(list(scores.values.values())).mean
    return -math.inf if mean is None else mean


def family_sheet(study: Study, family: Family) -> Sheet | None:
    """Every comparison fixed in advance with its published counterpart, then the best K of each task, so labelled."""
    if not family.contrasts:
        return None
    columns = ("n", "difference", "95 % interval", "p (Holm)", "d_z, 95 % interval", "verdict", "published difference")
    size = len(family.contrasts)
    fixed = f"Fixed in advance: {size} comparison{'' if size == 1 else 's'}"
    groups = [Group(fixed, tuple(_family_line(study, contrast) for contrast in family.contrasts))]
    if family.best:
        lines = tuple(_family_line(study, contrast) for contrast in family.best)
        groups.append(Group(f"For each task the {family.best[0].selection}", lines))
    notes = [
        f"Differences are treatment − control, paired over seeds; p is Holm's over all {size}, missing ones counted, "
        f"and decides the verdict at {ALPHA:.2f}. The intervals are not widened. d_z: mean over deviation."
    ]
    if family.best:
        notes.append(
            "The best was chosen by the scores it is then judged by, so its difference is too large by as much as luck "
            "helped the choice; its p is the one it has among all comparisons."
        )
    if study.published:
        notes.append(f"Published difference: of the printed means ({published.LABEL}); its spread is not published.")
    return Sheet(
        "The comparisons fixed in advance", "task", columns, tuple(groups), tuple(notes), frozenset({"verdict"})
    )


def _family_line(study: Study, contrast: Contrast) -> Line:
    c = contrast.comparison
    return Line(
        f"{contrast.setting.label}, {treatment_words(contrast)}",
        (
            str(c.n),
            difference_text(c),
            interval_text(c),
            p_value(contrast.adjusted_p),
            effect_text(c),
            short_verdict(contrast),
            _signed(published_difference(study, contrast)),
        ),
    )


def treatment_words(contrast: Contrast) -> str:
    """What tells a treatment from the other treatments of its family: `K=10`, `K=50, prepended`."""
    arm = contrast.treatment.arm
    return full_label(arm).removeprefix(arm.variant).strip() or arm.variant


def published_difference(study: Study, contrast: Contrast) -> float | None:
    """The difference of the printed means behind a contrast, where both are printed."""
    task = contrast.setting.task
    metric = next(iter(published.metrics_of(study.published, task)), None)
    ours = {cell.result.metric for cell in contrast.treatment.cells if cell.result}
    if ours and metric not in ours:
        return None
    found = [published.of_arm(study.published, task, metric, arm.arm) for arm in (contrast.treatment, contrast.control)]
    return found[0].mean - found[1].mean if found[0] and found[1] else None


def short_verdict(contrast: Contrast) -> str:
    """One or two words on the corrected comparison."""
    c = contrast.comparison
    if c.difference is None:
        return MISSING
    if c.identical:
        return "identical"
    if c.n == 1:
        return "one seed"
    if contrast.adjusted_p is None:
        return "no spread"
    return {1: "higher", -1: "lower", 0: "not settled"}[contrast.direction]


def arms_sheet(panel: Panel) -> Sheet:
    """One row an arm: score, interval, likelihood of the answer, test-set error, second metric."""
    columns = ("mean ± deviation", "n", "95 % interval", "target NLL", "test-set s.e.", "second metric")
    groups = []
    for setting in panel.settings():
        lines = []
        for scores in panel.scores(setting):
            summary = summarise(list(scores.values.values()))
            lines.append(
                Line(
                    full_label(scores.arm),
                    (
                        plus_minus(summary),
                        f"{summary.n}{f' ({scores.missing} missing)' if scores.missing else ''}",
                        "one seed: none" if summary.n == 1 else interval(summary.interval),
                        plus_minus(summarise(list(scores.nll.values()))) if scores.nll else "-",
                        number(scores.stderr),
                        plus_minus(summarise(list(scores.second.values()))) if scores.second else "-",
                    ),
                )
            )
        (metric, second), chance = panel.metrics(setting), panel.chance(setting)
        title = setting.label
        if metric:
            title += f" ({metric}{f'; second: {second}' if second else ''})"
        if chance is not None:
            title += f" (guessing scores {number(chance)})"
        groups.append(Group(title, tuple(lines)))
    return Sheet(panel.title, "variant", columns, tuple(groups))


def flops(value: float | None) -> str:
    """`1.23 TFLOP`, `-` where it is not known."""
    if value is None or value <= 0:
        return "-"
    for size, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {prefix}FLOP"
    return f"{value:.3g} FLOP"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.3f}"


def difference_text(c: Comparison) -> str:
    """The difference of a comparison, or the word for why there is none."""
    return MISSING if c.difference is None else "identical" if c.identical else _signed(c.difference)


def effect_text(c: Comparison) -> str:
    """Cohen's d_z and its interval: `1.20 [-0.31, 2.61]`."""
    if c.effect_size is None or c.effect_interval is None:
        return "-"
    return f"{c.effect_size:.2f} [{c.effect_interval[0]:.2f}, {c.effect_interval[1]:.2f}]"


def interval_text(c: Comparison) -> str:
    """Its interval, or why there is none."""
    if c.difference is None or c.identical:
        return "-"
    return "one seed: none" if c.n == 1 else "no spread" if c.interval is None else interval(c.interval, signed=True)


# ------------------------------
# The controls: what each takes away, and how far it stands from the full method and from the baseline.

REFERENCES = ("PausePT_PauseFT", "StdPT_StdFT")
CONTROLS = {
    "hidden_pretraining": "pauses hidden in pretraining from every position but themselves and the read-out",
    "hidden_finetuning": "pauses hidden so in finetuning and at inference",
    "hidden": "pauses hidden in both",
    "one_pause": "K = 1",
    "shifted": "no pauses, the answer's positions moved on by K",
    "filler": "the text . in the pauses' places, in finetuning and at inference",
    "layers": "no pauses, more layers, pretrained with them, at equal inference FLOPs",
    "steps": "no pauses, more finetuning steps at equal training FLOPs",
}


def controls_sheet(study: Study, panel: Panel) -> Sheet:
    """Every control of every task, and how far it is from the full method and from the baseline."""
    columns = ("mean ± deviation (n)", "− PausePT_PauseFT", "− StdPT_StdFT", "FLOPs an answer")
    groups = []
    for setting in panel.settings():
        arms = with_references(study, panel, setting)
        lines = []
        for scores in arms:
            against = [next((arm for arm in arms if is_reference(arm, name)), None) for name in REFERENCES]
            cells = [ours_text(scores, setting, None), *(_against(scores, other) for other in against)]
            lines.append(Line(full_label(scores.arm), (*cells, flops(scores.inference_flops))))
        metric, _ = panel.metrics(setting)
        groups.append(Group(metric_title(setting, metric, False), tuple(lines)))
    seen = dict.fromkeys(cell.arm.control for cell in panel.cells if cell.arm.control)
    told = "; ".join(f"{name}: {CONTROLS[name]}" for name in seen if name in CONTROLS)
    notes = (
        "Differences are control − reference, paired over seeds, with their 95 % interval; their corrected p-values "
        "are among the secondary comparisons.",
        told,
    )
    return Sheet(f"{panel.title}: controls", "arm", columns, tuple(groups), notes)


def is_reference(scores: Scores, variant: str) -> bool:
    """Whether an arm is the paper's own variant, evaluated as it was finetuned."""
    arm = scores.arm
    return arm.variant == variant and not arm.control and arm.mt == arm.k and arm.filler in ("", "<pause>")


def with_references(study: Study, panel: Panel, setting: Setting) -> list[Scores]:
    """The full method and the baseline, from this panel or another of the study, and then the controls."""
    arms = panel.scores(setting)
    rest = [scores for scores in arms if not any(is_reference(scores, name) for name in REFERENCES)]
    counts = [scores.arm.k for scores in rest if scores.arm.k]
    usual = max(counts, key=counts.count) if counts else 0
    found = []
    for variant in REFERENCES:
        others = [scores for other in study.of_kind("variants") for scores in other.scores(setting)]
        fitting = [scores for scores in (*arms, *others) if is_reference(scores, variant)]
        fitting = [scores for scores in fitting if scores.arm.k in (0, usual)] or fitting
        found += fitting[:1]
    if not any(is_reference(scores, "StdPT_StdFT") for scores in found):
        plain = baseline(study, panel, setting)
        found += [plain] if plain else []
    return [*found, *rest]


def _against(scores: Scores, other: Scores | None) -> str:
    if other is None or other.names == scores.names:
        return "-"
    c = paired_comparison(scores.values, other.values)
    return f"{difference_text(c)} {interval_text(c)}".removesuffix(" -")
