"""Candidates scored by likelihood, and contexts read through windows: neither depends on batches or on the answer."""

from __future__ import annotations

import copy
import dataclasses
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy import stats
from torchmetrics.functional.classification import multiclass_f1_score

from pausebench.config.groups import AttentionKind
from pausebench.config.pauses import PausePolicy
from pausebench.data.batches import EncodedExamples, RowLayout
from pausebench.data.examples import encode
from pausebench.data.tokenizer import WordTokenizer
from pausebench.evaluation.evaluator import Evaluator
from pausebench.evaluation.generate import generate
from pausebench.evaluation.metrics import mean_and_stderr
from pausebench.model.decoder import Decoder
from pausebench.tasks import TASKS, Example, Task

Models = Callable[..., Decoder]
TOKENIZER = WordTokenizer([f"w{number}" for number in range(14)])
M, MAX_LENGTH = 3, 40
SCORED = dataclasses.replace(
    TASKS["squad"], metrics=("accuracy", "accuracy_per_character", "macro_f1"), scored=True, version=1
)
KINDS = [AttentionKind.causal, AttentionKind.bidirectional]


def words(count: int, draw: random.Random) -> str:
    return " ".join(f"w{draw.randrange(14)}" for _ in range(count))


def layout_of(kind: AttentionKind) -> RowLayout:
    empty = torch.zeros(0, dtype=torch.int64)
    return RowLayout(PausePolicy(k=0), kind, empty, TOKENIZER.pause_id, TOKENIZER.end_id)


def run(
    model: Decoder, task: Task, examples: list[Example], kind: AttentionKind, batch_size: int = 32
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    evaluator = Evaluator(model, task, examples, TOKENIZER, batch_size=batch_size, max_length=MAX_LENGTH)
    result, predictions = evaluator.evaluate(layout_of(kind), M)
    del result["examples_per_second"]
    return result, predictions


def choices(count: int) -> list[Example]:
    draw = random.Random(0)
    examples = []
    for _ in range(count):
        options = tuple(words(draw.randint(1, 6), draw) for _ in range(4))
        target = draw.choice(options)
        examples.append(Example(words(draw.randint(1, 50), draw), target, (target,), options))
    return examples


@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_candidates_are_the_same_for_batch_sizes_1_7_and_32(model: Decoder, kind: AttentionKind) -> None:
    examples = choices(30)
    whole, *others = (run(model, SCORED, examples, kind, size) for size in (32, 7, 1))
    assert len({row["chosen"] for row in whole[1]}) == 4 and 3 < whole[0]["truncated"] < 27
    assert all(other == whole for other in others)


def test_a_scored_result_counts_what_its_predictions_say(model: Decoder) -> None:
    result, predictions = run(model, SCORED, choices(60), AttentionKind.bidirectional)
    chosen, right = ([row[name] for row in predictions] for name in ("chosen", "right"))
    assert result["value"] == sum(a == b for a, b in zip(chosen, right, strict=True)) / 60
    assert result["stderr"] == pytest.approx(stats.sem([a == b for a, b in zip(chosen, right, strict=True)]))
    expected = multiclass_f1_score(torch.tensor(chosen), torch.tensor(right), num_classes=4, average="macro")
    assert result["metrics"]["macro_f1"] == pytest.approx(float(expected), abs=1e-6)
    low, high = result["interval"]
    assert low < result["value"] < high
    for row in predictions:
        totals, example_right = row["log_likelihoods"], row["right"]
        assert row["chosen"] == totals.index(max(totals)) and row["correct"] == (row["chosen"] == example_right)
        assert row["nll"] == pytest.approx(-totals[example_right] / len(row["target"].split()), abs=1e-8)


def test_the_longest_candidate_has_room_and_no_candidate_an_end_token(model: Decoder) -> None:
    options = (words(30, random.Random(1)), "w1")
    [example] = [Example(words(40, random.Random(2)), "w1", ("w1",), options)]
    result, [row] = run(model, SCORED, [example], AttentionKind.causal)
    assert result["truncated_parts"] == {"history": 0, "context": 0, "question": 1}
    read = " ".join(example.question.split()[-(MAX_LENGTH - M - 30) :])
    whole, [alone] = run(model, SCORED, [example._replace(question=read)], AttentionKind.causal)
    assert whole["truncated"] == 0 and alone["log_likelihoods"] == row["log_likelihoods"]


def contexts(count: int) -> list[Example]:
    draw = random.Random(3)
    examples = []
    for _ in range(count):
        context, turns = (
            words(draw.randint(1, 90), draw),
            tuple(words(2, draw) + " " for _ in range(draw.randint(0, 3))),
        )
        answer = words(draw.randint(1, 4), draw)
        examples.append(Example(words(5, draw), answer, (answer,), (), f"{context} ", turns))
    return examples


@pytest.mark.parametrize("kind", KINDS)
def test_answers_from_windows_are_the_same_for_batch_sizes_1_7_and_32(model: Decoder, kind: AttentionKind) -> None:
    examples = contexts(24)
    whole, *others = (run(model, TASKS["squad"], examples, kind, size) for size in (32, 7, 1))
    assert whole[0]["truncated_parts"]["context"] > 10 and whole[0]["truncated_parts"]["history"] > 5
    assert [row["prefix"] for row in whole[1]] == [example.prefix for example in examples], "shown whole"
    assert all(other == whole for other in others)


def test_the_window_whose_answer_is_likeliest_a_token_gives_the_answer(model: Decoder) -> None:
    """Each window evaluated as a row of its own; the rule knows no reference and no F1."""
    room = MAX_LENGTH - M - MAX_LENGTH // 8 - 5
    earlier = 0
    for example in (example for example in contexts(90) if not example.history):
        tokens = example.context.split()
        if len(tokens) <= room:
            continue
        starts = [*range(0, len(tokens) - room, room // 2), len(tokens) - room]
        windows = [example._replace(context=" ".join(tokens[start : start + room]) + " ") for start in starts]
        result, alone = run(model, TASKS["squad"], windows, AttentionKind.bidirectional)
        assert result["truncated"] == 0
        _, [row] = run(model, TASKS["squad"], [example], AttentionKind.bidirectional)
        means = [mean_of_answer(model, window) for window in windows]
        best = alone[means.index(max(means))]
        assert (row["prediction"], row["nll"]) == (best["prediction"], best["nll"])
        earlier += best is not alone[-1]
    assert earlier > 2, "not simply the last window"


def test_of_a_scored_rows_windows_the_one_with_the_likeliest_candidate_a_token_counts(model: Decoder) -> None:
    """Candidates of one to six tokens: by their sums the shortest would choose the window."""
    draw, others = random.Random(5), 0
    for _ in range(12):
        options = tuple(words(size, draw) for size in (1, 3, 6))
        example = Example(words(5, draw), options[1], (options[1],), options, words(70, draw) + " ")
        tokens, room = example.context.split(), MAX_LENGTH - M - 6 - 5
        starts = [*range(0, len(tokens) - room, room // 2), len(tokens) - room]
        windows = [example._replace(context=" ".join(tokens[start : start + room]) + " ") for start in starts]
        result, alone = run(model, SCORED, windows, AttentionKind.bidirectional)
        assert result["truncated"] == 0
        _, [row] = run(model, SCORED, [example], AttentionKind.bidirectional)
        best = [max(x / size for x, size in zip(one["log_likelihoods"], (1, 3, 6), strict=True)) for one in alone]
        assert row["log_likelihoods"] == alone[best.index(max(best))]["log_likelihoods"]
        sums = [max(one["log_likelihoods"]) for one in alone]
        others += sums.index(max(sums)) != best.index(max(best))
    assert others > 2, "the sums would have chosen other windows"


def mean_of_answer(model: Decoder, example: Example) -> float:
    """Mean log-probability of the tokens decoded after an example by itself."""
    [encoded] = encode([example], TASKS["squad"], TOKENIZER)
    layout = layout_of(AttentionKind.bidirectional).at(M)
    rows = layout.inference_rows(EncodedExamples.of([encoded.prefix], [[]], TOKENIZER.end_id))
    [answer] = generate(
        copy.deepcopy(model).double(),
        rows,
        layout.attention,
        max_new_tokens=MAX_LENGTH,
        end_id=14,
        pause_id=15,
        limit=40,
    )
    return answer.mean_log_probability


def test_questions_of_one_story_share_their_standard_error(model: Decoder) -> None:
    examples = [example._replace(group=f"story {number // 6}") for number, example in enumerate(contexts(24))]
    result, predictions = run(model, TASKS["squad"], examples, AttentionKind.causal)
    values = [row["nll"] for row in predictions]
    assert result["target_nll_stderr"] == mean_and_stderr(values, [example.group for example in examples])[1]
    assert result["target_nll_stderr"] != mean_and_stderr(values)[1]
