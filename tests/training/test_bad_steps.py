"""Steps whose gradient is not finite, or a spike, stop the run or change nothing and are counted."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pausebench import cli
from pausebench.runs.folder import read_metrics
from pausebench.training import checkpoint
from pausebench.training.trainer import Trainer
from tests.training.test_parallel import only_run, start_ranks, wait_for
from tests.training.test_resume import assert_same_end, in_child

WORDS = (
    "pretrain world=count20 model=mini pause=on precision=fp32 threads=1 train.steps=40 train.batch_size=8 "
    "train.log_every=5 train.validate_every=20 train.validation_rows=16 train.checkpoint_every=10 tracking=off "
    "quiet=true"
)


def scale_gradient(at: dict[int, float]) -> None:
    """From now on the gradients of these steps are multiplied by so much."""
    step, clip = Trainer.optimize, torch.nn.utils.clip_grad_norm_
    now = 0

    def noted(self: Trainer, number: int, *given: Any) -> None:
        nonlocal now
        now = number
        step(self, number, *given)

    def scaled(parameters: Any, *given: Any) -> Tensor:
        parameters = list(parameters)
        if now in at:
            for parameter in parameters:
                parameter.grad *= at[now]
        return clip(parameters, *given)

    Trainer.optimize = noted  # type: ignore[method-assign]
    torch.nn.utils.clip_grad_norm_ = scaled


def run_with(at: dict[int, float], words: str) -> int:
    def work() -> int:
        scale_gradient(at)
        return cli.run(words.split())

    return in_child(work)


@pytest.fixture
def said(capfd: pytest.CaptureFixture[str]) -> Callable[[], str]:
    return lambda: capfd.readouterr().err


def test_a_skipped_step_changes_nothing_and_is_counted(tmp_path: Path) -> None:
    words = f"{WORDS} train.on_bad_step=skip runs={tmp_path}"

    def work() -> int:
        scale_gradient({12: float("nan"), 13: float("inf")})
        step = Trainer.optimize

        def watched(self: Trainer, number: int, *given: Any) -> None:
            tensors = {name: tensor.clone() for name, tensor in checkpoint._state(self.model, self.optimizer).items()}
            step(self, number, *given)
            after = checkpoint._state(self.model, self.optimizer)
            same = all(torch.equal(tensor, after[name]) for name, tensor in tensors.items())
            if same != (number in (12, 13)):
                os._exit(7)

        Trainer.optimize = watched  # type: ignore[method-assign]
        return cli.run(words.split())

    assert in_child(work) == 0
    run = only_run(tmp_path, "pretrain")
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["skipped_steps"] for row in rows] == [0, 0, 2, 2, 2, 2, 2, 2]
    assert json.loads((run / "result.json").read_text())["skipped_steps"] == 2


def test_skipping_survives_a_kill(tmp_path: Path) -> None:
    at = {12: float("nan"), 26: 1000.0}
    words = f"{WORDS} train.on_bad_step=skip train.spike=20"
    assert run_with(at, f"{words} runs={tmp_path / 'whole'}") == 0

    def killed() -> int:
        scale_gradient(at)
        step = Trainer.optimize

        def fatal(self: Trainer, number: int, *given: Any) -> None:
            step(self, number, *given)
            if number == 25:
                os._exit(9)

        Trainer.optimize = fatal  # type: ignore[method-assign]
        return cli.run(f"{words} runs={tmp_path / 'killed'}".split())

    assert in_child(killed) == 9
    assert run_with(at, f"{words} runs={tmp_path / 'killed'}") == 0
    whole = only_run(tmp_path / "whole", "pretrain")
    assert json.loads((whole / "result.json").read_text())["skipped_steps"] == 2
    assert_same_end(only_run(tmp_path / "killed", "pretrain"), whole)


def test_a_spike_stops_the_run_by_default_and_is_told_from_the_usual_norm(
    tmp_path: Path, said: Callable[[], str]
) -> None:
    assert run_with({27: 1000.0}, f"{WORDS} train.spike=20 runs={tmp_path}") == 1
    message = said()
    assert "at step 27" in message
    assert "times the usual norm (train.spike=20" in message
    assert "last good checkpoint is step 20" in message
    assert "train.on_bad_step=skip" in message


def test_without_a_limit_no_norm_is_a_spike(tmp_path: Path) -> None:
    assert run_with({27: 1000.0}, f"{WORDS} runs={tmp_path}") == 0


def test_a_run_that_skips_every_step_ends(tmp_path: Path, said: Callable[[], str]) -> None:
    poisoned = dict.fromkeys(range(11, 41), float("nan"))
    assert run_with(poisoned, f"{WORDS} train.on_bad_step=skip runs={tmp_path}") == 1
    assert "5 of 5 steps skipped" in said()
    assert checkpoint.steps_of(only_run(tmp_path, "pretrain"))[-1] == 10


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_all_ranks_skip_the_step_that_one_of_them_spoils(kind: str, tmp_path: Path) -> None:
    words = f"{WORDS} train.on_bad_step=skip"
    assert run_with({12: float("nan")}, f"{words} runs={tmp_path / 'alone'}") == 0

    def spoil_rank_1(rank: int) -> None:
        step = Trainer.optimize

        def spoiled(self: Trainer, number: int, batch: Any, supervised: int) -> None:
            # A count that is not a number makes this rank's loss one.
            step(self, number, batch, float("nan") if rank == 1 and number == 12 else supervised)  # type: ignore[arg-type]

        Trainer.optimize = spoiled  # type: ignore[method-assign]

    assert wait_for(start_ranks(2, f"{words} parallel={kind} runs={tmp_path / 'two'}", spoil_rank_1)) == [0, 0]
    rows, expected = (
        read_metrics(only_run(tmp_path / name, "pretrain") / "metrics.jsonl") for name in ("two", "alone")
    )
    assert [row["skipped_steps"] for row in rows] == [row["skipped_steps"] for row in expected]
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in expected], rel=1e-5)
