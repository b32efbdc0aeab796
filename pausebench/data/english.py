"""The embedded English world: plain text about invented people and towns, and rows in the schemas of three real tasks.

A pretraining document is seven or eight short sentences: what a person does and owns (fixed facts of the world), a
small story or a second person and a town, and a sum. The rows look like this:

    squad           "Mara sold 12 pears in Orlen on Friday. ..."  When did Mara sell the pears?  Friday
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
DRAWS = 64  # more than any document or row uses


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

HEADS = _words("Ar Bel Cor Dar El Fen Gar Hal Il Jor Kel Lor Mar Nor Or Pel Ros Sal Tam Tov Ul Ver Wil Yar Zan")
TAILS = {"a": "she", "o": "he", "ina": "she", "as": "he", "eth": "she", "ric": "he", "isa": "she", "un": "he"}
PRONOUNS = {head + tail: pronoun for head in HEADS for tail, pronoun in TAILS.items()}
PEOPLE = list(PRONOUNS)


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
lives in {} | has a home in {} | stays in {} all year
Where does {} live? | Where is the home of {}? | Which town is the home of {}? | {} has a home in what town?
Orlen Bresk Tavin Umber Kestow Dunmere Halvik Ostra Pellin Rendow
Sarrow Wexley Yarbin Zelham Norvale Lunby Fairow Greth Ashvik Cobrin

trade
works as a {} | is a {} | earns money as a {}
What does {} work as? | What is the work of {}? | How does {} earn money? | {} works as what?
baker miller weaver potter tailor smith farmer fisher painter singer
teacher doctor driver sailor hunter mason cook writer guard dancer

tool
uses a {} for work | carries a {} | owns a {}
What does {} use for work? | What does {} carry? | What does {} own? | Which tool does {} use?
hammer saw needle spade brush pan knife ladder hook file rake broom drill wheel pump lens shovel spoon chisel comb

food
likes to eat {} | eats {} every day | loves {}
What does {} like to eat? | What does {} eat every day? | What does {} love? | Which food does {} like?
bread soup cheese rice fish honey beans corn cabbage pie
stew nuts salad jam noodles pancakes butter grapes melon carrots

animal
keeps a {} | has a pet {} | takes care of a {}
What does {} keep? | What pet does {} have? | What does {} take care of? | Which animal does {} keep?
goat cat dog horse duck hen sheep cow rabbit mouse parrot turtle frog pig crow donkey snake lizard goose pony
""")
TOWN_ATTRIBUTES = _attributes("""
sight
has a big {} | is known for its {} | is built around a {}
What is {} known for? | What is {} built around? | {} has a big what? | Which sight does {} have?
bridge tower castle lake harbour garden forest tunnel theatre fountain

land
lies in {} | is a town of {} | belongs to {}
Where does {} lie? | {} is a town of which land? | {} lies in which land? | What does {} belong to?
Norland Westmark Eastmark Sunland Highmoor Lowmoor Greenland Redshore Coldshore Longfell
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
        opening = draw.choice(("", "", "Everyone knows that "))
        phrases = [draw.choice(fact.attribute.phrases).format(fact.value) for fact in islice(facts, size)]
        sentences.append(f"{opening}{subject} {' and '.join(phrases)}.")
    return sentences


# Stories

DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
GOODS = _words("pears apples plums eggs shells coins books cups candles roses stones ropes nails bells cakes lamps")
THINGS = _words("ring key map letter drum flute mask scarf kite box")
GOODS_DEEDS = [("sold", "sell"), ("bought", "buy"), ("found", "find"), ("painted", "paint"), ("counted", "count")]
THING_DEEDS = [("lost", "lose"), ("hid", "hide"), ("made", "make"), ("borrowed", "borrow"), ("broke", "break")]
PEOPLE_DEEDS = [("met", "meet"), ("helped", "help"), ("visited", "visit")]
DEEDS = GOODS_DEEDS + THING_DEEDS + PEOPLE_DEEDS
STORY_SHAPES = [(1, 1), (2, 1), (1, 2), (1, 1, 1), (2, 2), (2, 1, 1), (1, 2, 1), (1, 1, 2), (1, 1, 1, 1)]
SHORT_SHAPES = [shape for shape in STORY_SHAPES if sum(shape) <= 3]

TOLD = {
    1: (
        "{who} {past} {what} in {place} on {day}.",
        "On {day} {who} {past} {what} in {place}.",
        "In {place} {who} {past} {what} on {day}.",
    ),
    2: ("{who} went to {place} on {day}. There {pronoun} {past} {what}.",),
}
RECAPS = (
    "So it was {who} who {past} {what} in {place}.",
    "So {who} {past} {what} on {day}.",
    "So {who} was in {place} on {day}.",
    "So on {day} {who} was in {place}.",
)
STORY_QUESTIONS = {
    "who": ("Who {past} {object} in {place}?", "Who {past} {object} on {day}?"),
    "place": ("Where did {who} {base} {object}?", "In which town did {who} {base} {object}?"),
    "day": ("When did {who} {base} {object}?", "On which day did {who} {base} {object}?"),
}


def _events(draw: Draws, count: int) -> list[dict[str, str]]:
    """Things that different people do at different places and days; deeds and goods are often shared."""
    deeds, goods = draw.sample(DEEDS, 2), draw.sample(GOODS, 2)
    people, towns, days = draw.sample(PEOPLE, 2 * count), draw.sample(TOWNS, count), draw.sample(DAYS, count)
    numbers, things = draw.sample(range(2, 41), count), draw.sample(THINGS, count)
    events = []
    for who, other, place, day, n, thing in zip(people, people[count:], towns, days, numbers, things, strict=False):
        past, base = deed = draw.choice(deeds)
        event = {"who": who, "pronoun": PRONOUNS[who], "past": past, "base": base, "place": place, "day": day}
        if deed in GOODS_DEEDS:
            kind = draw.choice(goods)
            event |= {"what": f"{n} {kind}", "object": f"the {kind}", "key": str(n)}
            event["asked"] = f"How many {kind} did {who} {base}?"
        elif deed in THING_DEEDS:
            event |= {"what": f"a {thing}", "object": f"the {thing}", "key": thing}
            event["asked"] = f"What did {who} {base} in {place}?"
        else:
            event |= {"what": other, "object": other, "key": other}
            event["asked"] = f"Who did {who} {base} in {place}?"
        events.append(event)
    return events


def _story(draw: Draws, shapes: Sequence[Sequence[int]]) -> tuple[list[str], list[dict[str, str]]]:
    """What is told (one text of one or two sentences an event) and the events."""
    shape = draw.choice(shapes)
    events = _events(draw, len(shape))
    return [draw.choice(TOLD[size]).format(**event) for size, event in zip(shape, events, strict=True)], events


def _squad_row(draw: Draws) -> Row:
    told, events = _story(draw, STORY_SHAPES)
    context, event = " ".join(told), draw.choice(events)
    slot = draw.choice(("who", "place", "day", "key"))
    question = event["asked"] if slot == "key" else draw.choice(STORY_QUESTIONS[slot]).format(**event)
    answer = event[slot]
    found = re.search(rf"\b{answer}\b", context)  # whole words: "Mara" is also the start of "Maras"
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
HAS, OTHER_HAS = "{S} has {x} {goods}", "{B} has {x} {goods}"
KEEPS, SUM = "{S} has {x} {goods} left", "together they have {x} {goods}"
FOUND, FOUND_MORE = "{A} found {a} {goods} and {B} found {b} {goods}", "{S} found {x} more {goods}"
PROBLEMS = (
    Problem("2-30 2-30", START + " and buys {b} more", NOW, {"a + b": HAS}),
    Problem("2-30 2-30", START + " and {B} has {b} {goods}", BOTH, {"a + b": SUM}),
    Problem("12-40 2-12", START + " and gives {b} of them to {B}", LEFT, {"a - b": KEEPS}),
    Problem("15-40 2-15", FOUND, MORE, {"a - b": FOUND_MORE}),
    Problem("2-7 2-8", BOXES, NOW, {"a * b": HAS}),
    Problem("5-25 5-25 2-10", START + ", buys {b} more and gives {c} to {B}", LEFT, {"a + b": HAS, "x - c": KEEPS}),
    Problem("2-6 2-8 2-12", BOXES + " and buys {c} more {goods}", NOW, {"a * b": HAS, "x + c": HAS}),
    Problem("2-7 3-8 2-6", BOXES + " and gives {c} {goods} to {B}", LEFT, {"a * b": HAS, "x - c": KEEPS}),
    Problem("2-15 2-3", START + " and {B} has {b} times as many", BOTH, {"b * a": OTHER_HAS, "a + x": SUM}),
)


def _worked(draw: Draws) -> tuple[Problem, dict[str, str], list[tuple[str, int, str]]]:
    """A problem, the words for its slots, and its steps as (expression, result, sentence with the slot ``x`` left)."""
    problem = draw.choice(PROBLEMS)
    values = {}
    for name, limits in zip("abc", problem.ranges.split(), strict=False):
        low, high = limits.split("-")
        values[name] = draw.number(int(low), int(high))
    words = {name: str(value) for name, value in values.items()}
    words |= dict(zip(("A", "B"), draw.sample(PEOPLE, 2), strict=True), goods=draw.choice(GOODS))
    steps = []
    for expression, sentence in problem.steps.items():
        left, sign, right = expression.split()
        p, q = values[left], values[right]
        values["x"] = p + q if sign == "+" else p - q if sign == "-" else p * q
        steps.append((f"{p} {sign} {q}", values["x"], sentence))
    return problem, words, steps


def _sum_sentence(draw: Draws) -> str:
    problem, words, steps = _worked(draw)
    subject, space = PRONOUNS[words["A"]], draw.choice((" ", ""))
    done = [
        sentence.format(**words, S=subject, x=f"{expression} = {result}".replace(" ", space))
        for expression, result, sentence in steps
    ]
    return f"{problem.told.format(**words)}, so {' and '.join(done)}."


def _gsm8k_row(draw: Draws) -> Row:
    problem, words, steps = _worked(draw)
    lines = []
    for expression, result, sentence in steps:
        marked = expression.replace(" ", "")
        line = sentence.format(**words, S=words["A"], x=f"{marked}=<<{marked}={result}>>{result}")
        lines.append(f"{line[0].upper()}{line[1:]}.")
    question = f"{problem.told}. {draw.choice(problem.asked)}".format(**words)
    return {"question": question, "answer": "\n".join([*lines, f"#### {steps[-1][1]}"])}


# Documents and splits


def _document(draw: Draws) -> str:
    parts = [[_sum_sentence(draw)]]
    for _ in range(draw.number(1, 2)):
        popularity = draw.next()  # some people are written about three times as often as others
        person = PEOPLE[int(len(PEOPLE) * popularity * (1 + popularity) / 2)]
        parts.append(_fact_sentences(draw, person, draw.choice(((1, 2, 2), (2, 1, 2), (2, 2, 1)))))
    if len(parts) == 3:
        parts.append(_fact_sentences(draw, draw.choice(TOWNS), (2,)))
    else:
        told, events = _story(draw, SHORT_SHAPES)
        parts.append([*told, draw.choice(RECAPS).format(**draw.choice(events))])
    return " ".join(sentence for part in draw.sample(parts, len(parts)) for sentence in part)


def _commonsense_rows() -> tuple[list[Row], list[Row]]:
    """Half of all facts are asked about in training, with other words and options each time, half in the test."""
    splits: tuple[list[Row], list[Row]] = ([], [])
    for split, rows in enumerate(splits):
        asked = [(subject, fact) for subject, facts in FACTS.items() for fact in facts if fact.held_out == split]
        asked *= 1 if split else 1 + TRAIN_ROWS // len(asked)
        places, wordings = _ranks(f"places {split}", len(asked)), _ranks(f"wordings {split}", len(asked))
        draws = _draws(WORLD_SEED, f"options {split}", 0, len(asked))
        for draw, place, wording, (subject, (attribute, value, _)) in zip(draws, places, wordings, asked, strict=True):
            options = draw.sample([other for other in attribute.values if other != value], 4)
            options.insert(place % 5, value)
            question = attribute.questions[wording % 4].format(subject)
            choices = {"label": list("ABCDE"), "text": options}
            name = _digest("\n".join([question, *options]))[:32]
            row = {"id": name, "question": question, "question_concept": subject}
            rows.append({**row, "choices": choices, "answerKey": "ABCDE"[place % 5]})
        rows.sort(key=lambda row: str(row["id"]))  # a random order: facts of one subject were made side by side
    return splits


def _drawn_rows(dataset: str) -> tuple[list[Row], list[Row]]:
    """Rows of squad or gsm8k. A passage or question decides its split itself, so that it cannot be in both."""
    make, key = (_squad_row, "context") if dataset == "squad" else (_gsm8k_row, "question")
    rows = {row[key]: row for row in map(make, _draws(WORLD_SEED, dataset, 0, CANDIDATES))}
    splits: tuple[list[Row], list[Row]] = ([], [])
    for text, row in rows.items():
        splits[int(_digest(text)[:8], 16) % TEST_SHARE == 0].append(row)
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
