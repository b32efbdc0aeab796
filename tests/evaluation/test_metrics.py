"""Metrics agree with the scorers that published figures come from, and final numbers are read as a person reads them.

References: torchmetrics' port of the SQuAD script and Google's rouge-score (both are optional packages); the official
rules of GSM8K and Natural Questions, restated to the letter; and CoQA's published rules, written here in another way
than in the metrics.
"""

from __future__ import annotations

import gzip
import json
import math
import random
import re
import statistics
import string
import sys
import unicodedata
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pausebench.errors import BadInput, RunFailed
from pausebench.evaluation import metrics
from pausebench.evaluation.metrics import (
    CHOICE_METRICS,
    METRICS,
    coqa_exact_match,
    coqa_f1,
    exact_match,
    final_number,
    macro_f1,
    mean_and_stderr,
    most_likely,
    most_likely_per_character,
    nq_exact_match,
    nq_f1,
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


@settings(max_examples=500)
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


def official_nq_words(s: str) -> str:
    """normalize_answer of Natural Questions' open-domain evaluation script, to the letter."""
    s = unicodedata.normalize("NFD", s)

    def remove_articles(text: str) -> str:
        return re.sub(r"\b(a|an|the)\b", " ", text)

    def white_space_fix(text: str) -> str:
        return " ".join(text.split())

    def remove_punc(text: str) -> str:
        exclude = set(string.punctuation)
        return "".join(ch for ch in text if ch not in exclude)

    def lower(text: str) -> str:
        return text.lower()

    return white_space_fix(remove_articles(remove_punc(lower(s))))


def official_nq(prediction: str, references: Sequence[str]) -> float:
    return float(any(official_nq_words(prediction) == official_nq_words(reference) for reference in references))


ACCENTS = st.sampled_from(
    ["é", "e\u0301", "à", "a\u0300", "Å", "\u212b", "A\u030a", "İ", "ﬁ", "각", "\u0301", "ạ̈", "ạ̈"]
)
ACCENTED = st.lists(st.one_of(ACCENTS, PIECES), max_size=6).map("".join)


@settings(max_examples=500)
@given(ACCENTED, st.lists(ACCENTED, min_size=1, max_size=4))
@example("Beyonc\u00e9", ["Beyonce\u0301"])
@example("\u00e0 la carte", ["\u0300 la carte"])
@example("\u1ea1\u0308", ["\u00e4\u0323"])
def test_natural_questions_scores_are_the_official_ones(prediction: str, references: list[str]) -> None:
    assert nq_exact_match(prediction, references) == official_nq(prediction, references)
    words, best = official_nq_words(prediction).split(), [official_nq_words(text).split() for text in references]
    assert nq_f1(prediction, references) == max(metrics.word_f1(words, expected) for expected in best)


def test_natural_questions_scores_of_published_answers_are_the_official_ones(shared_data: Path) -> None:
    """Each question's first answer in several spellings, and the answer before it."""
    before, composed_alike = "Denver", 0
    with gzip.open(shared_data / "nq_open" / "validation.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            references = json.loads(line)["answer"]
            spellings = [unicodedata.normalize(form, references[0]) for form in ("NFC", "NFD", "NFKD")]
            for prediction in (before, *spellings, f"The {references[-1].upper()}.", f"à {references[0]}"):
                assert nq_exact_match(prediction, references) == official_nq(prediction, references)
                composed_alike += nq_exact_match(prediction, references) != squad_exact_match(prediction, references)
            before = references[0]
    assert composed_alike > 0, "no published answer shows what NFD changes"


@pytest.mark.parametrize(
    ("prediction", "reference", "exact"),
    [
        ("Beyonc\u00e9", "Beyonce\u0301", 1.0),
        ("Beyonce", "Beyonc\u00e9", 0.0),  # decomposed, not stripped
        ("\u00e0 la carte", "\u0300 la carte", 1.0),  # "a" before an accent is an article to the script
        ("\ufb01sh", "fish", 0.0),  # a ligature is no canonical equivalent
        ("The Eagles.", "eagles", 1.0),
    ],
)
def test_natural_questions_scores_by_hand(prediction: str, reference: str, exact: float) -> None:
    assert nq_exact_match(prediction, ["x", reference]) == exact


def published_words(text: str) -> list[str]:
    """CoQA's normalisation letter by letter: lower case, ASCII marks go, then runs of letters that are articles."""
    kept = [letter for letter in text.lower() if not ("!" <= letter <= "~") or letter.isalnum()]
    runs = ["".join(run) for _, run in groupby(kept, str.isalnum)]
    return "".join(" " if run in ("a", "an", "the") else run for run in runs).split()


def published_coqa(prediction: str, references: Sequence[str]) -> tuple[float, float]:
    """(exact match, F1) in exact arithmetic: every annotator left out in turn, the best of the others, the mean."""
    words = published_words(prediction)

    def f1(expected: list[str]) -> Fraction:
        if not words or not expected:
            return Fraction(words == expected)
        unmatched = list(expected)
        for word in words:
            if word in unmatched:
                unmatched.remove(word)
        shared = len(expected) - len(unmatched)
        precision, recall = Fraction(shared, len(words)), Fraction(shared, len(expected))
        return 2 * precision * recall / (precision + recall) if shared else Fraction(0)

    answers = [published_words(reference) for reference in references]
    exact_total, f1_total = Fraction(0), Fraction(0)
    for left_out in range(len(answers)):
        others = [answer for place, answer in enumerate(answers) if place != left_out or len(answers) == 1]
        exact_total += max(words == answer for answer in others)
        f1_total += max(f1(answer) for answer in others)
    return float(exact_total / len(answers)), float(f1_total / len(answers))


@st.composite
def conversation_answers(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A prediction and up to five annotators' answers, many of them equal, or equal but for marks and articles."""
    answers = st.sampled_from(draw(st.lists(TEXTS, min_size=1, max_size=3)))
    disguised = st.builds("{}{}{}".format, st.sampled_from(["", "", "The ", "a—"]), answers, st.sampled_from(["", "."]))
    return draw(disguised), draw(st.lists(st.one_of(answers, disguised), min_size=1, max_size=5))


@settings(max_examples=500)
@given(conversation_answers())
@example(("", ["", "the", "."]))
@example(("the", ["cat", "."]))
@example(("cat", ["cat", "Cat.", "dog"]))
@example(("猫 の the", ["猫の", "猫"]))
@example(("a\u0301", ["a", "\u0301"]))
def test_coqa_scores_are_those_of_the_published_rules(answers: tuple[str, list[str]]) -> None:
    exact, f1 = published_coqa(*answers)
    assert coqa_exact_match(*answers) == pytest.approx(exact, abs=1e-12)
    assert coqa_f1(*answers) == pytest.approx(f1, abs=1e-12)


@settings(max_examples=500)
@given(TEXTS, TEXTS)
@example("the", ".")
def test_coqa_scores_of_one_answer_are_those_of_squads_second_version(prediction: str, reference: str) -> None:
    squad = pytest.importorskip("torchmetrics.functional.text").squad
    target = {"id": "1", "answers": {"text": [reference], "answer_start": [0]}}
    scores = squad([{"id": "1", "prediction_text": prediction}], [target])
    assert coqa_exact_match(prediction, [reference]) == scores["exact_match"].item() / 100
    assert coqa_f1(prediction, [reference]) == pytest.approx(scores["f1"].item() / 100, abs=1e-6)


@pytest.mark.parametrize(
    ("prediction", "references", "exact", "f1"),
    [
        ("white", ["White.", "white", "the white", "white"], 1.0, 1.0),
        ("white", ["white", "grey", "grey", "grey"], 0.75, 0.75),  # left out once, the only one who says so
        ("white", ["white", "white", "grey", "grey"], 1.0, 1.0),
        ("white", ["white", "grey"], 0.5, 0.5),
        ("in a barn", ["barn", "barn"], 0.0, 2 / 3),
        ("in the barn", ["barn", "in barn near it", "no"], 0.0, (2 / 3 + 2 / 3 + 2 / 3) / 3),
        ("", ["", "no"], 0.5, 0.5),
        ("the", ["."], 1.0, 1.0),
        ("the", ["no"], 0.0, 0.0),
        ("no", ["the"], 0.0, 0.0),
        (" 在仓库里\n", ["在仓库里。", "在仓库里", "仓库"], 2 / 3, 2 / 3),  # "。" is no ASCII mark
    ],
)
def test_coqa_scores_by_hand(prediction: str, references: list[str], exact: float, f1: float) -> None:
    assert coqa_exact_match(prediction, references) == pytest.approx(exact, rel=1e-12)
    assert coqa_f1(prediction, references) == pytest.approx(f1, rel=1e-12)


def test_coqa_scores_of_published_answers_are_those_of_the_published_rules(shared_data: Path) -> None:
    """Each question's first answer, and that of the question before it, against all annotators'."""
    before = "white"
    with gzip.open(shared_data / "coqa" / "validation_references.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            for references in json.loads(line)["references"]:
                for prediction in (before, references[0]):
                    exact, f1 = published_coqa(prediction, references)
                    assert coqa_exact_match(prediction, references) == pytest.approx(exact, abs=1e-12)
                    assert coqa_f1(prediction, references) == pytest.approx(f1, abs=1e-12)
                before = references[0]


@settings(max_examples=500)
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
    metrics.rouge_scorer.cache_clear()
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
        ("#### 5 #### 6", "5"),
        # The first "#### " that a number follows at once counts, whatever stands behind an earlier mark.
        ("####6 #### 5", "5"),
        ("#### $6, no: #### 5", "5"),
        ("#### none\n#### 5", "5"),
        ("#### x6\n#### -5\n#### 7", "-5"),
        ("#### #### 5", "5"),
        ("####  6 #### 5", "5"),
        ("#### ٦ #### 5", "5"),
        ("#### 5.\n#### 6", "5"),
        ("#### 1.5,0", "1.5"),
        # Behind the mark the first number is the answer, and commas are its own.
        ("####-5", "-5"),
        ("####\n-5", "-5"),
        ("#### 5 dollars", "5"),
        ("#### 5 dollars and 30 cents", "5"),
        ("#### 72\n\nQuestion: 3 robes take", "72"),
        ("#### 72 (of 100)", "72"),
        ("#### 12,34,567", "1234567"),
        ("#### 5, 6", "5"),
        ("#### 3/4", "3"),
        ("#### 1 1/2", "1"),
        ("#### 16-3", "16"),
        ("#### 1e5", "1"),
        ("#### **72**", "72"),
        ("#### 5kg", "5"),
        ("#### x=5", "5"),
        ("#### 2nd", "2"),
        ("#### ₹5", "5"),
        ("#### -₹5", "-5"),
        ("#### - 5", "5"),
        ("#### –5", "5"),
        ("#### 1.2.3", "1.2"),
        ("3/4", "4"),
        ("5kg", "5"),
        ("each costs $5.", "5"),
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


@settings(max_examples=500)
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


def authors_answer(completion: str) -> str | None:
    """extract_answer of GSM8K's own script, to the letter; None is its "[invalid]"."""
    match = re.search(r"#### (\-?[0-9\.\,]+)", completion)
    if match is None:
        return None
    match_str = match.group(1).strip()
    return match_str.replace(",", "")


def check_against_authors(text: str, reference: str) -> None:
    """Their number is ours, and what is right to them is right here."""
    theirs = authors_answer(text)
    if theirs is not None and re.fullmatch(r"-?([0-9]+\.?[0-9]*|\.[0-9]+)", theirs):
        assert number_of(text) == Decimal(theirs)
    if theirs is not None and theirs == authors_answer(reference):
        assert final_number(text, (reference,)) == 1.0


@settings(max_examples=500)
@given(
    pieces=st.lists(
        st.one_of(
            st.sampled_from(
                ["#### ", "####", "#", " ", "\n", "-", "−", "$", ".", ",", "none", "7", "1,080", "50%", "3/4"]
            ),
            st.from_regex(r"\A-?[0-9][0-9,]{0,9}(\.[0-9]{1,4})?\Z"),
            TEXTS,
        ),
        max_size=12,
    ),
    answer=st.sampled_from(["7", "-7", "1,080", "0.5"]),
)
@example(["####6 #### 5"], "5")
@example(["#### $6 #### 5"], "5")
def test_a_number_that_the_authors_read_is_read_alike(pieces: list[str], answer: str) -> None:
    text = "".join(pieces)
    check_against_authors(text, f"So.\n#### {answer}")
    check_against_authors(f"{text}#### {answer}{text}", f"So.\n#### {answer}")


def test_published_solutions_are_read_as_the_authors_read_them(shared_data: Path) -> None:
    """Also with other marks around them, as a model may write."""
    with gzip.open(shared_data / "gsm8k" / "test.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            answer = json.loads(line)["answer"]
            for text in (
                answer,
                f"####9 {answer}",
                f"#### $9, no: {answer}",
                f"#### none\n{answer}\n#### 9",
                f"{answer}\n\nQuestion: 9\nAnswer: #### 9",
                f"#### 9\n{answer}",
            ):
                check_against_authors(text, answer)
                assert final_number(text, (answer,)) == float(authors_answer(text) == authors_answer(answer))


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
    for name, metric in METRICS.items():
        if metric is rouge1:
            pytest.importorskip("rouge_score")
        first, best = metric(prediction, references[:1]), metric(prediction, references)
        assert 0.0 <= best <= 1.0
        assert first <= best or name.startswith("coqa")  # which leaves annotators out
        assert metric(f"  {prediction}\n", references) == best


def test_the_candidate_with_the_highest_sum_or_share_is_chosen() -> None:
    sums, characters = [-12.0, -10.0, -30.0, -10.0], [6, 4, 60, 4]
    assert most_likely(sums, characters) == 1
    assert most_likely_per_character(sums, characters) == 2
    assert most_likely_per_character([-2.0, -4.0, -1.0], [2, 4, 1]) == 0  # all -1
    assert list(CHOICE_METRICS) == ["accuracy", "accuracy_per_character"]


def test_an_empty_or_impossible_candidate_is_not_chosen_per_character() -> None:
    assert most_likely_per_character([0.0, -5.0], [0, 3]) == 1
    for choose in CHOICE_METRICS.values():
        assert choose([-math.inf, -5.0], [3, 3]) == 1


@pytest.mark.parametrize("choose", CHOICE_METRICS.values(), ids=CHOICE_METRICS)
def test_a_log_likelihood_that_is_no_number_ends_the_evaluation(choose: metrics.Choice) -> None:
    with pytest.raises(RunFailed, match="not finite"):
        choose([-1.0, math.nan], [1, 1])


@settings(max_examples=500)
@given(st.integers(2, 5), st.data())
def test_macro_f1_is_that_of_torchmetrics(classes: int, data: st.DataObject) -> None:
    torchmetrics = pytest.importorskip("torchmetrics.functional.classification")
    torch = pytest.importorskip("torch")
    rows = data.draw(st.lists(st.tuples(*2 * [st.integers(0, classes - 1)]), min_size=1, max_size=60))
    chosen, right = zip(*rows, strict=True)
    expected = torchmetrics.multiclass_f1_score(
        torch.tensor(chosen), torch.tensor(right), num_classes=classes, average="macro"
    )
    assert macro_f1(chosen, right) == pytest.approx(expected.item(), abs=1e-6)


def test_macro_f1_by_hand() -> None:
    assert macro_f1([0, 1, 1, 0], [0, 1, 1, 0]) == 1.0
    assert macro_f1([0, 0, 0, 0], [0, 0, 0, 1]) == pytest.approx((6 / 7 + 0) / 2)  # class 1 is never chosen
    assert macro_f1([3, 3], [3, 3]) == 1.0  # classes that do not occur do not count
    assert macro_f1([0], [1]) == 0.0


def sandwich_stderr(values: Sequence[float], groups: Sequence[str]) -> float:
    """Regression on a constant with errors clustered by group, pair by pair: n**-2 sum of products within a group."""
    mean = statistics.fmean(values)
    rows = [(value - mean, group or place) for place, (value, group) in enumerate(zip(values, groups, strict=True))]
    pairs = sum(a * b for a, first in rows for b, second in rows if first == second)
    clusters = len({group for _, group in rows})
    return math.sqrt(max(pairs, 0.0) * clusters / (clusters - 1)) / len(rows)


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.sampled_from(["", "", "a", "b", "c"])), min_size=2, max_size=40).filter(
        lambda rows: len({group for _, group in rows}) > 1
    ),
    st.randoms(use_true_random=False),
)
def test_the_standard_error_is_that_of_clusters(rows: list[tuple[float, str]], shuffle: random.Random) -> None:
    values, groups = zip(*rows, strict=True)
    mean, stderr = mean_and_stderr(values, groups)
    assert mean == pytest.approx(statistics.fmean(values))
    assert stderr == pytest.approx(sandwich_stderr(values, groups), abs=1e-7)
    alone = statistics.stdev(values) / math.sqrt(len(values))
    for independent in ((), [""] * len(values), [str(place) for place in range(len(values))]):
        assert mean_and_stderr(values, independent) == (mean, pytest.approx(alone, abs=1e-12))
    shuffle.shuffle(rows)
    assert mean_and_stderr(*zip(*rows, strict=True)) == pytest.approx((mean, stderr), abs=1e-12)


def test_answers_counted_thrice_prove_no_more() -> None:
    values, groups = [0.0, 1.0, 1.0, 0.0, 1.0], ["a", "b", "c", "d", "e"]
    assert mean_and_stderr(values * 3, groups * 3) == pytest.approx(mean_and_stderr(values))
    assert mean_and_stderr(values * 3)[1] < 0.6 * mean_and_stderr(values)[1]


def test_one_group_has_no_standard_error() -> None:
    assert mean_and_stderr([0.0, 1.0], ["a", "a"]) == (0.5, 0.0)


def test_rows_and_groups_that_differ_in_number_are_refused() -> None:
    with pytest.raises(ValueError, match="argument 2 is longer"):
        mean_and_stderr([0.0, 1.0, 1.0], ["a", "b"])
