"""The English world's rows for six tasks: published schemas, answers that follow, splits apart, nothing to guess by.

The rows of squad, gsm8k and commonsense_qa are tested with the documents in ``test_english.py``.
"""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from english_reader import (
    CLAUSES,
    PAST,
    WORLD,
    Event,
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

from pausebench.data.tokenizer import BpeTokenizer, train_bpe
from pausebench.errors import BadInput
from pausebench.worlds.english_material import PEOPLE, TOWNS
from pausebench.worlds.english_rows import SPLITS

Facts = dict[tuple[str, str], str]


@pytest.fixture(scope="module")
def facts() -> Facts:
    """(subject, attribute) -> value, as the documents state it."""
    stated = stated_facts(WORLD.documents(5, 0, 3000))
    assert all(len(values) == 1 for values in stated.values())
    return {key: next(iter(values)) for key, values in stated.items()}


def rows_by_split(dataset: str) -> list[list[dict[str, Any]]]:
    """Training rows, test rows."""
    return [WORLD.rows(dataset, split) for split in SPLITS[dataset]]


def is_chance(count: int, total: int, chance: float) -> bool:
    """Whether ``count`` of ``total`` is what a guess with this chance gets, four standard deviations allowed."""
    return abs(count - total * chance) <= 4 * (total * chance * (1 - chance)) ** 0.5


# What the rows are


@pytest.mark.parametrize(
    ("dataset", "split", "rows", "digest"),
    [
        ("lambada", "validation", 8000, "eb2863f243ed6876"),
        ("lambada", "test", 500, "7aaa248e060e9779"),
        ("lambada_openai", "test", 500, "cb8be84243381084"),
        ("web_questions", "train", 392, "9be5dde7b3a57d56"),
        ("web_questions", "test", 392, "f9ffc4e01c64093a"),
        ("nq_open", "train", 512, "f25ff2fa27f845e3"),
        ("nq_open", "validation", 500, "79bac4c14e7f3ef7"),
        ("coqa", "train", 2250, "1e2c19c32dbd13e7"),
        ("coqa", "validation", 140, "94469d01f0f313e8"),
        ("piqa", "train", 8000, "870715bc060e47c6"),
        ("piqa", "validation", 500, "f5c53e41909c6017"),
        ("hellaswag", "train", 8000, "9e24e3a87216becf"),
        ("hellaswag", "validation", 500, "1a94b3c2c25ec452"),
    ],
)
def test_the_rows_are_these(dataset: str, split: str, rows: int, digest: str) -> None:
    made = WORLD.rows(dataset, split)
    assert len(made) == rows
    assert sha256(json.dumps(made)) == digest
    assert len({json.dumps(row) for row in made}) == rows, "all different"


@pytest.mark.parametrize(("dataset", "split"), [("lambada", "train"), ("lambada_openai", "validation")])
def test_a_split_that_the_published_dataset_lacks_or_nobody_trains_on_is_refused(dataset: str, split: str) -> None:
    with pytest.raises(BadInput, match=f"{dataset} has no split '{split}'. Choose one of .*test"):
        WORLD.rows(dataset, split)


def shape(value: Any) -> Any:
    """The types of a row, fields by name; of a list, those of its first entry."""
    if isinstance(value, dict):
        return {name: shape(inner) for name, inner in value.items()}
    return [shape(value[0])] if isinstance(value, list) else type(value)


@pytest.mark.parametrize("dataset", [name for name in SPLITS if name != "lambada"])
def test_rows_have_the_fields_and_types_of_published_rows(dataset: str, shared_data: Path) -> None:
    [path, *_] = sorted((shared_data / dataset).glob(f"{SPLITS[dataset][-1]}.jsonl.gz"))
    with gzip.open(path, "rt") as lines:
        published = shape(json.loads(next(lines)))
    for row in both_splits(dataset):
        assert shape(row) == published and list(row) == list(published)


def test_lambada_rows_have_the_two_fields_of_the_hub_where_only_whole_novels_have_a_domain() -> None:
    assert all(row == {"text": row["text"], "domain": None} for row in both_splits("lambada"))
    assert WORLD.rows("lambada_openai", "test") == [{"text": row["text"]} for row in WORLD.rows("lambada", "test")]


def texts_of(dataset: str, row: dict[str, Any]) -> Iterator[str]:
    """The longest texts that a row gives to read and say, with the cues of the text tasks."""
    if dataset == "coqa":
        turns = zip(row["questions"], row["answers"]["input_text"], strict=True)
        yield "\n".join([row["story"], *(f"Question: {question}\nAnswer: {answer}" for question, answer in turns)])
    elif dataset == "hellaswag":
        yield from (f"{row['ctx']} {ending}" for ending in row["endings"])
    elif dataset == "piqa":
        yield from (f"Question: {row['goal']}\nAnswer: {row[name]}" for name in ("sol1", "sol2"))
    elif dataset in ("web_questions", "nq_open"):
        answers = row["answers"] if dataset == "web_questions" else row["answer"]
        yield from (f"Question: {row['question']}\nAnswer: {answer}" for answer in answers)
    else:
        yield row["text"]


def test_rows_leave_room_for_ten_pauses_and_have_hardly_a_word_that_documents_lack(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    documents = WORLD.documents(0, 0, 2000)
    train_bpe(documents, 1280, tmp_path)
    tokenizer = BpeTokenizer(tmp_path / "vocab.json", tmp_path / "merges.txt")
    known = set(re.findall(r"[A-Za-z]+", " ".join(documents)))
    unknown = set[str]()
    for dataset in ("lambada", "web_questions", "nq_open", "coqa", "piqa", "hellaswag"):
        texts = [text for row in WORLD.rows(dataset, SPLITS[dataset][-1]) for text in texts_of(dataset, row)]
        lengths = [len(ids) + 1 for ids in tokenizer.encode_lists(texts)]
        assert max(lengths) <= (64 if dataset == "coqa" else 42), "coqa: a whole conversation"
        unknown |= set(re.findall(r"[A-Za-z]+", " ".join(texts))) - known
    assert unknown <= {"The", "In", "or", "unknown"}


# lambada


def noted(text: str) -> tuple[str, list[Event], list[list[str]]]:
    """The story of a passage, its events, and the words of each note."""
    context, _, notes = text.partition("\nNotes: ")
    return context, read_passage(context), [note.split() for note in notes.split(", ")]


NOTED = ["who", "thing", "place", "day"]


def test_the_last_word_of_a_lambada_passage_completes_a_note_of_one_of_its_events() -> None:
    for row in both_splits("lambada"):
        prompt, space, last = row["text"].rpartition(" ")
        assert space == " " and last.isalpha()
        _, events, notes = noted(prompt)
        fitting = [event for event in events if {*notes[-1]} <= {event[name] for name in NOTED}]
        assert len(notes[-1]) == 3 and len(fitting) == 1
        assert {fitting[0][name] for name in NOTED} - {*notes[-1]} == {last}


def test_no_lambada_story_is_in_both_splits_or_has_notes_in_a_document() -> None:
    train, test = ({noted(row["text"])[0] for row in rows} for rows in rows_by_split("lambada"))
    assert len(train) == 8000 and len(test) == 500 and not train & test
    assert all(map(for_test, test)), "the documents' rule: test_english.py"
    assert not any(map(for_test, train))


def test_a_lambada_word_is_not_found_by_its_place_or_by_how_common_it_is() -> None:
    kinds, places = Counter[str](), Counter[tuple[int, int]]()
    rows = both_splits("lambada")
    for row in rows:
        _, events, _ = noted(row["text"])
        last = row["text"].rpartition(" ")[2]
        [(place, kind)] = [(place, name) for place, event in enumerate(events) for name in NOTED if event[name] == last]
        kinds[kind] += 1
        places[len(events), place] += 1
    assert all(is_chance(kinds[kind], len(rows), 1 / 4) for kind in NOTED)
    for length in (2, 3):
        total = sum(places[length, place] for place in range(length))
        assert all(is_chance(places[length, place], total, 1 / length) for place in range(length))
    words = Counter(row["text"].rpartition(" ")[2] for row in WORLD.rows("lambada", "test"))
    assert max(words.values()) <= 0.06 * 500


# web_questions and nq_open: facts, closed book

VERBS = {"carry": "tool", "eat": "food", "keep": "animal"}
OPEN = {"tool": "tool", "food": "food", "animal": "animal|pet", "sight": "sight", "land": "land", "home": "town"}


def web_question(question: str) -> tuple[str, list[str]]:
    """The subject of a question and what of it is asked, in the order of the answers."""
    [subject] = {*re.findall(r"\w+", question)} & {*PEOPLE, *TOWNS}
    if found := re.fullmatch(rf"What does {subject} (\w+) or (\w+)\?", question):
        return subject, [VERBS[verb] for verb in found.groups()]
    return subject, [next((name for name, words in OPEN.items() if re.search(rf"\b({words})\b", question)), "trade")]


def test_a_web_question_is_answered_by_the_documents(facts: Facts) -> None:
    for row in both_splits("web_questions"):
        subject, asked = web_question(row["question"])
        assert row["answers"] == [facts[subject, attribute] for attribute in asked]
        assert row["url"] == f"http://www.freebase.com/view/en/{subject.lower()}"


def test_web_questions_ask_in_ways_of_their_own_and_some_have_two_answers() -> None:
    in_documents = {question for text in WORLD.documents(0, 0, 3000) for question, _ in asked_in(text)}
    for rows in rows_by_split("web_questions"):
        assert not {row["question"] for row in rows} & in_documents
        assert 40 < sum(len(row["answers"]) == 2 for row in rows) < 80


def test_no_fact_is_asked_about_in_both_splits_of_web_questions() -> None:
    train, test = (
        {(subject, name) for row in rows for subject, asked in [web_question(row["question"])] for name in asked}
        for rows in rows_by_split("web_questions")
    )
    assert len(train) == len(test) == 110 and not train & test


def needed(question: str, facts: Facts) -> tuple[list[str], set[tuple[str, str]]]:
    """The answers to an nq_open question, and what has to be known of people to give them."""
    if found := re.search(r"[Tt]he (?:home|town) of (\w+)", question):
        person = found[1]
        town = facts[person, "home"]
        return [facts[town, attribute_of(question.replace("home", "town"))]], {(person, "home")}
    found = re.fullmatch(r"Who (.*) and (.*)\?", question)
    assert found, question
    wanted = {
        attribute: clause[clause.lastindex or 0]
        for part in found.groups()
        for attribute, pattern in CLAUSES.items()
        if (clause := re.fullmatch(pattern, part))
    }
    assert len(wanted) == 2
    people = [who for who in PEOPLE if all(facts[who, name] == value for name, value in wanted.items())]
    return people, {(who, name) for who in people for name in wanted}


def test_an_nq_open_question_is_answered_in_two_steps_from_the_documents(facts: Facts) -> None:
    rows = both_splits("nq_open")
    for row in rows:
        answers, _ = needed(row["question"], facts)
        assert row["answer"] == answers and answers
    assert {len(row["answer"]) for row in rows} == {1, 2}
    assert 0.4 < sum(row["question"].startswith("Who") for row in rows) / len(rows) < 0.6


def test_no_fact_about_a_person_is_needed_in_both_splits_of_nq_open(facts: Facts) -> None:
    train, test = (
        set().union(*(needed(row["question"], facts)[1] for row in rows)) for rows in rows_by_split("nq_open")
    )
    assert min(len(train), len(test)) > 80 and not train & test


@pytest.mark.parametrize("dataset", ["web_questions", "nq_open"])
def test_no_closed_book_answer_is_right_often(dataset: str) -> None:
    rows = WORLD.rows(dataset, SPLITS[dataset][-1])
    right = Counter(answer for row in rows for answer in row.get("answers") or row["answer"])
    assert max(right.values()) < 0.05 * len(rows)


# coqa


def turns_of(row: dict[str, Any]) -> list[tuple[str, str]]:
    return list(zip(row["questions"], row["answers"]["input_text"], strict=True))


def reply(question: str, earlier: list[tuple[str, str]], events: list[Event]) -> str:
    """What a reader answers: "Where?" is about the event that the last full question was about."""
    if question in ("Where?", "When?"):
        full, answer = next(turn for turn in reversed(earlier) if len(turn[0].split()) > 1)
        words = {*re.findall(r"\w+", full), answer}
        [event] = [event for event in events if {event["who"], event["thing"]} & words]
        return event["place" if question == "Where?" else "day"]
    return next(iter(answers_of(question, events)), "unknown")


def test_a_coqa_answer_follows_from_the_story_and_the_earlier_turns() -> None:
    for row in both_splits("coqa"):
        events, turns = read_passage(row["story"]), turns_of(row)
        assert len(turns) == {2: 4, 3: 3}[len(events)]
        for number, (question, answer) in enumerate(turns):
            assert answer == reply(question, turns[:number], events)


def test_a_coqa_span_is_the_answer_and_an_unknown_one_has_none() -> None:
    for row in both_splits("coqa"):
        answers = row["answers"]
        for text, start, end in zip(*(answers[name] for name in answers), strict=True):
            if text == "unknown":
                assert (start, end) == (-1, -1)
            else:
                assert row["story"][start:end] == text
                assert re.findall(rf"\b{text}\b", row["story"]) == [text]


def test_coqa_questions_refer_back_and_one_in_eight_has_no_answer_though_its_words_are_in_the_story() -> None:
    rows = both_splits("coqa")
    turns = [turn for row in rows for turn in turns_of(row)]
    assert len(turns) == pytest.approx(8500, rel=0.02)
    assert all(any(len(question.split()) == 1 for question in row["questions"]) for row in rows)
    unknown = [question for question, answer in turns if answer == "unknown"]
    assert is_chance(len(unknown), len(turns), 1 / 8)
    for row in rows:
        events = read_passage(row["story"])
        for question, answer in turns_of(row):
            if answer == "unknown":
                done = {PAST.get(word, word) for word in re.findall(r"\w+", question)}
                assert done & {event["past"] for event in events}


def test_no_coqa_story_is_in_both_splits_or_asked_about_in_a_document() -> None:
    train, test = ({row["story"] for row in rows} for rows in rows_by_split("coqa"))
    assert len(train) == 2250 and len(test) == 140 and not train & test
    assert all(map(for_test, test)), "the documents' rule: test_english.py"
    assert not any(map(for_test, train))


# piqa


def is_sum(text: str) -> bool:
    return bool(re.search(r"\d", text))


def stated(sentence: str) -> tuple[str, str, str]:
    """(subject, attribute, value) of a sentence with one fact."""
    [((subject, attribute), values)] = stated_facts([sentence]).items()
    return subject, attribute, next(iter(values))


def solutions(row: dict[str, Any]) -> tuple[str, str]:
    """The right one, the wrong one."""
    pair = (row["sol1"], row["sol2"])
    return pair[row["label"]], pair[1 - row["label"]]


def test_the_right_piqa_solution_is_true_the_other_is_not_and_they_differ_in_one_word(facts: Facts) -> None:
    for row in both_splits("piqa"):
        right, wrong = solutions(row)
        assert sum(one != other for one, other in zip(right.split(), wrong.split(), strict=True)) == 1
        if is_sum(row["goal"]):
            assert re.findall(r"\d+", right) == [str(solve(row["goal"]))]
            continue
        subject, attribute, value = stated(right)
        assert subject in row["goal"] and attribute == attribute_of(row["goal"])
        assert facts[subject, attribute] == value != stated(wrong)[2]
        assert stated(wrong)[:2] == (subject, attribute)


def test_no_fact_or_sum_is_in_both_splits_of_piqa() -> None:
    train, test = rows_by_split("piqa")
    assert not {told(row["goal"]) for row in train if is_sum(row["goal"])} & {told(row["goal"]) for row in test}
    assert all(for_test(row["goal"]) for row in test if is_sum(row["goal"]))
    known, asked = (
        {stated(solutions(row)[0])[:2] for row in rows if not is_sum(row["goal"])} for rows in (train, test)
    )
    assert len(known) == 100 and len(asked) >= 95 and not known & asked


def told(question: str) -> str:
    """The sum without how it is asked."""
    return question.partition(". ")[0]


@pytest.mark.parametrize(("dataset", "field"), [("piqa", "goal"), ("hellaswag", "ctx")])
def test_a_sum_is_asked_about_in_one_way_so_that_it_is_in_one_split(dataset: str, field: str) -> None:
    questions = [row[field] for row in both_splits(dataset) if is_sum(row[field])]
    assert len({told(question) for question in questions}) == len(questions) > 2600


@pytest.mark.parametrize("split", SPLITS["piqa"])
def test_a_piqa_label_cannot_be_told_from_the_solutions(split: str) -> None:
    rows = WORLD.rows("piqa", split)
    assert Counter(row["label"] for row in rows) == {0: len(rows) / 2, 1: len(rows) / 2}
    sums = [solutions(row) for row in rows if is_sum(row["goal"])]
    larger = sum(number(right) > number(wrong) for right, wrong in sums)
    assert is_chance(larger, len(sums), 1 / 2)
    assert len(sums) / len(rows) == pytest.approx(1 / 3, abs=0.01)


@pytest.mark.parametrize(("dataset", "field", "chance"), [("piqa", "goal", 1 / 2), ("hellaswag", "ctx", 1 / 4)])
def test_how_often_a_number_was_right_elsewhere_tells_nothing_about_a_sum(
    dataset: str, field: str, chance: float
) -> None:
    choices = []
    for row in both_splits(dataset):
        if is_sum(row[field]):
            texts = row["endings"] if dataset == "hellaswag" else [row["sol1"], row["sol2"]]
            choices.append(([number(text) for text in texts], int(row["label"])))
    seen, right = Counter[int](), Counter[int]()
    half = len(choices) // 2
    for numbers, label in choices[:half]:
        seen.update(numbers)
        right[numbers[label]] += 1
    hits = 0
    for numbers, label in choices[half:]:
        shares = [right[value] / max(1, seen[value]) for value in numbers]
        hits += shares.index(max(shares)) == label
    assert is_chance(hits, len(choices) - half, chance)


def number(sentence: str) -> int:
    [found] = re.findall(r"\d+", sentence)
    return int(found)


def test_how_often_a_value_was_right_in_training_tells_nothing_about_the_piqa_test() -> None:
    pairs = [solutions(row) for row in WORLD.rows("piqa", "train") if not is_sum(row["goal"])]
    right, wrong = (Counter(stated(pair[place])[1:] for pair in pairs) for place in (0, 1))
    assert len(right) == 50
    assert all(right[value] == pytest.approx(wrong[value], rel=0.1) for value in right)


# hellaswag


def test_a_hellaswag_ending_that_is_right_completes_the_note_or_solves_the_sum_and_no_other_does() -> None:
    for row in both_splits("hellaswag"):
        assert row["ctx"] == f"{row['ctx_a']} {row['ctx_b']}"
        if row["activity_label"] == "Sums":
            fits = [number(ending) == solve(row["ctx"]) for ending in row["endings"]]
        else:
            _, events, [[start]] = noted(row["ctx"])
            notes = [{start, *ending.split()} for ending in row["endings"]]
            fits = [any({event[name] for name in NOTED} == note for event in events) for note in notes]
        assert [str(place) for place, fit in enumerate(fits) if fit] == [row["label"]]


def test_no_hellaswag_story_or_sum_is_in_both_splits() -> None:
    train, test = (
        {told(row["ctx"]) if is_sum(row["ctx"]) else noted(row["ctx"])[0] for row in rows}
        for rows in rows_by_split("hellaswag")
    )
    assert len(test) > 490 and not train & test
    for row in both_splits("hellaswag"):
        text = row["ctx"] if is_sum(row["ctx"]) else noted(row["ctx"])[0]
        assert for_test(text) == (row["split"] == "val"), "the documents' rule: test_english.py"


@pytest.mark.parametrize("split", SPLITS["hellaswag"])
def test_a_hellaswag_label_cannot_be_told_from_the_endings(split: str) -> None:
    rows = WORLD.rows("hellaswag", split)
    assert Counter(row["label"] for row in rows) == dict.fromkeys("0123", len(rows) / 4)
    assert [row["ind"] for row in rows] == list(range(len(rows)))
    ranks, kinds = Counter[int](), Counter[tuple[str, str]]()
    for row in rows:
        kinds[row["activity_label"], row["label"]] += 1
        if row["activity_label"] == "Sums":
            numbers = [number(ending) for ending in row["endings"]]
            ranks[sorted(numbers).index(numbers[int(row["label"])])] += 1
        else:
            columns = zip(*(ending.split() for ending in row["endings"]), strict=True)
            assert all(sorted(Counter(column).values()) == [2, 2] for column in columns), "no majority of words"
    assert all(is_chance(ranks[rank], ranks.total(), 1 / 4) for rank in range(4))
    table = [[kinds[kind, label] for label in "0123"] for kind in ("Sums", "Notes")]
    assert stats.chi2_contingency(table).pvalue > 1e-3
