"""Metrics of one answer, and their mean with its standard error."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Metric = Callable[[str, Sequence[str]], float]


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1 when the prediction is one of the references, else 0."""
    return float(prediction in references)


def token_accuracy(prediction: str, references: Sequence[str]) -> float:
    """Share of the words of the reference that the prediction has in the same place; the best over references."""
    words = prediction.split()

    def share(reference: str) -> float:
        expected = reference.split()
        return sum(a == b for a, b in zip(words, expected, strict=False)) / len(expected)

    return max(share(reference) for reference in references)


METRICS: dict[str, Metric] = {"exact_match": exact_match, "token_accuracy": token_accuracy}


def mean_and_stderr(values: Sequence[float]) -> tuple[float, float]:
    """Mean over examples and its standard error, sample deviation / sqrt(n): the noise of the test set alone."""
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return mean, 0.0
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    return mean, math.sqrt(variance / n)
