"""What is shared changes no result: a prefix among M, candidates and targets, a cache among steps."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from pausebench.config.groups import Arithmetic, AttentionKind, PauseVisibility, Placement
from pausebench.config.pauses import PausePolicy
from pausebench.data.batches import EncodedExamples, RowLayout
from pausebench.data.examples import Tokens
from pausebench.data.tokenizer import WordTokenizer
from pausebench.evaluation.batches import ReadBatch, Reading, reading_batches
from pausebench.evaluation.evaluator import Evaluator, prefix_is_shared
from pausebench.evaluation.generate import decode, target_log_likelihoods
from pausebench.model.decoder import Decoder
from pausebench.model.fast import FastDecoder
from pausebench.model.prefill import Prefill
from pausebench.model.tuning import Tuning
from pausebench.pauses import Rows
from pausebench.tasks import TASKS, Example, Task

Models = Callable[..., Decoder]
TOKENIZER = WordTokenizer([f"w{number}" for number in range(14)])
SCORED = dataclasses.replace(TASKS["squad"], metrics=("accuracy",), scored=True)
COUNTS, MAX_LENGTH = [3, 0, 8, 1], 40
KINDS = [AttentionKind.causal, AttentionKind.bidirectional]
LAYOUTS = [
    RowLayout(
        PausePolicy(k=0, placement=placement, pause_visibility=visibility, shift=shift),
        kind,
        torch.tensor(cue, dtype=torch.int64),
        15,
        14,
    )
    for kind, visibility, placement, cue, shift in itertools.product(
        AttentionKind, PauseVisibility, Placement, ([], [13, 2]), (0, 5)
    )
]


def words(count: int, draw: random.Random) -> str:
    return " ".join(f"w{draw.randrange(14)}" for _ in range(count))


def texts(count: int) -> list[Example]:
    """Some fit with every M, some with few pauses alone, some are read through windows."""
    draw = random.Random(3)
    answers = [words(draw.randint(1, 6), draw) for _ in range(count)]
    return [
        Example(words(5, draw), answer, (answer,), context=words(draw.randint(1, 45), draw) + " ") for answer in answers
    ]


def choices(count: int) -> list[Example]:
    """Two to four candidates a row."""
    draw, examples = random.Random(0), []
    for number in range(count):
        options = tuple(words(draw.randint(1, 6), draw) for _ in range(2 + number % 3))
        examples.append(Example(words(draw.randint(1, 35), draw), options[1], (options[1],), options))
    return examples


def evaluator_of(model: Decoder, examples: Sequence[Example], task: Task, **options: Any) -> Evaluator:
    options = {"batch_size": 5, "max_length": MAX_LENGTH, "max_new_tokens": 9} | options
    return Evaluator(model, task, examples, TOKENIZER, **options)


def without_speed(result: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name != "examples_per_second"}


@pytest.mark.slow
@pytest.mark.parametrize(("task", "examples"), [(TASKS["squad"], texts(7)), (SCORED, choices(7))])
def test_a_sweep_gives_each_m_what_it_gets_alone(model: Decoder, task: Task, examples: list[Example]) -> None:
    """Every kind of prefix, visibility, placement, cue and shift; in the order asked for."""
    for layout in LAYOUTS:
        scorer = evaluator_of(model, examples, task)
        swept = [(m, without_speed(result), rows) for m, result, rows in scorer.sweep(layout, COUNTS)]
        assert [m for m, _, _ in swept] == COUNTS
        for m, result, rows in swept:
            alone, its_rows = scorer.evaluate(layout, m)
            assert (result, rows) == (without_speed(alone), its_rows), layout


def test_a_sweep_with_causal_prefixes_reads_each_prefix_once(model: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    prefill = FastDecoder.prefill

    def recorded(model: FastDecoder, rows: Rows, *given: Any) -> Prefill:
        read.extend(rows.lengths.tolist())
        return prefill(model, rows, *given)

    monkeypatch.setattr(FastDecoder, "prefill", recorded)
    examples = [Example(words(length, random.Random(length)), "w1", ("w1",)) for length in range(1, 11)]
    causal, both = (RowLayout(PausePolicy(k=0), kind, torch.zeros(0, dtype=torch.int64), 15, 14) for kind in KINDS)
    list(evaluator_of(model, examples, TASKS["squad"]).sweep(causal, COUNTS))
    assert sorted(read) == [length + 8 for length in range(1, 11)]
    read.clear()
    list(evaluator_of(model, examples, TASKS["squad"]).sweep(both, COUNTS))
    assert sorted(read) == sorted(length + m for length in range(1, 11) for m in COUNTS)


def test_a_stop_leaves_the_first_m_alone_which_comes_out_as_ever(model: Decoder) -> None:
    layout = RowLayout(PausePolicy(k=0), AttentionKind.causal, torch.zeros(0, dtype=torch.int64), 15, 14)
    scorer = evaluator_of(model, texts(12), TASKS["squad"])
    asked = iter([False, False, *[True] * 99])
    [(m, result, rows)] = scorer.sweep(layout, COUNTS, lambda: next(asked))
    assert m == 3
    alone, its_rows = scorer.evaluate(layout, 3)
    assert (without_speed(result), rows) == (without_speed(alone), its_rows)


def test_a_prefix_is_not_shared_where_it_or_a_pause_sees_what_another_m_changes() -> None:
    shared = {
        (lay.attention, lay.policy.placement, lay.policy.pause_visibility) for lay in LAYOUTS if prefix_is_shared(lay)
    }
    kinds = (AttentionKind.causal, AttentionKind.bottleneck)
    seen = (PauseVisibility.all, PauseVisibility.self)
    assert shared == {(kind, Placement.append, visibility) for kind in kinds for visibility in seen}


def test_candidates_behind_one_prefix_score_as_each_does_alone(model: Decoder) -> None:
    layout = RowLayout(PausePolicy(k=0), AttentionKind.bidirectional, torch.tensor([13]), 15, 14)
    examples = [example._replace(question=words(9, random.Random(i))) for i, example in enumerate(choices(9))]
    _, together = evaluator_of(model, examples, SCORED).evaluate(layout, 3)
    for example, row in zip(examples, together, strict=True):
        alone = [Example(example.question, candidate, (candidate,), (candidate,)) for candidate in example.candidates]
        _, rows = evaluator_of(model, alone, SCORED).evaluate(layout, 3)
        assert row["log_likelihoods"] == [one["log_likelihoods"][0] for one in rows]


def prefilled(model: Decoder, layout: RowLayout, prefixes: Sequence[Tokens]) -> Prefill:
    rows = layout.inference_rows(EncodedExamples.of(prefixes, [[]] * len(prefixes), 14))
    return model.prefill(rows, layout.attention, layout.policy.pause_visibility, rows.input_ids.shape[1] + 12)


@pytest.mark.parametrize("layout", LAYOUTS[::3])
def test_tokens_behind_a_prefill_get_the_states_of_one_pass_over_the_whole_row(
    model: Decoder, layout: RowLayout
) -> None:
    """Seven tokens at once, in pieces, and after others were read in their place."""
    model, layout = model.double(), layout.at(4)
    prefixes = [[3, 1, 4], [9], [2, 6, 5, 3, 5, 8, 9]]
    target = torch.randint(0, 14, (3, 8), generator=torch.Generator().manual_seed(0))
    batch = layout.training_batch(EncodedExamples.of(prefixes, target.tolist(), 14))
    whole = model(batch.input_ids, batch.mask, batch.positions)
    read = prefilled(model, layout, prefixes)
    read.read(target.flip(1))
    at_once = read.read(target[:, :7])
    pieces = [read.read(target[:count, start : start + size], start) for start, size, count in ((0, 3, 3), (3, 4, 2))]
    for row in range(3):
        expected = whole[row, int(read.slots[row]) :][:7]
        torch.testing.assert_close(at_once[row], expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(pieces[0][row], expected[:3], rtol=1e-9, atol=1e-9)
        if row < 2:
            torch.testing.assert_close(pieces[1][row], expected[3:], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_read_beside_others_of_like_length_are_read_as_all_at_once(
    make_decoder: Models, layout: RowLayout
) -> None:
    draw = random.Random(5)
    prefixes = [[draw.randrange(14) for _ in range(draw.randint(1, 20))] for _ in range(9)]
    rows = layout.at(3).inference_rows(EncodedExamples.of(prefixes, [[]] * 9, 15))
    found = {}
    for share in (0.0, 0.85, 1.0):  # one pass, a few, one for each length
        exact = make_decoder(16, tuning=Tuning(like_prefixes=share), embedding_std=0.2, linear_gain=3.0).double()
        read = exact.prefill(rows, layout.attention, layout.policy.pause_visibility, rows.input_ids.shape[1] + 4)
        found[share] = decode(read, max_new_tokens=4, end_id=14, pause_id=15, limit=MAX_LENGTH)
    assert [answer.tokens for answer in found[0.85]] == [answer.tokens for answer in found[0.0]]
    assert [answer.tokens for answer in found[1.0]] == [answer.tokens for answer in found[0.0]]
    for answer, whole in zip(found[1.0], found[0.0], strict=True):
        assert answer.mean_log_probability == pytest.approx(whole.mean_log_probability, abs=1e-12)


@pytest.mark.parametrize(("tokens", "logits"), [(1, 1), (2, 3), (32, 256)])
def test_a_likelihood_does_not_depend_on_how_a_target_is_cut_to_be_read(
    model: Decoder, tokens: int, logits: int
) -> None:
    targets = [[1, 2, 3, 4, 5, 6], [7], [8, 9, 1, 2], [3, 4]]
    read = prefilled(model.double(), LAYOUTS[0].at(2), [[3, 1, 4], [9], [2, 6, 5], [1, 2]])
    expected = []
    for row, target in enumerate(targets):
        one = dataclasses.replace(read, cache=read.cache.copy(int(read.slots.max())))
        states = one.read(torch.tensor([target] * 4))[row]
        log_probabilities = model.logits(torch.cat([read.hidden[row : row + 1], states])).log_softmax(dim=1).detach()
        expected.append(float(sum(log_probabilities[place, token] for place, token in enumerate(target))))
    found = target_log_likelihoods(read, targets, tokens_at_once=tokens, logits_at_once=logits)
    assert found == pytest.approx(expected, abs=1e-9)


def test_decoding_on_a_copy_leaves_the_rows_as_they_were(model: Decoder) -> None:
    read = prefilled(model.double(), LAYOUTS[0], [[3, 1, 4], [9], [2, 6, 5, 3, 5, 8, 9]])
    options: dict[str, Any] = {"max_new_tokens": 9, "end_id": 14, "pause_id": 15, "limit": 40}
    before = target_log_likelihoods(read, [[1, 2]] * 3)
    answers = decode(read.copy(), **options)
    assert len({len(answer.tokens) for answer in answers}) > 1, "rows have moved"
    assert target_log_likelihoods(read, [[1, 2]] * 3) == before
    assert decode(read, **options) == answers


def test_without_means_the_answers_are_the_same(model: Decoder) -> None:
    read = prefilled(model.double(), LAYOUTS[0], [[3, 1, 4], [9], [2, 6, 5, 3, 5, 8, 9]])
    options: dict[str, Any] = {"max_new_tokens": 9, "end_id": 14, "pause_id": 15, "limit": 40}
    with_means, without = decode(read.copy(), **options), decode(read, **options, means=False)
    assert [answer.tokens for answer in with_means] == [answer.tokens for answer in without]
    assert all(answer.mean_log_probability < 0 for answer in with_means)


# Batches


def batched(readings: dict[int, list[Reading]], **options: Any) -> list[ReadBatch]:
    options = {"continuation": lambda _: 4, "given": 8, "slot_bytes": 100, "batch_size": None} | options
    return list(reading_batches(readings, **options))


def test_every_reading_of_every_m_is_in_one_batch_even_where_windows_are_equal() -> None:
    same = [Reading(0, [1, 2]), Reading(0, [1, 2]), Reading(1, [1, 2])]
    made = batched({0: same, 3: [*same, Reading(2, [5])], 8: same[:1]}, batch_size=2)
    for m, count in ((0, 3), (3, 4), (8, 1)):
        assert sorted(number for batch in made for number in batch.numbers.get(m, [])) == list(range(count))
    assert sum(len(batch.readings) for batch in made) == 4
    assert all(len(batch.readings) <= 2 for batch in made)


def test_a_batch_holds_what_its_cache_may_and_rows_of_like_length() -> None:
    made = batched({0: [Reading(row, [1] * (1 + 7 * row % 50)) for row in range(50)]}, cache_bytes=20_000)
    assert all(len(batch.readings) * batch.slots * 100 <= 20_000 for batch in made)
    sizes = [[len(reading.prefix) for reading in batch.readings] for batch in made]
    assert all(max(one) <= min(other) for one, other in itertools.pairwise(sizes))
    assert len(made[0].readings) > 2 * len(made[-1].readings)


def test_a_row_that_no_cache_holds_has_a_batch_of_its_own() -> None:
    made = batched({0: [Reading(row, [1]) for row in range(3)]}, cache_bytes=1)
    assert [len(batch.readings) for batch in made] == [1, 1, 1]


# Precision


@pytest.mark.parametrize(("precision", "near"), [(Arithmetic.fp32, 1e-4), (Arithmetic.bf16, 0.1)])
def test_a_lower_precision_comes_near_the_exact_likelihoods(model: Decoder, precision: Arithmetic, near: float) -> None:
    layout = LAYOUTS[0]
    _, exact = evaluator_of(model, texts(12), TASKS["squad"]).evaluate(layout, 3)
    _, rows = evaluator_of(model, texts(12), TASKS["squad"], precision=precision).evaluate(layout, 3)
    errors = [abs(one["nll"] - other["nll"]) for one, other in zip(rows, exact, strict=True)]
    assert 0 < max(errors) < near
