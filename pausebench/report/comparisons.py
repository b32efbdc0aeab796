"""What a study says: the instrument check, the primary family, the secondary one, and how its arms are called.

Invariant: the family of secondary comparisons follows from the plan alone, so it does not shrink while runs are
missing, and a primary comparison is never counted in it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pausebench.report.scores import PRETRAINING_NAMES, Arm, Cell, Panel, Primary, Scores, Setting, Study
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

RELAY_CHANCE = 1 / 8
RELAY_TOLERANCE = 0.01
METRIC_OF_RELAY = "token_accuracy"


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


def check_instrument(study: Study) -> InstrumentCheck:
    """Relay accuracy must be at chance without pauses and rise with K; if not, no other number of the study counts."""
    cells = [cell for panel in study.of_kind("bottleneck") for cell in panel.cells]
    if not cells:
        return InstrumentCheck("absent", "This study has no instrument check of its own.")
    values: dict[int, list[float]] = {cell.arm.k: [] for cell in sorted(cells, key=lambda cell: cell.arm.k)}
    for cell in cells:
        if cell.result is not None:
            values[cell.arm.k].append(cell.result.metrics.get(METRIC_OF_RELAY, cell.result.value))
    chance = next(
        (cell.result.chance for cell in cells if cell.result and cell.result.chance),
        RELAY_CHANCE,
    )
    points = tuple((k, summarise(scores)) for k, scores in values.items())
    means = [(k, summary.mean) for k, summary in points if summary.mean is not None]
    listed = ", ".join(f"{mean:.3f} at K={k}" for k, mean in means)
    problems = _instrument_problems(means, chance)
    if problems:
        return InstrumentCheck("failed", f"{'; '.join(problems)} (measured: {listed})", points, chance)
    missing = sum(cell.result is None for cell in cells)
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


def primary_family(study: Study) -> Family:
    """The comparisons that were fixed in advance, whatever their sign."""
    primary = study.primary
    panel = next((panel for panel in study.panels if primary and panel.id == primary.panel), None)
    if primary is None or panel is None:
        return Family("This study fixed no primary comparison in advance.", None, (), ())
    tasks = dict.fromkeys(cell.task for cell in panel.cells if primary.task in (None, cell.task))
    contrasts: list[Contrast] = []
    picked: list[int] = []
    for task in tasks:
        setting = panel.pooled(task)
        assert setting is not None, "the task comes from the panel's own cells"
        arms = panel.scores(setting)
        control = next((arm for arm in arms if arm.arm.variant == primary.control), None)
        of_task = [
            _contrast(panel, setting, treatment, control)
            for treatment in arms
            if control is not None and treatment.arm.variant == primary.treatment
        ]
        best = _highest(of_task)
        if best is not None:
            picked.append(len(contrasts) + best)
            of_task[best] = replace(of_task[best], selection=selection([contrast.treatment for contrast in of_task]))
        contrasts += of_task
    if not contrasts:
        return Family("The plan has no cells for its primary comparison.", None, (), ())
    corrected = _corrected(contrasts)
    if len(corrected) == 1:
        sentence, power = sentence_of_one(primary, corrected[0]), power_line(corrected[0].comparison)
    else:
        sentence = sentence_of_many(primary, corrected)
        power = family_power_line([contrast.comparison for contrast in corrected])
    return Family(sentence, power, corrected, tuple(corrected[place] for place in picked))


def _corrected(contrasts: Sequence[Contrast]) -> tuple[Contrast, ...]:
    adjusted = holm([contrast.comparison.p for contrast in contrasts])
    return tuple(
        replace(contrast, adjusted_p=p, family=len(contrasts)) for contrast, p in zip(contrasts, adjusted, strict=True)
    )


def _highest(contrasts: Sequence[Contrast]) -> int | None:
    """The place of the highest treatment mean among several K; the plan's first of equals. None without a choice."""
    if len({contrast.treatment.arm.k for contrast in contrasts}) < len(contrasts):
        return None  # prepended and appended: nobody takes the better of them
    means = {
        place: math.fsum(values.values()) / len(values)
        for place, contrast in enumerate(contrasts)
        if (values := contrast.treatment.values)
    }
    return max(means, key=lambda place: means[place]) if len(contrasts) > 1 and means else None


def secondary_contrasts(study: Study) -> list[Contrast]:
    """Every other planned comparison, each pair of arms once, with p-values Holm-corrected over all of them."""
    seen = {_identity(contrast) for contrast in primary_family(study).contrasts}
    contrasts = []
    for panel in study.of_kind("variants", "placement", "controls", "k_curve", "m_curve", "filler"):
        for setting in panel.settings():
            for treatment in panel.scores(setting):
                for control in _controls(study, panel, setting, treatment.arm):
                    contrast = _contrast(panel, setting, treatment, control)
                    if control.names != treatment.names and _identity(contrast) not in seen:
                        seen.add(_identity(contrast))
                        contrasts.append(contrast)
    return list(_corrected(contrasts))


def _identity(contrast: Contrast) -> tuple[frozenset[str], frozenset[str]]:
    return contrast.treatment.names, contrast.control.names


def _contrast(panel: Panel, setting: Setting, treatment: Scores, control: Scores) -> Contrast:
    return Contrast(
        panel=panel.title,
        setting=setting,
        treatment=treatment,
        control=control,
        treatment_label=full_label(treatment.arm),
        control_label=full_label(control.arm),
        comparison=paired_comparison(treatment.values, control.values),
    )


def _controls(study: Study, panel: Panel, setting: Setting, arm: Arm) -> list[Scores]:
    """What an arm is compared with: no pauses at all and, by the panel's kind, what differs from it in one thing."""
    arms = panel.scores(setting)
    if panel.kind in ("m_curve", "filler"):
        found = [as_finetuned(study, panel, setting, arm)]
    else:
        own = [other for other in arms if not other.arm.control]
        plain = [other for other in own if other.arm.k == 0]
        of_kind = {other.arm.pretraining: other for other in reversed(plain)}
        found = [of_kind.get("std") or of_kind.get(arm.pretraining)]
        if panel.kind == "placement" and arm.placement == "prepend":
            same = replace(arm, placement="append")
            found.append(next((other for other in own if other.arm == same), None))
        if panel.kind == "controls" and arm.control:
            full = [other for other in own if other.arm.variant == "PausePT_PauseFT"]
            of_k = [other for other in full if other.arm.k == (arm.control_k or arm.k)]
            found.append(next(iter(of_k or full), None))
    return [other for other in found if other is not None]


def as_finetuned(study: Study, panel: Panel, setting: Setting, arm: Arm) -> Scores | None:
    """The same finetuned model evaluated with M = K, from this panel or else from the primary one."""
    primary = study.primary.panel if study.primary else ""
    for source in (panel, *(other for other in study.panels if other.id == primary)):
        for other in source.scores(setting):
            same = (other.arm.variant, other.arm.k, other.arm.prefix) == (
                arm.variant,
                arm.k,
                arm.prefix,
            )
            if same and other.arm.mt == other.arm.k:
                return other
    return None


def baseline(study: Study, panel: Panel, setting: Setting) -> Scores | None:
    """StdPT_StdFT (standard pretraining, no pauses anywhere) in this setting, from this panel or the primary one."""
    primary = study.primary.panel if study.primary else ""
    for source in (panel, *(other for other in study.panels if other.id == primary)):
        for scores in source.scores(setting):
            if scores.arm.pretraining == "std" and scores.arm.k == 0 and scores.arm.mt == 0:
                return scores
    return None


def full_label(arm: Arm) -> str:
    """An arm with everything that may differ: `PausePT_PauseFT K=8 M=4`, `StdPT_StdFT (shifted, K=8)`."""
    parts = [arm.variant]
    if arm.k:
        parts.append(f"K={arm.k}")
    if arm.mt != arm.k:
        parts.append(f"M={arm.mt}" if arm.filler in ("", "<pause>") else f"M={arm.mt} of {arm.filler}")
    if arm.placement == "prepend":
        parts[-1] += ", prepended"
    if arm.control:
        parts.append(f"({arm.control}, K={arm.control_k})" if arm.control_k else f"({arm.control})")
    return " ".join(parts)


def pretraining_label(arm: Arm) -> str:
    """`StdPT`, `PausePT` or `NoPT`."""
    return PRETRAINING_NAMES.get(arm.pretraining, arm.pretraining)


def filler_label(arm: Arm) -> str:
    """What is inserted at inference: `8 x <pause>`."""
    return f"{arm.mt} x {arm.filler}" if arm.mt else "nothing added"


def missing_line(study: Study) -> str | None:
    """How many cells are missing and the command that fills them; None when the study is complete."""
    missing = len(study.missing())
    return f"{missing} of {len(study.cells())} cells are missing; next: {study.command}" if missing else None


def group_unplanned(cells: Sequence[Cell]) -> list[tuple[Setting, Scores, str]]:
    """Evaluated runs outside any plan as (setting, scores over seeds, model), grouped by everything but the seed."""
    groups: dict[tuple[str, str, str, Arm], list[Cell]] = {}
    for cell in cells:
        model = cell.result.model if cell.result else ""
        groups.setdefault((cell.task, cell.world, model, cell.arm), []).append(cell)
    rows = []
    for (task, world, model, _), members in groups.items():
        setting = Setting(task, (world,))
        rows.append((setting, Panel("", "other", "", tuple(members)).scores(setting)[0], model))
    return sorted(rows, key=lambda row: (row[0].label, row[2], full_label(row[1].arm)))


# ------------------------------
# One comparison of two arms, and the words for one and for a family of them.

# Below it a few runs that all got stuck, or all did not, pass a corrected t test: measured in docs/statistics.md.
ENOUGH_SEEDS = 5


@dataclass(frozen=True)
class Contrast:
    """One planned comparison, and what it says.

    adjusted_p: Holm's over its family, the primary or the secondary one. family: the number of comparisons in it.
    selection: how it was picked among several K of its task, "" where it was not.
    """

    panel: str
    setting: Setting
    treatment: Scores
    control: Scores
    treatment_label: str
    control_label: str
    comparison: Comparison
    adjusted_p: float | None = None
    family: int = 1
    selection: str = ""

    @property
    def direction(self) -> int:
        """1 or -1 where the corrected test settles which arm scores higher, 0 where it does not."""
        return direction(self.comparison, self.adjusted_p)

    @property
    def verdict(self) -> str:
        """What the comparison says in words, by its corrected p-value."""
        return verdict(self.comparison, self.treatment_label, self.control_label, self.adjusted_p, self.family)

    @property
    def planned_seeds(self) -> int:
        """How many seeds the plan has for both arms; `comparison.n` of them are in."""
        return len({cell.seed for cell in self.treatment.cells} & {cell.seed for cell in self.control.cells})


def selection(arms: Sequence[Scores]) -> str:
    """How one of several arms that differ in K was picked: by the highest score."""
    word = "better" if len({scores.arm.k for scores in arms}) == 2 else "best"
    missing = ", some runs missing" if any(scores.missing for scores in arms) else ""
    return f"{word} of {_pauses(arms)}, chosen on the test set{missing}"


def _pauses(arms: Sequence[Scores]) -> str:
    return f"K = {', '.join(str(k) for k in sorted({scores.arm.k for scores in arms}))}"


def sentence_of_one(primary: Primary, contrast: Contrast) -> str:
    """The verdict of a family of one, and whether seeds are still to come."""
    words = verdict(contrast.comparison, primary.treatment, primary.control)
    sentence = f"{primary.treatment} against {primary.control} on {contrast.setting.label}: {words}."
    if 0 < contrast.comparison.n < contrast.planned_seeds:
        sentence += f" So far {contrast.comparison.n} of {contrast.planned_seeds} planned seeds have both arms."
    return sentence


def sentence_of_many(primary: Primary, contrasts: Sequence[Contrast]) -> str:
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
