"""Metrics of one answer, and their mean with its standard error.

A metric takes the prediction and every reference that counts as right, and gives 0 to 1. None of them depends on white
space around an answer: text decoded after "Answer:" begins with a space.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Any

from pausebench.errors import BadInput

Metric = Callable[[str, Sequence[str]], float]

PUNCTUATION = str.maketrans("", "", string.punctuation)
ARTICLES = re.compile(r"\b(a|an|the)\b")

FINAL_MARK = "####"
# A minus after a digit, a letter or a bracket subtracts ("16-3"), and after a minus it is a dash. A point that follows
# a letter or a point ends a sentence ("is.5", "...5"). Commas belong to the number where they part thousands.
NUMBER = re.compile(
    r"""(?P<sign>(?<![\w)\]%-])[-−])? [$€£¥]?
        (?P<digits>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![\w.])\.[0-9]+)""",
    re.VERBOSE,
)


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1 when the prediction is one of the references, else 0."""
    return float(prediction.strip() in {reference.strip() for reference in references})


def token_accuracy(prediction: str, references: Sequence[str]) -> float:
    """Share of the words of the reference that the prediction has in the same place; the best over references."""
    words = prediction.split()

    def share(reference: str) -> float:
        expected = reference.split()
        return sum(a == b for a, b in zip(words, expected, strict=False)) / len(expected)

    return max(share(reference) for reference in references)


def squad_words(text: str) -> list[str]:
    """The words that SQuAD's official v1.1 script compares: lower case, no ASCII punctuation, no English articles."""
    return ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split()


def squad_exact_match(prediction: str, references: Sequence[str]) -> float:
    """1 when the prediction has the words of one of the references, in order, else 0. Without words equals without."""
    words = squad_words(prediction)
    return float(any(words == squad_words(reference) for reference in references))


def squad_f1(prediction: str, references: Sequence[str]) -> float:
    """Harmonic mean of the precision and recall of words, whatever their order; the best over references.

    As in v1.1, answers that share no word score 0 even when both are empty (v2.0, which has questions without an
    answer, scores those 1), so exact match can be 1 where F1 is 0.
    """
    words = Counter(squad_words(prediction))

    def f1(reference: str) -> float:
        expected = Counter(squad_words(reference))
        shared = (words & expected).total()
        return 2 * shared / (words.total() + expected.total()) if shared else 0.0

    return max(f1(reference) for reference in references)


def number_of(text: str) -> Decimal | None:
    """The last number after the mark "####", or of the whole text when it has no mark; exact; None without a number."""
    _, mark, after = text.partition(FINAL_MARK)
    found = list(NUMBER.finditer(after if mark else text))
    if not found:
        return None
    sign = "-" if found[-1]["sign"] else ""
    return Decimal(sign + found[-1]["digits"].replace(",", ""))


def final_number(prediction: str, references: Sequence[str]) -> float:
    """1 when the prediction's number has the value of a reference's ("72.0" is "72"), else 0; 0 without a number."""
    number = number_of(prediction)
    return float(number is not None and any(number == number_of(reference) for reference in references))


@lru_cache(maxsize=1)
def _rouge_scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise BadInput("rouge-score is not installed. Type: pip install 'pausebench[text]'") from error
    return RougeScorer(["rouge1"], use_stemmer=False)


def rouge1(prediction: str, references: Sequence[str]) -> float:
    """Rouge-1 F of the rouge-score package, without stemming; the best over references.

    Raises BadInput where the package is not installed.
    """
    scorer = _rouge_scorer()
    return max(float(scorer.score(reference, prediction)["rouge1"].fmeasure) for reference in references)


METRICS: dict[str, Metric] = {
    "exact_match": exact_match,
    "token_accuracy": token_accuracy,
    "squad_exact_match": squad_exact_match,
    "squad_f1": squad_f1,
    "final_number": final_number,
    "rouge1": rouge1,
}


def mean_and_stderr(values: Sequence[float]) -> tuple[float, float]:
    """Mean over examples and its standard error, sample deviation / sqrt(n): the noise of the test set alone."""
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return mean, 0.0
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    return mean, math.sqrt(variance / n)
