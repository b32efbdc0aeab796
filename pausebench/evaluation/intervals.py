"""A test set's score with its standard error and its 95 % bootstrap interval.

The interval is the percentile interval (Efron and Tibshirani 1993, chapter 13): the same score of 2000 test sets, each
drawn with replacement from this one's clusters. Groups of rows that depend on each other (questions about one story)
are drawn whole.

Invariant: the same rows in the same order give the same interval; draws are a function of resample and place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from pausebench.counter_rng import uniform
from pausebench.evaluation.metrics import cluster_numbers, macro_f1, mean_and_stderr

RESAMPLES = 2000
CONFIDENCE = 0.95
SEED = 0
DRAWS_AT_ONCE = 2**18  # 2 MiB stay in a core's cache


class Estimate(NamedTuple):
    """A score of a test set, its standard error, and the ends of its 95 % interval.

    Rows that all score the same, or are all of one group, show no spread: then stderr is 0 and both ends are the value.
    """

    value: float
    stderr: float
    low: float
    high: float


def mean_estimate(values: Sequence[float], groups: Sequence[str] = ()) -> Estimate:
    """The mean over rows; stderr is that of `mean_and_stderr`.

    groups: ``Example.group`` of each row; none given, or a row whose group is "", is independent of all others.
    """
    mean, stderr = mean_and_stderr(values, groups)
    rows = torch.tensor([(value, 1.0) for value in values], dtype=torch.float64)
    totals = _resampled_totals(rows, groups or [""] * len(values))
    return Estimate(mean, stderr, *_percentiles(totals[:, 0] / totals[:, 1]))


def macro_f1_estimate(chosen: Sequence[int], right: Sequence[int], groups: Sequence[str] = ()) -> Estimate:
    """Macro F1 of `macro_f1`, which is no mean over rows: stderr is the deviation of the resampled scores."""
    chosen_NC, right_NC = one_hot(torch.tensor([chosen, right]), max(*chosen, *right) + 1).double()
    rows = torch.cat((chosen_NC * right_NC, chosen_NC + right_NC), dim=1)
    totals = _resampled_totals(rows, groups or [""] * len(chosen)).view(RESAMPLES, 2, -1)
    hits, occurrences = totals.unbind(1)
    f1 = 2 * hits / occurrences.clamp(min=1)
    resampled = f1.sum(1) / (occurrences > 0).sum(1)
    return Estimate(macro_f1(chosen, right), resampled.std().item(), *_percentiles(resampled))


def _resampled_totals(rows_NF: Tensor, groups: Sequence[str]) -> Tensor:
    """float64 [RESAMPLES, F]: sums of the rows of as many clusters as there are, drawn with replacement."""
    cluster_N = torch.tensor(cluster_numbers(groups))
    n_clusters = int(cluster_N.max()) + 1
    totals_CF = torch.zeros(n_clusters, rows_NF.shape[1], dtype=torch.float64).index_add_(0, cluster_N, rows_NF)
    parts = []
    with _one_thread():
        for resamples in torch.split(torch.arange(RESAMPLES), max(1, DRAWS_AT_ONCE // n_clusters)):
            drawn = (uniform(SEED, "bootstrap", resamples, n_clusters) * n_clusters).long()
            drawn += torch.arange(len(resamples))[:, None] * n_clusters  # one count over all resamples at once
            times_drawn = torch.bincount(drawn.flatten(), minlength=drawn.numel()).view_as(drawn)
            parts.append(times_drawn.double() @ totals_CF)
    return torch.cat(parts)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Thousands of small operations: spread over cores that other processes hold, they took twenty times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _percentiles(resampled: Tensor) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = resampled.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high
