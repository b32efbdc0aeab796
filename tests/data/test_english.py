"""The English world: the same everywhere, its rows right by a second reading of the text, its splits apart."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest
from english_reader import (
    CLAUSES,
    WORLD,
    answers_of,
    asked_in,
    attribute_of,
    both_splits,
    for_test,
    read_passage,
    sha256,
    solve,
    stated_facts,
)
from scipy import stats

from pausebench.errors import BadInput
from pausebench.worlds.english_material import FRIENDS, PEOPLE, TOWN_ATTRIBUTES, TOWNS

# The data's identity


def test_the_first_documents_are_these() -> None:
    documents = WORLD.documents(0, 0, 20)
    assert sha256("\n".join(documents)) == "7b499dc3d9d07a3a"
    assert documents[1] == (
        "On Thursday Roso caught a mouse in Kestow. On Friday Joro wrote a poem in Bresk.\n"
        "Question: When did Joro write the poem?\nAnswer: Friday\n"
        "Question: What did Roso catch?\nAnswer: mouse\n"
        "Question: Where did Roso catch the mouse?\nAnswer: Kestow"
    )


@pytest.mark.parametrize(
    ("dataset", "split", "rows", "digest"),
    [
        ("squad", "train", 8000, "47e52d1a8f832701"),
        ("squad", "validation", 500, "9b7f5f461a7a6b46"),
        ("gsm8k", "train", 8000, "1b43784852cbc6d2"),
        ("gsm8k", "test", 500, "1b945a60aa33029b"),
        ("commonsense_qa", "train", 8000, "2dfcfb572dc9fbf6"),
        ("commonsense_qa", "validation", 500, "e50e5de671677faf"),
    ],
)
def test_the_rows_are_these(dataset: str, split: str, rows: int, digest: str) -> None:
    made = WORLD.rows(dataset, split)
    assert len(made) == rows
    assert sha256(json.dumps(made, sort_keys=True)) == digest


def test_a_document_does_not_depend_on_the_documents_made_with_it() -> None:
    documents = WORLD.documents(3, 0, 60)
    assert [WORLD.documents(3, number, 1)[0] for number in range(60)] == documents
    assert WORLD.documents(3, 17, 5) == documents[17:22]
    assert len({*documents, *WORLD.documents(4, 0, 60)}) == 120


def test_taking_rows_out_of_the_list_leaves_the_split_as_it_was() -> None:
    rows = WORLD.rows("gsm8k", "test")
    rows.clear()
    assert len(WORLD.rows("gsm8k", "test")) == 500


@pytest.mark.parametrize(
    ("dataset", "split", "message"),
    [("boolq", "train", "squad, gsm8k, commonsense_qa, lambada"), ("gsm8k", "validation", "train, test")],
)
def test_a_dataset_or_split_that_is_not_there_is_refused_with_those_that_are(
    dataset: str, split: str, message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        WORLD.rows(dataset, split)


# Documents


def test_documents_are_short_and_use_few_words() -> None:
    documents = WORLD.documents(0, 0, 3000)
    lengths = [len(text.split()) for text in documents]
    assert min(lengths) >= 3 and max(lengths) <= 90
    words = {word for text in documents for word in re.findall(r"[A-Za-z]+", text)}
    assert len(words - set(PEOPLE)) < 250


def test_names_of_people_towns_and_lands_are_never_the_same_word() -> None:
    names = [*PEOPLE, *TOWNS, *TOWN_ATTRIBUTES[1].values]
    assert len(set(names)) == len(names) == 40 + 10 + 5
    assert set(FRIENDS) < set(PEOPLE)


def test_documents_are_facts_stories_and_sums_and_most_have_questions() -> None:
    documents = WORLD.documents(0, 0, 3000)
    kinds = Counter(
        "sums" if "Sums: " in text else "story" if re.search(r"day\b(?<! day)", text) else "facts" for text in documents
    )
    assert kinds["story"] / 3000 == pytest.approx(0.6, abs=0.04)
    assert kinds["sums"] / 3000 == pytest.approx(0.2, abs=0.04)
    assert sum(bool(asked_in(text)) for text in documents) / 3000 == pytest.approx(0.2 + 0.3 + 0.2, abs=0.06)


def test_documents_never_ask_about_a_passage_or_sum_of_a_test_split() -> None:
    """A passage or question decides itself whether it is for the test; that the test rows are not there follows."""
    test_questions = {row["question"] for row in WORLD.rows("gsm8k", "test")}
    test_passages = {row["context"] for row in WORLD.rows("squad", "validation")}
    assert all(for_test(text) for text in test_questions | test_passages)
    passages = sums = 0
    for text in WORLD.documents(0, 0, 5000):
        first, *rest = text.split("\n")
        if first.startswith("Question: "):
            sums += 1
            assert not for_test(first.removeprefix("Question: "))
        elif rest and re.search(r"day\b(?<! day)", first):
            passages += 1
            assert not for_test(first)
    assert passages > 2000 and sums > 800


def test_documents_state_every_fact_of_the_world_again_and_again_and_never_another() -> None:
    facts = stated_facts(WORLD.documents(0, 0, 4000))
    assert len(facts) == 40 * 5 + 10 * 2
    assert all(len(values) == 1 for values in facts.values()), "a person has one home, one trade, ..."
    assert min(values.total() for values in facts.values()) >= 5
    values = Counter((attribute, value) for (_, attribute), counts in facts.items() for value in counts)
    for attribute in CLAUSES:
        shares = [count for (name, _), count in values.items() if name == attribute]
        assert len(shares) == (5 if attribute in ("sight", "land") else 10)
        assert len(set(shares)) == 1, "no value may be a better guess than another"


def test_a_question_about_a_fact_in_a_document_is_answered_as_the_statements_have_it() -> None:
    documents = WORLD.documents(0, 0, 3000)
    facts = stated_facts(documents)
    asked = Counter[tuple[str, str]]()
    for text in documents:
        if "Sums: " in text or re.search(r"day\b(?<! day)", text):
            continue
        for question, answer in asked_in(text):
            [subject] = set(re.findall(r"\w+", question)) & {*PEOPLE, *TOWNS}
            assert set(facts[subject, attribute_of(question)]) == {answer}
            asked[subject, attribute_of(question)] += 1
    assert set(asked) == set(facts)


# commonsense_qa


def test_a_commonsense_question_is_answered_by_the_documents_alone() -> None:
    facts = stated_facts(WORLD.documents(5, 0, 3000))
    of_a_kind: dict[str, set[str]] = {}
    for (_, attribute), values in facts.items():
        of_a_kind.setdefault(attribute, set()).update(values)
    for row in both_splits("commonsense_qa"):
        assert list(row) == ["id", "question", "question_concept", "choices", "answerKey"]
        assert row["choices"]["label"] == ["A", "B", "C", "D", "E"]
        assert row["question_concept"] in re.findall(r"\w+", row["question"])
        options = row["choices"]["text"]
        attribute = attribute_of(row["question"])
        assert len(set(options)) == 5 and set(options) <= of_a_kind[attribute]
        right = options["ABCDE".index(row["answerKey"])]
        assert set(facts[row["question_concept"], attribute]) == {right}


def test_no_fact_is_asked_about_in_both_splits_of_commonsense_qa() -> None:
    train, test = (
        {
            (
                row["question_concept"],
                attribute_of(row["question"]),
            )
            for row in WORLD.rows("commonsense_qa", split)
        }
        for split in ("train", "validation")
    )
    assert len(train) == len(test) == 110
    assert not train & test
    assert {attribute for _, attribute in train} == {attribute for _, attribute in test} == set(CLAUSES)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_the_right_option_stands_in_every_place_equally_often(split: str) -> None:
    rows = WORLD.rows("commonsense_qa", split)
    letters = Counter(row["answerKey"] for row in rows)
    assert all(0.18 < letters[letter] / len(rows) < 0.22 for letter in "ABCDE")
    table: dict[str, Counter[str]] = {}
    for row in rows:
        kind = attribute_of(row["question"])
        table.setdefault(kind, Counter())[row["answerKey"]] += 1
    counts = [[table[kind][letter] for letter in "ABCDE"] for kind in CLAUSES]
    assert stats.chi2_contingency(counts).pvalue > 1e-3, "the kind of question tells nothing about the letter"


def test_how_often_an_option_was_right_in_training_tells_nothing_about_the_test() -> None:
    facts = {
        (
            row["question_concept"],
            attribute_of(row["question"]),
            row["choices"]["text"]["ABCDE".index(row["answerKey"])],
        )
        for row in WORLD.rows("commonsense_qa", "train")
    }
    right = Counter((attribute, value) for _, attribute, value in facts)
    for attribute in CLAUSES:
        values = TOWN_ATTRIBUTES[1].values if attribute in ("sight", "land") else TOWNS
        shares = [count for (name, _), count in right.items() if name == attribute]
        assert len(shares) == len(values) and len(set(shares)) == 1


# squad


def test_a_story_in_a_document_has_notes_or_questions_and_they_say_what_it_says() -> None:
    noted = asked = 0
    for text in WORLD.documents(1, 0, 2000):
        first, *_ = text.split("\n")
        if "Sums: " in text or not re.search(r"day\b(?<! day)", first):
            continue
        events = read_passage(first)
        for question, answer in asked_in(text):
            asked += 1
            assert answers_of(question, events) == [answer]
        if found := re.search(r"\nNotes: (.*)\.$", text):
            noted += 1
            for note in found[1].split(", "):
                assert any(sorted(note.split()) == sorted({**event, "past": ""}.values())[1:] for event in events)
    assert asked > 1000 and noted > 400


def test_a_squad_question_has_one_answer_in_its_passage_and_it_is_the_given_span() -> None:
    for row in both_splits("squad"):
        assert list(row) == ["id", "title", "context", "question", "answers"]
        assert 2 <= len(row["context"].split(". ")) <= 3
        [text], [start] = row["answers"]["text"], row["answers"]["answer_start"]
        assert answers_of(row["question"], read_passage(row["context"])) == [text]
        assert re.findall(rf"\b{text}\b", row["context"]) == [text]
        assert re.match(rf"{text}\b", row["context"][start:]) and (start == 0 or row["context"][start - 1] == " ")


def test_no_squad_passage_is_in_both_splits() -> None:
    train, test = ([row["context"] for row in WORLD.rows("squad", split)] for split in ("train", "validation"))
    assert not set(train) & set(test)
    assert len(set(train)) == 8000 and len(set(test)) == 500


def test_a_squad_answer_is_not_found_by_its_place_in_the_passage() -> None:
    first = last = 0
    kinds = Counter[str]()
    rows = both_splits("squad")
    for row in rows:
        [text] = row["answers"]["text"]
        events = read_passage(row["context"])
        first, last = first + (text in events[0].values()), last + (text in events[-1].values())
        kinds[row["question"].split()[0]] += 1
    assert first / len(rows) == pytest.approx(5 / 12, abs=0.02) == last / len(rows)
    assert set(kinds) == {"Who", "What", "Where", "When"} and max(kinds.values()) < 0.27 * len(rows)


def test_a_reader_who_knows_the_kind_of_word_but_not_the_event_scores_56_percent() -> None:
    """A deed tells its thing; of the people, places and days of a story any may be the answer (docs/tasks.md)."""
    rows = WORLD.rows("squad", "validation")
    events = [len(read_passage(row["context"])) for row in rows]
    chances = [1 if row["question"].startswith("What") else 1 / n for row, n in zip(rows, events, strict=True)]
    assert sum(chances) / len(rows) == pytest.approx(0.56, abs=0.005)


# gsm8k


def test_a_gsm8k_solution_is_right_and_uses_the_numbers_of_its_question() -> None:
    for row in both_splits("gsm8k"):
        assert list(row) == ["question", "answer"]
        *lines, final = row["answer"].split("\n")
        assert 1 <= len(lines) <= 3 and len(row["question"].split()) <= 60
        known = set(re.findall(r"\d+", row["question"]))
        result = None
        for line in lines:
            [mark] = re.findall(r"(\S+)=<<(\d+)([-+*])(\d+)=(\d+)>>(\d+)", line)
            written, left, sign, right, marked, shown = mark
            assert written == f"{left}{sign}{right}" and {left, right} <= known
            result = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}[sign](int(left), int(right))
            assert str(result) == marked == shown
            known.add(marked)
        assert final == f"#### {result}"
        assert result is not None and 0 <= result <= 99


def test_a_gsm8k_answer_follows_from_the_words_of_the_question() -> None:
    rows = both_splits("gsm8k")
    assert all(row["answer"].endswith(f"\n#### {solve(row['question'])}") for row in rows)
    answers = Counter(row["answer"].rpartition(" ")[2] for row in rows)
    assert len(answers) > 30 and max(answers.values()) < 0.11 * len(rows)


def test_no_gsm8k_question_is_in_both_splits() -> None:
    train, test = ([row["question"] for row in WORLD.rows("gsm8k", split)] for split in ("train", "test"))
    assert not set(train) & set(test)
    assert len(set(train)) == 8000 and len(set(test)) == 500


def test_sums_in_documents_are_right() -> None:
    sums = [found for text in WORLD.documents(2, 0, 2000) for found in re.findall(r"(\d+)([-+*])(\d+)=(\d+)", text)]
    assert len(sums) > 1500
    for left, sign, right, result in sums:
        assert {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}[sign](int(left), int(right)) == int(result)


@pytest.mark.parametrize("dataset", ["squad", "commonsense_qa"])
def test_every_row_has_an_id_of_its_own(dataset: str) -> None:
    rows = both_splits(dataset)
    assert len({row["id"] for row in rows}) == len(rows)
