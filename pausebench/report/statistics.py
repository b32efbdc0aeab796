"""Statistics over seeds: intervals, the paired comparison, what the seeds could have shown, Holm's correction.

docs/statistics.md says in plain words what is tested and why.

Invariant: nothing here ever returns NaN or infinity. What cannot be computed (one seed, no spread) is None, and
`verdict` says why in words. The unit is the seed: test-set noise of a fixed model is another thing and stays outside.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from statistics import median
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
    effect_size  Cohen's d_z: mean difference over the deviation of the differences; of few seeds it is too large
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

    @cached_property
    def effect_interval(self) -> tuple[float, float] | None:
        """95 % interval of the true d_z, by inversion of the noncentral t (Steiger and Fouladi 1997)."""
        if self.effect_size is None:
            return None
        root = math.sqrt(self.n)
        low, high = _noncentrality_interval(abs(self.effect_size) * root, self.n - 1)
        return (low / root, high / root) if self.effect_size >= 0 else (-high / root, -low / root)


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
        p=2.0 * float(report_extra("scipy.special").stdtr(n - 1, -abs(effect_size) * math.sqrt(n))),
        effect_size=effect_size,
        smallest_detectable=smallest_detectable_difference(deviation, n),
    )


def power_of(effect_size: float, n: int, alpha: float = ALPHA) -> float:
    """Probability that the two-sided paired t test over n >= 2 seeds finds this true effect d_z at level alpha."""
    return _power(abs(effect_size) * math.sqrt(n), n - 1, alpha)


def smallest_detectable_difference(deviation: float, n: int, alpha: float = ALPHA) -> float:
    """The true mean difference that n >= 2 seeds find with power 0.8, given the deviation of their differences."""
    return deviation * _detectable_noncentrality(n - 1, alpha) / math.sqrt(n)


def seeds_needed(effect_size: float, alpha: float = ALPHA) -> int | None:
    """The fewest seeds that find this standardised effect with power 0.8; None beyond 10,000."""
    if abs(effect_size) < ROUNDING or power_of(effect_size, MOST_SEEDS, alpha) < POWER:
        return None
    enough, too_few = 2, 1
    while power_of(effect_size, enough, alpha) < POWER:
        enough, too_few = min(2 * enough, MOST_SEEDS), enough
    while enough - too_few > 1:
        middle = (enough + too_few) // 2
        if power_of(effect_size, middle, alpha) < POWER:
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


def direction(comparison: Comparison, p: float | None) -> int:
    """1 where the test settles that the treatment scores higher, -1 where it settles the opposite, else 0.

    p: the comparison's own where it is the only one of its family, Holm's where it is one of several.
    """
    if comparison.difference is None or p is None or p >= ALPHA:
        return 0
    return 1 if comparison.difference > 0.0 else -1


def verdict(comparison: Comparison, treatment: str, control: str) -> str:
    """What the only comparison of a family says, in one sentence, and no more than it says."""
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


def family_power_line(comparisons: Sequence[Comparison]) -> str | None:
    """The same for a family of several, at the level of Holm's first step; None when none of them has a spread.

    That level, alpha over the size of the family, is what a single effect among nulls has to pass.
    """
    family = len(comparisons)
    alpha = ALPHA / family
    spread = [(c.n, c.deviation) for c in comparisons if c.deviation is not None and c.effect_size is not None]
    effects = sorted((abs(c.effect_size) for c in comparisons if c.effect_size is not None), reverse=True)
    if not spread:
        return None
    shown = sorted(smallest_detectable_difference(deviation, n, alpha) for n, deviation in spread)
    fewest, most = min(spread)[0], max(spread)[0]
    # The larger an effect, the fewer seeds it needs: what the middle one needs suffices for half of them.
    needed = seeds_needed(effects[(len(effects) - 1) // 2], alpha)
    return (
        f"{most if fewest == most else f'{fewest} to {most}'} seeds could have shown a difference of "
        f"{median(shown):.3f} or more in the middle comparison, {shown[0]:.3f} in the sharpest and "
        f"{shown[-1]:.3f} in the bluntest (power {POWER}, two-sided, level {ALPHA:.2f} / {family} = {alpha:.2g} of the "
        "correction's first step, taking the observed spreads as the true ones); in half of the comparisons a "
        f"difference as large as the observed one takes "
        f"{f'more than {MOST_SEEDS:,}' if needed is None else f'at most {needed}'} seeds"
    )


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
def _critical_t(degrees: int, alpha: float = ALPHA) -> float:
    return float(report_extra("scipy.special").stdtrit(degrees, 1.0 - alpha / 2.0))


def _power(noncentrality: float, degrees: int, alpha: float) -> float:
    critical = _critical_t(degrees, alpha)
    above = 1.0 - _noncentral_t_cdf(critical, degrees, noncentrality)
    return above + _noncentral_t_cdf(-critical, degrees, noncentrality)


@cache
def _detectable_noncentrality(degrees: int, alpha: float) -> float:
    upper = 4.0
    while _power(upper, degrees, alpha) < POWER:
        upper *= 2.0
    brentq = report_extra("scipy.optimize").brentq
    return float(brentq(lambda noncentrality: _power(noncentrality, degrees, alpha) - POWER, 0.0, upper))


def _noncentrality_interval(t: float, degrees: int) -> tuple[float, float]:
    """The noncentralities under which t >= 0 is the 97.5 % and the 2.5 % point."""
    brentq, chdtri = report_extra("scipy.optimize").brentq, report_extra("scipy.special").chdtri
    # Ten deviations of the numerator on either side of what the denominator's spread allows.
    bounds = -10.0, t * math.sqrt(float(chdtri(degrees, 1e-6)) / degrees) + 10.0

    def solve(share: float) -> float:
        return float(brentq(lambda noncentrality: _noncentral_t_cdf(t, degrees, noncentrality) - share, *bounds))

    return solve(1.0 - ALPHA / 2.0), solve(ALPHA / 2.0)


def _noncentral_t_cdf(t: float, degrees: int, noncentrality: float) -> float:
    """P((z + noncentrality) / s <= t): z is standard normal, s the root of a chi-square over its degrees.

    Our own, because scipy 1.17's `nct` gives NaN from t of a few hundred on. The outer integral is over whichever of
    z and s leaves the inner probability smooth, so that 200 nodes give ten digits for every t.
    """
    if t < 0.0:
        return 1.0 - _noncentral_t_cdf(-t, degrees, -noncentrality)
    numpy, special = report_extra("numpy"), report_extra("scipy.special")
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
        # A negative numerator is below every t >= 0.
        below = float(special.ndtr(low)) if low > -9.0 else 0.0
    return min(1.0, below + float((high - low) / 2.0 * (weights * inner).sum()))


@cache
def _legendre() -> Any:
    return report_extra("numpy").polynomial.legendre.leggauss(200)
