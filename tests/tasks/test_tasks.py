"""Each task asks what its docstring shows, its answers are right, and its chance level is exact."""

from __future__ import annotations

import copy
import sys
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from golden import GOLDEN, SCORED, TEXT_TASKS

from pausebench.config.groups import WorldConfig
from pausebench.evaluation.metrics import METRICS
from pausebench.tasks import TASKS, Task
from pausebench.tasks.coqa import turns
from pausebench.worlds.counting import TEST_SEED, build_world

Worlds = Callable[[str], WorldConfig]
ANSWERS: dict[str, Callable[[list[int]], str]] = {
    "parity": lambda bits: ["even", "odd"][sum(bits) & 1],
    "mod3": lambda bits: ["rest0", "rest1", "rest2"][sum(bits) - 3 * (sum(bits) // 3)],
    "majority": lambda bits: "more" if sum(bits) > sum(1 - bit for bit in bits) else "less",
}
QUESTIONS = {"parity": "PAR", "mod3": "M3", "majority": "MAJ"}
WORLD_TASKS = [*ANSWERS, "relay"]


def indented(task: Task) -> list[str]:
    """The lines of the example in a task's docstring."""
    document = sys.modules[task.to_example.__module__].__doc__
    assert document is not None
    return [line[4:] for line in document.splitlines() if line.startswith("    ")]


def shown(task: Task) -> dict[str, str]:
    """The docstring's example of a world's task: its lines "prefix ...", "cue ..." and "target ..."."""
    lines = [line.split(maxsplit=1) for line in indented(task)]
    return {name: text.partition("...")[0].strip() for name, text in lines}


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
    example = GOLDEN["lambada" if name == "lambada_openai" else name][1]  # two versions share the docstring
    assert " ".join(indented(TASKS[name])).split() == (example.prefix + example.target).split()


@pytest.mark.parametrize("name", TEXT_TASKS)
def test_the_table_in_the_docs_says_what_the_task_says(name: str) -> None:
    table = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text()
    line = next(line for line in table.splitlines() if line.startswith(f"| `{name}` |"))
    _, _, kind, metrics, train, test, hub_id, revision, _ = (cell.strip() for cell in line.split("|"))
    task = TASKS[name]
    assert task.dataset is not None
    assert kind == (f"scored, of {SCORED[name]}" if task.scored else "decoded")
    assert metrics == ", ".join(f"`{metric}`" for metric in task.metrics)
    assert train == (task.dataset.train or f"a share of {task.dataset.test}")
    assert test == (task.dataset.test if task.dataset.train else f"the rest of {task.dataset.test}")
    assert hub_id.startswith(f"`{task.dataset.hub_id}`")
    pinned = task.dataset.revision != "main"
    assert revision == (f"`{task.dataset.revision[:7]}`" if pinned else "branch `main`")


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
    assert {name: chance(name, 0, 0) for name in SCORED} == {name: 1 / count for name, count in SCORED.items()}
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


@pytest.mark.parametrize("name", [name for name in TASKS if name not in SCORED])
def test_the_target_itself_has_full_marks(name: str) -> None:
    example = GOLDEN[name][1]
    assert TASKS[name].metrics
    for metric in TASKS[name].metrics:
        assert METRICS[metric](example.target, example.references) == 1.0


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
        ("lambada", {"text": None}, r"text is None"),
        ("lambada", {"text": ""}, r"text is '': .* it has none"),
        ("lambada", {"text": " word "}, r"text is ' word '"),
        ("web_questions", {"question": None}, r"question is None"),
        ("web_questions", {"answers": []}, r"answers is \[\]"),
        ("web_questions", {"answers": "Padmé"}, r"answers is 'Padmé'"),
        ("web_questions", {"answers": ["Padmé", None]}, r"answers has None"),
        ("natural_questions", {"question": 3}, r"question is 3"),
        ("natural_questions", {"answer": ["1972", "\u00a0"]}, r"answer has '\\xa0'"),
        ("coqa", {"story": None}, r"story is None"),
        ("coqa", {"questions": ["a?", "b?"]}, r"answers\.input_text is .* not a list of 2"),
        ("coqa", {"questions": []}, r"questions is \[\]"),
        ("coqa", {"questions": ["a?", None, "c?"]}, r"questions has None"),
        ("coqa", {"answers": {"input_text": ["x", " ", "y"]}}, r"answers\.input_text has ' '"),
        ("piqa", {"goal": None}, r"goal is None"),
        ("piqa", {"sol1": ""}, r"sol1 has ''"),
        ("piqa", {"sol2": None}, r"sol2 has None"),
        ("piqa", {"label": 2}, r"label is 2; allowed are 0, 1"),
        ("piqa", {"label": -1}, r"label is -1"),
        ("piqa", {"label": True}, r"label is True"),
        ("hellaswag", {"label": "4"}, r"label is '4'; allowed are 0, 1, 2, 3"),
        ("hellaswag", {"label": ""}, r"label is ''"),
        ("hellaswag", {"ctx_b": None}, r"ctx_b is None"),
        ("hellaswag", {"activity_label": 1}, r"activity_label is 1"),
        ("hellaswag", {"endings": ["a", "b", "c"]}, r"endings is \['a', 'b', 'c'\], which is not a list of 4"),
        ("hellaswag", {"endings": ["a", "b", "c", "[step]"]}, r"endings is .*brackets"),
    ],
)
def test_a_row_that_makes_no_sense_is_refused_by_its_field(name: str, change: dict[str, Any], message: str) -> None:
    row = {**GOLDEN[name][0], **change}
    with pytest.raises(ValueError, match=message):
        if name == "coqa":
            row = list(turns({field: value for field, value in row.items() if field != "references"}))[-1]
        TASKS[name].to_example(row)


def test_the_prompt_hash_tells_prompts_apart() -> None:
    hashes = {task.prompt_hash(GOLDEN[name][0]) for name, task in TASKS.items()}
    assert len(hashes) == len(TASKS)
    row = GOLDEN["parity"][0]
    assert TASKS["parity"].prompt_hash(row) == TASKS["parity"].prompt_hash(dict(row))
