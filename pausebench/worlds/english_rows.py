"""Rows of the English world in the schemas of nine real tasks; the docstring of what makes them shows one.

Invariant: no story, question about a sum (``for_test``) or fact (``Fact.held_out``) that is asked about in a test split
is asked about in the training split of the same dataset (nq_open's second steps apart: they are facts of towns); the
rows are the same for every run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import permutations, product
from typing import Any, NamedTuple, TypeVar

from pausebench.worlds.english_material import (
    DEEDS,
    FACTS,
    PEOPLE,
    STORY_QUESTIONS,
    WORLD_SEED,
    Draws,
    Event,
    digest,
    draw_story,
    draw_sum,
    draws,
    find_word,
    for_test,
    note,
    ranks,
)

Row = dict[str, Any]
T = TypeVar("T")
Splits = tuple[list[Row], list[Row]]  # training rows, test rows

SPLITS = {  # of each dataset: the split to train on, the split to test on
    "squad": ("train", "validation"),
    "gsm8k": ("train", "test"),
    "commonsense_qa": ("train", "validation"),
    "lambada": ("validation", "test"),
    "lambada_openai": ("test",),
    "web_questions": ("train", "test"),
    "nq_open": ("train", "validation"),
    "coqa": ("train", "validation"),
    "piqa": ("train", "validation"),
    "hellaswag": ("train", "validation"),
}
TRAIN_ROWS, TEST_ROWS = 8000, 500
CANDIDATES = 9600  # stories or sums drawn for a dataset, so that there are as many rows as that after sharing out


def rows_of(dataset: str, split: str) -> list[Row]:
    """All rows of a split, in a new list."""
    names = SPLITS[dataset]
    return list(_splits(dataset)[names.index(split) - len(names)])  # from the end: a lone split is the test's


@functools.cache  # both splits are made together, since a story is shared out only once it is drawn
def _splits(dataset: str) -> Splits:
    train, test = MAKERS[dataset]()
    return train[:TRAIN_ROWS], test[:TEST_ROWS]


def _drawn(stream: str, make: Callable[[Draws], tuple[str, T]], count: int = CANDIDATES) -> tuple[list[T], list[T]]:
    """Rows made of a story or sum each, shared out by its text; no text comes twice."""
    # A dict by text: a story that is drawn twice would else be in both splits.
    rows = dict(map(make, draws(WORLD_SEED, stream, 0, count)))
    shared: tuple[list[T], list[T]] = ([], [])
    for text, row in rows.items():
        shared[for_test(text)].append(row)
    return shared


def _shuffled(rows: Iterable[T]) -> list[T]:
    """In the order of a digest: rows that were made side by side are about the same person."""
    # Of the row's own text: adding a row moves no other.
    return sorted(rows, key=lambda row: digest(repr(row)))


def _squad_row(draw: Draws) -> tuple[str, Row]:
    """On Friday Mara ate a pie in Orlen. ...   When did Mara eat the pie?   Friday"""
    context, events = draw_story(draw, draw.number(2, 3))
    event, (slot, wording) = draw.choice(events), draw.choice(list(STORY_QUESTIONS.items()))
    question, answer = wording.format(**event), event[slot]
    return context, {
        "id": digest(f"{context}\n{question}")[:24],
        "title": events[0]["who"],
        "context": context,
        "question": question,
        "answers": {"text": [answer], "answer_start": [find_word(answer, context)[0]]},
    }


def gsm8k_row(draw: Draws) -> Row:
    """Mara has 3 pears and buys 4 more. How many pears does Mara have now?   Mara has 3+4=<<3+4=7>>7 pears.  #### 7"""
    _, told, asked, steps = draw_sum(draw)
    lines = [
        sentence.format(f"{calculation}=<<{calculation}={result}>>{result}") for calculation, result, sentence in steps
    ]
    return {"question": f"{told} {draw.choice(asked)}", "answer": "\n".join([*lines, f"#### {steps[-1].result}"])}


def _gsm8k_row(draw: Draws) -> tuple[str, Row]:
    row = gsm8k_row(draw)
    return row["question"], row


def _lambada_row(draw: Draws) -> tuple[str, Row]:
    """On Friday Mara ate a pie in Orlen. On Sunday Bela lost a key in Tavin.  Notes: key Tavin Sunday   Bela

    The last word is the fourth of a note. The hub's rows have a domain only where they are whole novels.
    """
    context, events = draw_story(draw, draw.number(2, 3))
    notes = [note(event, draw.number(0, 3)) for event in draw.sample(events, draw.number(1, 2))]
    return context, {"text": f"{context}\nNotes: {', '.join(notes)}", "domain": None}


def _lambada_openai_rows() -> Splits:
    # The same test passages, as on the hub, where this version has no training split.
    return [], [{"text": row["text"]} for row in _splits("lambada")[1]]


# A turn is Full, an Ellipsis (Where? When?) about the event before it, or Unanswerable. Two events with four turns are
# as long as three with three. One turn in eight is unanswerable.
CONVERSATIONS = ("FEFE", "FEEF", "FFEE", "FEEU", "UFEE", "FEF", "FFE", "FEU", "UFE")
ELLIPSES = {"place": "Where?", "day": "When?"}


def _coqa_row(draw: Draws) -> tuple[str, Row]:
    """On Friday Mara ate a pie in Orlen. ...   Who ate the pie? Mara   Where? Orlen   What did Mara lose? unknown"""
    plan = draw.choice(CONVERSATIONS)
    story, events = draw_story(draw, 6 - len(plan))
    left, slots = iter(draw.sample(events, len(events))), draw.sample(ELLIPSES, 2)
    turns: list[tuple[str, str]] = []
    for turn in plan:
        if turn == "F":
            event, slot = next(left), draw.choice(("who", "thing"))
            ellipses = iter(slots)
            turns.append((STORY_QUESTIONS[slot].format(**event), event[slot]))
        elif turn == "E":
            slot = next(ellipses)
            turns.append((ELLIPSES[slot], event[slot]))
        else:
            turns.append((_unanswerable(draw, events), "unknown"))
    # -1 is CoQA's mark of an answer that is not in the text.
    spans = [(-1, -1) if answer == "unknown" else find_word(answer, story) for _, answer in turns]
    return story, {
        "source": "english",
        "story": story,
        "questions": [question for question, _ in turns],
        "answers": {
            "input_text": [answer for _, answer in turns],
            "answer_start": [start for start, _ in spans],
            "answer_end": [end for _, end in spans],
        },
    }


def _unanswerable(draw: Draws, events: list[Event]) -> str:
    """A question with a person or deed of the story, about something that the story does not tell."""
    one, other = draw.sample(events, 2)
    # Both kinds have words of the story, so that a question cannot be told unanswerable by an unknown word.
    if draw.number(0, 1):
        return STORY_QUESTIONS["thing"].format(who=one["who"], base=other["base"])
    things = next(things for past, _, things in DEEDS if past == one["past"])
    thing = draw.choice([thing for thing in things if thing != one["thing"]])
    return STORY_QUESTIONS["who"].format(past=one["past"], thing=thing)


def _coqa_rows() -> Splits:
    """As many stories as have about TRAIN_ROWS and TEST_ROWS questions: 32 questions come with nine."""
    train, test = _drawn("coqa", _coqa_row, 2600)
    # The nine plans of CONVERSATIONS have 32 turns in all.
    return train[: TRAIN_ROWS * 9 // 32], test[: TEST_ROWS * 9 // 32]


def _commonsense_rows() -> Splits:
    """Where does Mara live?   Tavin, Orlen, Umber, Bresk, Ostra   B

    Half of all facts are asked about in training, half in the test, with other words or options each time.
    """
    splits: Splits = ([], [])
    for split, count in enumerate((TRAIN_ROWS, TEST_ROWS)):
        asked = [(subject, fact) for subject, facts in FACTS.items() for fact in facts if fact.held_out == split]
        # More than are needed: the same question with the same options comes up again, and is kept once.
        asked *= 2 + count // len(asked)
        rows: dict[str, Row] = {}
        places = ranks(f"places {split}", len(asked))
        options_drawn = draws(WORLD_SEED, f"options {split}", 0, len(asked))
        for draw, place, (subject, (attribute, value, _)) in zip(options_drawn, places, asked, strict=True):
            options = draw.sample([other for other in attribute.values if other != value], 4)
            # Each of the five places is right equally often, so that a guess by place scores one in five.
            options.insert(place % 5, value)
            question = draw.choice(attribute.questions).format(subject)
            name = digest("\n".join([question, *options]))[:32]
            choices = {"label": list("ABCDE"), "text": options}
            row = {"id": name, "question": question, "question_concept": subject}
            rows[name] = {**row, "choices": choices, "answerKey": "ABCDE"[place % 5]}
        splits[split].extend(rows[name] for name in sorted(rows))  # a random order: a subject's were side by side
    return splits


WEB_QUESTIONS = {  # ways to ask that the documents do not use
    "home": ("In which town does {} live?", "{} lives in which town?", "{} has a home in which town?"),
    "trade": ("What work does {} do?", "{} works as what?", "{} earns money as what?"),
    "tool": ("Which tool does {} carry?", "{} carries which tool?", "{} uses which tool for work?"),
    "food": ("Which food does {} eat?", "{} likes to eat which food?", "{} eats which food every day?"),
    "animal": ("Which animal does {} have?", "{} keeps which animal?", "{} has which pet?"),
    "sight": ("Which sight is {} known for?", "{} is known for which sight?", "{} has which big sight?"),
    "land": ("In which land is {}?", "In which land does {} lie?", "{} is in which land?"),
}
DONE_WITH = {"tool": "carry", "food": "eat", "animal": "keep"}


def _web_questions_rows() -> Splits:
    """In which town does Mara live?   Orlen    and    What does Mara carry or keep?   saw, goat"""
    splits: Splits = ([], [])
    for (subject, facts), (split, rows) in product(FACTS.items(), enumerate(splits)):
        known = {fact.attribute.name: fact.value for fact in facts if fact.held_out == split}
        asked = [(wording.format(subject), [known[name]]) for name in known for wording in WEB_QUESTIONS[name]]
        # Two answers, either of them right: the published rows often have a list.
        for one, other in permutations([name for name in known if name in DONE_WITH], 2):
            question = f"What does {subject} {DONE_WITH[one]} or {DONE_WITH[other]}?"
            asked.append((question, [known[one], known[other]]))
        # A field of the hub's schema that no task reads; a row without it would not be one of this dataset.
        url = f"http://www.freebase.com/view/en/{subject.lower()}"
        rows += [{"url": url, "question": question, "answers": answers} for question, answers in asked]
    return _shuffled(splits[0]), _shuffled(splits[1])


def _nq_open_rows() -> Splits:
    """Where does the home of Mara lie?   Norland    and    Who works as a baker and keeps a goat?   Mara

    What has to be known of a person (not of a town) is held out for the test, all of it or nothing.
    """
    asked: tuple[dict[str, list[str]], dict[str, list[str]]] = ({}, {})
    for person, split in product(PEOPLE, (False, True)):
        facts = [fact for fact in FACTS[person] if fact.held_out == split]
        for home in (fact.value for fact in facts if fact.attribute.name == "home"):
            for fact, place in product(FACTS[home], ("home", "town")):
                for wording in fact.attribute.questions:
                    question = wording.format(f"the {place} of {person}")
                    asked[split][f"{question[0].upper()}{question[1:]}"] = [fact.value]
        for one, other in permutations(facts, 2):
            values = {one.value, other.value}
            who = [name for name in PEOPLE if values <= {fact.value for fact in FACTS[name]}]
            # Several people may fit: every fact that makes one of them an answer has to be on the same side.
            if all(fact.held_out == split for name in who for fact in FACTS[name] if fact.value in values):
                for first, second in zip(one.attribute.phrases, other.attribute.phrases, strict=True):
                    asked[split][f"Who {first.format(one.value)} and {second.format(other.value)}?"] = who
    # One row a question: several people may be right, and all of them are its answers.
    train, test = ([{"question": question, "answer": who} for question, who in split.items()] for split in asked)
    return _shuffled(train), _shuffled(test)


class Choice(NamedTuple):
    """The text before the candidates, and the candidates, the right one first."""

    row: Row
    candidates: list[str]


def _in_place(choices: Sequence[Choice], stream: str) -> Iterator[tuple[Row, list[str], int]]:
    """The rows, their candidates with the right one in its place, and that place; each comes equally often."""
    for (row, (right, *wrong)), rank in zip(choices, ranks(stream, len(choices)), strict=True):
        place = rank % (1 + len(wrong))
        yield row, [*wrong[:place], right, *wrong[place:]], place


def _solutions(draw: Draws, count: int) -> tuple[str, str, list[str]]:
    """What a sum tells, what is asked, and ``count`` sentences that solve it, the first one rightly.

    The wrong numbers are results of the same problem over other numbers: none is a better guess than another. What is
    told decides how it is asked: asked in two ways it could be a row for training and one for the test.
    """
    problem, told, asked, steps = draw_sum(draw)
    # The right one first; the caller moves it to its place.
    numbers = [steps[-1].result]
    # Drawn again where two problems have one result: equal candidates would make one of them wrong by chance.
    while len(numbers) < count:
        if (result := draw_sum(draw, problem).steps[-1].result) not in numbers:
            numbers.append(result)
    return told, asked[len(told) % 2], [steps[-1].sentence.format(number) for number in numbers]


def _piqa_sum(draw: Draws) -> tuple[str, Choice]:
    """Mara has 3 pears and buys 4 more. How many pears does Mara have now?   Mara has 7 pears. | Mara has 9 pears."""
    told, asked, solutions = _solutions(draw, 2)
    return f"{told} {asked}", Choice({"goal": f"{told} {asked}"}, solutions)


def _piqa_facts(split: int) -> Iterator[Choice]:
    """How does Mara earn money?   Mara works as a baker. | Mara works as a miller."""
    for person in PEOPLE:
        for attribute, right, _ in (fact for fact in FACTS[person] if fact.held_out == split):
            for question, phrase, wrong in product(attribute.questions, attribute.phrases, attribute.values):
                if wrong != right:
                    solutions = [f"{person} {phrase.format(value)}." for value in (right, wrong)]
                    yield Choice({"goal": question.format(person)}, solutions)


def _piqa_rows() -> Splits:
    """Two of three rows are about a fact, one is about a sum."""
    splits: Splits = ([], [])
    for split, (sums, count) in enumerate(zip(_drawn("piqa", _piqa_sum), (TRAIN_ROWS, TEST_ROWS), strict=True)):
        # Of each fact there are many wordings; the shuffle takes a fair share of them before the cut.
        facts = _shuffled(_piqa_facts(split))[: count * 2 // 3]
        for row, (one, other), label in _in_place(_shuffled(facts + sums[: count - len(facts)]), f"piqa {split}"):
            splits[split].append({**row, "sol1": one, "sol2": other, "label": label})
    return splits


def _hellaswag_choice(draw: Draws) -> tuple[str, Choice]:
    """On Friday Mara ate a pie in Orlen. ... Notes: Mara   pie Orlen Friday | key Tavin Sunday | pie Tavin Friday | ...

    Every place of the four endings has two words of the noted event and two of another. Sums are as in piqa.
    """
    if draw.number(1, 3) == 1:
        told, asked, endings = _solutions(draw, 4)
        return f"{told} {asked}", Choice({"activity_label": "Sums", "ctx_a": told, "ctx_b": asked}, endings)
    context, events = draw_story(draw, draw.number(2, 3))
    start, odd = draw.number(0, 3), draw.number(1, 3)
    right, other = (note(event, start).split() for event in draw.sample(events, 2))
    # One word of each ending is swapped: no single word tells the right one, only all three together do.
    mixed = [(*right[:odd], other[odd], *right[odd + 1 :]), (*other[:odd], right[odd], *other[odd + 1 :])]
    endings = [" ".join(words[1:]) for words in (right, *draw.sample([other, *mixed], 3))]
    return context, Choice({"activity_label": "Notes", "ctx_a": f"{context}\nNotes:", "ctx_b": right[0]}, endings)


def _hellaswag_rows() -> Splits:
    splits: Splits = ([], [])
    drawn = _drawn("hellaswag", _hellaswag_choice)
    for rows, split, choices, count in zip(splits, ("train", "val"), drawn, (TRAIN_ROWS, TEST_ROWS), strict=True):
        for row, endings, place in _in_place(choices[:count], f"hellaswag {split}"):
            ctx = f"{row['ctx_a']} {row['ctx_b']}"
            origin = {"source_id": f"english~{digest(ctx)[:12]}", "split": split, "split_type": "indomain"}
            rows.append({"ind": len(rows), **row, "ctx": ctx, "endings": endings, **origin, "label": str(place)})
    return splits


MAKERS: dict[str, Callable[[], Splits]] = {
    "squad": lambda: _drawn("squad", _squad_row),
    "gsm8k": lambda: _drawn("gsm8k", _gsm8k_row),
    "commonsense_qa": _commonsense_rows,
    "lambada": lambda: _drawn("lambada", _lambada_row),
    "lambada_openai": _lambada_openai_rows,
    "web_questions": _web_questions_rows,
    "nq_open": _nq_open_rows,
    "coqa": _coqa_rows,
    "piqa": _piqa_rows,
    "hellaswag": _hellaswag_rows,
}
