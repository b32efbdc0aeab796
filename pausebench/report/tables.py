"""The report's tables as data: the paper's two layouts, the primary family, the controls, the plain list of arms.

Invariant: a sheet holds text alone, so that page, Markdown and LaTeX show the same; a planned arm without a result is
in it as `missing`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pausebench.report.comparisons import Contrast, Family, baseline, selection
from pausebench.report.scores import ScoredStudy, Scores, Setting
from pausebench.report.statistics import (
    ALPHA,
    Comparison,
    interval,
    number,
    p_value,
    paired_comparison,
    plus_minus,
)
from pausebench.study.study import CONTROLS, Arm, Panel
from pausebench.tasks import published

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


def like_table1(scored: ScoredStudy, panel: Panel) -> bool:
    """Whether a panel of variants is laid out as Table 1: arms as columns, tasks as rows."""
    trained = {(cell.arm.variant, cell.arm.counts) for cell in panel.cells if cell.arm.k}
    several = len(trained) > len({variant for variant, _ in trained})
    return panel.kind == "variants" and (scored.study.published == "table1" or several)


def table1(scored: ScoredStudy, panel: Panel) -> Sheet:
    """Variants and their K as columns; for each task and metric our line, the published one, and the cost."""
    return _arms_as_columns(scored, panel, f"{panel.title}: every variant and K", lambda arm: arm.label)


def table2(scored: ScoredStudy, panel: Panel) -> Sheet:
    """The same with the pauses prepended and appended as columns; K may differ from task to task and has a line."""
    title = f"{panel.title}: pauses before and after the question"
    return _arms_as_columns(scored, panel, title, placed_label, k_line=True)


def placed_label(arm: Arm) -> str:
    """A variant with where its pauses are: `PausePT_PauseFT prepended`."""
    return f"{arm.variant} {arm.placement}ed" if arm.k and arm.placement else arm.variant


def _arms_as_columns(
    scored: ScoredStudy, panel: Panel, title: str, label: Callable[[Arm], str], k_line: bool = False
) -> Sheet:
    settings = scored.settings(panel)
    if any(len({label(scores.arm) for scores in setting.arms}) < len(setting.arms) for setting in settings):
        # Two arms must not share a column, and the prefix's attention is all that labels leave out.
        def label(arm: Arm) -> str:
            return f"{arm.label}, {arm.prefix} prefix"

    labels = {label(scores.arm): scores.arm for setting in settings for scores in sorted(setting.arms, key=_order)}
    columns = sorted(labels, key=lambda name: _order_of(labels[name]))
    groups = []
    for setting in settings:
        by_label = {label(scores.arm): scores for scores in setting.arms}
        row = [by_label.get(column) for column in columns]
        printed = published.metrics_of(scored.study.published, setting.task)
        metrics = list(dict.fromkeys([*([setting.metric] if setting.metric else []), *printed]))
        for place, metric in enumerate(metrics or [None]):
            lines = [Line("ours", tuple(ours_text(scores, metric) for scores in row))]
            if metric in printed:
                figures = [setting.published(labels[column], metric) for column in columns]
                lines.append(Line(published.LABEL, tuple(map(_figure, figures)), "published"))
            if k_line and place == 0:
                lines.append(Line("K", tuple(scores.arm.counts if scores else "-" for scores in row), "cost"))
            if place == 0:
                lines.append(Line("FLOPs an answer", tuple(_cost(scores) for scores in row), "cost"))
            groups.append(Group(metric_title(setting, metric, metric in printed), tuple(lines)))
    notes = ["Ours: mean ± std over seeds (seeds; 4/5 where one of five is missing). FLOPs an answer: at inference."]
    if scored.study.published:
        generated = "embedded" in set(scored.table.data)
        notes.append(published.beside(scored.study.published, scored.models, generated))
    else:
        notes.append("The paper prints no figures for this study, so none stand beside ours.")
    return Sheet(title, "task and metric", tuple(columns), tuple(groups), tuple(notes))


def _order(scores: Scores) -> tuple[int, str, str, int, int]:
    return _order_of(scores.arm)


def _order_of(arm: Arm) -> tuple[int, str, str, int, int]:
    known = VARIANTS.index(arm.variant) if arm.variant in VARIANTS else len(VARIANTS)
    return known, arm.control, "" if arm.placement == "prepend" else "z", arm.k, arm.mt


def _figure(found: published.Published | None) -> str:
    return found.text if found else "-"


def _cost(scores: Scores | None) -> str:
    return flops(scores.mean_of("inference_flops")) if scores else "-"


def metric_title(setting: Setting, metric: str | None, printed: bool) -> str:
    """A task with the metric, and how the paper calls it where it prints it."""
    if metric is None:
        return setting.label
    theirs = published.name_of_metric(setting.task, metric) if printed else None
    return f"{setting.label} · {metric.replace('_', ' ')}{f' (published as {theirs})' if theirs else ''}"


def ours_text(scores: Scores | None, metric: str | None = None) -> str:
    """`0.364 ± 0.025 (5)`: mean, deviation and seeds of one metric of an arm."""
    if scores is None:
        return "-"
    summary, planned = scores.summary(metric), len(scores.seeds)
    if not summary.n:
        return MISSING
    return f"{plus_minus(summary)} ({summary.n if summary.n == planned else f'{summary.n}/{planned}'})"


def better_arms(arms: Sequence[Scores]) -> tuple[list[Scores], str | None]:
    """One arm a variant, that with the better mean where there are several K; and the words that say it was chosen."""
    groups: dict[tuple[str, str], list[Scores]] = {}
    for scores in arms:
        groups.setdefault((scores.arm.variant, scores.arm.control), []).append(scores)
    chosen = [max(group, key=_mean) for group in groups.values()]
    several = [scores for group in groups.values() if len(group) > 1 for scores in group]
    return chosen, selection(several) if several else None


def _mean(scores: Scores) -> float:
    mean = scores.summary().mean
    return -math.inf if mean is None else mean


def family_sheet(family: Family, table: str | None) -> Sheet | None:
    """Every comparison fixed in advance with its published counterpart, then the best K of each task, so labelled."""
    if not family.contrasts:
        return None
    columns = ("n", "difference", "95 % interval", "p (Holm)", "d_z, 95 % interval", "verdict", "published difference")
    size = len(family.contrasts)
    fixed = f"Fixed in advance: {size} comparison{'' if size == 1 else 's'}"
    groups = [Group(fixed, tuple(map(_family_line, family.contrasts)))]
    notes = [
        f"Differences are treatment − control, paired over seeds; p is Holm's over all {size}, missing ones counted, "
        f"and decides the verdict at {ALPHA:.2f}. The intervals are not widened. d_z: mean over deviation."
    ]
    if family.best:
        title = f"For each task the {family.best[0].selection}"
        groups.append(Group(title, tuple(map(_family_line, family.best))))
        notes.append(
            "The best was chosen by the scores it is then judged by, so its difference is too large by as much as luck "
            "helped the choice; its p is the one it has among all comparisons."
        )
    if table:
        notes.append(f"Published difference: of the printed means ({published.LABEL}); its spread is not published.")
    return Sheet(
        "The comparisons fixed in advance", "task", columns, tuple(groups), tuple(notes), frozenset({"verdict"})
    )


def _family_line(contrast: Contrast) -> Line:
    c = contrast.comparison
    cells = (
        str(c.n),
        difference_text(c),
        interval_text(c),
        p_value(contrast.adjusted_p),
        effect_text(c),
        short_verdict(contrast),
        _signed(contrast.published_difference),
    )
    return Line(f"{contrast.setting.label}, {contrast.treatment_words}", cells)


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


def arms_sheet(scored: ScoredStudy, panel: Panel) -> Sheet:
    """One row an arm: score, interval, likelihood of the answer, test-set error, second metric."""
    columns = ("mean ± std", "n", "95 % interval", "target NLL", "test-set s.e.", "second metric")
    groups = []
    for setting in scored.settings(panel):
        title = setting.label
        if setting.metric:
            title += f" ({setting.metric}{f'; second: {setting.second}' if setting.second else ''})"
        if setting.chance is not None:
            title += f" (guessing scores {number(setting.chance)})"
        groups.append(Group(title, tuple(map(_arm_line, setting.arms))))
    return Sheet(panel.title, "variant", columns, tuple(groups))


def _arm_line(scores: Scores) -> Line:
    summary = scores.summary()
    cells = (
        plus_minus(summary),
        f"{summary.n}{f' ({scores.missing} missing)' if scores.missing else ''}",
        "one seed: none" if summary.n == 1 else interval(summary.interval),
        plus_minus(scores.nll) if scores.nll.n else "-",
        number(scores.mean_of("stderr")),
        plus_minus(scores.second) if scores.second else "-",
    )
    return Line(scores.arm.label, cells)


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


REFERENCES = ("PausePT_PauseFT", "StdPT_StdFT")


def controls_sheet(scored: ScoredStudy, panel: Panel) -> Sheet:
    """Every control of every task, and how far it is from the full method and from the baseline."""
    columns = ("mean ± std (n)", "− PausePT_PauseFT", "− StdPT_StdFT", "FLOPs an answer")
    groups = []
    for setting in scored.settings(panel):
        arms = with_references(setting)
        against = [next((scores for scores in arms if _is_reference(scores, name)), None) for name in REFERENCES]
        lines = [
            Line(scores.arm.label, (ours_text(scores), *(_against(scores, other) for other in against), _cost(scores)))
            for scores in arms
        ]
        groups.append(Group(metric_title(setting, setting.metric, False), tuple(lines)))
    seen = dict.fromkeys(cell.arm.control for cell in panel.cells if cell.arm.control)
    notes = (
        "Differences are control − reference, paired over seeds, with their 95 % interval; their corrected p-values "
        "are among the secondary comparisons.",
        "; ".join(f"{name}: {CONTROLS[name]}" for name in seen if name in CONTROLS),
    )
    return Sheet(f"{panel.title}: controls", "arm", columns, tuple(groups), notes)


def _is_reference(scores: Scores, variant: str) -> bool:
    return scores.arm.variant == variant and scores.arm.is_own


def with_references(setting: Setting) -> list[Scores]:
    """The full method and the baseline, from this panel or another of the study, and then the controls."""
    rest = [scores for scores in setting.arms if not any(_is_reference(scores, name) for name in REFERENCES)]
    counts = [scores.arm.k for scores in rest if scores.arm.k]
    usual = max(counts, key=counts.count) if counts else 0
    variants = setting.elsewhere(setting.scored.study.of_kind("variants"))
    everywhere = [*setting.arms, *(scores for other in variants for scores in other.arms)]
    found = []
    for variant in REFERENCES:
        fitting = [scores for scores in everywhere if _is_reference(scores, variant)]
        fitting = [scores for scores in fitting if scores.arm.k in (0, usual)] or fitting
        found += fitting[:1]
    if not any(_is_reference(scores, "StdPT_StdFT") for scores in found):
        plain = baseline(setting)
        found += [plain] if plain else []
    return [*found, *rest]


def _against(scores: Scores, other: Scores | None) -> str:
    if other is None or other.names == scores.names:
        return "-"
    c = paired_comparison(scores.values(), other.values())
    return f"{difference_text(c)} {interval_text(c)}".removesuffix(" -")
