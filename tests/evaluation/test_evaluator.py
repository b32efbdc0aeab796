"""Scores belong to the model and the rows: not to the batch size, the padding, the other M, or the rows beside them."""

from __future__ import annotations

import copy
import dataclasses
import math
import random
import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy import stats

from pausebench.config.groups import AttentionKind, PauseVisibility, Placement, WorldConfig
from pausebench.config.pauses import PausePolicy
from pausebench.data.batches import EncodedExamples, RowLayout
from pausebench.data.tokenizer import WordTokenizer
from pausebench.evaluation import generate as generation
from pausebench.evaluation.evaluator import Evaluator
from pausebench.evaluation.generate import Answer, generate, greedy, target_log_likelihoods
from pausebench.evaluation.metrics import exact_match, mean_and_stderr, token_accuracy
from pausebench.model.attention import AttentionMask
from pausebench.model.decoder import Decoder
from pausebench.model.fast import FastDecoder
from pausebench.model.prefill import Prefill
from pausebench.pauses import Role, Rows, inference_rows
from pausebench.tasks import TASKS, Example, Task
from pausebench.worlds.counting import TEST_SEED, Row, World, build_world

PARITY = dataclasses.replace(TASKS["parity"], generated_rows=150)
RELAY = dataclasses.replace(TASKS["relay"], generated_rows=60)
Worlds = Callable[[str], WorldConfig]
Models = Callable[..., Decoder]
ROW_TENSORS = ("input_ids", "labels", "roles")
OF_ROWS = ("lengths", "readout")


class RaggedWorld:
    """Lists of 1 to ``n_task`` bits, cut from the count world's."""

    def __init__(self, config: WorldConfig) -> None:
        self._world = build_world(config)
        self.tokenizer = self._world.tokenizer

    def task_rows(self, seed: int, start: int, count: int) -> list[Row]:
        rows = self._world.task_rows(seed, start, count)
        return [{"bits": row["bits"][: 1 + 2 * (7 * index % 20)]} for index, row in enumerate(rows, start)]


# Answers of one to three words that end in an end token, over a list of any length.
RAGGED = dataclasses.replace(
    PARITY,
    to_example=lambda row: Example(
        row["bits"], " ".join(["even"] * (1 + row["bits"].count("1") % 3)), ("even", "even even")
    ),
    answer_tokens=None,
    cue="MAJ",
)


def layout_of(task: Task, world: World | RaggedWorld, kind: AttentionKind = AttentionKind.causal) -> RowLayout:
    tokenizer = world.tokenizer
    cue = torch.tensor(tokenizer.encode(task.cue), dtype=torch.int64)
    return RowLayout(PausePolicy(k=0), kind, cue, tokenizer.pause_id, tokenizer.end_id)


def examples_of(task: Task, world: World | RaggedWorld) -> list[Example]:
    return [task.to_example(row) for row in world.task_rows(TEST_SEED, 0, task.generated_rows)]


def evaluator_of(model: Decoder, task: Task, world: World | RaggedWorld, batch_size: int) -> Evaluator:
    return Evaluator(
        model,
        task,
        examples_of(task, world),
        world.tokenizer,
        batch_size=batch_size,
        max_length=model.config.max_positions,
        max_new_tokens=3,
    )


def evaluated(
    model: Decoder, task: Task, world: World | RaggedWorld, layout: RowLayout, batch_size: int, m: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    return scored(evaluator_of(model, task, world, batch_size), layout, m)


def with_policy(layout: RowLayout, **changes: Any) -> RowLayout:
    return dataclasses.replace(layout, policy=dataclasses.replace(layout.policy, **changes))


def scored(evaluator: Evaluator, layout: RowLayout, m: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    result, predictions = evaluator.evaluate(layout, m)
    del result["examples_per_second"]
    return result, predictions


def answering(make_decoder: Models, world: World | RaggedWorld, words: str) -> Decoder:
    """A random decoder whose likeliest token is always one of these words, now one and now the other."""
    model = make_decoder(world.tokenizer.vocab_size, embedding_std=0.2, linear_gain=3.0)
    with torch.no_grad():
        model.norm_out.bias.fill_(1.0)
        rows = model.token_embedding.weight[world.tokenizer.encode(words)]
        model.token_embedding.weight[world.tokenizer.encode(words)] = rows - rows.mean(dim=1, keepdim=True) + 1.0
    return model


def decoded(*given: Any, **options: Any) -> list[list[int]]:
    return [answer.tokens for answer in generate(*given, **options)]


# Independence


@pytest.mark.parametrize("kind", AttentionKind)
@pytest.mark.parametrize("m", [0, 8])
def test_scores_are_the_same_for_batch_sizes_1_7_and_64(
    make_decoder: Models, world_config: Worlds, kind: AttentionKind, m: int
) -> None:
    world = build_world(world_config("count20"))
    model, layout = answering(make_decoder, world, "even odd"), layout_of(PARITY, world, kind)
    whole = evaluated(model, PARITY, world, layout, 64, m)
    assert {row["prediction"] for row in whole[1]} == {"even", "odd"}
    assert evaluated(model, PARITY, world, layout, 7, m) == whole
    assert evaluated(model, PARITY, world, layout, 1, m) == whole


@pytest.mark.parametrize("kind", AttentionKind)
def test_scores_of_rows_of_different_lengths_are_the_same_for_batch_sizes_1_7_and_64(
    make_decoder: Models, world_config: Worlds, kind: AttentionKind
) -> None:
    world = RaggedWorld(world_config("count20"))
    model, layout = answering(make_decoder, world, "even odd"), layout_of(RAGGED, world, kind)
    whole = evaluated(model, RAGGED, world, layout, 64, 4)
    assert len({row["prediction"] for row in whole[1]}) > 4
    assert [row["index"] for row in whole[1]] == list(range(150)), "in the order of the split"
    assert [row["prefix"] for row in whole[1]] == [row["bits"] for row in world.task_rows(TEST_SEED, 0, 150)]
    assert evaluated(model, RAGGED, world, layout, 7, 4) == whole
    assert evaluated(model, RAGGED, world, layout, 1, 4) == whole


@pytest.mark.parametrize(("task", "name"), [(PARITY, "count20"), (RELAY, "relay")])
def test_scores_for_each_m_are_the_same_one_by_one_and_as_a_list(
    make_decoder: Models, world_config: Worlds, task: Task, name: str
) -> None:
    world = build_world(world_config(name))
    model = make_decoder(world.tokenizer.vocab_size)
    layout = layout_of(task, world)
    together = evaluator_of(model, task, world, 64)
    for m in (0, 8, 2, 8):
        assert scored(together, layout.at(5), m) == evaluated(model, task, world, layout, 64, m)


def test_scores_depend_on_m_and_on_the_filler(make_decoder: Models, world_config: Worlds) -> None:
    """The tests above compare what could differ."""
    world, model = build_world(world_config("count20")), make_decoder(64)
    layout = layout_of(PARITY, world)
    filler = dataclasses.replace(layout, pause_id=world.tokenizer.end_id)
    losses = [evaluated(model, PARITY, world, layout, 64, m)[0]["target_nll"] for m in (0, 4, 8)]
    losses.append(evaluated(model, PARITY, world, filler, 64, 8)[0]["target_nll"])
    assert len(set(losses)) == 4


# Decoding


def favour(model: Decoder, token: int) -> None:
    """Give ``token`` the largest logit everywhere."""
    with torch.no_grad():
        model.norm_out.weight.fill_(0.0)
        model.norm_out.bias.fill_(1.0)
        model.token_embedding.weight[token] = 50.0


def rows_of(lengths: list[int]) -> Rows:
    """Prefixes of these lengths as they reach the decoder, padded with the end token 14."""
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(0, 14, (len(lengths), max(lengths)), generator=generator)
    padding = torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]
    roles = torch.where(padding, Role.PADDING.value, Role.PREFIX.value).to(torch.int8)
    ends = torch.tensor(lengths)
    return Rows(input_ids.masked_fill(padding, 14), input_ids, roles, ends, ends - 1)


def test_a_pause_is_never_emitted_even_where_it_has_the_largest_logit(
    make_decoder: Models, world_config: Worlds
) -> None:
    world = build_world(world_config("relay"))
    pause = world.tokenizer.pause_id
    model = make_decoder(world.tokenizer.vocab_size)
    favour(model, pause)
    likeliest = model.logits(model(torch.tensor([[0, 1, 2, pause]])))[0, -1].argmax()
    assert likeliest == pause
    layout = layout_of(RELAY, world)
    for filler in (pause, world.tokenizer.end_id):
        _, predictions = evaluated(model, RELAY, world, dataclasses.replace(layout, pause_id=filler), 64, 4)
        assert not any("<pause>" in row["prediction"] for row in predictions)
        assert all(len(row["prediction"].split()) == 24 for row in predictions), "another token in its place"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_of_equally_likely_tokens_the_first_is_taken_and_never_the_pause(dtype: torch.dtype) -> None:
    logits = torch.randint(-3, 4, (33, 50_258), generator=torch.Generator().manual_seed(0)).to(dtype)
    logits[:, -1] = 9
    expected = (logits[:, :-1] == logits[:, :-1].amax(dim=1, keepdim=True)).int().argmax(dim=1)
    assert greedy(logits, 50_257).tolist() == expected.tolist()


def test_an_end_token_stops_an_answer_and_is_no_part_of_it(make_decoder: Models) -> None:
    model = make_decoder(16)
    favour(model, 14)
    answers = decoded(model, rows_of([5, 3]), AttentionKind.causal, max_new_tokens=8, end_id=14, pause_id=15)
    assert answers == [[], []]


def test_finished_rows_leave_the_batch_and_the_others_answer_as_if_alone(
    model: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model.double()
    rows = rows_of([5, 9, 2, 7, 4, 6, 3, 8, 9, 5])
    options = {"max_new_tokens": 12, "end_id": 14, "pause_id": 15}
    sizes = []

    def counted(logits: torch.Tensor, pause_id: int) -> torch.Tensor:
        sizes.append(len(logits))
        return greedy(logits, pause_id)

    monkeypatch.setattr(generation, "greedy", counted)
    together = decoded(model, rows, AttentionKind.causal, **options)
    monkeypatch.undo()
    lengths = [len(answer) for answer in together]
    assert len(set(lengths)) > 3, "rows end at different steps"
    assert sizes == [sum(length >= step for length in lengths) for step in range(min(12, max(lengths) + 1))]
    for index, length in enumerate(rows.lengths.tolist()):
        one = Rows(
            *(getattr(rows, name)[index : index + 1, :length] for name in ROW_TENSORS),
            *(getattr(rows, name)[index : index + 1] for name in OF_ROWS),
        )
        assert decoded(model, one, AttentionKind.causal, **options) == [together[index]]


@pytest.mark.parametrize("kind", AttentionKind)
@pytest.mark.parametrize("placement", Placement)
def test_decoding_equals_reading_the_whole_row_again_for_every_token(
    model: Decoder, kind: AttentionKind, placement: Placement
) -> None:
    """Greedy decoding written out, one row at a time, without a cache; the cue belongs to the target's side."""
    model = model.double()
    prefixes = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9], [7, 9, 3], [2, 3, 8], [4, 6]]
    expected = []
    for prefix in prefixes:
        pauses = [15] * 3
        ids = [*prefix, *pauses, 13] if placement is Placement.append else [*pauses, *prefix, 13]
        roles = [*sorted([0] * len(prefix) + [1] * 3, reverse=placement is Placement.prepend), 2]
        answer: list[int] = []
        log_probabilities: list[float] = []
        while len(answer) < 6:
            mask = AttentionMask(kind, torch.tensor([roles], dtype=torch.int8))
            logits = model.logits(model(torch.tensor([ids]), mask))[0, -1].detach()
            token = int(logits[:15].argmax())
            log_probabilities.append(float(logits.log_softmax(dim=0)[token]))
            if token == 14:
                break
            answer.append(token)
            ids, roles = [*ids, token], [*roles, 2]
        expected.append((answer, statistics.fmean(log_probabilities)))
    assert len({tuple(answer) for answer, _ in expected}) > 3
    width = max(map(len, prefixes))
    rows = inference_rows(
        torch.tensor([prefix + [14] * (width - len(prefix)) for prefix in prefixes]),
        torch.tensor([len(prefix) for prefix in prefixes]),
        torch.tensor([13]),
        PausePolicy(k=3, placement=placement),
        pause_id=15,
        pad_id=14,
    )
    answers = generate(model, rows, kind, max_new_tokens=6, end_id=14, pause_id=15)
    assert [answer.tokens for answer in answers] == [answer for answer, _ in expected]
    assert [answer.mean_log_probability for answer in answers] == pytest.approx(
        [mean for _, mean in expected], abs=1e-9
    )


@pytest.mark.parametrize("batch_size", [1, 4, 6])
@pytest.mark.parametrize("placement", Placement)
@pytest.mark.parametrize("cue", [[], [13]], ids=["no cue", "cue"])
@pytest.mark.parametrize(
    ("visibility", "m"), [*((visibility, 3) for visibility in PauseVisibility), (PauseVisibility.all, 0)]
)
@pytest.mark.parametrize("shift", [0, 5])
def test_with_the_controls_decoding_equals_reading_the_whole_row_again(
    model: Decoder,
    shift: int,
    visibility: PauseVisibility,
    m: int,
    cue: list[int],
    placement: Placement,
    batch_size: int,
) -> None:
    """Greedy decoding written out without a cache; of a shift's gap, pauses take the beginning."""
    model = model.double()
    kind = AttentionKind.bidirectional
    prefixes = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9], [7, 9, 3], [2, 3, 8], [4, 6]]
    answers = []
    for first in range(0, len(prefixes), batch_size):
        part = prefixes[first : first + batch_size]
        lengths = torch.tensor([len(prefix) for prefix in part])
        padded = torch.tensor([prefix + [14] * (int(lengths.max()) - len(prefix)) for prefix in part])
        layout = RowLayout(
            PausePolicy(k=m, placement=placement, pause_visibility=visibility, shift=shift),
            kind,
            torch.tensor(cue, dtype=torch.int64),
            15,
            14,
        )
        rows = layout.inference_rows(EncodedExamples(padded, lengths, padded[:, :0], lengths * 0))
        answers += generate(
            model, rows, kind, max_new_tokens=6, end_id=14, pause_id=15, visibility=visibility, limit=150
        )
    for prefix, answer in zip(prefixes, answers, strict=True):
        parts = [(prefix, 0), ([15] * m, 1)]
        given_part = [
            (token, role)
            for tokens, role in (parts if placement is Placement.append else parts[::-1])
            for token in tokens
        ]
        ids, roles = [token for token, _ in given_part] + cue, [role for _, role in given_part] + [2] * len(cue)
        behind = (len(prefix) if placement is Placement.append else 0) + m
        readout, expected, log_probabilities = len(ids) - 1, [], []
        while len(expected) < 6:
            positions = [t + max(0, shift - m) * (t >= behind) for t in range(len(ids))]
            marks = torch.arange(len(ids))[None] == readout
            mask = AttentionMask(kind, torch.tensor([roles], dtype=torch.int8), None, visibility, marks)
            logits = model.logits(model(torch.tensor([ids]), mask, torch.tensor([positions])))[0, -1].detach()
            token = int(logits[:15].argmax())
            log_probabilities.append(float(logits.log_softmax(dim=0)[token]))
            if token == 14:
                break
            expected.append(token)
            ids, roles = [*ids, token], [*roles, 2]
        assert answer.tokens == expected
        assert answer.mean_log_probability == pytest.approx(statistics.fmean(log_probabilities), abs=1e-9)


@pytest.mark.parametrize("m", [0, 3, 8])
@pytest.mark.parametrize("placement", Placement)
def test_a_shifted_row_stops_at_the_limit_of_positions_and_its_likelihood_counts_them(
    make_decoder: Models, placement: Placement, m: int
) -> None:
    """Shift 5, limit 40: as much room as with max(5, m) pauses; likelihoods written out row by row."""
    model = make_decoder(16)
    examples = [text(words(length, length), words(9, length)) for length in (1, 20, 31, 60)]
    shifted = with_policy(text_layout(), shift=5, placement=placement)
    evaluator = text_evaluator(model, examples)
    _, predictions = evaluator.evaluate(shifted, m)
    taken, double = max(5, m), copy.deepcopy(model).double()
    for example, row in zip(examples, predictions, strict=True):
        prefix = TOKENIZER.encode(example.prefix)[-(MAX_LENGTH - taken - MAX_LENGTH // 8) :]
        target = [*TOKENIZER.encode(example.target), TOKENIZER.end_id][: MAX_LENGTH - taken - len(prefix)]
        pauses = [TOKENIZER.pause_id] * m
        ids = [*prefix, *pauses, *target] if placement is Placement.append else [*pauses, *prefix, *target]
        behind = m + (len(prefix) if placement is Placement.append else 0)
        positions = [t + (taken - m) * (t >= behind) for t in range(len(ids))]
        assert positions[-1] < MAX_LENGTH
        marks = sorted([0] * len(prefix) + [1] * m, reverse=placement is Placement.prepend) + [2] * len(target)
        mask = AttentionMask(shifted.attention, torch.tensor([marks], dtype=torch.int8))
        logits = double.logits(double(torch.tensor([ids]), mask, torch.tensor([positions])))[0].detach()
        first = len(ids) - len(target)
        chosen = logits.log_softmax(dim=1)[range(first - 1, len(ids) - 1), target]
        assert row["nll"] == pytest.approx(-float(chosen.mean()), abs=1e-8)
    favour(model, 3)
    _, predictions = text_evaluator(model, examples[:3]).evaluate(shifted, m)
    assert [len(row["prediction"].split()) for row in predictions] == [
        MAX_LENGTH - taken - min(length, MAX_LENGTH - taken - 5) + 1 for length in (1, 20, 31)
    ]


@pytest.mark.parametrize("visibility", PauseVisibility)
def test_with_hidden_pauses_scores_are_the_same_for_batch_sizes_1_7_and_64(
    make_decoder: Models, world_config: Worlds, visibility: PauseVisibility
) -> None:
    world = RaggedWorld(world_config("count20"))
    layout = with_policy(layout_of(RAGGED, world), pause_visibility=visibility)
    model = answering(make_decoder, world, "even odd")
    whole = evaluated(model, RAGGED, world, layout, 64, 4)
    assert evaluated(model, RAGGED, world, layout, 7, 4) == evaluated(model, RAGGED, world, layout, 1, 4) == whole
    other = with_policy(layout, pause_visibility=PauseVisibility.all)
    visible = evaluated(model, RAGGED, world, other, 64, 4)
    if visibility is not PauseVisibility.all:
        assert visible[0]["target_nll"] != whole[0]["target_nll"]
        said, said_visible = ([row["prediction"] for row in rows] for _, rows in (whole, visible))
        assert said != said_visible, "decoded with hidden pauses, too"


def test_an_answer_is_never_longer_than_asked(make_decoder: Models) -> None:
    model = make_decoder(16)
    favour(model, 3)
    for limit in (1, 5):
        options = {"max_new_tokens": limit, "end_id": 14, "pause_id": 15}
        assert decoded(model, rows_of([4, 2]), AttentionKind.causal, **options) == [[3] * limit] * 2


@pytest.mark.parametrize("kind", AttentionKind)
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_a_row_at_the_limit_stops_by_itself_whatever_batch_it_is_in(
    model: Decoder, kind: AttentionKind, batch_size: int
) -> None:
    model = model.double()
    rows = rows_of([5, 9, 2, 7, 10, 6, 3, 8, 9, 1])
    options = {"max_new_tokens": 20, "end_id": 14, "pause_id": 15}
    unlimited = decoded(model, rows, kind, **options)
    stopped = 0
    for first in range(0, 10, batch_size):
        part = Rows(*(getattr(rows, name)[first : first + batch_size] for name in (*ROW_TENSORS, *OF_ROWS)))
        width = int(part.lengths.max())
        part = dataclasses.replace(part, **{name: getattr(part, name)[:, :width] for name in ROW_TENSORS})
        answers = decoded(model, part, kind, limit=10, **options)
        for answer, length, whole in zip(answers, part.lengths.tolist(), unlimited[first:], strict=False):
            assert answer == whole[: 10 - length + 1], "one token is read off the last position"
            stopped += len(answer) < len(whole)
    assert 3 < stopped < 10, "some rows are stopped, others end by themselves"


def test_without_a_limit_rows_stop_where_the_position_table_ends(make_decoder: Models) -> None:
    model = make_decoder(16, max_positions=12)
    favour(model, 3)
    options = {"max_new_tokens": 99, "end_id": 14, "pause_id": 15}
    answers = decoded(model, rows_of([4, 12, 11]), AttentionKind.causal, **options)
    assert [len(answer) for answer in answers] == [9, 1, 2]


# Text: prefixes and answers of any length

TOKENIZER = WordTokenizer([f"w{number}" for number in range(14)])
M, MAX_LENGTH = 3, 40
LONGEST_PREFIX = MAX_LENGTH - M - MAX_LENGTH // 8


def words(count: int, seed: int) -> str:
    draw = random.Random(seed)
    return " ".join(f"w{draw.randrange(14)}" for _ in range(count))


def text(prefix: str, target: str) -> Example:
    return Example(prefix, target, (target, "w3"))


def text_evaluator(
    model: Decoder, examples: list[Example], batch_size: int = 32, *, task: Task = TASKS["squad"], **options: Any
) -> Evaluator:
    return Evaluator(model, task, examples, TOKENIZER, batch_size=batch_size, max_length=MAX_LENGTH, **options)


def text_layout(kind: AttentionKind = AttentionKind.bidirectional) -> RowLayout:
    empty = torch.zeros(0, dtype=torch.int64)
    return RowLayout(PausePolicy(k=0), kind, empty, TOKENIZER.pause_id, TOKENIZER.end_id)


def prefixes_read(evaluator: Evaluator, layout: RowLayout, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What stands before the pauses when decoding begins, sorted by text."""
    read = []

    prefill = FastDecoder.prefill

    def recorded(model: FastDecoder, rows: Rows, *given: Any) -> Prefill:
        for ids, length in zip(rows.input_ids.tolist(), rows.lengths.tolist(), strict=True):
            assert ids[length - M : length] == [TOKENIZER.pause_id] * M
            read.append(TOKENIZER.decode(ids[: length - M]))
        return prefill(model, rows, *given)

    monkeypatch.setattr(FastDecoder, "prefill", recorded)
    evaluator.evaluate(layout, M)
    monkeypatch.undo()
    return sorted(read)


@pytest.mark.parametrize("kind", [AttentionKind.causal, AttentionKind.bidirectional])
@pytest.mark.parametrize("name", ["squad", "gsm8k"])
def test_a_text_tasks_scores_are_the_same_for_batch_sizes_1_7_and_32(
    model: Decoder, kind: AttentionKind, name: str
) -> None:
    draw = random.Random(0)
    examples = [text(words(draw.randint(1, 60), i), words(draw.randint(1, 9), 100 + i)) for i in range(40)]
    whole, *others = (
        scored(text_evaluator(model, examples, size, task=TASKS[name]), text_layout(kind), M) for size in (32, 7, 1)
    )
    result, predictions = whole
    assert 10 < result["truncated"] < 30
    assert set(result["metrics"]) == set(TASKS[name].metrics)
    assert len({len(row["prediction"].split()) for row in predictions}) > 5
    assert [row["prefix"] for row in predictions] == [example.prefix for example in examples], "whole, in order"
    assert all(other == whole for other in others)


def test_an_answer_of_text_is_as_long_as_asked_or_as_there_are_positions(make_decoder: Models) -> None:
    model = make_decoder(16)
    favour(model, 3)
    examples = [text(words(length, length), "w1") for length in (1, 20, LONGEST_PREFIX, 60)]
    _, predictions = text_evaluator(model, examples).evaluate(text_layout(), M)
    assert [len(row["prediction"].split()) for row in predictions] == [37, 18, 6, 6]
    _, predictions = text_evaluator(model, examples, max_new_tokens=7).evaluate(text_layout(), M)
    assert [len(row["prediction"].split()) for row in predictions] == [7, 7, 6, 6]


def test_a_prefix_longer_than_the_room_loses_its_beginning_whatever_the_answer(
    model: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefixes = [words(length, length) for length in (5, LONGEST_PREFIX, LONGEST_PREFIX + 1, 60)]
    expected = sorted(" ".join(prefix.split()[-LONGEST_PREFIX:]) for prefix in prefixes)
    said = []
    for answer in (1, 4, 5, 30):
        evaluator = text_evaluator(model, [text(prefix, words(answer, 0)) for prefix in prefixes])
        assert prefixes_read(evaluator, text_layout(), monkeypatch) == expected
        result, predictions = evaluator.evaluate(text_layout(), M)
        assert result["truncated"] == 2
        assert [row["prefix"] for row in predictions] == prefixes, "shown whole"
        said.append([row["prediction"] for row in predictions])
    assert all(row == said[0] for row in said)


def test_an_answer_of_fixed_length_has_the_room_it_needs(make_decoder: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    task = dataclasses.replace(RELAY, answer_tokens=12, cue="")
    room = MAX_LENGTH - M - 12
    prefixes = [words(length, length) for length in (3, room, room + 1, 30)]
    evaluator = text_evaluator(make_decoder(16), [text(prefix, words(12, 0)) for prefix in prefixes], task=task)
    expected = sorted(" ".join(prefix.split()[-room:]) for prefix in prefixes)
    assert prefixes_read(evaluator, text_layout(), monkeypatch) == expected
    assert evaluator.evaluate(text_layout(), M)[0]["truncated"] == 2


def test_more_pauses_leave_a_prefix_less_room(make_decoder: Models) -> None:
    evaluator = text_evaluator(make_decoder(16), [text(words(length, 0), "w1") for length in (20, 25, 30, 35)])
    cut = [evaluator.evaluate(text_layout(), m)[0]["truncated"] for m in (0, 3, 10, 20)]
    assert cut == [0, 1, 2, 4]


@pytest.mark.parametrize("kind", AttentionKind)
def test_a_long_targets_likelihood_is_that_of_its_beginning(model: Decoder, kind: AttentionKind) -> None:
    """As many tokens as there are positions left, the end token the last of them; written out without batches."""
    sizes = [(1, 50), (20, 50), (LONGEST_PREFIX, 50), (60, 50), (30, 5), (30, 6), (30, 7), (60, 1)]
    examples = [text(words(prefix, prefix), words(target, 9)) for prefix, target in sizes]
    _, predictions = text_evaluator(model, examples).evaluate(text_layout(kind), M)
    double = copy.deepcopy(model).double()
    for example, row in zip(examples, predictions, strict=True):
        prefix = TOKENIZER.encode(example.prefix)[-LONGEST_PREFIX:]
        beginning = [*TOKENIZER.encode(example.target), TOKENIZER.end_id][: MAX_LENGTH - M - len(prefix)]
        ids = [*prefix, *[TOKENIZER.pause_id] * M, *beginning]
        roles = torch.tensor([[0] * len(prefix) + [1] * M + [2] * len(beginning)], dtype=torch.int8)
        logits = double.logits(double(torch.tensor([ids]), AttentionMask(kind, roles)))[0].detach()
        first = len(ids) - len(beginning)
        chosen = logits.log_softmax(dim=1)[range(first - 1, len(ids) - 1), beginning]
        assert row["nll"] == pytest.approx(-float(chosen.mean()), abs=1e-8)


# Target log-likelihood


@pytest.mark.parametrize("kind", AttentionKind)
@pytest.mark.parametrize("placement", Placement)
def test_the_target_log_likelihood_is_the_sum_of_the_models_log_probabilities(
    make_decoder: Models, world_config: Worlds, kind: AttentionKind, placement: Placement
) -> None:
    """Each row alone, full logits, written out from prefix, pauses, cue and target."""
    world, model = RaggedWorld(world_config("count20")), make_decoder(64)
    layout = with_policy(layout_of(RAGGED, world, kind), placement=placement)
    _, predictions = evaluated(model, RAGGED, world, layout, 7, 3)
    for row in predictions[:40]:
        prefix, target = (world.tokenizer.encode(row[name]) for name in ("prefix", "target"))
        target.append(world.tokenizer.end_id)
        pauses = [world.tokenizer.pause_id] * 3
        question = [*prefix, *pauses] if placement is Placement.append else [*pauses, *prefix]
        marks = [0] * len(prefix) + [1] * 3 if placement is Placement.append else [1] * 3 + [0] * len(prefix)
        ids = [*question, *world.tokenizer.encode("MAJ"), *target]
        roles = torch.tensor([marks + [2] * (1 + len(target))], dtype=torch.int8)
        log_probabilities = model.logits(model(torch.tensor([ids]), AttentionMask(kind, roles))).log_softmax(dim=2)[0]
        first = len(ids) - len(target)
        total = sum(float(log_probabilities[first + i - 1, token].detach()) for i, token in enumerate(target))
        assert row["nll"] == pytest.approx(-total / len(target), abs=2e-5)


def test_log_likelihoods_of_all_answers_sum_to_one(make_decoder: Models, world_config: Worlds) -> None:
    """No answer is masked in scoring, ``<pause>`` and the end token included, as in training."""
    world, model = build_world(world_config("count20")), make_decoder(64)
    layout = layout_of(PARITY, world)
    prefixes = [world.tokenizer.encode("1 0 1 PAR")] * 64
    rows = layout.inference_rows(EncodedExamples.of(prefixes, [[]] * 64, world.tokenizer.end_id))
    read = model.prefill(rows, layout.attention, layout.policy.pause_visibility, 5)
    totals = target_log_likelihoods(read, [[token] for token in range(64)])
    assert sum(map(math.exp, totals)) == pytest.approx(1.0, rel=1e-5)


# Metrics


def test_exact_match_wants_one_of_the_references_whole() -> None:
    assert exact_match("even", ("odd", "even")) == 1.0
    assert exact_match("even even", ("even",)) == 0.0
    assert exact_match("", ("even",)) == 0.0


def test_token_accuracy_is_the_share_of_places_that_agree_with_the_best_reference() -> None:
    assert token_accuracy("a b c d", ("a b c d",)) == 1.0
    assert token_accuracy("a x c", ("a b c d",)) == 0.5
    assert token_accuracy("b a", ("a b",)) == 0.0
    assert token_accuracy("", ("a b",)) == 0.0
    assert token_accuracy("a b c d e f", ("a b",)) == 1.0
    assert token_accuracy("a b", ("b a", "a c")) == 0.5


@pytest.mark.parametrize("values", [[0.0, 1.0, 1.0, 0.0, 1.0], [0.25, 0.5, 0.125], [3.0, 3.0]])
def test_the_standard_error_is_scipys(values: list[float]) -> None:
    mean, stderr = mean_and_stderr(values)
    assert mean == pytest.approx(sum(values) / len(values), rel=1e-12)
    assert stderr == pytest.approx(stats.sem(values), rel=1e-12)


def test_one_example_has_no_standard_error() -> None:
    assert mean_and_stderr([0.5]) == (0.5, 0.0)


def test_the_summary_is_the_mean_over_the_predictions(make_decoder: Models, world_config: Worlds) -> None:
    world = build_world(world_config("relay"))
    model = make_decoder(world.tokenizer.vocab_size)
    result, predictions = evaluated(model, RELAY, world, layout_of(RELAY, world), 64, 2)
    accuracies = [token_accuracy(row["prediction"], [row["target"]]) for row in predictions]
    assert (result["metric"], result["n"]) == ("token_accuracy", 60)
    assert 0 < result["value"] == result["metrics"]["token_accuracy"] == pytest.approx(sum(accuracies) / 60)
    assert result["stderr"] == pytest.approx(stats.sem(accuracies))
    assert result["target_nll"] == pytest.approx(sum(row["nll"] for row in predictions) / 60)
    assert result["target_nll_stderr"] == pytest.approx(stats.sem([row["nll"] for row in predictions]))
    assert [row["correct"] for row in predictions] == [row["prediction"] == row["target"] for row in predictions]


def test_a_model_that_knows_the_answer_scores_one(
    make_decoder: Models, world_config: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches are not in the split's order, so a prediction in another row's place would show."""
    world, model = RaggedWorld(world_config("count20")), make_decoder(64)
    targets = {example.prefix: example.target for example in examples_of(RAGGED, world)}
    read: list[int] = []
    prefixes: list[str] = []

    prefill = FastDecoder.prefill

    def recorded(model: FastDecoder, rows: Rows, *given: Any) -> Prefill:
        lengths = rows.lengths.tolist()
        read.extend(lengths)
        prefixes[:] = [
            world.tokenizer.decode(ids[: n - 1]) for ids, n in zip(rows.input_ids.tolist(), lengths, strict=True)
        ]
        return prefill(model, rows, *given)

    def knowing(*_: Any, **__: Any) -> list[Answer]:
        return [Answer(world.tokenizer.encode(targets[prefix]), 0.0) for prefix in prefixes]

    monkeypatch.setattr(FastDecoder, "prefill", recorded)
    monkeypatch.setattr("pausebench.evaluation.evaluator.decode", knowing)
    result, predictions = evaluated(model, RAGGED, world, layout_of(RAGGED, world), 7, 0)
    assert read != [1 + len(row["prefix"].split()) for row in predictions]
    assert all(row["prediction"] == row["target"] for row in predictions)
    assert result["value"] == statistics.fmean(row["target"] in ("even", "even even") for row in predictions)
