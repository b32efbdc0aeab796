"""Rows of a dataset: held out once and for all, a permutation an epoch, the same batch at the same step."""

from __future__ import annotations

import copy
import gzip
import json
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pausebench.config.groups import (
    AttentionKind,
    CorpusConfig,
    DataConfig,
    ModelConfig,
    Source,
    TaskConfig,
    TokenizerConfig,
    TokenizerKind,
    WorldConfig,
)
from pausebench.config.pauses import PausePolicy
from pausebench.config.training import FinetuneConfig
from pausebench.data.batch import Batch, Batches
from pausebench.data.batches import DatasetBatches, RowLayout
from pausebench.data.examples import encode, fit
from pausebench.data.files import Located, read_split
from pausebench.data.task_rows import VALIDATION_MOST, DatasetRows, GeneratedRows, open_task
from pausebench.data.tokenizer import ByteTokenizer
from pausebench.errors import BadInput
from pausebench.pauses import IGNORE_INDEX
from pausebench.tasks import TASKS

Row = dict[str, Any]
MODEL = ModelConfig(name="x", n_layers=1, n_heads=1, d_model=8, d_mlp=8, max_positions=64)
NO_WORLD = WorldConfig(name="english", kind="english", sequence_length=64)
TOKENIZER = ByteTokenizer()
MAKERS: dict[str, Callable[[int], Row]] = {
    "squad": lambda number: {
        "context": f"There are {number} {'very ' * (number % 7)}old lamps.",
        "question": "How many lamps?",
        "answers": {"text": [str(number), f"{number} lamps"], "answer_start": [10, 10]},
    },
    "gsm8k": lambda number: {
        "question": f"What is {number} and one?",
        "answer": f"{number}+1=<<{number}+1={number + 1}>>{number + 1}\n#### {number + 1}",
    },
    "commonsense_qa": lambda number: {
        "question": f"Which word is number {number}?",
        "choices": {"label": ["A", "B"], "text": [f"word {number}", f"word {number + 1}"]},
        "answerKey": "AB"[number % 2],
    },
    "hellaswag": lambda number: {
        "activity_label": "Waiting",
        "ctx_a": f"It is number {number}.",
        "ctx_b": "it",
        "endings": [f"ends in {number} {'so ' * (number % 5)}{word}." for word in ("a", "b", "c", "d")],
        "label": str(number % 4),
    },
}


def located(rows: list[Row], source: str = "memory") -> Iterator[Located]:
    return (Located(row, f"{source}, row {number}") for number, row in enumerate(rows, start=1))


def dataset(name: str, train: int = 100, test: int = 10) -> DatasetRows:
    make = MAKERS[name]
    return DatasetRows(
        TASKS[name], located([make(n) for n in range(train)]), located([make(n) for n in range(1000, 1000 + test)])
    )


@pytest.fixture(params=list(MAKERS))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


# Held out


@pytest.mark.parametrize(("size", "held_out"), [(20, 1), (39, 1), (40, 2), (500, 25), (20 * VALIDATION_MOST + 99, 512)])
def test_one_row_in_twenty_is_held_out_up_to_512(size: int, held_out: int) -> None:
    rows = dataset("gsm8k", size)
    assert len(rows.validation) == len(set(rows.validation)) == held_out
    assert set(rows.validation) <= set(range(size))


def test_a_held_out_row_is_never_trained_on(name: str) -> None:
    rows = dataset(name)
    for seed in (0, 1, 2**31 - 1):
        trained = rows.training(seed, 0, 5 * 95)
        assert not set(trained) & set(rows.validation)
        assert set(trained) | set(rows.validation) == set(range(100))
    assert rows.validation == dataset(name).validation, "the same rows in every run"


def test_held_out_rows_are_spread_over_the_split() -> None:
    held_out = dataset("gsm8k", 1000).validation
    assert held_out != sorted(held_out), "the first of them are a sample, too"
    assert {number // 250 for number in held_out} == {0, 1, 2, 3}


@pytest.mark.parametrize("size", [0, 1, 19])
def test_too_few_rows_are_refused_with_the_number_needed(name: str, size: int) -> None:
    with pytest.raises(BadInput, match=f"{name}/train has {size} rows; at least 20 are needed"):
        dataset(name, size)


# Order


def test_every_epoch_is_a_permutation_of_its_own(name: str) -> None:
    rows = dataset(name)
    epochs = [rows.training(3, 95 * epoch, 95) for epoch in range(4)]
    everything = sorted(set(range(100)) - set(rows.validation))
    assert all(sorted(epoch) == everything for epoch in epochs)
    assert len({tuple(epoch) for epoch in [everything, *epochs]}) == 5


def test_the_order_depends_on_the_seed_alone(name: str) -> None:
    rows = dataset(name)
    whole = rows.training(3, 0, 300)
    assert whole == dataset(name).training(3, 0, 300)
    assert rows.training(4, 0, 300) != whole
    for start, count in ((290, 10), (94, 2), (0, 1), (95, 95), (100, 200)):
        assert rows.training(3, start, count) == whole[start : start + count]


def test_every_row_is_early_in_some_order() -> None:
    rows = dataset("gsm8k")
    firsts = {rows.training(seed, 0, 1)[0] for seed in range(300)}
    assert len(firsts) > 80


# Fingerprints


def fingerprint(name: str, train: list[Row], test: list[Row], source: str = "memory", seed: int = 0) -> str:
    return DatasetRows(TASKS[name], located(train, source), located(test, source)).fingerprint(seed)


def test_equal_rows_have_one_fingerprint_whatever_their_source(name: str, tmp_path: Path) -> None:
    train, test = ([MAKERS[name](n) for n in range(start, start + 40)] for start in (0, 100))
    given = fingerprint(name, train, test)
    more_fields = [{"id": number, **row} for number, row in enumerate(train)]
    assert fingerprint(name, more_fields, copy.deepcopy(test), "hub", seed=5) == given
    (tmp_path / name).mkdir()
    (tmp_path / name / "train.json").write_text(json.dumps(train))
    with gzip.open(tmp_path / name / "test.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(dict(reversed(row.items()))) + "\n" for row in test)
    from_files = DatasetRows(TASKS[name], read_split(tmp_path, name, "train"), read_split(tmp_path, name, "test"))
    assert from_files.fingerprint(0) == given


def test_a_fingerprint_changes_with_every_row_of_both_splits(name: str) -> None:
    train, test = ([MAKERS[name](n) for n in range(start, start + 40)] for start in (0, 100))
    fingerprints = [fingerprint(name, train, test)]
    for number in (0, 17, 39):
        fingerprints.append(fingerprint(name, train, [*test[:number], MAKERS[name](7777), *test[number + 1 :]]))
        fingerprints.append(fingerprint(name, [*train[:number], MAKERS[name](7777), *train[number + 1 :]], test))
    fingerprints.append(fingerprint(name, train, [test[1], test[0], *test[2:]]))
    fingerprints.append(fingerprint(name, train, test[:-1]))
    fingerprints.append(fingerprint(name, train[:-1], [train[-1], *test]))
    assert len(set(fingerprints)) == len(fingerprints)


def test_a_reference_alone_changes_the_fingerprint() -> None:
    train, test = ([MAKERS["squad"](n) for n in range(start, start + 40)] for start in (0, 100))
    other = copy.deepcopy(test)
    other[3]["answers"]["text"].append("many")
    assert fingerprint("squad", train, test) != fingerprint("squad", train, other)


# Rows that make no sense


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("squad", {"answers": {"text": [], "answer_start": []}}, r"does not fit task=squad: answers\.text is \[\]"),
        ("squad", {"answers": {"answer_start": []}}, r"field answers\.text is missing"),
        ("squad", {"answers": None}, r"field answers\.text is missing"),
        ("squad", {"context": None}, "field context is null"),
        ("gsm8k", {"answer": "two"}, "does not fit task=gsm8k: answer ends in 'two'"),
        ("commonsense_qa", {"answerKey": "C"}, "does not fit task=commonsense_qa: answerKey is 'C'"),
        ("commonsense_qa", {"answerKey": ""}, "does not fit task=commonsense_qa: answerKey is ''"),
        ("commonsense_qa", {"choices": {"label": ["A"], "text": 3}}, "does not fit task=commonsense_qa"),
    ],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_broken_row_is_refused_where_it_stands(name: str, change: Row, message: str, split: str) -> None:
    rows = {part: [MAKERS[name](n) for n in range(30)] for part in ("train", "test")}
    rows[split][12] = {**rows[split][12], **change}
    with pytest.raises(BadInput, match=rf"^{split}\.jsonl, row 13.*{message}"):
        DatasetRows(TASKS[name], *(located(rows[part], f"{part}.jsonl") for part in ("train", "test")))


def config(task: str, **options: Any) -> FinetuneConfig:
    given = {"tokenizer": TokenizerConfig(kind=TokenizerKind.byte), "corpus": CorpusConfig(name="c4")} | options
    return FinetuneConfig(task=TaskConfig(name=task), model=MODEL, **{"world": NO_WORLD, **given})


def test_a_task_whose_rows_are_generated_has_none_in_files(tmp_path: Path) -> None:
    for task in ("parity", "mod3", "majority", "relay"):
        given = config(task, data=DataConfig(source=Source.files, root=str(tmp_path)))
        with pytest.raises(BadInput, match=f"task={task} has no rows in data=files.*data=embedded"):
            open_task(given.task, given.text)


def test_files_are_read_by_the_tasks_names_of_its_splits(tmp_path: Path) -> None:
    task = TASKS["commonsense_qa"]
    (tmp_path / "commonsense_qa").mkdir()
    for split, start in (("train", 0), ("validation", 100)):
        lines = [json.dumps(MAKERS["commonsense_qa"](n)) + "\n" for n in range(start, start + 40)]
        (tmp_path / "commonsense_qa" / f"{split}.jsonl").write_text("".join(lines))
    given = config("commonsense_qa", data=DataConfig(source=Source.files, root=str(tmp_path)))
    rows = open_task(given.task, given.text)
    assert isinstance(rows, DatasetRows)
    assert rows.test() == [task.to_example(MAKERS["commonsense_qa"](n)) for n in range(100, 140)]
    assert open_task(given.task, given.text) is rows, "read once a process"
    (tmp_path / "commonsense_qa" / "validation.jsonl").write_text("")
    other = config("commonsense_qa", data=DataConfig(source=Source.files, root=f"{tmp_path}/commonsense_qa/.."))
    with pytest.raises(BadInput, match="has no rows"):
        open_task(other.task, other.text)


def test_a_world_that_has_no_rows_of_the_task_is_refused(world_config: Callable[[str], WorldConfig]) -> None:
    words = TokenizerConfig(kind=TokenizerKind.words)
    for task, world in (("squad", "count20"), ("parity", "relay"), ("relay", "count20")):
        given = config(task, data=DataConfig(), world=world_config(world), tokenizer=words)
        with pytest.raises(BadInput, match=f"task={task} has no rows in world={world}"):
            open_task(given.task, given.text)
    given = config("parity", data=DataConfig(), world=world_config("count20"), tokenizer=words)
    assert isinstance(open_task(given.task, given.text), GeneratedRows)


# Tokens


def test_prefix_and_target_are_encoded_apart_with_an_end_token_behind_decoded_text(name: str) -> None:
    rows = dataset(name)
    encoded = rows.encoded(TOKENIZER)
    assert len(encoded) == 100
    for number in (0, 50, 99):
        example = TASKS[name].to_example(MAKERS[name](number))
        assert TOKENIZER.decode(list(encoded[number].prefix)) == example.prefix
        end = [] if TASKS[name].scored else [TOKENIZER.end_id]
        assert list(encoded[number].target) == [*TOKENIZER.encode(example.target), *end]
    assert rows.longest_target(TOKENIZER) == max(len(row.target) for row in encoded)


def test_answers_of_a_fixed_length_have_no_end_token(world_config: Callable[[str], WorldConfig]) -> None:
    rows = GeneratedRows(TASKS["parity"], world_config("count20"))
    targets = [row.target for row in encode(rows.training(0, 0, 20), rows.task, rows.world.tokenizer)]
    assert {len(target) for target in targets} == {1}
    assert not {rows.world.tokenizer.end_id} & set(chain(*targets))


# Batches


def batches_of(rows: DatasetRows, k: int = 3, limit: int = 1000) -> DatasetBatches:
    layout = RowLayout(
        PausePolicy(k=k), AttentionKind.causal, torch.zeros(0, dtype=torch.int64), TOKENIZER.pause_id, 256
    )
    return DatasetBatches(rows, layout, TOKENIZER, limit)


def texts(batch: Batch) -> list[str]:
    """What the examples of a packed batch read, in the order of their numbers, pauses left out."""
    documents = batch.mask.documents
    assert documents is not None
    ids = [batch.input_ids[documents == number].tolist() for number in range(int(documents.max()) + 1)]
    return [TOKENIZER.decode([token for token in row if token < 256]) for row in ids]


def expected_texts(rows: DatasetRows, numbers: list[int]) -> list[str]:
    encoded = rows.encoded(TOKENIZER)
    return [TOKENIZER.decode([*encoded[number].prefix, *encoded[number].target[:-1]]) for number in numbers]


def tensors(batch: Batch) -> list[Tensor]:
    return [t for t in (*batch[:2], batch.mask.roles, batch.mask.documents, batch.positions) if t is not None]


def same(a: Batch, b: Batch) -> bool:
    return a.last == b.last and all(map(torch.equal, tensors(a), tensors(b)))


@pytest.mark.parametrize("batch_size", [1, 8, 30, 200])
def test_a_batch_has_the_rows_of_its_step(name: str, batch_size: int) -> None:
    """Also where an epoch ends within a batch, and where a batch is longer than an epoch."""
    rows = dataset(name)
    batches = batches_of(rows).batches(5, batch_size)
    for step in (1, 2, 7, 33):
        numbers = rows.training(5, (step - 1) * batch_size, batch_size)
        assert texts(batches.batch(step)) == expected_texts(rows, numbers)
    assert texts(batches.validation(4)) == expected_texts(rows, rows.validation[:4])
    assert texts(batches.validation(99)) == expected_texts(rows, rows.validation)


def test_the_batch_of_a_step_is_a_function_of_the_step(name: str) -> None:
    def opened() -> Batches:
        return batches_of(dataset(name)).batches(5, 16)

    from_the_start = opened()
    batches = {step: from_the_start.batch(step) for step in range(1, 40)}
    for step in (39, 1, 16, 17, 2, 33, 32):  # made 16 steps at a time
        assert same(from_the_start.batch(step), batches[step]), "any order of asking"
        assert same(opened().batch(step), batches[step]), "a run that starts there"
    assert len({tuple(batch.input_ids.flatten().tolist()) for batch in batches.values()}) == 39
    assert not same(batches_of(dataset(name)).batches(6, 16).batch(1), batches[1])


@pytest.mark.parametrize("name", ["gsm8k", "commonsense_qa"])
def test_rows_whose_question_and_answer_do_not_fit_are_left_out_and_counted(name: str) -> None:
    rows = dataset(name)
    lengths = [len(row.prefix) + len(row.target) for row in rows.encoded(TOKENIZER)]
    limit = sorted(lengths)[60] + 3
    for k in (0, 3, 5):
        opened = batches_of(rows, k, limit)
        fitting = {number for number in range(100) if lengths[number] + k <= limit}
        assert opened.left_out == 100 - len(fitting)
        batches = opened.batches(0, 40)
        for step in range(1, 6):
            batch = batches.batch(step)
            numbers = [number for number in rows.training(0, (step - 1) * 40, 40) if number in fitting]
            assert texts(batch) == expected_texts(rows, numbers)
            assert batch.positions is not None and int(batch.positions.max()) + 1 <= limit - 1
    assert batches_of(rows, 3, limit).left_out < 40, "a row as long as the limit fits"
    assert batches_of(rows, 3, max(lengths) + 3).left_out == 0
    assert batches_of(rows, 3, max(lengths) + 2).left_out == lengths.count(max(lengths))


def test_a_row_with_a_long_context_is_trained_with_one_window_by_its_number() -> None:
    rows = dataset("squad")
    encoded = rows.encoded(TOKENIZER)
    most = max(len(row.question) + len(row.target) for row in encoded)
    opened = batches_of(rows, 3, most + 3 + 8)
    windows = set()
    for number, (row, kept) in enumerate(zip(encoded, opened.fitting, strict=True)):
        assert kept is not None
        prefixes, _ = fit(row, most + 8 - len(row.target))
        assert kept == (prefixes[number % len(prefixes)], row.target)
        windows.add(number % len(prefixes))
    assert len(windows) > 2 and opened.truncated > 50 and opened.left_out == 0
    steps = opened.batches(0, 40)
    assert all(int(steps.batch(step).positions.max()) < most + 3 + 8 for step in range(1, 6))


def test_every_k_trains_on_the_same_rows_in_the_same_steps(name: str) -> None:
    rows = dataset(name)
    every_k = [batches_of(rows, k).batches(0, 16) for k in (0, 1, 10)]
    for step in (1, 2, 20):
        plain, *others = (batches.batch(step) for batches in every_k)
        for batch, k in zip(others, (1, 10), strict=True):
            assert texts(batch) == texts(plain)
            assert int((batch.labels != IGNORE_INDEX).sum()) == int((plain.labels != IGNORE_INDEX).sum())
            assert int((batch.input_ids == TOKENIZER.pause_id).sum()) == 16 * k


def test_a_cue_takes_its_place_in_the_limit() -> None:
    rows = dataset("gsm8k")
    longest = max(len(row.prefix) + len(row.target) for row in rows.encoded(TOKENIZER))
    layout = RowLayout(PausePolicy(k=3), AttentionKind.causal, torch.tensor([1, 2]), TOKENIZER.pause_id, 256)
    assert DatasetBatches(rows, layout, TOKENIZER, longest + 5).left_out == 0
    assert DatasetBatches(rows, layout, TOKENIZER, longest + 4).left_out > 0


def test_a_batch_of_which_nothing_fits_says_how_many_rows_are_too_long() -> None:
    with pytest.raises(BadInput, match=r"none of the 8 rows of a batch fits; 100 of 100 rows are too long"):
        batches_of(dataset("squad"), limit=10).batches(0, 8).batch(1)
