"""A second reading of the English world's text: facts, stories and sums from the words alone, by other code."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from typing import Any

from pausebench.worlds.english import EnglishWorld
from pausebench.worlds.english_rows import SPLITS

WORLD = EnglishWorld()


def both_splits(dataset: str) -> list[dict[str, Any]]:
    return WORLD.rows(dataset, SPLITS[dataset][0]) + WORLD.rows(dataset, SPLITS[dataset][-1])


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def for_test(text: str) -> bool:
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) % 16 == 0


def asked_in(text: str) -> list[tuple[str, str]]:
    """The questions of a document with the first line of their answers."""
    return re.findall(r"Question: (.*)\nAnswer: (.*)", text)


CLAUSES = {
    "home": r"lives in (\w+)|has a home in (\w+)",
    "trade": r"works as a (\w+)|earns money as a (\w+)",
    "tool": r"uses a (\w+) for work|carries a (\w+)",
    "food": r"likes to eat (\w+)|eats (\w+) every day",
    "animal": r"keeps a (\w+)|has a pet (\w+)",
    "sight": r"has a big (\w+)|is known for its (\w+)",
    "land": r"lies in (\w+)|is a town of (\w+)",
}
# The first of these that is in a question tells what is asked.
ASKED = {
    "land": r" land\?| lie\?",
    "sight": r"known for| big |sight",
    "home": r" live\?|home",
    "trade": r" work as\?|the work of|earn",
    "tool": r"use| carry",
    "food": r" eat|food",
    "animal": r"keep\?| pet ",
}


def attribute_of(question: str) -> str:
    return next(name for name, pattern in ASKED.items() if re.search(pattern, question))


def stated_facts(documents: list[str]) -> dict[tuple[str, str], Counter[str]]:
    """(subject, attribute) -> how often each value is stated, read from the text alone."""
    facts: dict[tuple[str, str], Counter[str]] = {}
    for sentence in (sentence for text in documents for sentence in re.split(r"\. |\.$|\.\n", text)):
        subject, _, rest = sentence.partition(" ")
        for clause in rest.split(" and "):
            for attribute, pattern in CLAUSES.items():
                if found := re.fullmatch(pattern, clause):
                    facts.setdefault((subject, attribute), Counter())[found[found.lastindex or 0]] += 1
    return facts


TOLD = r"On (?P<day>\w+) (?P<who>\w+) (?P<past>\w+) a (?P<thing>\w+) in (?P<place>\w+)"
PAST = {"eat": "ate", "build": "built", "catch": "caught", "lose": "lost", "wear": "wore", "write": "wrote"}
Event = dict[str, str]


def read_passage(context: str) -> list[Event]:
    """Who did what where and when, read from the passage alone."""
    events: list[Event] = []
    for sentence in context.removesuffix(".").split(". "):
        found = re.fullmatch(TOLD, sentence)
        assert found, sentence
        events.append(found.groupdict())
    return events


def answers_of(question: str, events: list[Event]) -> list[str]:
    """The answers of all events that fit the question."""

    def about(event: Event, **wanted: str) -> bool:
        return all(event[name] == value for name, value in wanted.items())

    if found := re.fullmatch(r"Who (\w+) the (\w+)\?", question):
        past, thing = found.groups()
        return [event["who"] for event in events if about(event, past=past, thing=thing)]
    if found := re.fullmatch(r"What did (\w+) (\w+)\?", question):
        who, base = found.groups()
        return [event["thing"] for event in events if about(event, who=who, past=PAST[base])]
    found = re.fullmatch(r"(Where|When) did (\w+) (\w+) the (\w+)\?", question)
    assert found, question
    asked, who, base, thing = found.groups()
    name = "place" if asked == "Where" else "day"
    return [event[name] for event in events if about(event, who=who, past=PAST[base], thing=thing)]


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
