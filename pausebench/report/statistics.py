"""Statistics over seeds: t intervals, the paired t test, its power, and Holm's correction (docs/statistics.md).

Invariant: nothing returns NaN or infinity. What cannot be computed (one seed, no variance) is None, and `verdict` says
why. The sampling unit is the seed; the sampling noise of the test set never enters a test.
"""

from __future__ import annotations

import importlib
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from statistics import median
from typing import Any

from pausebench.errors import BadInput

CONFIDENCE = 0.95
ALPHA = 1.0 - CONFIDENCE
# Cohen's convention: missing a real effect is four times as acceptable as reporting a false one (0.2 against 0.05).
POWER = 0.8
MAX_SEEDS = 10_000
# Scores are ratios of counts, so two that differ differ by far more than this; anything smaller is rounding.
ROUNDING = 1e-12


def report_extra(module: str) -> Any:
    """Import a package of the report extra; raises BadInput with the install command if it is missing."""
    try:
        # Late, so that training and evaluation run in an environment without scipy and matplotlib.
        return importlib.import_module(module)
    except ImportError as missing:
        raise BadInput(
            f"the report needs {module.split('.')[0]}, which is not installed ({missing}); "
            "allowed: an environment with the report extra; next: pip install 'pausebench[report]'"
        ) from missing


@dataclass(frozen=True)
class Summary:
    """Mean, sample standard deviation and 95 % t interval over n seeds; what n is too small for is None."""

    n: int
    mean: float | None
    std: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Comparison:
    """A paired comparison over the seeds both arms have; every difference is treatment minus control.

    std: of the paired differences. p: two-sided paired t test. effect_size: Cohen's d_z, mean over std, biased upwards
    at small n. detectable: the true difference that n seeds detect with power 0.8 at the 5 % level if std is correct.
    """

    n: int
    difference: float | None
    std: float | None = None
    interval: tuple[float, float] | None = None
    p: float | None = None
    effect_size: float | None = None
    detectable: float | None = None
    identical: bool = False

    @cached_property
    def effect_interval(self) -> tuple[float, float] | None:
        """95 % interval of the true d_z, by inverting the noncentral t distribution (Steiger and Fouladi 1997)."""
        if self.effect_size is None:
            return None
        root = math.sqrt(self.n)
        low, high = _noncentrality_interval(abs(self.effect_size) * root, self.n - 1)
        return (low / root, high / root) if self.effect_size >= 0 else (-high / root, -low / root)


def summarise(values: Sequence[float]) -> Summary:
    """Mean, sample standard deviation and 95 % t interval of `values`, one number per seed."""
    n = len(values)
    if n == 0:
        return Summary(0, None, None, None)
    # fsum rounds once, so that the order in which runs finished cannot change a digit.
    mean = math.fsum(values) / n
    if n == 1:
        return Summary(1, mean, None, None)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    # The variance is estimated from three to five seeds: with 1.96 instead of t (4.30 and 2.78), intervals of nominally
    # 95 % would cover the mean in 81 to 88 % of studies.
    half_width = _critical_t(n - 1) * std / math.sqrt(n)
    return Summary(n, mean, std, (mean - half_width, mean + half_width))


def paired_comparison(treatment: Mapping[int, float], control: Mapping[int, float]) -> Comparison:
    """Compare two arms, each {seed: score}, over the seeds present in both.

    In a study over several worlds the scores are already averages over the worlds, so that the seed stays the unit.
    """
    # Paired, because both arms of a seed share data order and test rows: what they share cancels in the difference.
    differences = [treatment[seed] - control[seed] for seed in sorted(treatment.keys() & control.keys())]
    summary = summarise(differences)
    n, mean, std = summary.n, summary.mean, summary.std
    if mean is None:
        return Comparison(0, None)
    if max(abs(difference) for difference in differences) < ROUNDING:
        return Comparison(n, 0.0, None if n == 1 else 0.0, identical=True)
    if std is None:
        return Comparison(n, mean)
    if std < ROUNDING:
        # t would be infinite, yet scores are counts over the same rows, and equal differences happen by chance.
        return Comparison(n, mean, 0.0)
    effect_size = mean / std
    return Comparison(
        n=n,
        difference=mean,
        std=std,
        interval=summary.interval,
        p=2.0 * float(report_extra("scipy.special").stdtr(n - 1, -abs(effect_size) * math.sqrt(n))),
        effect_size=effect_size,
        detectable=detectable_difference(std, n),
    )


def power(effect_size: float, n: int, alpha: float = ALPHA) -> float:
    """Probability that the two-sided paired t test over n >= 2 seeds detects a true effect d_z at level alpha."""
    return _power(abs(effect_size) * math.sqrt(n), n - 1, alpha)


def detectable_difference(std: float, n: int, alpha: float = ALPHA) -> float:
    """The true mean difference that n >= 2 seeds detect with power 0.8, given the std of their differences."""
    return std * _detectable_noncentrality(n - 1, alpha) / math.sqrt(n)


def seeds_needed(effect_size: float, alpha: float = ALPHA) -> int | None:
    """The fewest seeds that detect this standardised effect with power 0.8; None above 10,000."""
    if abs(effect_size) < ROUNDING:
        return None
    enough = range(2, MAX_SEEDS + 1)
    # Power rises with n, so that 14 steps of bisection replace a walk through up to 10,000 integrals.
    place = bisect_left(enough, True, key=lambda n: power(effect_size, n, alpha) >= POWER)
    return enough[place] if place < len(enough) else None


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjusted p-values, in the order given; None (missing cells, identical arms) stays None."""
    # Holm, because it needs no independence: all K of a task share one control. A None counts in the family, or the
    # correction would be weaker while runs are missing.
    family = len(p_values)
    ranked = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * family
    largest = 0.0
    for rank, (p, place) in enumerate(ranked):
        largest = max(largest, min(1.0, (family - rank) * p))
        adjusted[place] = largest
    return adjusted


def direction(comparison: Comparison, p: float | None) -> int:
    """1 if the treatment scores significantly higher, -1 if significantly lower, else 0; p is corrected already."""
    if comparison.difference is None or p is None or p >= ALPHA:
        return 0
    return 1 if comparison.difference > 0.0 else -1


def verdict(comparison: Comparison, treatment: str, control: str) -> str:
    """The result of the only comparison of a family, in one sentence."""
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
    sign = direction(comparison, comparison.p)
    if sign == 0:
        return f"{start}: {seeds} do not settle the sign"
    better, worse = (treatment, control) if sign > 0 else (control, treatment)
    return f"{start}: {better} scores higher than {worse} in this setting"


def power_line(comparison: Comparison) -> str | None:
    """What n seeds could have shown and how many the observed effect needs; None without variance to judge by."""
    if comparison.detectable is None or comparison.effect_size is None:
        return None
    line = (
        f"{comparison.n} seeds could have shown a difference of {comparison.detectable:.3f} or more "
        f"(power {POWER}, two-sided 5 % level, taking the observed spread as the true one)"
    )
    if abs(comparison.effect_size) < ROUNDING:
        return line
    needed = seeds_needed(comparison.effect_size)
    return f"{line}; a difference as large as the observed one takes {needed or f'more than {MAX_SEEDS:,}'} seeds"


def family_power_line(comparisons: Sequence[Comparison]) -> str | None:
    """The same for a family of several comparisons; None when none of them has any variance."""
    family = len(comparisons)
    # The level of Holm's first step, which a single effect among nulls has to pass. Later steps are easier.
    alpha = ALPHA / family
    tested = [(c.n, c.std, abs(c.effect_size)) for c in comparisons if c.std is not None and c.effect_size is not None]
    if not tested:
        return None
    shown = sorted(detectable_difference(std, n, alpha) for n, std, _ in tested)
    effects = sorted((effect for *_, effect in tested), reverse=True)
    fewest, most = min(tested)[0], max(tested)[0]
    # A larger effect needs fewer seeds: what suffices for the median effect suffices for half of the comparisons.
    needed = seeds_needed(effects[(len(effects) - 1) // 2], alpha)
    return (
        f"{most if fewest == most else f'{fewest} to {most}'} seeds could have shown a difference of "
        f"{median(shown):.3f} or more in the middle comparison, {shown[0]:.3f} in the sharpest and "
        f"{shown[-1]:.3f} in the bluntest (power {POWER}, two-sided, level {ALPHA:.2f} / {family} = {alpha:.2g} of the "
        "correction's first step, taking the observed spreads as the true ones); in half of the comparisons a "
        f"difference as large as the observed one takes "
        f"{f'more than {MAX_SEEDS:,}' if needed is None else f'at most {needed}'} seeds"
    )


def number(value: float | None, digits: int = 3) -> str:
    """A number for a table, `-` when there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def plus_minus(summary: Summary) -> str:
    """`0.910 ± 0.104`: mean and std, the mean alone for one seed."""
    if summary.mean is None:
        return "missing"
    return number(summary.mean) if summary.std is None else f"{summary.mean:.3f} ± {summary.std:.3f}"


def interval(bounds: tuple[float, float] | None, signed: bool = False) -> str:
    """`[0.652, 1.168]`, with signs for a difference."""
    if bounds is None:
        return "-"
    return "[{:+.3f}, {:+.3f}]".format(*bounds) if signed else "[{:.3f}, {:.3f}]".format(*bounds)


def p_value(p: float | None) -> str:
    """`0.031`, `< 0.001`, `-`."""
    return "-" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


@cache
def _critical_t(degrees: int, alpha: float = ALPHA) -> float:
    return float(report_extra("scipy.special").stdtrit(degrees, 1.0 - alpha / 2.0))


def _power(noncentrality: float, degrees: int, alpha: float) -> float:
    critical = _critical_t(degrees, alpha)
    above = 1.0 - _noncentral_t_cdf(critical, degrees, noncentrality)
    return above + _noncentral_t_cdf(-critical, degrees, noncentrality)


@cache
def _detectable_noncentrality(degrees: int, alpha: float) -> float:
    # 4 suffices from five seeds on; two seeds need 16, and 294 at the first level of a family of 18.
    upper = 4.0
    while _power(upper, degrees, alpha) < POWER:
        upper *= 2.0
    brentq = report_extra("scipy.optimize").brentq
    return float(brentq(lambda noncentrality: _power(noncentrality, degrees, alpha) - POWER, 0.0, upper))


def _noncentrality_interval(t: float, degrees: int) -> tuple[float, float]:
    """The noncentralities for which t >= 0 is the 97.5th and the 2.5th percentile."""
    brentq, chdtri = report_extra("scipy.optimize").brentq, report_extra("scipy.special").chdtri
    # Ten standard deviations of the numerator beyond the largest t that the denominator makes likely (1 - 1e-6).
    bounds = -10.0, t * math.sqrt(float(chdtri(degrees, 1e-6)) / degrees) + 10.0

    def solve(share: float) -> float:
        return float(brentq(lambda noncentrality: _noncentral_t_cdf(t, degrees, noncentrality) - share, *bounds))

    return solve(1.0 - ALPHA / 2.0), solve(ALPHA / 2.0)


def _noncentral_t_cdf(t: float, degrees: int, noncentrality: float) -> float:
    """P((z + noncentrality) / s <= t), where z is standard normal and s the root of a chi-square over its degrees."""
    # Ours, because scipy 1.17's `nct` gives NaN from t of a few hundred on, and arms near a score of 1 get there.
    if t < 0.0:
        return 1.0 - _noncentral_t_cdf(-t, degrees, -noncentrality)
    numpy, special = report_extra("numpy"), report_extra("scipy.special")
    # The outer integral runs over whichever of z and s leaves the inner probability smooth. 200 nodes then give ten
    # digits for every t; the other way round, the integrand is a step between two nodes.
    over_s = t < math.sqrt(2.0 * degrees)
    if over_s:
        low, high = numpy.sqrt(special.chdtri(degrees, [1.0 - 1e-15, 1e-15]) / degrees)
    else:
        low, high = max(-9.0, -noncentrality), 9.0
        if low >= high:
            return 1.0
    nodes, weights = _legendre()
    x = low + (high - low) * (nodes + 1.0) / 2.0
    if over_s:
        half = degrees / 2.0
        scale = math.log(2.0) + half * math.log(half) - math.lgamma(half)
        inner = numpy.exp((degrees - 1) * numpy.log(x) - half * x * x + scale) * special.ndtr(t * x - noncentrality)
        below = 0.0
    else:
        s = (x + noncentrality) / t
        inner = numpy.exp(-x * x / 2.0) / math.sqrt(2.0 * math.pi) * special.chdtrc(degrees, degrees * s * s)
        # All z with a negative numerator are below t, however small s is, and need no integral.
        below = float(special.ndtr(low)) if low > -9.0 else 0.0
    return min(1.0, below + float((high - low) / 2.0 * (weights * inner).sum()))


@cache
def _legendre() -> Any:
    return report_extra("numpy").polynomial.legendre.leggauss(200)
