"""One row of each task and the example it has to give, to the letter. The rows of the text tasks are published ones."""

from __future__ import annotations

from typing import Any

from pausebench.tasks import TASKS, Example

TEXT_TASKS = [task.name for task in TASKS.values() if task.dataset is not None]

PALM = (
    "in my palm is a clear stone , and inside it is a small ivory statuette . a guardian angel . `` "
    "figured if you 're going to be out at night getting hit by cars , you might as well have some backup "
    ". '' i look at him , feeling stunned . like this is some sort of sign . but as i stare at harlin , "
    "his mouth curved in a confident grin , i do n't care about signs"
)
REAL_LIST = (
    "Ellen asked him.\n\n"
    '"Yes, indeed," Mark said. "Several."\n\n'
    '"Have you ever made a list?"\n\n'
    '"I can\'t say I have, Ellen. Do you recommend it?"\n\n'
    '"Oh, yes," Ellen returned seriously. "It\'s helpful if you have a real list'
)
WHISKERS = (
    "Lisa has a pet cat named Whiskers. Whiskers is black with a white spot on her chest. Whiskers also has "
    "white paws that look like little white mittens. \n\n"
    "Whiskers likes to sleep in the sun on her favorite chair. Whiskers also likes to drink creamy milk. \n\n"
    "Lisa is excited because on Saturday, Whiskers turns two years old. \n\n"
    "After school on Friday, Lisa rushes to the pet store. She wants to buy Whiskers' birthday presents. Last "
    "year, she gave Whiskers a play mouse and a blue feather. \n\n"
    "For this birthday, Lisa is going to give Whiskers a red ball of yarn and a bowl with a picture of a cat "
    "on the side. The picture is of a black cat. It looks a lot like Whiskers."
)

# A change here is a new version of the task.
GOLDEN: dict[str, tuple[dict[str, Any], Example]] = {
    "parity": ({"bits": "1 0 0 1 1"}, Example("1 0 0 1 1 PAR", "odd", ("odd",))),
    "mod3": ({"bits": "1 0 0 1 1"}, Example("1 0 0 1 1 M3", "rest0", ("rest0",))),
    "majority": ({"bits": "1 0 0 1 1"}, Example("1 0 0 1 1 MAJ", "more", ("more",))),
    "relay": ({"symbols": "c a a f h b"}, Example("c a a f h b", "c a a f h b", ("c a a f h b",))),
    "squad": (
        {
            "context": "A piece of paper was later found on which Luther had written his last statement. The statement "
            'was in Latin, apart from "We are beggars," which was in German.',
            "question": "What was later discovered written by Luther?",
            "answers": {
                "text": ["his last statement", "his last statement", "last statement"],
                "answer_start": [61, 61, 65],
            },
        },
        Example(
            "Question: What was later discovered written by Luther?\nAnswer:",
            " his last statement",
            ("his last statement", "last statement"),
            context="A piece of paper was later found on which Luther had written his last statement. The statement "
            'was in Latin, apart from "We are beggars," which was in German.\n',
        ),
    ),
    "gsm8k": (
        {
            "question": "A robe takes 2 bolts of blue fiber and half that much white fiber.  How many bolts in total "
            "does it take?",
            "answer": "It takes 2/2=<<2/2=1>>1 bolt of white fiber\n"
            "So the total amount of fabric is 2+1=<<2+1=3>>3 bolts of fabric\n"
            "#### 3",
        },
        Example(
            "Question: A robe takes 2 bolts of blue fiber and half that much white fiber.  How many bolts in total "
            "does it take?\n"
            "Answer:",
            " It takes 2/2=1 bolt of white fiber\nSo the total amount of fabric is 2+1=3 bolts of fabric\n#### 3",
            ("It takes 2/2=1 bolt of white fiber\nSo the total amount of fabric is 2+1=3 bolts of fabric\n#### 3",),
        ),
    ),
    "commonsense_qa": (
        {
            "question": "What do people aim to do at work?",
            "choices": {
                "label": ["A", "B", "C", "D", "E"],
                "text": ["complete job", "learn from each other", "kill animals", "wear hats", "talk to each other"],
            },
            "answerKey": "A",
        },
        Example(
            "Question: What do people aim to do at work?\n"
            "Options:\n"
            "- complete job\n"
            "- learn from each other\n"
            "- kill animals\n"
            "- wear hats\n"
            "- talk to each other\n"
            "Answer:",
            " complete job",
            ("complete job",),
        ),
    ),
    "lambada": (
        {"text": PALM, "domain": None},
        Example(PALM.removesuffix(" signs"), " signs", ("signs",)),
    ),
    "lambada_openai": (
        {"text": REAL_LIST},
        Example(REAL_LIST.removesuffix(" list"), " list", ("list",)),
    ),
    "web_questions": (
        {
            "url": "http://www.freebase.com/view/en/natalie_portman",
            "question": "what character did natalie portman play in star wars?",
            "answers": ["Padmé Amidala"],
        },
        Example(
            "Question: what character did natalie portman play in star wars?\nAnswer:",
            " Padmé Amidala",
            ("Padmé Amidala",),
        ),
    ),
    "natural_questions": (
        {
            "question": "when was the last time anyone was on the moon",
            "answer": ["14 December 1972 UTC", "December 1972"],
        },
        Example(
            "Question: when was the last time anyone was on the moon\nAnswer:",
            " 14 December 1972 UTC",
            ("14 December 1972 UTC", "December 1972"),
        ),
    ),
    "coqa": (
        {
            "story": WHISKERS,
            "questions": ["Why is Lisa excited?", "Who is Whiskers?", "What does it look like?"],
            "answers": {"input_text": ["Saturday, Whiskers turns two", "a cat", "black with a white spot"]},
            "references": ["black with a white spot"],
        },
        Example(
            "Question: What does it look like?\nAnswer:",
            " black with a white spot",
            ("black with a white spot",),
            context=f"{WHISKERS}\n",
            history=(
                "Question: Why is Lisa excited?\nAnswer: Saturday, Whiskers turns two\n",
                "Question: Who is Whiskers?\nAnswer: a cat\n",
            ),
            group=WHISKERS,
        ),
    ),
    "piqa": (
        {
            "goal": "When boiling butter, when it's ready, you can",
            "sol1": "Pour it onto a plate",
            "sol2": "Pour it into a jar",
            "label": 1,
        },
        Example(
            "Question: When boiling butter, when it's ready, you can\nAnswer:",
            " Pour it into a jar",
            ("Pour it into a jar",),
            candidates=(" Pour it onto a plate", " Pour it into a jar"),
        ),
    ),
    "hellaswag": (
        {
            "ind": 0,
            "activity_label": "Roof shingle removal",
            "ctx_a": "A man is sitting on a roof.",
            "ctx_b": "he",
            "ctx": "A man is sitting on a roof. he",
            "endings": [
                "is using wrap to wrap a pair of skis.",
                "is ripping level tiles off.",
                "is holding a rubik's cube.",
                "starts pulling up roofing on a roof.",
            ],
            "label": "3",
        },
        Example(
            "Roof shingle removal: A man is sitting on a roof. He",
            " starts pulling up roofing on a roof.",
            ("starts pulling up roofing on a roof.",),
            candidates=(
                " is using wrap to wrap a pair of skis.",
                " is ripping level tiles off.",
                " is holding a rubik's cube.",
                " starts pulling up roofing on a roof.",
            ),
        ),
    ),
}

SCORED = {name: len(example.candidates) for name, (_, example) in GOLDEN.items() if example.candidates}
