"""Each task asks what its docstring shows, its answers are right, and its chance level is exact."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from fractions import Fraction

import pytest

from pausebench.config import WorldConfig
from pausebench.data.embedded import TEST_SEED, build_world
from pausebench.evaluation.metrics import METRICS
from pausebench.tasks import TASKS, Task

Worlds = Callable[[str], WorldConfig]
ANSWERS: dict[str, Callable[[list[int]], str]] = {
    "parity": lambda bits: ["even", "odd"][sum(bits) & 1],
    "mod3": lambda bits: ["rest0", "rest1", "rest2"][sum(bits) - 3 * (sum(bits) // 3)],
    "majority": lambda bits: "more" if sum(bits) > sum(1 - bit for bit in bits) else "less",
}
QUESTIONS = {"parity": "PAR", "mod3": "M3", "majority": "MAJ"}


def shown(task: Task) -> dict[str, str]:
    """The docstring's example: its lines "prefix ...", "cue ..." and "target ..."."""
    document = sys.modules[task.to_example.__module__].__doc__
    assert document is not None
    lines = [line.split(maxsplit=1) for line in document.splitlines() if line.startswith("    ")]
    return {name: text.partition("...")[0].strip() for name, text in lines}


@pytest.mark.parametrize("name", TASKS)
def test_the_example_in_a_tasks_docstring_is_what_the_task_makes(name: str) -> None:
    task = TASKS[name]
    example = shown(task)
    assert {"prefix", "target"} <= example.keys()
    source = example["prefix"].removesuffix(f" {QUESTIONS.get(name)}")
    made = task.to_example({"bits": source, "symbols": source})
    assert (made.prefix, made.target) == (example["prefix"], example["target"])
    assert made.references == (made.target,)
    assert task.cue == example.get("cue", "")


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


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("n", [1, 2, 3, 15, 16, 20, 24, 46])
def test_chance_is_the_share_of_the_commonest_answer_when_the_count_of_ones_is_uniform(name: str, n: int) -> None:
    answers = Counter(
        TASKS[name].to_example({"bits": " ".join(["1"] * ones + ["0"] * (n - ones))}).target for ones in range(n + 1)
    )
    assert TASKS[name].chance(n, 8) == pytest.approx(float(Fraction(max(answers.values()), n + 1)), rel=1e-12)


def test_chance_at_the_demos_size_is_what_the_docstrings_say() -> None:
    assert [round(TASKS[name].chance(20, 8), 3) for name in ("parity", "mod3", "majority")] == [0.524, 0.333, 0.524]
    assert TASKS["relay"].chance(24, 8) == 0.125


@pytest.mark.parametrize("name", TASKS)
def test_every_answer_can_be_read_and_given(name: str, world_config: Worlds) -> None:
    """Words are in the vocabulary, and the longest answer fits into max_new_tokens."""
    task = TASKS[name]
    assert task.name == name
    assert task.metric in METRICS
    world = build_world(world_config("relay" if task.world_kind == "relay" else "count24"))
    examples = [task.to_example(row) for row in world.task_rows(0, 0, 100)]
    longest = max(len(world.tokenizer.encode(example.target)) for example in examples)
    assert longest == task.max_new_tokens
    assert all(world.tokenizer.encode(example.prefix) for example in examples)
    assert len(world.tokenizer.encode(task.cue)) == len(task.cue.split())


def test_the_prompt_hash_tells_prompts_apart() -> None:
    row = {"bits": "0 1 1"}
    hashes = {TASKS[name].prompt_hash(row) for name in ANSWERS}
    assert len(hashes) == len(ANSWERS)
    assert TASKS["parity"].prompt_hash(row) == TASKS["parity"].prompt_hash(dict(row))
