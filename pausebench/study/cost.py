"""What a study costs before anybody runs it: tokens, FLOPs, device time, checkpoints, disk and memory.

Pure arithmetic on the configs of its cells: no torch, no files, no network. Time is FLOPs / (peak x mfu), and the mfu
is an assumption that the caller states.

Units: FLOPs, bytes and seconds on one device, unless a name says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pausebench.config.commands import EvaluateConfig
from pausebench.config.devices import Device
from pausebench.config.groups import Arithmetic, ModelConfig, Precision, TrainConfig
from pausebench.config.training import FinetuneConfig, PretrainConfig
from pausebench.model.flops import (
    finetuning_flops,
    matrix_weights,
    parameters,
    scoring_flops,
    training_flops_per_token,
)
from pausebench.model.tuning import TUNING

WEIGHT_BYTES = 4  # float32
CHECKPOINT_BYTES = 3 * WEIGHT_BYTES  # a weight and AdamW's two moments
TRAINING_BYTES = 4 * WEIGHT_BYTES  # the same and the gradient
RESERVE = 0.1  # of a device's memory: the CUDA context, NCCL, cuBLAS, fragmentation, which no formula here counts
TOKEN_CHARACTERS = 4.4  # of English per token of GPT-2
ROW_CHARACTERS = 300  # field names and numbers of a line of predictions.jsonl


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


def step_bytes(
    model: ModelConfig,
    vocab_size: int,
    sequence_length: int,
    rows: int,
    *,
    precision: Precision = Precision.bf16,
    activation_checkpointing: bool = False,
    shards: int = 1,
) -> float:
    """Bytes on one device at the fullest moment of a pretraining step, to a tenth (a test asks torch's own tracker).

    rows: of a micro-batch on one device. shards: devices that share weights, gradients and moments (parallel=fsdp).
    """
    d, m, N = model.d_model, model.d_mlp, rows * sequence_length
    element = 2 if precision is Precision.bf16 else 4
    head = 4 * vocab_size * d  # the head's gradient, which waits in float32 for that of the embeddings
    states = TRAINING_BYTES * parameters(model, vocab_size) / shards
    # Beside them: bf16 copies of the matrices, or with fsdp the gathered embeddings, two blocks and a block's gradient.
    in_use = element * matrix_weights(model, vocab_size) if precision is Precision.bf16 else 0
    if shards > 1:
        in_use = head + 4 * model.max_positions * d + (2 * element + 4) * (4 * d * d + 2 * d * m)
    # A block keeps its norms' inputs in float32, then queries, keys, values, attention's output and the MLP's hidden
    # layer. What norms and activations give is kept only by micro-batches too small to be worth recomputing it.
    stream = 4 * N * d
    block = N * ((8 + 4 * element) * d + element * m)
    whole_block = block + N * element * (2 * d + m)
    logits = min(12 * N * vocab_size, element * TUNING.chunk_logits + 8 * TUNING.gpu_logits)  # the loss works in chunks
    if activation_checkpointing:
        return states + in_use + (model.n_layers + 1) * stream + head + max(logits, whole_block)
    kept = block if N * d >= TUNING.least_numbers else whole_block
    return states + in_use + model.n_layers * kept + stream + head + logits


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
