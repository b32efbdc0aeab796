"""Statistics over seeds: intervals, the paired comparison, what the seeds could have shown, Holm's correction.

Invariant: nothing here ever returns NaN or infinity. What cannot be computed (one seed, no spread) is None, and
`verdict` says why in words. The unit is the seed: test-set noise of a fixed model is another thing and stays outside.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from pausebench.errors import BadInput

CONFIDENCE = 0.95
ALPHA = 1.0 - CONFIDENCE
POWER = 0.8
MOST_SEEDS = 10_000

# Scores are ratios of counts: differences below this are rounding, not a result.
ROUNDING = 1e-12


def report_extra(module: str) -> Any:
    """Import one of the packages only the report needs.

    Raises BadInput with the install command when it is missing.
    """
    try:
        return importlib.import_module(module)
    except ImportError as missing:
        raise BadInput(
            f"the report needs {module.split('.')[0]}, which is not installed ({missing}); "
            "allowed: an environment with the report extra; next: pip install 'pausebench[report]'"
        ) from missing


@dataclass(frozen=True)
class Summary:
    """Mean over seeds. `deviation` and `interval` (t, 95 %) are None below two seeds, `mean` is None without any."""

    n: int
    mean: float | None
    deviation: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Comparison:
    """A paired comparison over the seeds both arms have; every difference is treatment minus control.

    p            two-sided paired t test; None when undefined (fewer than two seeds, or no spread)
    effect_size  Cohen's d_z: mean difference over the deviation of the differences
    smallest_detectable  the true difference these n seeds find with power 0.8 at the 5 % level, if the observed
                 deviation of the differences is the true one
    """

    n: int
    difference: float | None
    deviation: float | None = None
    interval: tuple[float, float] | None = None
    p: float | None = None
    effect_size: float | None = None
    smallest_detectable: float | None = None
    identical: bool = False


def summarise(values: Sequence[float]) -> Summary:
    """Mean, sample deviation (n - 1) and 95 % t interval of `values` (one number a seed)."""
    n = len(values)
    if n == 0:
        return Summary(0, None, None, None)
    mean = math.fsum(values) / n
    if n == 1:
        return Summary(1, mean, None, None)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half_width = _critical_t(n - 1) * deviation / math.sqrt(n)
    return Summary(n, mean, deviation, (mean - half_width, mean + half_width))


def paired_comparison(treatment: Mapping[int, float], control: Mapping[int, float]) -> Comparison:
    """Compare two arms, each {seed: score}, over the seeds present in both.

    A study stratified by world hands in scores already averaged over the worlds, so that the seed stays the unit.
    """
    differences = [treatment[seed] - control[seed] for seed in sorted(treatment.keys() & control.keys())]
    summary = summarise(differences)
    n, mean, deviation = summary.n, summary.mean, summary.deviation
    if mean is None:
        return Comparison(0, None)
    if max(abs(difference) for difference in differences) < ROUNDING:
        return Comparison(n, 0.0, None if n == 1 else 0.0, identical=True)
    if deviation is None:
        return Comparison(n, mean)
    if deviation < ROUNDING:
        return Comparison(n, mean, 0.0)
    effect_size = mean / deviation
    return Comparison(
        n=n,
        difference=mean,
        deviation=deviation,
        interval=summary.interval,
        p=2.0 * float(report_extra("scipy.stats").t.sf(abs(effect_size) * math.sqrt(n), n - 1)),
        effect_size=effect_size,
        smallest_detectable=smallest_detectable_difference(deviation, n),
    )


def power_of(effect_size: float, n: int) -> float:
    """Probability that the two-sided paired t test over n >= 2 seeds finds this true effect d_z at the 5 % level."""
    return _power(abs(effect_size) * math.sqrt(n), n - 1)


def smallest_detectable_difference(deviation: float, n: int) -> float:
    """The true mean difference that n >= 2 seeds find with power 0.8, given the deviation of their differences."""
    return deviation * _detectable_noncentrality(n - 1) / math.sqrt(n)


def seeds_needed(effect_size: float) -> int | None:
    """The fewest seeds that find this standardised effect with power 0.8; None beyond 10,000."""
    if abs(effect_size) < ROUNDING or power_of(effect_size, MOST_SEEDS) < POWER:
        return None
    enough, too_few = 2, 1
    while power_of(effect_size, enough) < POWER:
        enough, too_few = min(2 * enough, MOST_SEEDS), enough
    while enough - too_few > 1:
        middle = (enough + too_few) // 2
        if power_of(effect_size, middle) < POWER:
            too_few = middle
        else:
            enough = middle
    return enough


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjusted p-values, in the order given.

    A None (missing cells, identical arms) stays None and still counts in the family: it was planned, and the
    correction must not loosen because a run is late.
    """
    family = len(p_values)
    ranked = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * family
    largest = 0.0
    for rank, (p, place) in enumerate(ranked):
        largest = max(largest, min(1.0, (family - rank) * p))
        adjusted[place] = largest
    return adjusted


def verdict(comparison: Comparison, treatment: str, control: str) -> str:
    """What the numbers say, in one sentence, and no more than they say."""
    n, difference = comparison.n, comparison.difference
    seeds = "1 seed" if n == 1 else f"{n} seeds"
    if difference is None:
        return f"no seed has both {treatment} and {control}: nothing can be said yet"
    if comparison.identical:
        where = "the one seed" if n == 1 else f"all {n} seeds"
        return f"identical: {treatment} and {control} have the same score in {where}"
    if n == 1:
        return f"difference {difference:+.3f} in 1 seed: one seed has no interval and settles nothing"
    if comparison.interval is None:
        return f"difference {difference:+.3f} in each of {seeds}: no spread between seeds, so no interval and no test"
    low, high = comparison.interval
    start = f"difference {difference:+.3f}, 95 % interval [{low:+.3f}, {high:+.3f}]"
    if low <= 0.0 <= high:
        return f"{start}: {seeds} do not settle the sign"
    better, worse = (treatment, control) if difference > 0 else (control, treatment)
    return f"{start}: {better} scores higher than {worse} in this setting"


def power_line(comparison: Comparison) -> str | None:
    """What so many seeds could have shown, and how many would be needed; None when there is no spread to judge by."""
    if comparison.smallest_detectable is None or comparison.effect_size is None:
        return None
    line = (
        f"{comparison.n} seeds could have shown a difference of {comparison.smallest_detectable:.3f} or more "
        f"(power {POWER}, two-sided 5 % level, taking the observed spread as the true one)"
    )
    if abs(comparison.effect_size) < ROUNDING:
        return line
    needed = seeds_needed(comparison.effect_size)
    return f"{line}; a difference as large as the observed one takes {needed or f'more than {MOST_SEEDS:,}'} seeds"


def number(value: float | None, digits: int = 3) -> str:
    """A number for a table, `-` when there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def plus_minus(summary: Summary) -> str:
    """`0.910 ± 0.104`; without the deviation when there is one seed."""
    if summary.mean is None:
        return "missing"
    return number(summary.mean) if summary.deviation is None else f"{summary.mean:.3f} ± {summary.deviation:.3f}"


def interval(bounds: tuple[float, float] | None, signed: bool = False) -> str:
    """`[0.652, 1.168]`, with signs for a difference."""
    if bounds is None:
        return "-"
    return "[{:+.3f}, {:+.3f}]".format(*bounds) if signed else "[{:.3f}, {:.3f}]".format(*bounds)


def p_value(p: float | None) -> str:
    """`0.031`, `< 0.001`, `-`."""
    return "-" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


@cache
def _critical_t(degrees: int) -> float:
    return float(report_extra("scipy.stats").t.ppf(1.0 - ALPHA / 2.0, degrees))


def _power(noncentrality: float, degrees: int) -> float:
    # Power is 1 to machine precision well before 100; scipy's series is not meant for more.
    noncentrality = min(noncentrality, 100.0)
    nct, critical = report_extra("scipy.stats").nct, _critical_t(degrees)
    power = float(nct.sf(critical, degrees, noncentrality))
    # The far tail is below 1e-12 from here on, and scipy 1.17 gives NaN for it in places.
    return power if noncentrality > 7.0 else power + float(nct.cdf(-critical, degrees, noncentrality))


@cache
def _detectable_noncentrality(degrees: int) -> float:
    upper = 4.0
    while _power(upper, degrees) < POWER:
        upper *= 2.0
    brentq = report_extra("scipy.optimize").brentq
    return float(brentq(lambda noncentrality: _power(noncentrality, degrees) - POWER, 0.0, upper))
