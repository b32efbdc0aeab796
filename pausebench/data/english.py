"""The embedded English world: plain text about invented people and towns, and rows in the schemas of three real tasks.

A pretraining document is of one of three kinds: what a person or town does and has (fixed facts of the world), a small
story, or a sum. Questions with their answers follow, laid out as the tasks lay out theirs, but never about a passage or
sum of a test split; facts are asked for without options. The rows look like this:

    squad           "On Friday Mara ate a pie in Orlen. ..."  When did Mara eat the pie?  Friday
    gsm8k           Mara has 3 pears and buys 4 more. How many pears does Mara have now?  Mara has 3+4=<<3+4=7>>7 pears.
    commonsense_qa  Where does Mara live?  five towns, one of them stated in the documents as the home of Mara

Invariant: a document is a function of (seed, its number) alone, the facts and the rows are the same for every seed,
and no passage (squad), question (gsm8k) or fact (commonsense_qa) of a test split is in the training split.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import torch

from pausebench.counter_rng import uniform
from pausebench.errors import BadInput

Row = dict[str, Any]
T = TypeVar("T")

WORLD_SEED = 2**31 + 2  # above every seed a user may give, and not the count world's test or validation seed
TEST_SPLITS = {"squad": "validation", "gsm8k": "test", "commonsense_qa": "validation"}
TRAIN_ROWS, TEST_ROWS = 8000, 500
CANDIDATES = 9600  # rows drawn for squad and gsm8k; one in TEST_SHARE may only be a test row
TEST_SHARE = 16
DRAWS = 96  # more than any document or row uses


class Draws:
    """The random numbers of one document or row, used up from the front."""

    def __init__(self, numbers: list[float]) -> None:
        self.next = iter(numbers).__next__

    def number(self, low: int, high: int) -> int:
        """An integer from ``low`` to ``high``, both included."""
        return low + int(self.next() * (high - low + 1))

    def choice(self, options: Sequence[T]) -> T:
        return options[int(self.next() * len(options))]

    def sample(self, options: Iterable[T], count: int) -> list[T]:
        """``count`` different options in random order."""
        left = list(options)
        return [left.pop(int(self.next() * len(left))) for _ in range(count)]


def _draws(seed: int, stream: str, start: int, count: int) -> list[Draws]:
    return [Draws(row) for row in uniform(seed, stream, torch.arange(start, start + count), DRAWS).tolist()]


def _ranks(stream: str, count: int) -> list[int]:
    """The numbers below ``count`` in random order; modulo m, each remainder comes (nearly) equally often."""
    return uniform(WORLD_SEED, stream, torch.arange(count), 1)[:, 0].argsort().argsort().tolist()


def _words(text: str) -> list[str]:
    return text.split()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# People, towns and their facts

HEADS = _words("Bel Cor Dar El Fen Jor Kel Mar Ros Tam")
PEOPLE = [head + tail for head in HEADS for tail in ("a", "o", "ina", "as")]


class Attribute(NamedTuple):
    """Something every person, or every town, has one of. ``{}`` is the value in phrases, the subject in questions."""

    name: str
    phrases: list[str]
    questions: list[str]
    values: list[str]


def _attributes(table: str) -> list[Attribute]:
    """One attribute a paragraph: its name, its phrases, its questions, then lines of values."""
    attributes = []
    for paragraph in table.strip().split("\n\n"):
        name, phrases, questions, values = paragraph.split("\n", 3)
        attributes.append(Attribute(name, phrases.split(" | "), questions.split(" | "), values.split()))
    return attributes


PERSON_ATTRIBUTES = _attributes("""
home
lives in {} | has a home in {}
Where does {} live? | Where is the home of {}? | Which town is the home of {}?
Orlen Bresk Tavin Umber Kestow Dunmere Halvik Ostra Pellin Rendow

trade
works as a {} | earns money as a {}
What does {} work as? | What is the work of {}? | How does {} earn money?
baker miller weaver potter tailor smith farmer fisher painter singer

tool
uses a {} for work | carries a {}
What does {} use for work? | What does {} carry? | Which tool does {} use?
hammer saw needle spade brush pan knife ladder hook file

food
likes to eat {} | eats {} every day
What does {} like to eat? | What does {} eat every day? | Which food does {} like?
bread soup cheese rice fish honey beans corn cabbage pie

animal
keeps a {} | has a pet {}
What does {} keep? | What pet does {} have? | Which animal does {} keep?
goat cat dog horse duck hen sheep cow rabbit mouse
""")
TOWN_ATTRIBUTES = _attributes("""
sight
has a big {} | is known for its {}
What is {} known for? | {} has a big what? | Which sight does {} have?
bridge tower castle lake harbour

land
lies in {} | is a town of {}
Where does {} lie? | {} is a town of which land? | {} lies in which land?
Norland Westmark Eastmark Sunland Highmoor
""")
TOWNS = PERSON_ATTRIBUTES[0].values
SUBJECTS = [(PEOPLE, PERSON_ATTRIBUTES), (TOWNS, TOWN_ATTRIBUTES)]


class Fact(NamedTuple):
    """What a person or town has as one attribute, and whether it is a test question of commonsense_qa."""

    attribute: Attribute
    value: str
    held_out: bool


def _facts() -> dict[str, list[Fact]]:
    """The facts of each person and town. Every value is right equally often, in training as in the test: were it not,
    an option could be told to be wrong by how often it was right in training."""
    facts: dict[str, list[Fact]] = {subject: [] for subjects, _ in SUBJECTS for subject in subjects}
    for subjects, attributes in SUBJECTS:
        for attribute in attributes:
            for subject, rank in zip(subjects, _ranks(f"facts {attribute.name}", len(subjects)), strict=True):
                repeat, value = divmod(rank, len(attribute.values))
                facts[subject].append(Fact(attribute, attribute.values[value], repeat % 2 == 1))
    return facts


FACTS = _facts()


def _fact_sentences(draw: Draws, subject: str, sizes: Sequence[int]) -> list[str]:
    """All facts of a subject in random order, ``sizes`` of them to a sentence."""
    facts = iter(draw.sample(FACTS[subject], sum(sizes)))
    sentences = []
    for size in sizes:
        phrases = [draw.choice(fact.attribute.phrases).format(fact.value) for fact in islice(facts, size)]
        sentences.append(f"{subject} {' and '.join(phrases)}.")
    return sentences


# Stories

DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
FRIENDS = PEOPLE[::3]  # the people of stories and sums
GOODS = _words("pears apples plums eggs shells coins books cups")
DEEDS = [  # past, base form, and what it is done to
    ("ate", "eat", _words("pie plum bun")),
    ("built", "build", _words("boat wall house")),
    ("caught", "catch", _words("bird fish mouse")),
    ("lost", "lose", _words("ring key coin")),
    ("wore", "wear", _words("hat coat shirt")),
    ("wrote", "write", _words("letter poem book")),
]

TOLD = "On {day} {who} {past} a {thing} in {place}."
STORY_QUESTIONS = {
    "who": "Who {past} the {thing}?",
    "thing": "What did {who} {base}?",
    "place": "Where did {who} {base} the {thing}?",
    "day": "When did {who} {base} the {thing}?",
}
SLOTS = list(STORY_QUESTIONS)
Event = dict[str, str]


def _story(draw: Draws, count: int) -> tuple[str, list[Event]]:
    """A sentence for each of ``count`` events; no two have a person, deed, place or day in common."""
    people, deeds = draw.sample(FRIENDS, count), draw.sample(DEEDS, count)
    towns, days = draw.sample(TOWNS, count), draw.sample(DAYS, count)
    events = []
    for who, (past, base, things), place, day in zip(people, deeds, towns, days, strict=True):
        thing = draw.choice(things)
        events.append({"who": who, "past": past, "base": base, "thing": thing, "place": place, "day": day})
    return " ".join(TOLD.format(**event) for event in events), events


def _squad_row(draw: Draws) -> Row:
    context, events = _story(draw, draw.number(2, 3))
    event, (slot, wording) = draw.choice(events), draw.choice(list(STORY_QUESTIONS.items()))
    question, answer = wording.format(**event), event[slot]
    found = re.search(rf"\b{answer}\b", context)  # whole words: "Bela" is also the start of "Belas"
    assert found is not None
    return {
        "id": _digest(f"{context}\n{question}")[:24],
        "title": events[0]["who"],
        "context": context,
        "question": question,
        "answers": {"text": [answer], "answer_start": [found.start()]},
    }


# Sums


class Problem(NamedTuple):
    """A word problem over the numbers a, b and c, each with its range; ``x`` is the result of the latest step."""

    ranges: str
    told: str
    asked: tuple[str, str]
    steps: dict[str, str]


NOW = ("How many {goods} does {A} have now?", "How many {goods} does {A} have in all?")
LEFT = ("How many {goods} does {A} have left?", "How many {goods} are left for {A}?")
MORE = ("How many more {goods} did {A} find than {B}?", "By how many {goods} did {A} find more than {B}?")
BOTH = ("How many {goods} do they have together?", "How many {goods} do {A} and {B} have in all?")
START, BOXES = "{A} has {a} {goods}", "{A} has {a} boxes with {b} {goods} in each box"
HAS, OTHER_HAS = "{A} has {x} {goods}", "{B} has {x} {goods}"
KEEPS, SUM = "{A} has {x} {goods} left", "together they have {x} {goods}"
FOUND, FOUND_MORE = "{A} found {a} {goods} and {B} found {b} {goods}", "{A} found {x} more {goods}"
PROBLEMS = (
    Problem("2-20 2-20", START + " and buys {b} more", NOW, {"a + b": HAS}),
    Problem("2-20 2-20", START + " and {B} has {b} {goods}", BOTH, {"a + b": SUM}),
    Problem("15-40 2-15", START + " and gives {b} of them to {B}", LEFT, {"a - b": KEEPS}),
    Problem("15-40 2-15", FOUND, MORE, {"a - b": FOUND_MORE}),
    Problem("2-9 2-9", BOXES, NOW, {"a * b": HAS}),
    Problem("5-20 5-20 2-10", START + ", buys {b} more and gives {c} to {B}", LEFT, {"a + b": HAS, "x - c": KEEPS}),
    Problem("2-7 2-7 2-12", BOXES + " and buys {c} more {goods}", NOW, {"a * b": HAS, "x + c": HAS}),
    Problem("2-7 3-7 2-6", BOXES + " and gives {c} {goods} to {B}", LEFT, {"a * b": HAS, "x - c": KEEPS}),
    Problem("2-15 2-3", START + " and {B} has {b} times as many", BOTH, {"b * a": OTHER_HAS, "a + x": SUM}),
)


def _worked(draw: Draws) -> tuple[Problem, dict[str, str], list[tuple[str, int, str]]]:
    """A problem, the words for its slots, and its steps as (sum, result, sentence with the slot ``x`` left)."""
    problem = draw.choice(PROBLEMS)
    values = {}
    for name, limits in zip("abc", problem.ranges.split(), strict=False):
        low, high = limits.split("-")
        values[name] = draw.number(int(low), int(high))
    words = {name: str(value) for name, value in values.items()}
    words |= dict(zip(("A", "B"), draw.sample(FRIENDS, 2), strict=True), goods=draw.choice(GOODS))
    steps = []
    for expression, sentence in problem.steps.items():
        left, sign, right = expression.split()
        p, q = values[left], values[right]
        values["x"] = p + q if sign == "+" else p - q if sign == "-" else p * q
        steps.append((f"{p}{sign}{q}", values["x"], sentence))
    return problem, words, steps


def _gsm8k_row(draw: Draws) -> Row:
    problem, words, steps = _worked(draw)
    lines = []
    for expression, result, sentence in steps:
        line = sentence.format(**words, x=f"{expression}=<<{expression}={result}>>{result}")
        lines.append(f"{line[0].upper()}{line[1:]}.")
    question = f"{problem.told}. {draw.choice(problem.asked)}".format(**words)
    return {"question": question, "answer": "\n".join([*lines, f"#### {steps[-1][1]}"])}


# Documents and splits


def _for_test(text: str) -> bool:
    """Whether a passage (squad) or question (gsm8k) may only be in the test split: it decides that itself."""
    return int(_digest(text)[:8], 16) % TEST_SHARE == 0


def _asked(question: str, answer: str) -> str:
    return f"Question: {question}\nAnswer: {answer}"


def _subject(draw: Draws) -> str:
    """A town or a person; some people are written about three times as often as others."""
    if draw.number(1, 8) == 1:
        return draw.choice(TOWNS)
    popularity = draw.next()
    return PEOPLE[int(len(PEOPLE) * popularity * (1 + popularity) / 2)]


def _fact_document(draw: Draws) -> str:
    """All about one subject, then questions about any, so that most answers have to be known."""
    subject = _subject(draw)
    told = _fact_sentences(draw, subject, (2,) if subject in TOWNS else draw.choice(((1, 2, 2), (2, 1, 2), (2, 2, 1))))
    lines = [" ".join(told)]
    for _ in range(3):
        subject = _subject(draw)
        fact = draw.choice(FACTS[subject])
        lines.append(_asked(draw.choice(fact.attribute.questions).format(subject), fact.value))
    return "\n".join(lines)


def _story_document(draw: Draws) -> str:
    """A story, then notes of it or questions about it."""
    context, events = _story(draw, draw.choice((1, 2, 2, 3)))
    if _for_test(context):
        return context
    if draw.number(1, 2) == 1:
        notes = []
        for _ in range(6):
            event, start = draw.choice(events), draw.number(0, 3)
            notes.append(" ".join(event[slot] for slot in (*SLOTS[start:], *SLOTS[:start])))
        return f"{context}\nNotes: {', '.join(notes)}."
    asked = draw.sample([(event, slot) for event in events for slot in STORY_QUESTIONS], 3 if len(events) < 3 else 2)
    return "\n".join([context, *(_asked(STORY_QUESTIONS[slot].format(**event), event[slot]) for event, slot in asked)])


def _sum_document(draw: Draws) -> str:
    """A word problem with its solution, and some bare sums."""
    row = _gsm8k_row(draw)
    sums = [f"{expression}={result}" for _ in range(2) for expression, result, _ in _worked(draw)[2]]
    bare = f"Sums: {', '.join(sums)}."
    if _for_test(row["question"]):
        return bare
    solution = re.sub(r"<<.*?>>", "", row["answer"])
    return f"{_asked(row['question'], solution)}\n{bare}"


DOCUMENTS = (_fact_document, _story_document, _story_document, _story_document, _sum_document)


def _document(draw: Draws) -> str:
    return draw.choice(DOCUMENTS)(draw)


def _commonsense_rows() -> tuple[list[Row], list[Row]]:
    """Half of all facts are asked about in training, half in the test, with other words or options each time."""
    splits: list[list[Row]] = []
    for split, count in enumerate((TRAIN_ROWS, TEST_ROWS)):
        asked = [(subject, fact) for subject, facts in FACTS.items() for fact in facts if fact.held_out == split]
        asked *= 2 + count // len(asked)
        rows: dict[str, Row] = {}
        places = _ranks(f"places {split}", len(asked))
        draws = _draws(WORLD_SEED, f"options {split}", 0, len(asked))
        for draw, place, (subject, (attribute, value, _)) in zip(draws, places, asked, strict=True):
            options = draw.sample([other for other in attribute.values if other != value], 4)
            options.insert(place % 5, value)
            question = draw.choice(attribute.questions).format(subject)
            name = _digest("\n".join([question, *options]))[:32]
            choices = {"label": list("ABCDE"), "text": options}
            row = {"id": name, "question": question, "question_concept": subject}
            rows[name] = {**row, "choices": choices, "answerKey": "ABCDE"[place % 5]}
        splits.append([rows[name] for name in sorted(rows)])  # a random order: facts of one subject were side by side
    return splits[0], splits[1]


def _drawn_rows(dataset: str) -> tuple[list[Row], list[Row]]:
    """Rows of squad or gsm8k."""
    make, key = (_squad_row, "context") if dataset == "squad" else (_gsm8k_row, "question")
    rows = {row[key]: row for row in map(make, _draws(WORLD_SEED, dataset, 0, CANDIDATES))}
    splits: tuple[list[Row], list[Row]] = ([], [])
    for text, row in rows.items():
        splits[_for_test(text)].append(row)
    return splits


@functools.cache
def _splits(dataset: str) -> tuple[list[Row], list[Row]]:
    """The training rows and the test rows of a dataset."""
    train, test = _commonsense_rows() if dataset == "commonsense_qa" else _drawn_rows(dataset)
    return train[:TRAIN_ROWS], test[:TEST_ROWS]


class EnglishWorld:
    """Documents of plain English, and the rows of squad, gsm8k and commonsense_qa about the same people."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def documents(self, seed: int, start: int, count: int) -> list[str]:
        """Pretraining documents ``start`` to ``start + count`` of this seed."""
        return [_document(draw) for draw in _draws(seed, "english document", start, count)]

    def rows(self, dataset: str, split: str) -> list[Row]:
        """All rows of a split, in the schema of the Hugging Face dataset; the same for every run.

        Raises:
            BadInput: the world has no such dataset or split.
        """
        if dataset not in TEST_SPLITS:
            raise BadInput(f"The English world has no dataset {dataset!r}. Choose one of {', '.join(TEST_SPLITS)}.")
        names = ["train", TEST_SPLITS[dataset]]
        if split not in names:
            raise BadInput(f"{dataset} has no split {split!r}. Choose one of {', '.join(names)}.")
        return list(_splits(dataset)[names.index(split)])
