"""Each task asks what its docstring shows, its answers are right, and its chance level is exact."""

from __future__ import annotations

import copy
import gzip
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from pausebench.data.embedded import TEST_SEED, build_world
from pausebench.evaluation.metrics import METRICS
from pausebench.groups import WorldConfig
from pausebench.tasks import TASKS, Example, Task

Worlds = Callable[[str], WorldConfig]
ANSWERS: dict[str, Callable[[list[int]], str]] = {
    "parity": lambda bits: ["even", "odd"][sum(bits) & 1],
    "mod3": lambda bits: ["rest0", "rest1", "rest2"][sum(bits) - 3 * (sum(bits) // 3)],
    "majority": lambda bits: "more" if sum(bits) > sum(1 - bit for bit in bits) else "less",
}
QUESTIONS = {"parity": "PAR", "mod3": "M3", "majority": "MAJ"}
WORLD_TASKS = [*ANSWERS, "relay"]
TEXT_TASKS = ["squad", "gsm8k", "commonsense_qa"]

# One row of each task and the prompt it has to give, to the letter: a change here is a new version of the task.
# The rows of the text tasks are published ones.
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
}


def indented(task: Task) -> list[str]:
    """The lines of the example in a task's docstring."""
    document = sys.modules[task.to_example.__module__].__doc__
    assert document is not None
    return [line[4:] for line in document.splitlines() if line.startswith("    ")]


def shown(task: Task) -> dict[str, str]:
    """The docstring's example of a world's task: its lines "prefix ...", "cue ..." and "target ..."."""
    lines = [line.split(maxsplit=1) for line in indented(task)]
    return {name: text.partition("...")[0].strip() for name, text in lines}


def published(folder: Path, name: str, split: str) -> Iterator[dict[str, Any]]:
    with gzip.open(folder / name / f"{split}.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def test_every_task_is_tested() -> None:
    assert sorted(GOLDEN) == sorted(TASKS) == sorted(WORLD_TASKS + TEXT_TASKS)
    assert all(task.name == name for name, task in TASKS.items())


@pytest.mark.parametrize("name", TASKS)
def test_the_prompt_is_the_golden_one(name: str) -> None:
    row, example = GOLDEN[name]
    before = copy.deepcopy(row)
    assert TASKS[name].to_example(row) == example
    assert row == before


@pytest.mark.parametrize("name", WORLD_TASKS)
def test_the_example_in_a_tasks_docstring_is_what_the_task_makes(name: str) -> None:
    task = TASKS[name]
    example = shown(task)
    assert {"prefix", "target"} <= example.keys()
    source = example["prefix"].removesuffix(f" {QUESTIONS.get(name)}")
    made = task.to_example({"bits": source, "symbols": source})
    assert (made.prefix, made.target) == (example["prefix"], example["target"])
    assert made.references == (made.target,)
    assert task.cue == example.get("cue", "")


@pytest.mark.parametrize("name", TEXT_TASKS)
def test_the_example_in_a_text_tasks_docstring_is_the_golden_one(name: str) -> None:
    """Up to the line breaks of the page."""
    example = GOLDEN[name][1]
    assert " ".join(indented(TASKS[name])).split() == (example.prefix + example.target).split()


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_are_right_on_test_rows(name: str, world_config: Worlds) -> None:
    for row in build_world(world_config("count20")).task_rows(TEST_SEED, 0, 300):
        example = TASKS[name].to_example(row)
        *bits, question = example.prefix.split()
        assert question == QUESTIONS[name]
        assert bits == row["bits"].split()
        assert example.target == ANSWERS[name]([int(bit) for bit in bits])


def test_relay_asks_for_the_string_itself(world_config: Worlds) -> None:
    for row in build_world(world_config("relay")).task_rows(TEST_SEED, 0, 50):
        example = TASKS["relay"].to_example(row)
        assert example.prefix == example.target == row["symbols"]
        assert "=" not in example.prefix.split()


def chance(name: str, n: int, alphabet: int) -> float:
    level = TASKS[name].chance
    assert level is not None
    return level(n, alphabet)


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("n", [1, 2, 3, 15, 16, 20, 24, 46])
def test_chance_is_the_share_of_the_commonest_answer_when_the_count_of_ones_is_uniform(name: str, n: int) -> None:
    answers = Counter(
        TASKS[name].to_example({"bits": " ".join(["1"] * ones + ["0"] * (n - ones))}).target for ones in range(n + 1)
    )
    assert chance(name, n, 8) == pytest.approx(float(Fraction(max(answers.values()), n + 1)), rel=1e-12)


def test_chance_is_what_the_docstrings_say() -> None:
    assert [round(chance(name, 20, 8), 3) for name in ("parity", "mod3", "majority")] == [0.524, 0.333, 0.524]
    assert chance("relay", 24, 8) == 0.125
    assert chance("commonsense_qa", 0, 0) == 0.2
    assert TASKS["squad"].chance is TASKS["gsm8k"].chance is None


@pytest.mark.parametrize("name", WORLD_TASKS)
def test_every_answer_can_be_read_and_given(name: str, world_config: Worlds) -> None:
    """Words are in the vocabulary, and every answer has ``answer_tokens`` of them."""
    task = TASKS[name]
    assert task.generated_rows > 0
    world = build_world(world_config("relay" if task.worlds == ("relay",) else "count24"))
    examples = [task.to_example(row) for row in world.task_rows(0, 0, 100)]
    assert {len(world.tokenizer.encode(example.target)) for example in examples} == {task.answer_tokens}
    assert all(world.tokenizer.encode(example.prefix) for example in examples)
    assert len(world.tokenizer.encode(task.cue)) == len(task.cue.split())


@pytest.mark.parametrize("name", TASKS)
def test_the_target_itself_has_full_marks(name: str) -> None:
    example = GOLDEN[name][1]
    assert TASKS[name].metrics
    for metric in TASKS[name].metrics:
        assert METRICS[metric](example.target, example.references) == 1.0


@pytest.mark.parametrize("name", TEXT_TASKS)
def test_every_published_row_makes_an_example(name: str, shared_data: Path) -> None:
    """Prompts end where the answer begins, a row needs its declared fields only, and its own answer is right."""
    task = TASKS[name]
    assert task.dataset is not None
    assert re.fullmatch("[0-9a-f]{40}", task.dataset.revision)
    golden_row, golden_found = GOLDEN[name][0], False
    for split in (task.dataset.train, task.dataset.test):
        count = 0
        for row in published(shared_data, task.dataset.name, split):
            declared: dict[str, Any] = {}
            for field in task.dataset.fields:
                outer, _, inner = field.partition(".")
                if inner:
                    declared.setdefault(outer, {})[inner] = row[outer][inner]
                else:
                    declared[outer] = row[outer]
            example = task.to_example(declared)
            assert example == task.to_example(row)
            assert example.prefix.endswith("\nAnswer:")
            assert example.prefix == example.prefix.strip()
            assert example.target == f" {example.references[0].strip()}"
            assert len(set(example.references)) == len(example.references)
            assert METRICS[task.metrics[0]](example.target, example.references) == 1.0
            golden_found |= all(row[field] == value for field, value in golden_row.items())
            count += 1
        assert count > 500
    assert golden_found


def test_the_answers_of_published_rows_are_the_publishers(shared_data: Path) -> None:
    for row in published(shared_data, "squad", "validation"):
        example = TASKS["squad"].to_example(row)
        assert set(example.references) == set(row["answers"]["text"])
        assert example.prefix.startswith(row["context"].strip())
    for row in published(shared_data, "gsm8k", "test"):
        example = TASKS["gsm8k"].to_example(row)
        assert example.target.split("####")[1] == row["answer"].split("####")[1]
        assert "<<" not in example.target and ">>" not in example.target
        pieces = [piece.partition(">>")[2] or piece for piece in row["answer"].split("<<")]
        assert example.target == " " + "".join(pieces)
    for row in published(shared_data, "commonsense_qa", "validation"):
        example = TASKS["commonsense_qa"].to_example(row)
        assert example.target.strip() == row["choices"]["text"]["ABCDE".index(row["answerKey"])]
        assert [line[2:] for line in example.prefix.splitlines()[2:-1]] == row["choices"]["text"]


def test_two_calculator_marks_in_one_line_leave_the_text_between_them() -> None:
    row = {"question": "How many?", "answer": "2+1=<<2+1=3>>3 and 3+4=<<3+4=7>>7\n#### 7"}
    assert TASKS["gsm8k"].to_example(row).target == " 2+1=3 and 3+4=7\n#### 7"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("squad", {"context": None}, r"context is None"),
        ("squad", {"question": ["why?"]}, r"question is \['why\?'\]"),
        ("squad", {"answers": {"text": []}}, r"answers\.text is \[\]"),
        ("squad", {"answers": {"text": "Latin"}}, r"answers\.text is 'Latin'"),
        ("squad", {"answers": {"text": ["Latin", " "]}}, r"answers\.text has ' '"),
        ("gsm8k", {"question": 3}, r"question is 3"),
        ("gsm8k", {"answer": None}, r"answer is None"),
        ("gsm8k", {"answer": "2+1=<<2+1=3>>3\n#### three"}, r"answer ends in '#### three'"),
        ("gsm8k", {"answer": "#### 3\nbolts"}, r"answer ends in 'bolts'"),
        ("gsm8k", {"answer": ""}, r"answer ends in ''"),
        ("commonsense_qa", {"question": None}, r"question is None"),
        ("commonsense_qa", {"answerKey": ""}, r"answerKey is '', and choices\.label has only \['A', "),
        ("commonsense_qa", {"answerKey": "F"}, r"answerKey is 'F'"),
        ("commonsense_qa", {"choices": {"label": ["A", "B"], "text": ["bank"]}}, r"choices\.label is \['A', 'B'\]"),
        ("commonsense_qa", {"choices": {"label": "AB", "text": ["bank", "mall"]}}, r"choices\.label is 'AB'"),
        ("commonsense_qa", {"choices": {"label": ["A", "B"], "text": ["bank", ""]}}, r"choices\.text has ''"),
    ],
)
def test_a_row_that_makes_no_sense_is_refused_by_its_field(name: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TASKS[name].to_example({**GOLDEN[name][0], **change})


def test_the_prompt_hash_tells_prompts_apart() -> None:
    hashes = {task.prompt_hash(GOLDEN[name][0]) for name, task in TASKS.items()}
    assert len(hashes) == len(TASKS)
    row = GOLDEN["parity"][0]
    assert TASKS["parity"].prompt_hash(row) == TASKS["parity"].prompt_hash(dict(row))
