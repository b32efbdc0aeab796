"""Intervals, the paired test, detectable differences and Holm's correction, against scipy and hand-computed cases."""

from __future__ import annotations

import math
import random
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import TASKS, Design, Tally, read_families, write_draw, write_plans
from scipy import stats

from pausebench.report.statistics import (
    Comparison,
    detectable_difference,
    family_power_line,
    holm,
    paired_comparison,
    power,
    power_line,
    seeds_needed,
    summarise,
    verdict,
)

SCORES = st.floats(0.0, 1.0, allow_nan=False)


def arm(values: list[float]) -> dict[int, float]:
    return dict(enumerate(values))


def test_the_paired_test_is_scipys() -> None:
    treatment, control = [0.91, 0.83, 0.99, 0.70], [0.80, 0.85, 0.81, 0.66]
    expected = stats.ttest_rel(treatment, control)
    comparison = paired_comparison(arm(treatment), arm(control))
    assert comparison.p == pytest.approx(expected.pvalue, rel=1e-12)
    assert comparison.interval == pytest.approx(tuple(expected.confidence_interval(0.95)), rel=1e-12)
    assert comparison.effect_size == pytest.approx(expected.statistic / math.sqrt(4), rel=1e-12)


def test_the_interval_of_a_mean_is_scipys() -> None:
    values = [0.81, 0.75, 0.93]
    expected = stats.t.interval(0.95, 2, loc=sum(values) / 3, scale=stats.sem(values))
    assert summarise(values).interval == pytest.approx(expected, rel=1e-12)


def test_only_seeds_in_both_arms_are_paired() -> None:
    comparison = paired_comparison({0: 0.9, 1: 0.8, 5: 1.0}, {1: 0.7, 0: 0.6, 7: 0.0})
    assert comparison.n == 2
    assert comparison.difference == pytest.approx(0.2)


@pytest.mark.parametrize("n", [2, 3, 6, 18])
def test_the_detectable_difference_is_found_eight_times_in_ten(n: int) -> None:
    """Checked by simulation, not by the formula it came from."""
    difference = detectable_difference(1.0, n)
    draws = stats.norm.rvs(loc=difference, scale=1.0, size=(20_000, n), random_state=7)
    found = (stats.ttest_1samp(draws, 0.0, axis=1).pvalue < 0.05).mean()
    assert found == pytest.approx(0.8, abs=0.012)


@pytest.mark.parametrize(("effect", "n"), [(1.0, 3), (-0.5, 6), (1.2, 6), (0.3, 40)])
def test_the_power_is_what_simulation_gives(effect: float, n: int) -> None:
    draws = stats.norm.rvs(loc=effect, scale=1.0, size=(20_000, n), random_state=11)
    found = (stats.ttest_1samp(draws, 0.0, axis=1).pvalue < 0.05).mean()
    assert power(effect, n) == pytest.approx(found, abs=0.012)


@pytest.mark.parametrize("effect", [0.1, 0.5, 1.4, 5.0, 60.0, -0.8])
def test_the_needed_seeds_are_the_fewest_that_suffice(effect: float) -> None:
    needed = seeds_needed(effect)
    assert needed is not None
    assert power(effect, needed) >= 0.8
    assert needed == 2 or power(effect, needed - 1) < 0.8


def test_a_vanishing_effect_needs_more_seeds_than_anyone_has() -> None:
    assert seeds_needed(0.0) is None
    assert seeds_needed(1e-4) is None


@pytest.mark.parametrize("n", [3, 6])
def test_under_the_null_five_in_a_hundred_are_significant(n: int) -> None:
    noise = random.Random(3)
    draws = 4000
    hits = 0
    for _ in range(draws):
        treatment, control = ([noise.gauss(0.8, 0.06) for _ in range(n)] for _ in range(2))
        p = paired_comparison(arm(treatment), arm(control)).p
        hits += p is not None and p < 0.05
    assert 0.04 < hits / draws < 0.06


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_a_planned_comparison_without_p_still_counts_in_the_family() -> None:
    assert holm([0.01, None, None]) == [pytest.approx(0.03), None, None]


@given(st.lists(st.one_of(st.none(), st.floats(0.0, 1.0)), max_size=12))
def test_holm_never_lowers_a_p_value_nor_reorders(p_values: list[float | None]) -> None:
    pairs = [(p, a) for p, a in zip(p_values, holm(p_values), strict=True) if p is not None and a is not None]
    assert all(p <= adjusted <= 1.0 for p, adjusted in pairs)
    assert [a for _, a in sorted(pairs)] == sorted(a for _, a in pairs)


def test_identical_arms_read_identical_and_warn_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        comparison = paired_comparison(arm([1.0, 1.0, 0.3]), arm([1.0, 1.0, 0.3]))
    assert comparison.identical
    assert (comparison.p, comparison.interval, comparison.effect_size) == (None, None, None)
    assert verdict(comparison, "A", "B") == "identical: A and B have the same score in all 3 seeds"
    assert power_line(comparison) is None


def test_a_constant_difference_has_no_test_but_is_no_identity() -> None:
    comparison = paired_comparison(arm([0.95, 0.85, 0.75]), arm([0.85, 0.75, 0.65]))
    assert not comparison.identical
    assert comparison.p is None
    assert comparison.interval is None
    assert "+0.100 in each of 3 seeds" in verdict(comparison, "A", "B")


def test_one_seed_and_no_seed_say_so() -> None:
    assert "one seed has no interval" in verdict(paired_comparison({0: 0.9}, {0: 0.7}), "A", "B")
    assert "nothing can be said" in verdict(paired_comparison({0: 0.9}, {1: 0.7}), "A", "B")


def test_the_verdict_names_the_better_arm_whatever_the_sign() -> None:
    better, worse = arm([0.9, 0.91, 0.92, 0.9]), arm([0.8, 0.82, 0.81, 0.81])
    assert "A scores higher than B" in verdict(paired_comparison(better, worse), "A", "B")
    assert "B scores higher than A" in verdict(paired_comparison(worse, better), "A", "B")


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.integers(0, 5), SCORES), st.dictionaries(st.integers(0, 5), SCORES))
def test_nothing_is_ever_nan(treatment: dict[int, float], control: dict[int, float]) -> None:
    comparison = paired_comparison(treatment, control)
    numbers = [comparison.difference, comparison.std, comparison.p, comparison.effect_size]
    numbers += [comparison.detectable, *(comparison.interval or ())]
    assert all(math.isfinite(number) for number in numbers if number is not None)
    words = f"{verdict(comparison, 'A', 'B')} {power_line(comparison)}"
    assert "nan" not in words
    assert "inf" not in words.split()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(SCORES, SCORES), min_size=2, max_size=6))
def test_swapping_the_arms_flips_the_sign_alone(pairs: list[tuple[float, float]]) -> None:
    one, other = arm([a for a, _ in pairs]), arm([b for _, b in pairs])
    there, back = paired_comparison(one, other), paired_comparison(other, one)
    assert there.difference == pytest.approx(-(back.difference or 0.0))
    assert there.p == pytest.approx(back.p)


def effect(d: float, n: int) -> Comparison:
    return Comparison(n, d, std=1.0, effect_size=d)


def test_the_interval_of_the_effect_is_the_published_one() -> None:
    """The example of R's MBESS, `conf.limits.nct(2.83, df = 126)`: 0.8337502 and 4.815359."""
    low, high = effect(2.83 / math.sqrt(127), 127).effect_interval or (0.0, 0.0)
    assert (low * math.sqrt(127), high * math.sqrt(127)) == pytest.approx((0.8337502, 4.815359), abs=2e-7)


@pytest.mark.parametrize(("d", "n"), [(0.5, 3), (2.0, 5), (0.0, 6)])
def test_the_interval_of_the_effect_covers_the_true_one_95_times_in_100(d: float, n: int) -> None:
    draws = 400
    samples = stats.norm.rvs(loc=d, scale=1.0, size=(draws, n), random_state=5)
    covered = 0
    for sample in samples:
        low, high = paired_comparison(arm(list(sample)), arm([0.0] * n)).effect_interval or (0.0, 0.0)
        covered += low <= d <= high
    assert stats.binomtest(covered, draws, 0.95).pvalue > 1e-3


@given(st.integers(2, 100), st.floats(-12.0, 10.0), st.sampled_from([-1, 1]))
@settings(max_examples=60, deadline=None)
def test_the_interval_of_the_effect_is_finite_and_agrees_with_the_test(n: int, size: float, sign: int) -> None:
    """From the smallest difference to one so large that scipy's own noncentral t gives NaN."""
    t = sign * 10.0**size
    d = t / math.sqrt(n)
    low, high = effect(d, n).effect_interval or (math.nan, math.nan)
    assert low < d < high
    assert math.isfinite(low)
    assert math.isfinite(high)
    p = 2 * stats.t.sf(abs(t), n - 1)
    if abs(p - 0.05) > 1e-6:
        assert (p < 0.05) == (low > 0 or high < 0)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_the_detectable_difference_holds_at_the_level_of_a_family(n: int) -> None:
    alpha = 0.05 / 27
    difference = detectable_difference(1.0, n, alpha)
    draws = stats.norm.rvs(loc=difference, scale=1.0, size=(20_000, n), random_state=13)
    found = (stats.ttest_1samp(draws, 0.0, axis=1).pvalue < alpha).mean()
    assert found == pytest.approx(0.8, abs=0.012)


@pytest.mark.parametrize("d", [0.4, 1.5, 8.0])
def test_the_seeds_that_a_family_needs_are_the_fewest_at_its_level(d: float) -> None:
    alpha = 0.05 / 9
    needed = seeds_needed(d, alpha)
    assert needed is not None
    assert needed >= (seeds_needed(d) or 0)
    assert power(d, needed, alpha) >= 0.8
    assert needed == 2 or power(d, needed - 1, alpha) < 0.8


def test_the_power_a_family_is_told_at_its_first_step() -> None:
    close = paired_comparison(arm([0.51, 0.53, 0.52, 0.50]), arm([0.50, 0.51, 0.50, 0.49]))
    wide = paired_comparison(arm([0.6, 0.4, 0.5]), arm([0.5, 0.5, 0.3]))
    line = family_power_line([close, wide, paired_comparison({}, {})]) or ""
    assert line.startswith("3 to 4 seeds could have shown")
    assert "level 0.05 / 3 = 0.017" in line
    assert f"{detectable_difference(close.std or 0, 4, 0.05 / 3):.3f} in the sharpest" in line
    assert f"{detectable_difference(wide.std or 0, 3, 0.05 / 3):.3f} in the bluntest" in line
    needed = seeds_needed(max(abs(close.effect_size or 0), abs(wide.effect_size or 0)), 0.05 / 3)
    assert f"takes at most {needed} seeds" in line
    assert family_power_line([paired_comparison({}, {})] * 2) is None


@pytest.mark.slow
def test_a_family_of_nulls_is_rarely_and_a_planted_one_often_called_different(tmp_path: Path) -> None:
    """Through run folders and the report's own reading; uncorrected, 37 of 100 null families would have a finding."""
    draws, null, planted = 60, Design(5, (10,)), Design(5, (10,), 0.05, 1)
    tallies = [Tally(null), Tally(planted)]
    write_plans(tmp_path, (null, planted))
    noise = random.Random(0)
    for _ in range(draws):
        write_draw(tmp_path, (null, planted), 0.02, noise)
        families = read_families(tmp_path)
        for tally in tallies:
            tally.add(families[tally.design.name])
    most, least = stats.binom.ppf([0.999, 0.001], draws, 0.05)
    for tally in tallies:
        assert least <= tally.false_families <= most
    # The difference of two independent arms; at Holm's first step or, where nulls were rejected before it, a later one.
    expected = power(0.05 / (0.02 * math.sqrt(2)), 5, 0.05 / len(TASKS))
    low, high = stats.binom.ppf([0.001, 0.999], draws, expected)
    assert low <= tallies[1].found <= high + 3
    assert tallies[1].wrong_sign == 0
