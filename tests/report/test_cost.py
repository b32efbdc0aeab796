"""Costs by formula: checked by hand, against files that training really writes, and against published rows."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from statistics import fmean

import pytest
import torch

from pausebench.config.commands import EvaluateConfig
from pausebench.config.devices import DEVICES, Device
from pausebench.config.groups import (
    Arithmetic,
    CorpusConfig,
    DataConfig,
    ModelConfig,
    Precision,
    Source,
    TaskConfig,
    TokenizerConfig,
    TokenizerKind,
    TrackingConfig,
    TrainConfig,
    WorldConfig,
)
from pausebench.config.training import FinetuneConfig, PretrainConfig
from pausebench.data.examples import encode
from pausebench.data.files import has_split, read_split
from pausebench.data.tokenizer import BpeTokenizer
from pausebench.model.decoder import Decoder
from pausebench.model.flops import finetuning_flops, scoring_flops
from pausebench.study import cost
from pausebench.study.cost import TYPICAL, Cost, PlannedCell, RowLengths
from pausebench.tasks import TASKS
from pausebench.training import checkpoint
from pausebench.training.loss import build_optimizer

ONE_B = ModelConfig("1b", n_layers=24, n_heads=32, d_model=2048, d_mlp=8192, max_positions=16384)
V = 50258
GROUPS = {
    "model": ONE_B,
    "data": DataConfig(Source.hub),
    "corpus": CorpusConfig("c4"),
    "world": WorldConfig("english", kind="english", sequence_length=80),
    "tokenizer": TokenizerConfig(TokenizerKind.gpt2),
    "tracking": TrackingConfig(enabled=False),
    "precision": Precision.bf16,
}
PAPER = TrainConfig(steps=381_470, batch_size=256, validate_every=1000, checkpoint_every=1000)
PRETRAIN = PretrainConfig(**GROUPS, sequence_length=2048, train=PAPER)
TRAIN = TrainConfig(steps=600, batch_size=32, validate_every=200, checkpoint_every=200)
FINETUNE = FinetuneConfig(**GROUPS, task=TaskConfig("piqa"), k=10, train=TRAIN)
LENGTHS = RowLengths(100.0, 5.0, 90.0, 4.0, test_rows=50)


def test_pretraining_of_the_paper_costs_200_billion_tokens_and_its_time_follows_from_them() -> None:
    spent = cost.pretrain_cost(PRETRAIN, V, DEVICES["h100"], 0.4)
    per_token = 6 * (24 * 12 * 2048**2 + V * 2048) + 12 * 24 * 2048 * 2048
    assert spent.tokens == 381_470 * 256 * 2048 == pytest.approx(200e9, rel=1e-4)
    assert spent.flops == pytest.approx(spent.tokens * per_token, rel=1e-3), "validation is under a thousandth"
    assert spent.flops > spent.tokens * per_token
    assert spent.seconds == pytest.approx(spent.flops / (989e12 * 0.4))


def test_arithmetic_in_float32_takes_the_peak_of_float32() -> None:
    slow = cost.pretrain_cost(dataclasses.replace(PRETRAIN, precision=Precision.fp32), V, DEVICES["a100"], 0.5)
    assert slow.seconds == pytest.approx(slow.flops / (19.5e12 * 0.5))


def test_a_finetuning_costs_its_rows_with_pauses_and_a_third_for_each_validation_row() -> None:
    spent = cost.finetune_cost(FINETUNE, LENGTHS, V, DEVICES["h100"], 0.4)
    row = finetuning_flops(ONE_B, V, 110, 5)
    assert spent.flops == pytest.approx(row * (600 * 32 + 3 * 256 / 3))
    assert spent.tokens == 600 * 32 * (110 + 5 - 1)


@pytest.mark.parametrize(("limit", "rows"), [(None, 50), (20, 20), (1000, 50)])
def test_an_evaluation_costs_an_answer_in_every_window_and_a_target_for_each_m(limit: int | None, rows: int) -> None:
    lengths = dataclasses.replace(LENGTHS, readings=2.0)
    spent = cost.evaluate_cost(
        EvaluateConfig(run="x", mt=[0, 10], limit=limit), FINETUNE, lengths, V, DEVICES["h100"], 0.4
    )
    windows = [scoring_flops(ONE_B, V, 90 + m, [4, 4]) for m in (0, 10)]
    assert spent.flops == pytest.approx(rows * 2 * sum(windows))
    assert spent.seconds == pytest.approx(spent.flops / (67e12 * 0.4)), "float64"


def test_a_scored_evaluation_costs_every_candidate() -> None:
    lengths = dataclasses.replace(LENGTHS, candidates=4)
    spent = cost.evaluate_cost(EvaluateConfig(run="x", mt=[10]), FINETUNE, lengths, V, DEVICES["h100"], 0.4)
    assert spent.flops == pytest.approx(50 * scoring_flops(ONE_B, V, 100, [4] * 4))
    assert spent.flops < 50 * 4 * scoring_flops(ONE_B, V, 100, [4]), "the prefix is read once"


def test_an_evaluation_takes_the_peak_of_its_precision() -> None:
    device = Device("own", 4e12, 2e12, 1e12)
    for precision, peak in zip(Arithmetic, (1e12, 2e12, 4e12), strict=True):
        config = EvaluateConfig(run="x", mt=[10], precision=precision)
        spent = cost.evaluate_cost(config, FINETUNE, LENGTHS, V, device, 0.4)
        assert spent.seconds == pytest.approx(spent.flops / (peak * 0.4))


def test_longer_answers_cost_more() -> None:
    config, device = EvaluateConfig(run="x", mt=[10]), DEVICES["h100"]
    short, long = (cost.evaluate_cost(config, FINETUNE, LENGTHS, V, device, 0.4, tokens) for tokens in (None, 200))
    assert long.flops > 2 * short.flops


def test_a_checkpoint_is_as_large_as_the_formula_says(tmp_path: Path, make_decoder: Callable[..., Decoder]) -> None:
    model = make_decoder(500, d_model=64, d_mlp=256)
    optimizer = build_optimizer(model, TRAIN)
    model(torch.ones(1, 4, dtype=torch.int64)).sum().backward()
    optimizer.step()
    checkpoint.save_checkpoint(tmp_path, 1, model, optimizer, {})
    size = checkpoint.path_of(tmp_path, 1).stat().st_size
    assert size == pytest.approx(cost.checkpoint_bytes(model.config, 500), rel=0.02), "names and step counts on top"


@pytest.mark.parametrize(
    ("steps", "every", "keep", "best"), [(100, 10, 2, 50), (100, 10, 1, 50), (100, 30, 2, 30), (20, 10, 3, 10)]
)
def test_as_many_checkpoints_stay_as_the_formula_says(
    tmp_path: Path, make_decoder: Callable[..., Decoder], steps: int, every: int, keep: int, best: int
) -> None:
    """Saved as the trainer saves: every so many steps and at the last one, pruned after each."""
    train = TrainConfig(steps=steps, checkpoint_every=every, keep_checkpoints=keep)
    model = make_decoder()
    optimizer = build_optimizer(model, train)
    saved = [step for step in range(1, steps + 1) if step % every == 0 or step == steps]
    for step in saved:
        checkpoint.save_checkpoint(tmp_path, step, model, optimizer, {})
        checkpoint.prune(tmp_path, keep, best)
    assert len(saved) == cost.checkpoints_written(train)
    assert len(checkpoint.steps_of(tmp_path)) == cost.checkpoints_kept(train)


def test_wall_time_is_divided_over_devices_but_a_run_on_one_device_takes_its_time() -> None:
    both = Cost(1, seconds=100.0, longest=100.0) + Cost(1, seconds=60.0, longest=60.0)
    assert (both.wall_seconds(8), both.wall_seconds_undivided(8), both.wall_seconds_undivided(1)) == (20, 100, 160)


def test_the_dominant_stage_and_what_is_still_to_pay() -> None:
    cells = [
        PlannedCell("pretrain", "a", True, Cost(1, seconds=90.0)),
        PlannedCell("finetune", "b", False, Cost(1, seconds=7.0)),
        PlannedCell("finetune", "c", False, Cost(1, seconds=3.0)),
    ]
    assert cost.dominant(cost.by_command(cells), "seconds") == ("pretrain", 0.9)
    assert cost.as_json(cells)["to_pay"]["seconds"] == 10.0


def test_another_peak_keeps_the_proportion_of_the_slower_arithmetic() -> None:
    device = DEVICES["h100"].with_bf16(494.5e12)
    assert (device.bf16, device.fp32, device.fp64) == (494.5e12, 33.5e12, 33.5e12)


def test_costs_import_no_torch() -> None:
    code = "import sys, pausebench.study.cost; assert not {'torch', 'hydra'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", [name for name in TYPICAL if name != "lambada"])
def test_typical_lengths_are_those_of_the_published_rows_to_a_tenth(shared_data: Path, name: str) -> None:
    task, lengths = TASKS[name], TYPICAL[name]
    assert task.dataset is not None
    folder = shared_data / "gpt2-tokenizer"
    tokenizer = BpeTokenizer(folder / "vocab.json", folder / "merges.txt")

    def measured(split: str) -> tuple[float, float, int]:
        rows = [located.row for located in read_split(shared_data, task.dataset.name, split)]
        rows = rows[:: max(1, len(rows) // 250)]
        unfolded = chain.from_iterable(
            [row] if task.dataset.unfold is None else task.dataset.unfold(row) for row in rows
        )
        examples = encode([task.to_example(row) for row in unfolded][:1000], task, tokenizer)
        answers = [answer for example in examples for answer in example.candidates or (example.target,)]
        prefix = fmean(len(example.prefix) for example in examples)
        return prefix, fmean(map(len, answers)), round(fmean(len(example.candidates) for example in examples))

    train = (
        task.dataset.train
        if task.dataset.train and has_split(shared_data, task.dataset.name, task.dataset.train)
        else task.dataset.test
    )
    assert (lengths.test_prefix, lengths.answer, lengths.candidates) == pytest.approx(
        measured(task.dataset.test), rel=0.1
    )
    assert (lengths.train_prefix, lengths.train_target) == pytest.approx(measured(train)[:2], rel=0.1)
