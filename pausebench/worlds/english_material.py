"""What the English world's documents and rows are made of: people and towns with their facts, stories, sums.

Invariant: the facts are the same for every seed; a story or sum is a function of the numbers it is drawn from, and
decides by its own words (``for_test``) whether it may only be asked about in a test split.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import NamedTuple, TypeVar

import numpy as np

from pausebench.counter_rng import uniform_array

T = TypeVar("T")

WORLD_SEED = 2**31 + 2  # above every seed a user may give, and not the count world's test or validation seed
TEST_SHARE = 16  # one story or sum in 16 is for the test
DRAWS = 96  # more than any document or row uses


class Draws:
    """The random numbers of one document or row, used up from the front."""

    def __init__(self, numbers: list[float]) -> None:
        # Running out raises StopIteration: a row that needs more than DRAWS numbers is a bug, not a repeat.
        self.next = iter(numbers).__next__

    def number(self, low: int, high: int) -> int:
        """An integer from ``low`` to ``high``, both included."""
        return low + int(self.next() * (high - low + 1))

    def choice(self, options: Sequence[T]) -> T:
        return options[int(self.next() * len(options))]

    def sample(self, options: Iterable[T], count: int) -> list[T]:
        """``count`` different options in random order."""
        # Popped one by one, so that a sample takes exactly ``count`` numbers: what is drawn later stays what it was.
        left = list(options)
        return [left.pop(int(self.next() * len(left))) for _ in range(count)]


def draws(seed: int, stream: str, start: int, count: int) -> list[Draws]:
    return [Draws(row) for row in uniform_array(seed, stream, np.arange(start, start + count), DRAWS).tolist()]


def ranks(stream: str, count: int) -> list[int]:
    """The numbers below ``count`` in random order; modulo m, each remainder comes (nearly) equally often."""
    # Twice argsort gives ranks: exactly balanced, where draws of their own would only be so on average.
    ranked: list[int] = uniform_array(WORLD_SEED, stream, np.arange(count), 1)[:, 0].argsort().argsort().tolist()
    return ranked


def _words(text: str) -> list[str]:
    return text.split()


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


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
            # 10 values for 40 people, or 5 for 10 towns: each is held by 4 people or 2 towns, so half of them divides.
            for subject, rank in zip(subjects, ranks(f"facts {attribute.name}", len(subjects)), strict=True):
                # Each value belongs to several people; every second of them is held out for the test.
                repeat, value = divmod(rank, len(attribute.values))
                facts[subject].append(Fact(attribute, attribute.values[value], repeat % 2 == 1))
    return facts


FACTS = _facts()


def fact_sentences(draw: Draws, subject: str, sizes: Sequence[int]) -> list[str]:
    """All facts of a subject in random order, ``sizes`` of them to a sentence."""
    # In random order, or "lives in" would always come first and the place in the text would tell the fact.
    facts = iter(draw.sample(FACTS[subject], sum(sizes)))
    sentences = []
    for size in sizes:
        phrases = [draw.choice(fact.attribute.phrases).format(fact.value) for fact in islice(facts, size)]
        sentences.append(f"{subject} {' and '.join(phrases)}.")
    return sentences


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
# Three of four use the base form, so that the verb of the question is not the verb of the text.
STORY_QUESTIONS = {
    "who": "Who {past} the {thing}?",
    "thing": "What did {who} {base}?",
    "place": "Where did {who} {base} the {thing}?",
    "day": "When did {who} {base} the {thing}?",
}
SLOTS = list(STORY_QUESTIONS)
Event = dict[str, str]


def draw_story(draw: Draws, count: int) -> tuple[str, list[Event]]:
    """A sentence for each of ``count`` events; no two have a person, deed, place or day in common."""
    # Nothing in common: each question then has one answer, and a wrong one is always about another event.
    people, deeds = draw.sample(FRIENDS, count), draw.sample(DEEDS, count)
    towns, days = draw.sample(TOWNS, count), draw.sample(DAYS, count)
    events = []
    for who, (past, base, things), place, day in zip(people, deeds, towns, days, strict=True):
        thing = draw.choice(things)
        events.append({"who": who, "past": past, "base": base, "thing": thing, "place": place, "day": day})
    return " ".join(TOLD.format(**event) for event in events), events


def note(event: Event, start: int) -> str:
    """What the event's four words are, beginning with number ``start`` and going round."""
    return " ".join(event[slot] for slot in (*SLOTS[start:], *SLOTS[:start]))


def find_word(word: str, text: str) -> tuple[int, int]:
    """Where a whole word of a text starts and ends ("Bela" is also the start of "Belas")."""
    # Whole words: "Bela" would be found in "Belas".
    found = re.search(rf"\b{word}\b", text)
    assert found is not None
    return found.span()


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
# The ranges keep every result at 0 or above, and none is over 81: short numbers, no signs.
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


class Step(NamedTuple):
    """One calculation (3+4), its result, and the sentence that says it, with ``{}`` for the result."""

    calculation: str
    result: int
    sentence: str


class Sum(NamedTuple):
    """A word problem with its numbers and names: what is told, two ways to ask, the steps of its solution."""

    problem: Problem
    told: str
    asked: tuple[str, str]
    steps: list[Step]


def draw_sum(draw: Draws, problem: Problem | None = None) -> Sum:
    """A problem, any or this one, over random numbers, people and goods."""
    problem = problem or draw.choice(PROBLEMS)
    values = {}
    for name, limits in zip("abc", problem.ranges.split(), strict=False):
        low, high = limits.split("-")
        values[name] = draw.number(int(low), int(high))
    # Drawn after the numbers: a problem's numbers stay what they were when a name or a good is added.
    words = {name: str(value) for name, value in values.items()}
    words |= dict(zip(("A", "B"), draw.sample(FRIENDS, 2), strict=True), goods=draw.choice(GOODS))
    steps = []
    for expression, sentence in problem.steps.items():
        left, sign, right = expression.split()
        p, q = values[left], values[right]
        # The latest result, which the next step may go on from.
        values["x"] = p + q if sign == "+" else p - q if sign == "-" else p * q
        said = sentence.format(**words, x="{}")
        steps.append(Step(f"{p}{sign}{q}", values["x"], f"{said[0].upper()}{said[1:]}."))
    first, second = (wording.format(**words) for wording in problem.asked)
    return Sum(problem, f"{problem.told}.".format(**words), (first, second), steps)


def for_test(text: str) -> bool:
    """Whether a story, or a sum's question, may only be asked about in a test split: it decides that itself."""
    # By its own words: pretraining and every dataset agree about a story without sharing a list.
    return int(digest(text)[:8], 16) % TEST_SHARE == 0
