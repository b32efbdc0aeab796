"""The English world: the same everywhere, its rows right by a second reading of the text, its splits apart."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from typing import Any

import pytest
from scipy import stats

from pausebench.data.english import PEOPLE, TEST_SPLITS, TOWN_ATTRIBUTES, TOWNS, EnglishWorld
from pausebench.errors import BadInput

WORLD = EnglishWorld(None)


def both_splits(dataset: str) -> list[dict[str, Any]]:
    return WORLD.rows(dataset, "train") + WORLD.rows(dataset, TEST_SPLITS[dataset])


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# The data's identity


def test_the_first_documents_are_these() -> None:
    documents = WORLD.documents(0, 0, 20)
    assert sha256("\n".join(documents)) == "cd3dfc5b9bc1d502"
    assert documents[1] == (
        "Joreth loves honey and uses a saw for work. Joreth has a pet rabbit. Joreth is a farmer and has a home in"
        " Tavin. Orun found 27 lamps and Ilun found 13 lamps, so he found 27 - 13 = 14 more lamps. Lorina went to "
        "Zelham on Wednesday. There she hid a kite. Oreth counted 39 lamps in Ashvik on Thursday. So on Wednesday "
        "Lorina was in Zelham."
    )


@pytest.mark.parametrize(
    ("dataset", "split", "rows", "digest"),
    [
        ("squad", "train", 8000, "cb6a97b6cc46bcad"),
        ("squad", "validation", 500, "2a0a2eb5ba42807e"),
        ("gsm8k", "train", 8000, "28df3c00b6efd617"),
        ("gsm8k", "test", 500, "89a1ca99083bb8e0"),
        ("commonsense_qa", "train", 8000, "87fec58d05ce6051"),
        ("commonsense_qa", "validation", 500, "9a4acb276f0e2510"),
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
    [("coqa", "train", "squad, gsm8k, commonsense_qa"), ("gsm8k", "validation", "train, test")],
)
def test_a_dataset_or_split_that_is_not_there_is_refused_with_those_that_are(
    dataset: str, split: str, message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        WORLD.rows(dataset, split)


# Documents


def test_documents_are_short_and_use_few_words() -> None:
    documents = WORLD.documents(0, 0, 3000)
    assert {len(re.findall(r"\.( |$)", text)) for text in documents} <= set(range(3, 9))
    lengths = [len(text.split()) for text in documents]
    assert min(lengths) >= 50 and max(lengths) <= 120
    words = {word for text in documents for word in re.findall(r"[A-Za-z]+", text)}
    assert len(words - set(PEOPLE)) < 400


def test_names_of_people_towns_and_lands_are_never_the_same_word() -> None:
    names = [*PEOPLE, *TOWNS, *TOWN_ATTRIBUTES[1].values]
    assert len(set(names)) == len(names) == 200 + 20 + 10


CLAUSES = {
    "home": r"lives in (\w+)|has a home in (\w+)|stays in (\w+) all year",
    "trade": r"works as a (\w+)|is a (\w+)|earns money as a (\w+)",
    "tool": r"uses a (\w+) for work|carries a (\w+)|owns a (\w+)",
    "food": r"likes to eat (\w+)|eats (\w+) every day|loves (\w+)",
    "animal": r"keeps a (\w+)|has a pet (\w+)|takes care of a (\w+)",
    "sight": r"has a big (\w+)|is known for its (\w+)|is built around a (\w+)",
    "land": r"lies in (\w+)|is a town of (\w+)|belongs to (\w+)",
}
# The first of these that is in a question tells what is asked.
ASKED = {
    "land": r" land\?| lie\?|belong",
    "sight": r"known for|built around| big |sight",
    "home": r" live\?|home",
    "trade": r" work as\?|the work of|earn|works as",
    "tool": r"use| carry| own",
    "food": r"eat| love| food",
    "animal": r" keep\?| pet |care",
}


def attribute_of(question: str) -> str:
    return next(name for name, pattern in ASKED.items() if re.search(pattern, question))


def stated_facts(documents: list[str]) -> dict[tuple[str, str], Counter[str]]:
    """(subject, attribute) -> how often each value is stated, read from the text alone."""
    facts: dict[tuple[str, str], Counter[str]] = {}
    for sentence in (sentence for text in documents for sentence in re.split(r"\. |\.$", text)):
        subject, _, rest = sentence.removeprefix("Everyone knows that ").partition(" ")
        for clause in rest.split(" and "):
            for attribute, pattern in CLAUSES.items():
                if found := re.fullmatch(pattern, clause):
                    facts.setdefault((subject, attribute), Counter())[found[found.lastindex or 0]] += 1
    return facts


def test_documents_state_every_fact_of_the_world_again_and_again_and_never_another() -> None:
    facts = stated_facts(WORLD.documents(0, 0, 3000))
    assert len(facts) == 200 * 5 + 20 * 2
    assert all(len(values) == 1 for values in facts.values()), "a person has one home, one trade, ..."
    assert min(values.total() for values in facts.values()) >= 5
    values = Counter((attribute, value) for (_, attribute), counts in facts.items() for value in counts)
    for attribute in CLAUSES:
        shares = [count for (name, _), count in values.items() if name == attribute]
        assert len(shares) == (10 if attribute in ("sight", "land") else 20)
        assert len(set(shares)) == 1, "no value may be a better guess than another"


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
    assert len(train) == 520 and len(test) == 500
    assert not train & test
    assert {attribute for _, attribute in train} == {attribute for _, attribute in test} == set(CLAUSES)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_the_right_option_stands_in_every_place_equally_often(split: str) -> None:
    rows = WORLD.rows("commonsense_qa", split)
    letters = Counter(row["answerKey"] for row in rows)
    assert all(0.19 < letters[letter] / len(rows) < 0.21 for letter in "ABCDE")
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

ONE = r"(?:On (?P<day1>\w+) |In (?P<place1>\w+) |)(?P<who>\w+) (?P<past>\w+) (?P<what>(?:a |\d+ |)\w+)"
ONE += r"(?: in (?P<place2>\w+))?(?: on (?P<day2>\w+))?"
WENT = r"(?P<who>\w+) went to (?P<place>\w+) on (?P<day>\w+)"
THERE = r"There (?:she|he) (?P<past>\w+) (?P<what>(?:a |\d+ |)\w+)"
PAST = {"sell": "sold", "buy": "bought", "find": "found", "paint": "painted", "count": "counted"}
PAST |= {"lose": "lost", "hide": "hid", "make": "made", "borrow": "borrowed", "break": "broke"}
PAST |= {"meet": "met", "help": "helped", "visit": "visited"}
Event = dict[str, str]


def read_passage(context: str) -> list[Event]:
    """Who did what where and when, read from the passage alone."""
    events: list[Event] = []
    for sentence in context.removesuffix(".").split(". "):
        if found := re.fullmatch(WENT, sentence):
            events.append(found.groupdict())
        elif found := re.fullmatch(THERE, sentence):
            events[-1] |= found.groupdict()
        else:
            found = re.fullmatch(ONE, sentence)
            assert found, sentence
            slots = {name.rstrip("12"): value for name, value in found.groupdict().items() if value}
            assert set(slots) == {"who", "past", "what", "place", "day"}, sentence
            events.append(slots)
    return events


def test_the_last_sentence_of_a_story_in_a_document_repeats_what_the_story_said() -> None:
    event_words = re.compile(r"\b(?:[A-Z]\w+|\d+)\b")
    recaps = 0
    for text in WORLD.documents(1, 0, 2000):
        sentences = text.removesuffix(".").split(". ")
        told = next((index for index, sentence in enumerate(sentences) if sentence.startswith("So ")), 0)
        start = told
        while start and re.search(r"^There |[a-z]day\b", sentences[start - 1]):
            start -= 1
        if told:
            recaps += 1
            words = set(event_words.findall(sentences[told].removeprefix("So ")))
            events = read_passage(". ".join(sentences[start:told]))
            assert any(words <= {word for value in event.values() for word in value.split()} for event in events)
    assert recaps > 800


def answers_of(question: str, events: list[Event]) -> list[str]:
    """The answers of all events that fit the question."""

    def about(event: Event, **wanted: str) -> bool:
        return all(value in (event[name], event[name].split()[-1]) for name, value in wanted.items())

    if found := re.fullmatch(r"How many (\w+) did (\w+) (\w+)\?", question):
        goods, who, base = found.groups()
        return [event["what"].split()[0] for event in events if about(event, who=who, past=PAST[base], what=goods)]
    if found := re.fullmatch(r"(?:What|Who) did (\w+) (\w+) in (\w+)\?", question):
        who, base, place = found.groups()
        return [event["what"].split()[-1] for event in events if about(event, who=who, past=PAST[base], place=place)]
    if found := re.fullmatch(r"Who (\w+) (?:the )?(\w+) (in|on) (\w+)\?", question):
        past, what, preposition, value = found.groups()
        name = "place" if preposition == "in" else "day"
        return [event["who"] for event in events if about(event, past=past, what=what, **{name: value})]
    found = re.fullmatch(r"(Where|When|In which town|On which day) did (\w+) (\w+) (?:the )?(\w+)\?", question)
    assert found, question
    asked, who, base, what = found.groups()
    name = "place" if asked in ("Where", "In which town") else "day"
    return [event[name] for event in events if about(event, who=who, past=PAST[base], what=what)]


def test_a_squad_question_has_one_answer_in_its_passage_and_it_is_the_given_span() -> None:
    for row in both_splits("squad"):
        assert list(row) == ["id", "title", "context", "question", "answers"]
        assert 2 <= len(row["context"].split(". ")) <= 4
        assert len(f"{row['context']} {row['question']}".split()) <= 60
        [text], [start] = row["answers"]["text"], row["answers"]["answer_start"]
        assert answers_of(row["question"], read_passage(row["context"])) == [text]
        assert re.findall(rf"\b{text}\b", row["context"]) == [text]
        assert re.match(rf"{text}\b", row["context"][start:]) and (start == 0 or row["context"][start - 1] == " ")


def test_no_squad_passage_is_in_both_splits() -> None:
    train, test = ([row["context"] for row in WORLD.rows("squad", split)] for split in ("train", "validation"))
    assert not set(train) & set(test)
    assert len(set(train)) == 8000 and len(set(test)) == 500


def test_a_squad_answer_is_not_found_by_its_place_in_the_passage() -> None:
    first, last, whos, kinds = 0, 0, 0, Counter[str]()
    for row in both_splits("squad"):
        [text] = row["answers"]["text"]
        kinds[next(word for word in row["question"].split() if word != "In" and word != "On")] += 1
        if text in PEOPLE:
            people = [word for word in re.findall(r"\w+", row["context"]) if word in set(PEOPLE)]
            first, last, whos = first + (text == people[0]), last + (text == people[-1]), whos + 1
    assert 0.15 < first / whos < 0.45 and 0.15 < last / whos < 0.5
    assert max(kinds.values()) < 0.45 * kinds.total()


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
        assert result is not None and 0 <= result <= 60


def solve(question: str) -> int:
    """The answer from the words of the question, not from its solution."""
    numbers = [int(number) for number in re.findall(r"\d+", question)]
    if "boxes" in question:
        numbers[:2] = [numbers[0] * numbers[1]]
    if "times as many" in question:
        return numbers[0] + numbers[0] * numbers[1]
    if re.search("How many more|find more", question):
        return numbers[0] - numbers[1]
    if "gives" in question:
        numbers[-1] *= -1
    return sum(numbers)


def test_a_gsm8k_answer_follows_from_the_words_of_the_question() -> None:
    rows = both_splits("gsm8k")
    assert all(row["answer"].endswith(f"\n#### {solve(row['question'])}") for row in rows)
    answers = Counter(row["answer"].rpartition(" ")[2] for row in rows)
    assert len(answers) > 50 and max(answers.values()) < 0.08 * len(rows)


def test_no_gsm8k_question_is_in_both_splits() -> None:
    train, test = ([row["question"] for row in WORLD.rows("gsm8k", split)] for split in ("train", "test"))
    assert not set(train) & set(test)
    assert len(set(train)) == 8000 and len(set(test)) == 500


def test_sums_in_documents_are_right() -> None:
    sums = [
        found for text in WORLD.documents(2, 0, 2000) for found in re.findall(r"(\d+) ?([-+*]) ?(\d+) ?= ?(\d+)", text)
    ]
    assert len(sums) > 2000
    for left, sign, right, result in sums:
        assert {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}[sign](int(left), int(right)) == int(result)


@pytest.mark.parametrize("dataset", ["squad", "commonsense_qa"])
def test_every_row_has_an_id_of_its_own(dataset: str) -> None:
    rows = both_splits(dataset)
    assert len({row["id"] for row in rows}) == len(rows)
