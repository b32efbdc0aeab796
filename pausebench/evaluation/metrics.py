"""Metrics of one answer, choices between candidates, and the mean over rows with its standard error.

A metric takes the prediction and every reference that counts as right, and gives 0 to 1. None of them depends on white
space around an answer: text decoded after "Answer:" begins with a space. `macro_f1` alone is a number of a whole test
set.
"""

from __future__ import annotations

import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from itertools import combinations
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from pausebench.counter_rng import uniform
from pausebench.errors import BadInput, RunFailed

Metric = Callable[[str, Sequence[str]], float]
Choice = Callable[[Sequence[float], Sequence[int]], int]

PUNCTUATION = str.maketrans("", "", string.punctuation)
# The three official scripts agree on these: ASCII marks alone, and articles as whole words of lower-case text.
ARTICLES = re.compile(r"\b(a|an|the)\b")

AUTHORS_NUMBER = re.compile(r"#### (-?[0-9.,]+)")  # GSM8K's own script: re.search, then commas are removed
FINAL_MARK = "####"
# A minus after a digit, a letter or a bracket subtracts ("16-3"), and after a minus it is a dash. A point that follows
# a letter or a point ends a sentence ("is.5", "...5"). Commas belong to the number where they part thousands; behind
# the mark, where one number is expected, all of them do.
SIGN = r"(?P<sign>(?<![\w)\]%-])[-−])? [$£¥\u20a0-\u20cf]?"
DECIMALS = r"(?:\.[0-9]+)?|(?<![\w.])\.[0-9]+"
MARKED_NUMBER = re.compile(rf"{SIGN} (?P<digits>[0-9][0-9,]*{DECIMALS})", re.VERBOSE)
NUMBER = re.compile(rf"{SIGN} (?P<digits>(?:[0-9]{{1,3}}(?:,[0-9]{{3}})+(?![0-9])|[0-9]+){DECIMALS})", re.VERBOSE)


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1 when the prediction is one of the references, else 0."""
    return float(prediction.strip() in {reference.strip() for reference in references})


def token_accuracy(prediction: str, references: Sequence[str]) -> float:
    """Share of the words of the reference that the prediction has in the same place; the best over references."""
    # Place by place, because the task is to copy a string: a word that slipped by one place is wrong.
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


def word_f1(words: Sequence[str], expected: Sequence[str]) -> float:
    """Harmonic mean of the precision and recall of words, whatever their order; 0 when none is shared."""
    shared = (Counter(words) & Counter(expected)).total()
    return 2 * shared / (len(words) + len(expected)) if shared else 0.0


def squad_f1(prediction: str, references: Sequence[str]) -> float:
    """F1 of words; the best over references.

    As in v1.1, answers that share no word score 0 even when both are empty (v2.0, which has questions without an
    answer, scores those 1), so exact match can be 1 where F1 is 0.
    """
    words = squad_words(prediction)
    return max(word_f1(words, squad_words(reference)) for reference in references)


def decomposed(text: str) -> str:
    """The text in Unicode's canonical decomposition (NFD): an accented letter becomes a letter and its accent."""
    return unicodedata.normalize("NFD", text)


def nq_exact_match(prediction: str, references: Sequence[str]) -> float:
    """Exact match of Natural Questions' official script: SQuAD's, after NFD.

    After NFD an accent ends a word, so that "à" alone loses its "a" as an article does.
    """
    return squad_exact_match(decomposed(prediction), [decomposed(reference) for reference in references])


def nq_f1(prediction: str, references: Sequence[str]) -> float:
    """F1 of the words that `nq_exact_match` compares; the official script has no F1."""
    return squad_f1(decomposed(prediction), [decomposed(reference) for reference in references])


def leave_one_out(scores: Sequence[float]) -> float:
    """CoQA's score against several annotators, from the score against each.

    Each annotator in turn is left out, and the best score against the others is taken: the mean of these. A person's
    own score is measured against the others too, so the two are comparable. One annotator is not left out.
    """
    # The hub has one answer a question; the official script then compares with that one.
    if len(scores) == 1:
        return scores[0]
    return math.fsum(max(others) for others in combinations(scores, len(scores) - 1)) / len(scores)


def coqa_exact_match(prediction: str, references: Sequence[str]) -> float:
    """Exact match of CoQA's official script: the words of SQuAD, over annotators by `leave_one_out`.

    references: one an annotator, equal ones repeated; a right answer that one annotator alone gave scores
    (n - 1) / n.
    """
    words = squad_words(prediction)
    return leave_one_out([float(words == squad_words(reference)) for reference in references])


def coqa_f1(prediction: str, references: Sequence[str]) -> float:
    """F1 of CoQA's official script: of words, two answers without words agree, over annotators by `leave_one_out`."""
    words, expected = squad_words(prediction), [squad_words(reference) for reference in references]
    return leave_one_out([1.0 if words == others else word_f1(words, others) for others in expected])


def number_of(text: str) -> Decimal | None:
    """The number that a solution ends in, exact; None if there is none.

    It is what GSM8K's authors read: the number directly after the first "#### " that a number follows. Their script
    calls every other text invalid. Here such a text gives the first number anywhere after its first "####", with a
    currency sign, words or Unicode's minus between them, and a text without the mark gives its last number. What
    follows a number never changes it: "50%", "5kg" and "5." are 50, 5 and 5, and "#### 3/4" is 3.
    """
    if authors := AUTHORS_NUMBER.search(text):
        # What they read is no number in "#### 1.2.3" or "#### ..."; those are read like the invalid texts.
        with suppress(InvalidOperation):
            return Decimal(authors[1].replace(",", "").rstrip("."))
    # A model that learned the format but not the space should not lose a right number.
    _, mark, marked = text.partition(FINAL_MARK)
    numbers = [MARKED_NUMBER.search(marked)] if mark else list(NUMBER.finditer(text))
    found = numbers[-1] if numbers else None
    if found is None:
        return None
    return Decimal(("-" if found["sign"] else "") + found["digits"].replace(",", ""))


def final_number(prediction: str, references: Sequence[str]) -> float:
    """1 when the prediction's number has the value of a reference's ("72.0" is "72"), else 0; 0 without a number."""
    # Decimal, not float: 9007199254740993 and 9007199254740992 are equal as floats.
    number = number_of(prediction)
    return float(number is not None and any(number == number_of(reference) for reference in references))


@lru_cache(maxsize=1)  # making one takes longer than scoring an answer
def rouge_scorer() -> Any:
    """The package's scorer. Raises BadInput where it is not installed."""
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise BadInput("rouge-score is not installed. Type: pip install 'pausebench[text]'") from error
    return RougeScorer(["rouge1"], use_stemmer=False)


def rouge1(prediction: str, references: Sequence[str]) -> float:
    """Rouge-1 F of the rouge-score package, without stemming; the best over references.

    Raises BadInput where the package is not installed.
    """
    scorer = rouge_scorer()
    return max(float(scorer.score(reference, prediction)["rouge1"].fmeasure) for reference in references)


# The names are those of result.json. Whoever changes a rule raises the version of the tasks that use it.
METRICS: dict[str, Metric] = {
    "exact_match": exact_match,
    "token_accuracy": token_accuracy,
    "squad_exact_match": squad_exact_match,
    "squad_f1": squad_f1,
    "nq_exact_match": nq_exact_match,
    "nq_f1": nq_f1,
    "coqa_exact_match": coqa_exact_match,
    "coqa_f1": coqa_f1,
    "final_number": final_number,
    "rouge1": rouge1,
}


def _first_highest(scores: Sequence[float]) -> int:
    if any(math.isnan(score) for score in scores):
        raise RunFailed(
            f"log-likelihoods of candidates are {list(scores)}: the model's weights or activations are not finite; "
            "allowed: numbers; next: evaluate an earlier checkpoint"
        )
    # max() takes the first of equal scores, as numpy's argmax does in lm-evaluation-harness.
    return max(range(len(scores)), key=scores.__getitem__)


def most_likely(log_likelihoods: Sequence[float], characters: Sequence[int]) -> int:
    """The candidate with the highest log-likelihood, summed over its tokens; the first of equal ones.

    Raises RunFailed where one is not a number.
    """
    return _first_highest(log_likelihoods)


def most_likely_per_character(log_likelihoods: Sequence[float], characters: Sequence[int]) -> int:
    """The candidate with the highest log-likelihood per character; the first of equal ones, an empty one never.

    characters: len() of each candidate, Unicode code points and not bytes, without the space that parts it from the
    prefix, although the log-likelihood covers that space: lm-evaluation-harness's acc_norm.
    Raises RunFailed where a log-likelihood is not a number.
    """
    # Tasks refuse empty candidates; if one came here all the same, its share of nothing must not win.
    pairs = zip(log_likelihoods, characters, strict=True)
    return _first_highest([total / length if length else -math.inf for total, length in pairs])


CHOICE_METRICS: dict[str, Choice] = {
    "accuracy": most_likely,
    "accuracy_per_character": most_likely_per_character,
}


def macro_f1(chosen: Sequence[int], right: Sequence[int]) -> float:
    """F1 of every class (the place of a candidate among its row's), averaged over the classes that occur in either.

    It is scikit-learn's f1_score(right, chosen, average="macro").
    """
    # A class that is chosen but never right has F1 0 and counts; one that occurs nowhere does not.
    hits = Counter(a for a, b in zip(chosen, right, strict=True) if a == b)
    occurrences = Counter(chosen) + Counter(right)
    return math.fsum(2 * hits[label] / count for label, count in occurrences.items()) / len(occurrences)


def cluster_numbers(groups: Sequence[str]) -> list[int]:
    """A number per row from 0 up, the same for rows of one group; a row whose group is "" is alone in its cluster."""
    numbers: dict[str | int, int] = {}
    # Row numbers are ints and groups are text, so a row alone never shares a key with a group.
    return [numbers.setdefault(group or row, len(numbers)) for row, group in enumerate(groups)]


def mean_and_stderr(values: Sequence[float], groups: Sequence[str] = ()) -> tuple[float, float]:
    """Mean over rows and its standard error, the noise of the test set alone; rows of one group depend on each other.

    groups: ``Example.group`` of each row; none given, every row is independent. With G clusters g of n rows i

        stderr**2 = G / (G - 1) * sum_g (sum_(i in g) (value_i - mean))**2 / n**2

    which is sample deviation / sqrt(n) where every row is its own cluster. It is the cluster-robust variance of Liang
    and Zeger (1986) for a mean, with the usual factor for few clusters; Miller (2024, arXiv 2411.00640) recommends it
    for language models, without the factor. One cluster says nothing of others, and its error is given as 0.
    """
    n = len(values)
    # fsum is exact, so the mean does not depend on the order of the rows.
    mean = math.fsum(values) / n
    clusters = cluster_numbers(groups or [""] * n)
    # Rows of a cluster are summed before they are squared: what they share does not average out.
    deviations = [0.0] * (max(clusters) + 1)
    for cluster, value in zip(clusters, values, strict=True):
        deviations[cluster] += value - mean
    count = len(deviations)
    if count == 1:
        return mean, 0.0
    return mean, math.sqrt(math.fsum(deviation**2 for deviation in deviations) * count / (count - 1)) / n


RESAMPLES = 2000
CONFIDENCE = 0.95
SEED = 0
DRAWS_AT_ONCE = 2**18  # 2 MiB of random numbers, which a core's cache holds; no result depends on it


class Estimate(NamedTuple):
    """A score of a test set, its standard error, and the ends of its 95 % interval.

    Rows that all score the same, or are all of one group, show no spread: then stderr is 0 and both ends are the value.
    """

    value: float
    stderr: float
    low: float
    high: float


def mean_estimate(values: Sequence[float], groups: Sequence[str] = (), draws_at_once: int = DRAWS_AT_ONCE) -> Estimate:
    """The mean over rows; stderr is that of `mean_and_stderr`.

    groups: ``Example.group`` of each row; none given, or a row whose group is "", is independent of all others.
    """
    mean, stderr = mean_and_stderr(values, groups)
    # Sum and count of each resample: with clusters of different sizes its number of rows varies.
    rows = torch.tensor([(value, 1.0) for value in values], dtype=torch.float64)
    totals = _resampled_totals(rows, groups or [""] * len(values), draws_at_once)
    return Estimate(mean, stderr, *_percentiles(totals[:, 0] / totals[:, 1]))


def macro_f1_estimate(
    chosen: Sequence[int], right: Sequence[int], groups: Sequence[str] = (), draws_at_once: int = DRAWS_AT_ONCE
) -> Estimate:
    """Macro F1 of `macro_f1`. It is no mean over rows, so stderr is the deviation of the resampled scores."""
    resampled = resampled_macro_f1(chosen, right, groups, draws_at_once)
    return Estimate(macro_f1(chosen, right), resampled.std().item(), *_percentiles(resampled))


def resampled_macro_f1(
    chosen: Sequence[int], right: Sequence[int], groups: Sequence[str] = (), draws_at_once: int = DRAWS_AT_ONCE
) -> Tensor:
    """float64 [RESAMPLES]: macro F1 of each resample, over the classes that occur in it."""
    chosen_NC, right_NC = one_hot(torch.tensor([chosen, right]), max(*chosen, *right) + 1).double()
    rows = torch.cat((chosen_NC * right_NC, chosen_NC + right_NC), dim=1)
    totals = _resampled_totals(rows, groups or [""] * len(chosen), draws_at_once).view(RESAMPLES, 2, -1)
    hits, occurrences = totals.unbind(1)
    f1: Tensor = 2 * hits / occurrences.clamp(min=1)
    return f1.sum(1) / (occurrences > 0).sum(1)


def _resampled_totals(rows_NF: Tensor, groups: Sequence[str], draws_at_once: int) -> Tensor:
    """float64 [RESAMPLES, F]: sums over the rows of C clusters drawn with replacement from the C clusters."""
    cluster_N = torch.tensor(cluster_numbers(groups))
    n_clusters = int(cluster_N.max()) + 1
    totals_CF = torch.zeros(n_clusters, rows_NF.shape[1], dtype=torch.float64).index_add_(0, cluster_N, rows_NF)
    parts = []
    with _one_thread():
        for resamples in torch.split(torch.arange(RESAMPLES), max(1, draws_at_once // n_clusters)):
            drawn = (uniform(SEED, "bootstrap", resamples, n_clusters) * n_clusters).long()
            # Clusters of each resample get numbers of their own, so that one bincount counts all resamples.
            drawn += torch.arange(len(resamples))[:, None] * n_clusters
            times_drawn = torch.bincount(drawn.flatten(), minlength=drawn.numel()).view_as(drawn)
            parts.append(times_drawn.double() @ totals_CF)
    return torch.cat(parts)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run small operations on one core: spread over cores that other processes use, they took twenty times as long."""
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
