"""Metrics agree with the scorers that published figures come from, and final numbers are read as a person reads them.

References: torchmetrics' port of the SQuAD script and Google's rouge-score. Both are optional packages.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pausebench.errors import BadInput
from pausebench.evaluation import metrics
from pausebench.evaluation.metrics import (
    METRICS,
    exact_match,
    final_number,
    number_of,
    rouge1,
    squad_exact_match,
    squad_f1,
)

# Words that the rules treat specially, glued together in every way, and any text at all.
WORDS = ["a", "an", "the", "The", "AN", "cat", "Cat", "cats", "at", "ana", "there", "U.S.", "l'an", "72", "1,080"]
MARKS = ["-", "—", ".", ",", "'", "’", "_", "$", "…", "。", "é", "ß", "İ"]
SPACES = ["", " ", "  ", "\t", "\n", "\u00a0", "\u2009"]
PIECES = st.sampled_from(WORDS + MARKS + SPACES)
TEXTS = st.one_of(st.lists(PIECES, max_size=10).map("".join), st.lists(PIECES, max_size=8).map(" ".join), st.text())
REFERENCES = st.lists(TEXTS, min_size=1, max_size=4)


def official_squad(prediction: str, references: Sequence[str]) -> tuple[float, float]:
    """(exact match, F1) by torchmetrics, 0 to 1.

    torchmetrics has the F1 of SQuAD v2.0, where two answers without words agree; in v1.1 a prediction without words has
    F1 0 whatever the reference. Nothing else in its rules differs from v1.1.
    """
    squad = pytest.importorskip("torchmetrics.functional.text").squad

    def scores(references: Sequence[str]) -> tuple[float, float]:
        target = {"id": "1", "answers": {"text": list(references), "answer_start": [0] * len(references)}}
        result = squad([{"id": "1", "prediction_text": prediction}], [target])
        return result["exact_match"].item() / 100, result["f1"].item() / 100

    exact, f1 = scores(references)
    without_words = scores([""])[0] == 1.0
    return exact, 0.0 if without_words else f1


@settings(max_examples=2000)
@given(TEXTS, REFERENCES)
@example("the", ["."])
@example("", [""])
@example("a cat", ["cat", "the"])
def test_squad_scores_are_the_official_ones(prediction: str, references: list[str]) -> None:
    exact, f1 = official_squad(prediction, references)
    assert squad_exact_match(prediction, references) == exact
    assert squad_f1(prediction, references) == pytest.approx(f1, abs=1e-6)  # torchmetrics counts in float32


def test_squad_scores_of_published_answers_are_the_official_ones(shared_data: Path) -> None:
    """Each question's answers against those of the question before it, which often is about the same passage."""
    before = "Denver Broncos"
    with gzip.open(shared_data / "squad" / "validation.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            references = json.loads(line)["answers"]["text"]
            for prediction in (before, references[-1]):
                exact, f1 = official_squad(prediction, references)
                assert squad_exact_match(prediction, references) == exact
                assert squad_f1(prediction, references) == pytest.approx(f1, abs=1e-6)
            before = references[0]


@pytest.mark.parametrize(
    ("prediction", "references", "exact", "f1"),
    [
        (" The Levi's Stadium.", ["Santa Clara, California.", "Levi's Stadium"], 1.0, 1.0),
        ("levis  stadium", ["Levi's Stadium"], 1.0, 1.0),
        ("stadium levis", ["Levi's Stadium"], 0.0, 1.0),
        ("Stadium", ["Levi's Stadium", "Stadium in Santa Clara"], 0.0, 2 / 3),
        ("stadium stadium", ["Levi's Stadium"], 0.0, 0.5),
        ("twenty-four", ["twenty four"], 0.0, 0.0),
        ("theatre", ["atre"], 0.0, 0.0),
        ("10–7", ["107"], 0.0, 0.0),
        ("10-7", ["107"], 1.0, 1.0),
        ("", ["Denver"], 0.0, 0.0),
        ("Denver", ["."], 0.0, 0.0),
        ("the", ["."], 1.0, 0.0),
        ("", [""], 1.0, 0.0),
    ],
)
def test_squad_scores_by_hand(prediction: str, references: list[str], exact: float, f1: float) -> None:
    assert squad_exact_match(prediction, references) == exact
    assert squad_f1(prediction, references) == pytest.approx(f1, rel=1e-12)


@settings(max_examples=2000)
@given(TEXTS, REFERENCES)
def test_rouge1_is_that_of_the_package(prediction: str, references: list[str]) -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rouge1"], use_stemmer=False)
    expected = max(scorer.score(target=reference, prediction=prediction)["rouge1"].fmeasure for reference in references)
    assert rouge1(prediction, references) == expected


@pytest.mark.parametrize(
    ("prediction", "references", "expected"),
    [
        ("She has 12 eggs.", ("she has 12 eggs",), 1.0),
        ("eggs 12", ("12 eggs left over today",), 4 / 7),  # 2 of 2 words, 2 of 5
        ("12 eggs left over today", ("eggs 12",), 4 / 7),
        ("eggs eggs eggs", ("eggs",), 0.5),
        ("walking", ("walked",), 0.0),
        ("two", ("one", "two", "three"), 1.0),
        ("", ("one",), 0.0),
        ("####", ("#### 1",), 0.0),
    ],
)
def test_rouge1_by_hand(prediction: str, references: tuple[str, ...], expected: float) -> None:
    pytest.importorskip("rouge_score")
    assert rouge1(prediction, references) == pytest.approx(expected, rel=1e-12)


def test_without_rouge_score_the_message_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics._rouge_scorer.cache_clear()
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(BadInput, match=r"pip install 'pausebench\[text\]'"):
        rouge1("one", ("one",))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 72", "72"),
        ("48 + 24 = 72\n#### 72", "72"),
        ("48 + 24 = 72", "72"),
        ("It is 72, which is 3 less than 75", "75"),
        ("#### 72\n", "72"),
        ("####72", "72"),
        ("##### 72", "72"),
        ("#### 72 dollars.", "72"),
        ("#### the answer is 72.", "72"),
        ("#### 1,080", "1080"),
        ("#### 109,200,000", "109200000"),
        ("#### 1,080.50.", "1080.5"),
        ("#### $1,080", "1080"),
        ("#### €5", "5"),
        ("#### -47", "-47"),
        ("#### −47", "-47"),
        ("#### -$47", "-47"),
        ("#### $-47", "-47"),
        ("#### +47", "47"),
        ("#### (-47)", "-47"),
        ("#### =-47", "-47"),
        ("#### -0", "0"),
        ("#### 0.5", "0.5"),
        ("#### .5", "0.5"),
        ("#### -.5", "-0.5"),
        ("#### 007", "7"),
        ("#### 50%", "50"),
        ("#### 0.1000000000000000055511151231257827", "0.1000000000000000055511151231257827"),
        ("#### 123456789012345678901234567890.1", "123456789012345678901234567890.1"),
        # A minus between two things subtracts or joins; it is no sign.
        ("So 16-3", "3"),
        ("(16)-3", "3"),
        ("50%-3", "3"),
        ("16 - 3 = 13", "13"),
        ("16 -3 = 13", "13"),
        ("it is--72", "72"),
        ("grade-5", "5"),
        # Commas and points that belong to the sentence.
        ("3,4,5", "5"),
        ("3, 4, 500", "500"),
        ("1,2345", "2345"),
        ("she has 1,080, they say", "1080"),
        ("the answer is...72", "72"),
        ("the answer is.72", "72"),
        ("72...", "72"),
        # Other digits, words, and marks without a number.
        ("٧٢", None),
        ("seventy-two", None),
        ("", None),
        ("-", None),
        ("$", None),
        ("####", None),
        ("72\n####", None),
        ("72 #### none", None),
        ("#### 5 ####", "5"),
        ("#### 5 #### 6", "6"),
    ],
)
def test_the_final_number_by_hand(text: str, number: str | None) -> None:
    found = number_of(text)
    assert found == (None if number is None else Decimal(number))
    if number is not None:
        assert final_number(text, (f"So it is.\n#### {number}",)) == 1.0
        assert final_number(text, ("#### 31337", f"#### {number}")) == 1.0
    assert final_number(text, ("#### 31337",)) == 0.0


@pytest.mark.parametrize(
    ("prediction", "reference", "score"),
    [
        ("#### 72.0", "#### 72", 1.0),
        ("#### 72.00", "#### 72", 1.0),
        ("#### 72", "#### 72.0", 1.0),
        ("#### 1,080", "#### 1080", 1.0),
        ("#### 72.01", "#### 72", 0.0),
        ("#### -72", "#### 72", 0.0),
        ("#### 0.30000000000000004", "#### 0.3", 0.0),
        ("#### 9007199254740993", "#### 9007199254740992", 0.0),  # equal as floats
        ("72 eggs\n#### 27", "#### 72", 0.0),
        ("none", "none", 0.0),
    ],
)
def test_final_numbers_are_compared_by_exact_value(prediction: str, reference: str, score: float) -> None:
    assert final_number(prediction, (reference,)) == score


@settings(max_examples=2000)
@given(
    before=st.one_of(st.text(), st.lists(PIECES, max_size=8).map("".join)),
    mark=st.sampled_from(["#### ", "", "= ", "is "]),
    sign=st.sampled_from(["", "", "-", "−", "+"]),
    currency=st.sampled_from(["", "", "$", "€", "£", "¥"]),
    whole=st.one_of(st.integers(0, 9999), st.integers(0, 10**30)),
    decimals=st.sampled_from(["", ".0", ".00", ".5", ".25", ".333"]),
    grouped=st.booleans(),
    after=st.sampled_from(["", ".", "\n", " eggs", "%", ",", "!", ". Done.", ")", "...", "</s>"]),
)
def test_a_number_is_found_however_it_is_written(
    before: str, mark: str, sign: str, currency: str, whole: int, decimals: str, grouped: bool, after: str
) -> None:
    written = f"{whole:,}" if grouped else str(whole)
    value = Decimal(f"{'-' if sign in ('-', '−') else ''}{whole}{decimals}")
    text = f"{before} {mark}{sign}{currency}{written}{decimals}{after}"
    assert number_of(text) == value
    assert final_number(text, (f"#### {value}",)) == 1.0
    assert final_number(text, (f"#### {value + 1}",)) == 0.0


def test_published_solutions_give_their_own_number(shared_data: Path) -> None:
    """The number behind "####" with its commas removed, as GSM8K's authors read it."""
    count = 0
    for split in ("train", "test"):
        with gzip.open(shared_data / "gsm8k" / f"{split}.jsonl.gz", "rt", encoding="utf-8") as lines:
            for line in lines:
                answer = json.loads(line)["answer"]
                own = answer.rpartition("#### ")[2].replace(",", "")
                assert number_of(answer) == Decimal(own)
                assert final_number(own, (answer,)) == 1.0
                assert final_number(f"{own}1", (answer,)) == 0.0
                count += 1
    assert count > 500


def test_exact_match_is_strict_but_for_the_space_around_an_answer() -> None:
    assert exact_match(" ignore", ("ignore",)) == 1.0
    assert exact_match("ignore\n", (" avoid", " ignore")) == 1.0
    for wrong in ("Ignore", "ignore.", "ignore it", "", "the ignore"):
        assert exact_match(wrong, ("ignore",)) == 0.0


@settings(max_examples=300)
@given(TEXTS, st.lists(TEXTS.filter(str.strip), min_size=1, max_size=3))
def test_every_metric_is_a_share_and_more_references_never_cost(prediction: str, references: list[str]) -> None:
    for metric in METRICS.values():
        if metric is rouge1:
            pytest.importorskip("rouge_score")
        first, best = metric(prediction, references[:1]), metric(prediction, references)
        assert 0.0 <= first <= best <= 1.0
        assert metric(f"  {prediction}\n", references) == best
