"""One comparison of two arms, and the words for one and for a family of them.

Invariant: a score is called higher only where the corrected test says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pausebench.results.statistics import Comparison, direction, verdict
from pausebench.results.study import Primary, Scores, Setting

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
