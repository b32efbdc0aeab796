"""What a study says: the instrument check, the comparisons fixed in advance, and all the others.

Invariant: the family of secondary comparisons follows from the plan alone, so it does not shrink while runs are
missing, and a primary comparison is never counted in it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pausebench.report.scores import ScoredStudy, Scores, Setting
from pausebench.report.statistics import (
    Comparison,
    Summary,
    direction,
    family_power_line,
    holm,
    paired_comparison,
    power_line,
    summarise,
    verdict,
)
from pausebench.study.study import Arm, Primary
from pausebench.tasks import published

RELAY_CHANCE = 1 / 8  # of the default alphabet of eight letters; a result that names its own chance wins
RELAY_TOLERANCE = 0.01  # over twice the standard error of 1,000 test answers at chance

# Fewer seeds may all get stuck, or all not, and pass a corrected t test by luck: measured in docs/statistics.md.
ENOUGH_SEEDS = 5


@dataclass(frozen=True)
class InstrumentCheck:
    """Does information flow through pauses at all? `state` is passed, failed, incomplete or absent.

    `points` are (K, token accuracy over seeds), in order of K.
    """

    state: str
    sentence: str
    points: tuple[tuple[int, Summary], ...] = ()
    chance: float = RELAY_CHANCE


@dataclass(frozen=True)
class Contrast:
    """One planned comparison, and what it says.

    adjusted_p: Holm's over its family, the primary or the secondary one.
    selection: how it was picked among several K of its task, "" where it was not.
    """

    setting: Setting
    treatment: Scores
    control: Scores
    comparison: Comparison
    adjusted_p: float | None = None
    selection: str = ""

    @classmethod
    def of(cls, setting: Setting, treatment: Scores, control: Scores) -> Contrast:
        return cls(setting, treatment, control, paired_comparison(treatment.values(), control.values()))

    @property
    def direction(self) -> int:
        """1 or -1 where the corrected test settles which arm scores higher, 0 where it does not."""
        return direction(self.comparison, self.adjusted_p)

    @property
    def planned_seeds(self) -> int:
        """How many seeds the plan has for both arms; `comparison.n` of them have both scores."""
        return len(self.treatment.seeds & self.control.seeds)

    @property
    def identity(self) -> tuple[frozenset[str], frozenset[str]]:
        """The runs on both sides: panels share cells, so two panels may ask for the same comparison."""
        return self.treatment.names, self.control.names

    @property
    def treatment_words(self) -> str:
        """What tells a treatment from the other treatments of its family: `K=10`, `K=50, prepended`."""
        arm = self.treatment.arm
        return arm.label.removeprefix(arm.variant).strip() or arm.variant

    @property
    def published_difference(self) -> float | None:
        """The difference of the printed means, where both are printed in the metric that ours are in."""
        metric = published.headline(self.setting.scored.study.published, self.setting.task)
        if self.treatment.headline not in (None, metric):
            return None
        treatment, control = (self.setting.published(arm, metric) for arm in (self.treatment.arm, self.control.arm))
        return treatment.mean - control.mean if treatment and control else None


@dataclass(frozen=True)
class Family:
    """The comparisons fixed in advance: treatment against control, each task with each K > 0 of the primary panel.

    contrasts: in the plan's order, `adjusted_p` Holm's over all of them. best: for each task with several K the
    contrast whose treatment has the highest mean, one of `contrasts`. That is a selection on the test set, as its
    `selection` says; every K is in the family, so its `adjusted_p` pays for it. sentence and power: what they say
    together, in words.
    """

    sentence: str
    power: str | None
    contrasts: tuple[Contrast, ...]
    best: tuple[Contrast, ...]


def check_instrument(scored: ScoredStudy) -> InstrumentCheck:
    """Relay accuracy must be at chance without pauses and rise with K; if not, no other number of the study counts."""
    table = scored.table[scored.table.panel.isin([panel.id for panel in scored.study.of_kind("bottleneck")])]
    if table.empty:
        return InstrumentCheck("absent", "This study has no instrument check of its own.")
    table = table.assign(k=[arm.k for arm in table.arm])
    by_k = table[(table.metric == table.headline) | table.metric.isna()].groupby("k")
    points = tuple((int(k), summarise(list(rows.value.dropna()))) for k, rows in by_k)
    told = table.chance.dropna()
    chance = float(told.iloc[0]) if len(told) else RELAY_CHANCE
    means = [(k, summary.mean) for k, summary in points if summary.mean is not None]
    listed = ", ".join(f"{mean:.3f} at K={k}" for k, mean in means)
    if problems := _instrument_problems(means, chance):
        return InstrumentCheck("failed", f"{'; '.join(problems)} (measured: {listed})", points, chance)
    cells = table.drop_duplicates("name")
    missing = int(cells.problem.notna().sum())
    if missing or len(means) < 2 or means[0][0] != 0:
        reason = f"{missing} of {len(cells)} relay cells are missing" if missing else "it needs K=0 and one K above"
        sentence = f"The instrument check is incomplete: {reason} (measured: {listed or 'nothing'})"
        return InstrumentCheck("incomplete", sentence, points, chance)
    sentence = f"relay token accuracy is at chance ({chance:.3f}) without pauses and rises with K: {listed}"
    return InstrumentCheck("passed", sentence, points, chance)


def _instrument_problems(means: Sequence[tuple[int, float]], chance: float) -> list[str]:
    problems = []
    for k, mean in means:
        if k == 0 and abs(mean - chance) > RELAY_TOLERANCE:
            problems.append(f"with K=0 relay must be at chance, {chance:.3f} ± {RELAY_TOLERANCE}, and is {mean:.3f}")
        if k > 0 and mean <= chance + RELAY_TOLERANCE:
            problems.append(f"with K={k} relay stays at chance: {mean:.3f}")
    for (fewer, lower), (more, higher) in itertools.pairwise(means):
        if higher < lower - RELAY_TOLERANCE:
            problems.append(f"relay falls from {lower:.3f} at K={fewer} to {higher:.3f} at K={more}")
    return problems


def primary_family(scored: ScoredStudy) -> Family:
    """The comparisons that were fixed in advance, whatever their sign."""
    primary = scored.study.primary
    panel = next((panel for panel in scored.study.panels if primary and panel.id == primary.panel), None)
    if primary is None or panel is None:
        return Family("This study fixed no primary comparison in advance.", None, (), ())
    contrasts: list[Contrast] = []
    picked: list[int] = []
    # The first setting of a task covers all its worlds.
    pooled = {setting.task: setting for setting in reversed(scored.settings(panel))}
    for task in dict.fromkeys(cell.task for cell in panel.cells if primary.task in (None, cell.task)):
        setting = pooled[task]
        control = next((scores for scores in setting.arms if scores.arm.variant == primary.control), None)
        treatments = [scores for scores in setting.arms if scores.arm.variant == primary.treatment]
        of_task = [Contrast.of(setting, scores, control) for scores in treatments if control is not None]
        best = _highest(of_task)
        if best is not None:
            picked.append(len(contrasts) + best)
            of_task[best] = replace(of_task[best], selection=selection(treatments))
        contrasts += of_task
    if not contrasts:
        return Family("The plan has no cells for its primary comparison.", None, (), ())
    corrected = _corrected(contrasts)
    if len(corrected) == 1:
        sentence, power = _sentence_of_one(primary, corrected[0]), power_line(corrected[0].comparison)
    else:
        sentence = _sentence_of_many(primary, corrected)
        power = family_power_line([contrast.comparison for contrast in corrected])
    return Family(sentence, power, corrected, tuple(corrected[place] for place in picked))


def _corrected(contrasts: Sequence[Contrast]) -> tuple[Contrast, ...]:
    adjusted = holm([contrast.comparison.p for contrast in contrasts])
    return tuple(replace(contrast, adjusted_p=p) for contrast, p in zip(contrasts, adjusted, strict=True))


def _highest(contrasts: Sequence[Contrast]) -> int | None:
    """The place of the highest treatment mean among several K; the plan's first of equals. None without a choice."""
    if len({contrast.treatment.arm.counts for contrast in contrasts}) < len(contrasts):
        return None  # prepended and appended: nobody takes the better of them
    found = ((place, contrast.treatment.summary().mean) for place, contrast in enumerate(contrasts))
    means = {place: mean for place, mean in found if mean is not None}
    return max(means, key=lambda place: means[place]) if len(contrasts) > 1 and means else None


def secondary_contrasts(scored: ScoredStudy) -> list[Contrast]:
    """Every other planned comparison, each pair of arms once, with p-values Holm-corrected over all of them."""
    seen = {contrast.identity for contrast in primary_family(scored).contrasts}
    contrasts = []
    for setting in scored.settings_of("variants", "placement", "controls", "k_curve", "m_curve", "filler"):
        for treatment in setting.arms:
            for control in _controls(setting, treatment.arm):
                if control.names == treatment.names or (treatment.names, control.names) in seen:
                    continue
                seen.add((treatment.names, control.names))
                contrasts.append(Contrast.of(setting, treatment, control))
    return list(_corrected(contrasts))


def _controls(setting: Setting, arm: Arm) -> list[Scores]:
    """What an arm is compared with: no pauses at all and, by the panel's kind, what differs from it in one thing."""
    kind = setting.panel.kind
    if kind in ("m_curve", "filler"):
        found = [as_finetuned(setting, arm)]
    else:
        own = [other for other in setting.arms if not other.arm.control]
        plain = {other.arm.pretraining: other for other in reversed(own) if other.arm.k == 0}
        found = [plain.get("std") or plain.get(arm.pretraining)]
        if kind == "placement" and arm.placement == "prepend":
            appended = replace(arm, placement="append")
            found.append(next((other for other in own if other.arm == appended), None))
        if kind == "controls" and arm.control:
            full = [other for other in own if other.arm.variant == "PausePT_PauseFT"]
            of_k = [other for other in full if other.arm.k == (arm.control_k or arm.k)]
            found.append(next(iter(of_k or full), None))
    return [other for other in found if other is not None]


def _here_or_primary(setting: Setting) -> Sequence[Scores]:
    """The arms of a setting, then those of the primary panel in the same task and worlds."""
    study = setting.scored.study
    others = setting.elsewhere(panel for panel in study.panels if study.primary and panel.id == study.primary.panel)
    return [scores for source in (setting, *others) for scores in source.arms]


def as_finetuned(setting: Setting, arm: Arm) -> Scores | None:
    """The same finetuned model evaluated with M = K, from this panel or else from the primary one."""
    for scores in _here_or_primary(setting):
        other = scores.arm
        if (other.variant, other.counts, other.prefix, other.mt) == (arm.variant, arm.counts, arm.prefix, arm.k):
            return scores
    return None


def baseline(setting: Setting) -> Scores | None:
    """StdPT_StdFT (standard pretraining, no pauses anywhere) in this setting, from this panel or the primary one."""
    plain = (
        scores for scores in _here_or_primary(setting) if scores.arm.variant == "StdPT_StdFT" and not scores.arm.mt
    )
    return next(plain, None)


def missing_line(scored: ScoredStudy) -> str | None:
    """How many cells are missing and the command that fills them; None when the study is complete."""
    missing = len(scored.missing())
    if not missing:
        return None
    return f"{missing} of {len(scored.cells)} cells are missing; next: {scored.study.command}"


def selection(arms: Sequence[Scores]) -> str:
    """How one of several arms that differ in K was picked: by the highest score."""
    word = "better" if len({scores.arm.counts for scores in arms}) == 2 else "best"
    missing = ", some runs missing" if any(scores.missing for scores in arms) else ""
    return f"{word} of {_pauses(arms)}, chosen on the test set{missing}"


def _pauses(arms: Sequence[Scores]) -> str:
    counts = {scores.arm.counts: None for scores in sorted(arms, key=lambda scores: scores.arm.k)}
    return f"K = {', '.join(counts)}"


def _sentence_of_one(primary: Primary, contrast: Contrast) -> str:
    """The verdict of a family of one, and whether seeds are still to come."""
    words = verdict(contrast.comparison, primary.treatment, primary.control)
    sentence = f"{primary.treatment} against {primary.control} on {contrast.setting.label}: {words}."
    if 0 < contrast.comparison.n < contrast.planned_seeds:
        sentence += f" So far {contrast.comparison.n} of {contrast.planned_seeds} planned seeds have both arms."
    return sentence


def _sentence_of_many(primary: Primary, contrasts: Sequence[Contrast]) -> str:
    """How many comparisons the corrected test settles, in which direction and where, and what is left open and why."""
    pauses = _pauses([contrast.treatment for contrast in contrasts])
    tasks = {contrast.setting.task for contrast in contrasts}
    where = f"{len(tasks)} tasks" if len(tasks) > 1 else contrasts[0].setting.label
    head = (
        f"{primary.treatment} against {primary.control}, {len(contrasts)} comparisons ({where}, {pauses}) "
        "under one Holm correction"
    )
    found: dict[str, list[Contrast]] = {}
    for contrast in contrasts:
        found.setdefault(_state(contrast), []).append(contrast)
    if len(found.get("absent", [])) == len(contrasts):
        return f"{head}: no seed has both arms of any of them, nothing can be said yet."
    settled = len(found.get("higher", [])) + len(found.get("lower", []))
    parts = [f"{head}: {settled} of {len(contrasts)} {_are(settled)} settled"]
    for state, better in (("higher", primary.treatment), ("lower", primary.control)):
        if state in found:
            parts.append(f"{better} scores higher in {_places(found[state])}")
    if count := len(found.get("open", [])):
        parts.append(f"the seeds do not settle the sign of {count}, which is no evidence of equal scores")
    for state, words in (
        ("identical", "identical in every seed"),
        ("untested", "without a test (one seed, or no spread between seeds)"),
        ("absent", "without any seed yet"),
    ):
        if state in found:
            parts.append(f"{words}: {_places(found[state])}")
    partial = sum(contrast.comparison.n < contrast.planned_seeds for contrast in contrasts)
    late = (
        f" Partial data: {partial} of {len(contrasts)} {_are(partial)} still short of planned seeds." if partial else ""
    )
    few = sum(contrast.direction != 0 and contrast.comparison.n < ENOUGH_SEEDS for contrast in contrasts)
    caution = (
        f" Caution: {few} of the settled {'rests' if few == 1 else 'rest'} on fewer than {ENOUGH_SEEDS} seeds, "
        "where runs that are either solved or stuck can look like a difference."
    )
    return f"{'; '.join(parts)}.{late}{caution if few else ''}"


def _state(contrast: Contrast) -> str:
    comparison = contrast.comparison
    if comparison.n == 0:
        return "absent"
    if comparison.identical:
        return "identical"
    if comparison.p is None:
        return "untested"
    return {1: "higher", -1: "lower", 0: "open"}[contrast.direction]


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _places(contrasts: Sequence[Contrast]) -> str:
    """`3 (gsm8k K = 10, 50; squad K = 10)`."""
    tasks: dict[str, list[Scores]] = {}
    for contrast in contrasts:
        tasks.setdefault(contrast.setting.task, []).append(contrast.treatment)
    named = "; ".join(f"{task} {_pauses(arms)}" for task, arms in tasks.items())
    return f"{len(contrasts)} ({named})"
