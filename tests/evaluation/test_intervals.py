"""Standard errors and intervals mean what they say: against scipy's bootstrap, and by how often they hold the truth."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence

import pytest
import torch

from pausebench.evaluation import metrics
from pausebench.evaluation.metrics import (
    macro_f1,
    macro_f1_estimate,
    mean_and_stderr,
    mean_estimate,
    resampled_macro_f1,
)

# Two bootstraps of 2000 resamples place an end with a deviation of 0.06 stderr each.
ENDS_AGREE = 0.3


def stories(generator: random.Random, count: int, most_rows: int) -> tuple[list[float], list[str]]:
    """Right and wrong answers (half are right in expectation), up to ``most_rows`` a story; some stories are easy."""
    values, groups = [], []
    for story in range(count):
        easy = generator.choice([0.2, 0.8])
        for _ in range(generator.randint(1, most_rows)):
            values.append(float(generator.random() < easy))
            groups.append(f"story {story}")
    return values, groups


def test_the_interval_of_a_mean_is_scipys() -> None:
    scipy_stats, numpy = pytest.importorskip("scipy.stats"), pytest.importorskip("numpy")
    generator = random.Random(1)
    values = [generator.betavariate(0.5, 1.0) for _ in range(150)]  # skewed, so that the ends are not symmetric
    estimate = mean_estimate(values)
    theirs = scipy_stats.bootstrap((values,), numpy.mean, method="percentile", rng=numpy.random.default_rng(0))
    ends = (theirs.confidence_interval.low, theirs.confidence_interval.high)
    assert (estimate.low, estimate.high) == pytest.approx(ends, abs=ENDS_AGREE * estimate.stderr)
    assert estimate[:2] == mean_and_stderr(values)


def test_the_interval_of_a_mean_over_groups_is_scipys_of_group_totals() -> None:
    scipy_stats, numpy = pytest.importorskip("scipy.stats"), pytest.importorskip("numpy")
    values, groups = stories(random.Random(2), 60, 9)
    names = sorted(set(groups))
    totals = [sum(value for value, group in zip(values, groups, strict=True) if group == name) for name in names]
    sizes = [groups.count(name) for name in names]
    estimate = mean_estimate(values, groups)
    theirs = scipy_stats.bootstrap(
        (totals, sizes),
        lambda totals, sizes, axis: totals.sum(axis) / sizes.sum(axis),
        paired=True,
        method="percentile",
        rng=numpy.random.default_rng(0),
    )
    ends = (theirs.confidence_interval.low, theirs.confidence_interval.high)
    assert (estimate.low, estimate.high) == pytest.approx(ends, abs=ENDS_AGREE * estimate.stderr)
    assert estimate[:2] == mean_and_stderr(values, groups)
    assert estimate.stderr == pytest.approx(theirs.standard_error, rel=0.1)


def test_the_interval_of_macro_f1_is_scipys() -> None:
    scipy_stats, numpy = pytest.importorskip("scipy.stats"), pytest.importorskip("numpy")
    generator = random.Random(3)
    right = [generator.choice([0, 0, 0, 1, 2]) for _ in range(120)]
    chosen = [label if generator.random() < 0.6 else generator.randrange(3) for label in right]
    estimate = macro_f1_estimate(chosen, right)
    theirs = scipy_stats.bootstrap(
        (chosen, right),
        lambda chosen, right: macro_f1(chosen.tolist(), right.tolist()),
        paired=True,
        vectorized=False,
        n_resamples=2000,
        method="percentile",
        rng=numpy.random.default_rng(0),
    )
    ends = (theirs.confidence_interval.low, theirs.confidence_interval.high)
    assert estimate.value == macro_f1(chosen, right)
    assert estimate.stderr == pytest.approx(theirs.standard_error, rel=0.1)
    assert (estimate.low, estimate.high) == pytest.approx(ends, abs=ENDS_AGREE * estimate.stderr)


def test_macro_f1_of_a_resample_is_that_of_the_rows_it_drew() -> None:
    """Classes that a resample lacks do not count in it: with three rows of three classes that happens all the time."""
    chosen, right, groups = [0, 1, 2, 2], [0, 1, 1, 3], ["", "a", "a", ""]
    clusters = [[0], [1, 2], [3]]
    resampled = resampled_macro_f1(chosen, right, groups)
    draws = metrics.uniform(metrics.SEED, "bootstrap", torch.arange(metrics.RESAMPLES), len(clusters))
    for value, drawn in zip(resampled.tolist(), (draws * len(clusters)).long().tolist(), strict=True):
        rows = [row for cluster in drawn for row in clusters[cluster]]
        assert value == pytest.approx(macro_f1([chosen[row] for row in rows], [right[row] for row in rows]))


def share_of_intervals_with(truth: float, tests: Sequence[tuple[list[float], list[str]]]) -> float:
    estimates = [mean_estimate(values, groups) for values, groups in tests]
    return statistics.fmean(estimate.low <= truth <= estimate.high for estimate in estimates)


def test_intervals_hold_the_truth_nineteen_times_of_twenty() -> None:
    generator = random.Random(4)
    tests = [stories(generator, 60, 8) for _ in range(300)]
    assert 0.92 <= share_of_intervals_with(0.5, tests) <= 0.98
    assert share_of_intervals_with(0.5, [(values, []) for values, _ in tests]) < 0.87  # the stories' rows as if alone
    alone = [stories(generator, 80, 1) for _ in range(300)]
    assert 0.92 <= share_of_intervals_with(0.5, alone) <= 0.98


def test_the_standard_error_is_the_deviation_between_test_sets() -> None:
    generator = random.Random(5)
    tests = [stories(generator, 60, 8) for _ in range(400)]
    means = [statistics.fmean(values) for values, _ in tests]
    stderrs = [mean_and_stderr(values, groups)[1] for values, groups in tests]
    assert statistics.fmean(stderrs) == pytest.approx(statistics.stdev(means), rel=0.1)


def test_an_interval_is_the_same_every_time_and_whatever_is_drawn_at_once() -> None:
    generator = random.Random(6)
    values, groups = stories(generator, 40, 5)
    labels = [generator.randrange(3) for _ in values]
    chosen = [generator.randrange(3) for _ in values]
    once = mean_estimate(values, groups), macro_f1_estimate(chosen, labels, groups)
    torch.manual_seed(7)
    for at_once in (1, 1000):
        again = mean_estimate(values, groups, at_once), macro_f1_estimate(chosen, labels, groups, at_once)
        assert again == once


def test_the_number_of_threads_is_left_as_it_was() -> None:
    torch.set_num_threads(2)
    mean_estimate([0.0, 1.0])
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("values", "groups"),
    [([0.25], []), ([1.0, 1.0, 1.0], []), ([0.0, 0.0], ["a", "b"]), ([0.0, 1.0], ["a", "a"])],
)
def test_without_spread_the_interval_is_the_value(values: list[float], groups: list[str]) -> None:
    value = statistics.fmean(values)
    assert mean_estimate(values, groups) == (value, 0.0, value, value)


def test_one_row_has_a_macro_f1() -> None:
    assert macro_f1_estimate([1], [1]) == (1.0, 0.0, 1.0, 1.0)
    assert macro_f1_estimate([0], [1]) == (0.0, 0.0, 0.0, 0.0)
