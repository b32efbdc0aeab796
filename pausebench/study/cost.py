"""What a study costs before anybody runs it: tokens, FLOPs, device time, checkpoints and disk of each cell.

Pure arithmetic on the configs of its cells: no torch, no files, no network. Time is FLOPs / (peak x mfu), and the mfu
is an assumption that the caller states.

Units: FLOPs, bytes and seconds on one device, unless a name says otherwise.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from pausebench.config.commands import EvaluateConfig
from pausebench.config.groups import Arithmetic, ModelConfig, Parallel, Precision, TrainConfig
from pausebench.config.training import FinetuneConfig, PretrainConfig
from pausebench.model.flops import (
    finetuning_flops,
    parameters,
    scoring_flops,
    training_flops_per_token,
)
from pausebench.model.memory import StepMemory, step_memory

WEIGHT_BYTES = 4  # float32
CHECKPOINT_BYTES = 3 * WEIGHT_BYTES  # a weight and AdamW's two moments
TRAINING_BYTES = 4 * WEIGHT_BYTES  # the same and the gradient; activations come on top
RESERVE = 0.1  # of a device's memory, for what model.memory does not count
TOKEN_CHARACTERS = 4.4  # of English a token of GPT-2's
ROW_CHARACTERS = 300  # field names and numbers of a line of predictions.jsonl


@dataclass(frozen=True)
class Device:
    """Peak FLOP/s of dense matrix products in the arithmetic of training (bf16, fp32) and of evaluation (fp64).

    memory: bytes; None where nobody said.
    """

    name: str
    bf16: float
    fp32: float
    fp64: float
    memory: float | None = None

    def with_bf16(self, peak: float) -> Device:
        """Another bf16 peak; the others keep their proportion to it."""
        scale = peak / self.bf16
        return replace(self, bf16=peak, fp32=self.fp32 * scale, fp64=self.fp64 * scale)


# NVIDIA's data sheets, SXM versions, without sparsity: "H100 Tensor Core GPU" (bf16 1,979 with sparsity, half without;
# fp32 67; fp64 tensor core 67; 80 GB), "H200 Tensor Core GPU" (the same; 141 GB), "A100 80GB" (312; 19.5; 19.5).
DEVICES = {
    "h100": Device("h100", 989e12, 67e12, 67e12, 80e9),
    "h200": Device("h200", 989e12, 67e12, 67e12, 141e9),
    "a100": Device("a100", 312e12, 19.5e12, 19.5e12, 80e9),
}


@dataclass(frozen=True)
class RowLengths:
    """Mean tokens of a task's rows, and how many rows are scored.

    train_prefix, train_target, test_prefix: without pauses; targets with their end token. answer: what is decoded for
    a row, or the candidates' mean. candidates: 0 where answers are decoded. readings: windows a test row is read in.
    """

    train_prefix: float
    train_target: float
    test_prefix: float
    answer: float
    test_rows: int
    candidates: int = 0
    readings: float = 1.0
    cue: int = 0


# Published rows in GPT-2's tokens, for plans that must not touch the network; a test measures them again. CoQA's and
# HellaSwag's training rows are taken to be as long as their validation rows, lambada's as OpenAI's version's.
TYPICAL = {
    "squad": RowLengths(178.6, 4.9, 166.0, 4.4, 10_570),
    "gsm8k": RowLengths(60.7, 73.4, 60.6, 72.5, 1_319),
    "commonsense_qa": RowLengths(41.8, 2.7, 41.5, 2.7, 1_221),
    "lambada": RowLengths(82.6, 2.3, 82.6, 2.3, 5_153),
    "lambada_openai": RowLengths(82.6, 2.3, 82.6, 2.3, 5_153),
    "web_questions": RowLengths(14.6, 4.4, 14.7, 4.3, 2_032),
    "natural_questions": RowLengths(15.3, 4.1, 15.4, 4.2, 3_610),
    "coqa": RowLengths(485.7, 4.2, 485.7, 4.2, 7_983),
    "piqa": RowLengths(13.5, 22.7, 13.7, 22.7, 1_838, candidates=2),
    "hellaswag": RowLengths(39.6, 21.9, 39.6, 21.8, 10_042, candidates=4),
}


@dataclass(frozen=True)
class Cost:
    """Of one cell, or the sum of several.

    seconds: on one device. longest: seconds of the longest cell. checkpoints: files that stay. disk: bytes that stay,
    checkpoints and predictions. written: bytes of all checkpoints ever written.
    """

    cells: int = 0
    tokens: float = 0.0
    flops: float = 0.0
    seconds: float = 0.0
    longest: float = 0.0
    checkpoints: int = 0
    disk: float = 0.0
    written: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        mine, theirs = asdict(self), asdict(other)
        longest = max(self.longest, other.longest)
        return Cost(**{name: mine[name] + theirs[name] for name in mine} | {"longest": longest})

    def wall_seconds(self, devices: int) -> float:
        """With the work divided evenly over the devices."""
        return self.seconds / devices

    def wall_seconds_undivided(self, devices: int) -> float:
        """With one device a run, the least that any order of the cells can take."""
        return max(self.longest, self.seconds / devices)


@dataclass(frozen=True)
class PlannedCell:
    """A cell of a study. paid: it is done."""

    command: str
    name: str
    paid: bool
    cost: Cost


def total(cells: Sequence[PlannedCell]) -> Cost:
    return sum((cell.cost for cell in cells), Cost())


def pretrain_cost(config: PretrainConfig, vocab_size: int, device: Device, mfu: float) -> Cost:
    """tokens = steps x batch x length; FLOPs = tokens x (6 x matrix weights + 12 x layers x width x length).

    A validation row costs a forward pass, a third of a training row.
    """
    assert config.sequence_length is not None
    row = config.sequence_length * training_flops_per_token(config.model, vocab_size, config.sequence_length)
    tokens = config.train.steps * config.train.batch_size * config.sequence_length
    return _trained(config, vocab_size, device, mfu, row, tokens)


@dataclass(frozen=True)
class Layout:
    """One way to spread a pretraining over devices.

    rows, largest_rows: of a micro-batch on one device, as configured and the most that fit (None where nobody said how
    much memory the device has). fits: whether the configured ones do.
    """

    devices: int
    parallel: Parallel
    activation_checkpointing: bool
    rows: int
    memory: StepMemory
    fits: bool | None
    largest_rows: int | None
    tokens_per_second: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"parallel": self.parallel.value}


def layouts(
    config: PretrainConfig, vocab_size: int, device: Device, mfu: float, device_counts: Sequence[int]
) -> list[Layout]:
    """Each number of devices with ddp and fsdp, activations kept and recomputed.

    tokens/s = devices x peak x mfu / FLOPs a token. What is recomputed is work as well, though MFU does not count it:
    a third of the blocks' FLOPs comes on top, and the same share of the peak is taken to be reached.
    """
    model, length = config.model, config.sequence_length
    assert length is not None
    flops = training_flops_per_token(model, vocab_size, length)
    recomputed = (flops - 6 * vocab_size * model.d_model) / 3
    peak = device.bf16 if config.precision is Precision.bf16 else device.fp32
    room = None if device.memory is None else (1 - RESERVE) * device.memory
    found = []
    for devices in device_counts:
        share = math.ceil(config.train.batch_size / devices)
        rows = min(config.train.micro_batch_size or share, share)
        for parallel in Parallel if devices > 1 else [Parallel.ddp]:
            for checkpointing in (False, True):
                memory = partial(
                    step_memory,
                    model,
                    vocab_size,
                    length,
                    precision=config.precision,
                    devices=devices,
                    parallel=parallel,
                    activation_checkpointing=checkpointing,
                )
                largest = None if room is None else _largest_rows(memory, room, share)
                speed = min(devices, config.train.batch_size) * peak * mfu / (flops + checkpointing * recomputed)
                fits = None if largest is None else rows <= largest
                found.append(Layout(devices, parallel, checkpointing, rows, memory(rows), fits, largest, speed))
    return found


def _largest_rows(memory: Callable[[int], StepMemory], room: float, most: int) -> int:
    return bisect_right(range(1, most + 1), room, key=lambda rows: memory(rows).total)


def finetune_cost(config: FinetuneConfig, lengths: RowLengths, vocab_size: int, device: Device, mfu: float) -> Cost:
    """rows = steps x batch; a row has prefix + K + target - 1 positions (``finetuning_flops``)."""
    prefix, target = lengths.train_prefix + config.longest, lengths.train_target
    row = finetuning_flops(config.model, vocab_size, prefix, target, config.prefix, lengths.cue)
    tokens = config.train.steps * config.train.batch_size * (prefix + lengths.cue + target - 1)
    return _trained(config, vocab_size, device, mfu, row, tokens)


def _trained(
    config: PretrainConfig | FinetuneConfig, vocab_size: int, device: Device, mfu: float, row: float, tokens: float
) -> Cost:
    train = config.train
    validated = math.ceil(train.steps / train.validate_every) * train.validation_rows
    flops = row * (train.steps * train.batch_size + validated / 3)
    peak = device.bf16 if config.precision is Precision.bf16 else device.fp32
    size = checkpoint_bytes(config.model, vocab_size)
    kept = checkpoints_kept(train)
    seconds = flops / (peak * mfu)
    return Cost(1, tokens, flops, seconds, seconds, kept, kept * size, checkpoints_written(train) * size)


def evaluate_cost(
    config: EvaluateConfig,
    finetuned: FinetuneConfig,
    lengths: RowLengths,
    vocab_size: int,
    device: Device,
    mfu: float,
    answer_tokens: float | None = None,
) -> Cost:
    """Of every M: rows x windows x (the answer and the target's likelihood, or all candidates, behind one prefix).

    answer_tokens: of a decoded answer (None: the mean of the test targets). What several M share is counted for each.
    """
    model, kind = finetuned.model, finetuned.prefix
    rows = lengths.test_rows if config.limit is None else min(config.limit, lengths.test_rows)
    tokens = flops = 0.0
    counts = config.pause_counts(finetuned.longest)
    behind = [lengths.answer] * lengths.candidates or [answer_tokens or lengths.answer, lengths.answer]
    for m in counts:
        given = lengths.test_prefix + m
        readings = rows * lengths.readings
        flops += readings * scoring_flops(model, vocab_size, given, behind, kind, lengths.cue)
        tokens += readings * (given + lengths.cue + sum(behind))
    peaks = {Arithmetic.exact: device.fp64, Arithmetic.fp32: device.fp32, Arithmetic.bf16: device.bf16}
    seconds = flops / (peaks[config.precision] * mfu)
    characters = ROW_CHARACTERS + TOKEN_CHARACTERS * (lengths.test_prefix + 3 * lengths.answer)
    return Cost(1, tokens, flops, seconds, seconds, disk=len(counts) * rows * characters)


def checkpoint_bytes(model: ModelConfig, vocab_size: int) -> int:
    """Of one file: float32 weights and AdamW's two moments."""
    return CHECKPOINT_BYTES * parameters(model, vocab_size)


def checkpoints_written(train: TrainConfig) -> int:
    return math.ceil(train.steps / train.checkpoint_every)


def checkpoints_kept(train: TrainConfig) -> int:
    """At most: the newest ``keep_checkpoints``, the final one among them, and the best one."""
    return min(checkpoints_written(train), train.keep_checkpoints + 1)


def typical_lengths(task: str, limit: int, k: int) -> RowLengths | None:
    """The table's row lengths, cut to what a model with ``limit`` positions reads; None for a task it lacks."""
    lengths = TYPICAL.get(task)
    if lengths is None:
        return None
    return replace(
        lengths,
        train_prefix=min(lengths.train_prefix, limit - k - lengths.train_target),
        test_prefix=min(lengths.test_prefix, limit - k - lengths.answer),
    )


def by_command(cells: Sequence[PlannedCell]) -> dict[str, Cost]:
    """The sum of every stage, in the order of the stages."""
    return {
        command: total([c for c in cells if c.command == command])
        for command in dict.fromkeys(c.command for c in cells)
    }


def dominant(stages: dict[str, Cost], quantity: str) -> tuple[str, float]:
    """(The stage with the largest share of a field of ``Cost``, its share)."""
    values = {command: getattr(cost, quantity) for command, cost in stages.items()}
    largest = max(values, key=lambda command: values[command])
    return largest, values[largest] / (sum(values.values()) or 1.0)


def as_json(cells: Sequence[PlannedCell]) -> dict[str, Any]:
    """Every cell, the sums of the stages, and what is still to pay."""
    return {
        "stages": {command: asdict(cost) for command, cost in by_command(cells).items()},
        "total": asdict(total(cells)),
        "to_pay": asdict(total([cell for cell in cells if not cell.paid])),
        "cells": [asdict(cell) for cell in cells],
    }
