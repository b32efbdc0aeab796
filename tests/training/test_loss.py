"""The loss of the global batch: where it is taken, how it is split, and the learning rate of each step."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pausebench.config.groups import AttentionKind, Precision, TrackingConfig, TrainConfig
from pausebench.config.pauses import PausePolicy
from pausebench.console import Progress
from pausebench.data.batch import Batch, Batches
from pausebench.data.batches import EncodedExamples, RowLayout
from pausebench.model.attention import AttentionMask
from pausebench.model.decoder import Decoder
from pausebench.model.fast_loss import loss_to_gradient_, summed_cross_entropy
from pausebench.model.tuning import TUNING, Tuning
from pausebench.pauses import IGNORE_INDEX, draw_places, inject
from pausebench.runs.folder import RunFolder
from pausebench.training.loss import build_optimizer, learning_rate
from pausebench.training.tracking import Tracker
from pausebench.training.trainer import Trainer

CPU = torch.device("cpu")
END, PAUSE, VOCABULARY = 14, 15, 16


def pretraining_batch(rows: int = 64, length: int = 20) -> Batch:
    """Documents of very different lengths with pauses: rows differ in what they supervise."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 14, (rows, length), generator=generator)
    lengths = torch.randint(1, length, (rows, 1), generator=generator)
    supervised = torch.arange(length) <= lengths
    input_ids, labels = inject(
        tokens.where(torch.arange(length) < lengths, END),
        supervised,
        draw_places(0, torch.arange(rows), length, 4),
        PAUSE,
    )
    return Batch(input_ids, labels, AttentionMask(AttentionKind.causal), length)


def finetuning_batch(kind: AttentionKind, rows: int = 64) -> Batch:
    """Ragged prefixes and targets with three pauses."""
    generator = torch.Generator().manual_seed(1)
    examples = EncodedExamples(
        torch.randint(0, 14, (rows, 9), generator=generator),
        torch.randint(1, 10, (rows,), generator=generator),
        torch.randint(0, 14, (rows, 6), generator=generator),
        torch.randint(1, 7, (rows,), generator=generator),
    )
    cue = torch.tensor([13])
    return RowLayout(PausePolicy(k=3), kind, cue, PAUSE, END).training_batch(examples)


BATCHES = {
    "pretraining": pretraining_batch(),
    **{f"finetuning, {kind.value}": finetuning_batch(kind) for kind in AttentionKind},
}


@pytest.fixture(params=list(BATCHES))
def batch(request: pytest.FixtureRequest) -> Batch:
    return BATCHES[request.param]


def gradients(model: Decoder) -> list[Tensor]:
    return [p.grad if p.grad is not None else torch.zeros_like(p) for p in model.parameters()]


# Where it is taken


def test_the_loss_is_the_cross_entropy_summed_over_supervised_positions(
    make_decoder: Callable[..., Decoder], batch: Batch
) -> None:
    model = make_decoder(VOCABULARY)
    logits = model.logits(model(batch.input_ids, batch.mask))
    expected = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum")
    torch.testing.assert_close(model.summed_loss(batch), expected, rtol=1e-5, atol=1e-4)


def test_every_supervised_position_is_among_the_last_ones_that_are_computed(batch: Batch) -> None:
    assert (batch.labels[:, : -batch.last] == IGNORE_INDEX).all() or batch.last == batch.labels.shape[1]


@pytest.mark.parametrize("logits_at_once", [1, 3 * 23, 8 * 23])
def test_the_loss_in_chunks_equals_the_loss_in_one_piece(logits_at_once: int) -> None:
    generator = torch.Generator().manual_seed(2)
    hidden, head = torch.randn(37, 8, generator=generator), torch.randn(23, 8, generator=generator)
    labels = torch.randint(0, 23, (37,), generator=generator)

    def value_and_gradients(tuning: Tuning) -> list[Tensor]:
        inputs = (hidden.clone().requires_grad_(), head.clone().requires_grad_())
        value = summed_cross_entropy(*inputs, labels, tuning=tuning)
        return [value, *torch.autograd.grad(value, inputs)]

    whole, in_chunks = value_and_gradients(TUNING), value_and_gradients(Tuning(chunk_logits=logits_at_once))
    for chunked, expected in zip(in_chunks, whole, strict=True):
        torch.testing.assert_close(chunked, expected, rtol=1e-5, atol=1e-5)


def test_chunks_hold_no_more_logits_than_they_may() -> None:
    seen = []

    def recorded(logits: Tensor, labels: Tensor, rows_at_once: int) -> Tensor:
        seen.append(logits.numel())
        return loss_to_gradient_(logits, labels, rows_at_once)

    hidden, head, labels = torch.randn(37, 8), torch.randn(23, 8), torch.zeros(37, dtype=torch.int64)
    summed_cross_entropy(hidden, head, labels, to_gradient=recorded, tuning=Tuning(chunk_logits=5 * 23))
    assert max(seen) <= 5 * 23


# How it is split


def stepped(model: Decoder, batch: Batch, micro_batch_size: int | None, folder: Path) -> tuple[Decoder, float, float]:
    """Model, loss and gradient norm after one step of plain gradient descent at rate 1 (Adam would hide a scale)."""
    model = copy.deepcopy(model)
    rows = len(batch.input_ids)
    config = TrainConfig(steps=2, batch_size=rows, micro_batch_size=micro_batch_size, lr=1.0, warmup_steps=1, clip=1e6)
    progress = Progress("test", 2, quiet=True)
    trainer = Trainer(
        model,
        Batches(lambda first, count: [batch] * count, 1, lambda count: batch),
        config,
        RunFolder(folder, "finetune", "test"),
        precision=Precision.fp32,
        device=CPU,
        tracker=Tracker(TrackingConfig(enabled=False), folder, "test", {}, {}, progress),
        progress=progress,
    )
    trainer.optimizer = torch.optim.SGD(model.parameters())  # type: ignore[assignment]
    trainer.optimize(1, batch, batch.supervised)
    taken = trainer._unread[0]
    return model, float(taken.loss), float(taken.norm)


@pytest.mark.parametrize("micro_batch_size", [64, 7, 1])
def test_a_step_does_not_depend_on_the_split_into_micro_batches(
    make_decoder: Callable[..., Decoder], batch: Batch, micro_batch_size: int, tmp_path: Path
) -> None:
    counts = {int((part != IGNORE_INDEX).sum()) for part in torch.split(batch.labels, 7)}
    assert len(counts) > 3, "parts supervise different numbers of positions: a mean of means would be wrong"
    model = make_decoder(VOCABULARY)
    whole, whole_loss, whole_norm = stepped(model, batch, None, tmp_path)
    split, split_loss, split_norm = stepped(model, batch, micro_batch_size, tmp_path)
    assert split_loss == pytest.approx(whole_loss, rel=1e-5)
    assert split_norm == pytest.approx(whole_norm, rel=1e-5)
    for name, parameter in split.named_parameters():
        torch.testing.assert_close(parameter, whole.get_parameter(name), rtol=1e-5, atol=2e-6)


def test_a_step_descends_the_mean_over_the_supervised_positions_of_the_whole_batch(
    make_decoder: Callable[..., Decoder], batch: Batch, tmp_path: Path
) -> None:
    model = make_decoder(VOCABULARY)
    after, step_loss, step_norm = stepped(model, batch, 7, tmp_path)
    logits = model.logits(model(batch.input_ids, batch.mask))
    mean = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORE_INDEX)
    mean.backward()
    assert step_loss == pytest.approx(float(mean.detach()), rel=1e-5)
    assert step_norm == pytest.approx(float(torch.cat([g.flatten() for g in gradients(model)]).norm()), rel=1e-5)
    for (name, before), gradient in zip(model.named_parameters(), gradients(model), strict=True):
        torch.testing.assert_close(after.get_parameter(name), before - gradient, rtol=1e-5, atol=2e-6)


# Optimiser


def test_the_rate_rises_to_its_peak_and_falls_along_a_cosine_to_its_last_share() -> None:
    config = TrainConfig(steps=100, lr=2e-3, warmup_steps=10, min_lr_fraction=0.05)
    assert learning_rate(1, config) == pytest.approx(2e-4)
    assert learning_rate(5, config) == pytest.approx(1e-3)
    assert learning_rate(10, config) == pytest.approx(2e-3)
    assert learning_rate(55, config) == pytest.approx(2e-3 * (0.05 + 0.95 / 2))  # half-way down
    assert learning_rate(100, config) == pytest.approx(1e-4)
    rates = [learning_rate(step, config) for step in range(1, 101)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[9:] == sorted(rates[9:], reverse=True)


def test_warm_up_takes_five_percent_of_the_steps_where_none_is_given() -> None:
    assert TrainConfig(steps=3500).resolved().warmup_steps == 175
    assert TrainConfig(steps=3500, warmup_steps=0).resolved().warmup_steps == 0


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (5, 5), (5, 0)])
def test_short_runs_have_a_rate_above_zero_at_every_step(steps: int, warmup: int) -> None:
    config = TrainConfig(steps=steps, lr=1e-3, warmup_steps=warmup)
    assert all(0 < learning_rate(step, config) <= 1e-3 for step in range(1, steps + 1))


def test_a_last_share_of_one_keeps_the_peak() -> None:
    config = TrainConfig(steps=50, lr=1e-3, warmup_steps=5, min_lr_fraction=1.0)
    assert {learning_rate(step, config) for step in range(5, 51)} == {1e-3}


def test_weight_decay_falls_on_matrices_alone(make_decoder: Callable[..., Decoder]) -> None:
    model = make_decoder(VOCABULARY)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    config = dataclasses.replace(TrainConfig(), lr=0.1, weight_decay=0.5)
    optimizer = build_optimizer(model, config)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        shrunk = 1 - 0.1 * 0.5 if parameter.ndim == 2 else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * shrunk, msg=name)
