"""The embedded English world: plain text about invented people and towns, and rows of nine real tasks about them.

A pretraining document is of one of three kinds: what a person or town does and has (fixed facts of the world), a small
story, or a sum. Questions with their answers follow, laid out as the tasks lay out theirs, but never about a story or
sum of a test split; facts are asked for one by one and without options. The rows are described in ``english_rows``.

Invariant: a document is a function of (seed, its number) alone, and the facts and the rows are the same for every seed.
"""

from __future__ import annotations

import re

from pausebench.errors import BadInput
from pausebench.worlds.english_material import (
    FACTS,
    PEOPLE,
    STORY_QUESTIONS,
    TOWNS,
    Draws,
    draw_story,
    draw_sum,
    draws,
    fact_sentences,
    for_test,
    note,
)
from pausebench.worlds.english_rows import SPLITS, Row, gsm8k_row, rows_of


def _asked(question: str, answer: str) -> str:
    return f"Question: {question}\nAnswer: {answer}"


def _subject(draw: Draws) -> str:
    """A town or a person; some people are written about three times as often as others."""
    if draw.number(1, 8) == 1:
        return draw.choice(TOWNS)
    # The slope of this curve is what makes some people about three times as frequent: facts are learned unevenly, as
    # in real text.
    popularity = draw.next()
    return PEOPLE[int(len(PEOPLE) * popularity * (1 + popularity) / 2)]


def _fact_document(draw: Draws) -> str:
    """All about one subject, then questions about any, so that most answers have to be known."""
    subject = _subject(draw)
    told = fact_sentences(draw, subject, (2,) if subject in TOWNS else draw.choice(((1, 2, 2), (2, 1, 2), (2, 2, 1))))
    lines = [" ".join(told)]
    for _ in range(3):
        # Mostly another subject than the one just read about: copying from the text above would answer nothing.
        subject = _subject(draw)
        fact = draw.choice(FACTS[subject])
        lines.append(_asked(draw.choice(fact.attribute.questions).format(subject), fact.value))
    return "\n".join(lines)


def _story_document(draw: Draws) -> str:
    """A story, then notes of it or questions about it."""
    context, events = draw_story(draw, draw.choice((1, 2, 2, 3)))
    # Read, but never asked about: the questions of the test splits must not come up in pretraining.
    if for_test(context):
        return context
    if draw.number(1, 2) == 1:
        notes = []
        for _ in range(6):
            notes.append(note(draw.choice(events), draw.number(0, 3)))
        return f"{context}\nNotes: {', '.join(notes)}."
    # One question fewer about a long story keeps documents near one length.
    asked = draw.sample([(event, slot) for event in events for slot in STORY_QUESTIONS], 3 if len(events) < 3 else 2)
    return "\n".join([context, *(_asked(STORY_QUESTIONS[slot].format(**event), event[slot]) for event, slot in asked)])


def _sum_document(draw: Draws) -> str:
    """A word problem with its solution, and some bare sums."""
    row = gsm8k_row(draw)
    sums = [f"{step.calculation}={step.result}" for _ in range(2) for step in draw_sum(draw).steps]
    bare = f"Sums: {', '.join(sums)}."
    # As above: a sum of a test split is not solved here.
    if for_test(row["question"]):
        return bare
    # GSM8K's calculator marks belong to the dataset, not to the text of the world.
    solution = re.sub(r"<<.*?>>", "", row["answer"])
    return f"{_asked(row['question'], solution)}\n{bare}"


# Three of five are stories: squad, coqa, lambada and hellaswag all read them.
DOCUMENTS = (_fact_document, _story_document, _story_document, _story_document, _sum_document)


def _document(draw: Draws) -> str:
    return draw.choice(DOCUMENTS)(draw)


class EnglishWorld:
    """Documents of plain English, and the rows of nine tasks about the same people."""

    def documents(self, seed: int, start: int, count: int) -> list[str]:
        """Pretraining documents ``start`` to ``start + count`` of this seed."""
        return [_document(draw) for draw in draws(seed, "english document", start, count)]

    def rows(self, dataset: str, split: str) -> list[Row]:
        """All rows of a split, in the schema of the Hugging Face dataset; the same for every run.

        Raises:
            BadInput: the world has no such dataset or split.
        """
        if dataset not in SPLITS:
            raise BadInput(f"The English world has no dataset {dataset!r}. Choose one of {', '.join(SPLITS)}.")
        if split not in SPLITS[dataset]:
            raise BadInput(f"{dataset} has no split {split!r}. Choose one of {', '.join(SPLITS[dataset])}.")
        return rows_of(dataset, split)
