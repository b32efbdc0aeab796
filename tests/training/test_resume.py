"""A run killed at any instant and started again ends as one that was not: weights bitwise, metrics row by row."""

import json
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pausebench import cli, stop
from pausebench.runs import folder
from pausebench.training import checkpoint
from pausebench.training.loss import Objective
from pausebench.training.trainer import Trainer

SPEED = ("tokens_per_second", "mfu")
STEPS = 40
COMMON = (
    f"train.steps={STEPS} train.batch_size=16 train.log_every=5 train.validate_every=7 train.checkpoint_every=6 "
    "train.validation_rows=32 tracking=off quiet=true"
)
COMMANDS = {
    "pretrain": f"pretrain world=count20 pause=on {COMMON}",
    "finetune": f"finetune task=parity k=3 init=random {COMMON}",
}


def in_child(work: Callable[[], Any]) -> int:
    """Run in a forked process; its exit code, negative for a signal."""
    child = os.fork()
    if child == 0:
        try:
            code = work()
        except BaseException:
            code = 99
        os._exit(code if isinstance(code, int) else 0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def only_run(root: Path, command: str) -> Path:
    (run,) = (root / command).iterdir()
    return run


def final_state(run: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]], dict[str, Any]]:
    tensors = load_file(checkpoint.path_of(run, STEPS))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    slow = [{name: value for name, value in row.items() if name not in SPEED} for row in rows]
    return tensors, slow, json.loads((run / "result.json").read_text())


def assert_same_end(run: Path, reference: Path) -> None:
    tensors, rows, result = final_state(run)
    expected_tensors, expected_rows, expected_result = final_state(reference)
    assert tensors.keys() == expected_tensors.keys()
    assert all(torch.equal(tensors[name], expected_tensors[name]) for name in tensors)
    assert rows == expected_rows
    assert result == expected_result


@pytest.fixture(scope="module", params=["pretrain", "finetune"])
def uninterrupted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    root = tmp_path_factory.mktemp("uninterrupted")
    torch.set_num_threads(1)
    assert cli.run(f"{COMMANDS[request.param]} runs={root}".split()) == 0
    return request.param, only_run(root, request.param)


def kill_me() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("seed", range(3))
def test_kill_9_at_a_random_step_leaves_no_trace(seed: int, uninterrupted: tuple[str, Path], tmp_path: Path) -> None:
    command, reference = uninterrupted
    draw = random.Random(f"{command}{seed}")
    fatal_steps = sorted(draw.sample(range(1, STEPS + 1), 2))
    step = Trainer.optimize

    for fatal in fatal_steps:

        def train_until_killed(fatal: int = fatal) -> int:
            def fragile(self: Trainer, number: int, *given: Any) -> None:
                step(self, number, *given)
                if number == fatal:
                    kill_me()

            Trainer.optimize = fragile  # type: ignore[method-assign]
            return cli.run(f"{COMMANDS[command]} runs={tmp_path}".split())

        assert in_child(train_until_killed) == -signal.SIGKILL
        assert not (only_run(tmp_path, command) / "result.json").exists()
    assert in_child(lambda: cli.run(f"{COMMANDS[command]} runs={tmp_path}".split())) == 0
    assert_same_end(only_run(tmp_path, command), reference)


@pytest.mark.slow
@pytest.mark.parametrize("when", ["checkpoint half-written", "metrics torn", "before the result"])
def test_kill_9_in_the_middle_of_a_write_leaves_no_trace(
    when: str, uninterrupted: tuple[str, Path], tmp_path: Path
) -> None:
    command, reference = uninterrupted

    def train_until_killed() -> int:
        if when == "checkpoint half-written":
            original = os.fsync

            def fsync(file: int) -> None:
                if "step-00000018" in str(Path(f"/proc/self/fd/{file}").readlink()):
                    os.ftruncate(file, 1000)
                    kill_me()
                original(file)

            folder.os.fsync = fsync  # type: ignore[assignment]
        elif when == "metrics torn":
            append = folder.RunFolder.append_metrics

            def torn(self: folder.RunFolder, row: dict[str, Any]) -> None:
                append(self, row)
                if row["step"] == 15:
                    with (self.path / "metrics.jsonl").open("a") as file:
                        file.write('{"step": 20, "lo')
                    kill_me()

            folder.RunFolder.append_metrics = torn  # type: ignore[method-assign]
        else:
            train = Trainer.train

            def train_and_die(self: Trainer) -> dict[str, Any]:
                train(self)
                kill_me()
                return {}

            Trainer.train = train_and_die  # type: ignore[method-assign]
        return cli.run(f"{COMMANDS[command]} runs={tmp_path}".split())

    assert in_child(train_until_killed) == -signal.SIGKILL
    assert in_child(lambda: cli.run(f"{COMMANDS[command]} runs={tmp_path}".split())) == 0
    assert_same_end(only_run(tmp_path, command), reference)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_signal_saves_says_so_and_goes_on(
    number: signal.Signals, uninterrupted: tuple[str, Path], tmp_path: Path
) -> None:
    command, reference = uninterrupted
    step = Trainer.optimize
    said = tmp_path / "said"

    def train_until_stopped() -> int:
        def signalled(self: Trainer, at: int, *given: Any) -> None:
            step(self, at, *given)
            if at == 10:
                os.kill(os.getpid(), number)

        Trainer.optimize = signalled  # type: ignore[method-assign]
        sys.stderr = said.open("w", buffering=1)
        return cli.run(f"{COMMANDS[command]} runs={tmp_path / 'runs'}".split())

    assert in_child(train_until_stopped) == 130
    assert "saved step 10 of 40" in said.read_text()
    assert "same command" in said.read_text()
    run = only_run(tmp_path / "runs", command)
    assert checkpoint.steps_of(run)[-1] == 10
    assert not (run / "lock.json").exists()
    assert in_child(lambda: cli.run(f"{COMMANDS[command]} runs={tmp_path / 'runs'}".split())) == 0
    assert_same_end(run, reference)


def test_a_stop_between_micro_batches_does_not_wait_for_the_step(tmp_path: Path) -> None:
    words = f"{COMMANDS['pretrain']} train.micro_batch_size=4"
    assert in_child(lambda: cli.run(f"{words} runs={tmp_path / 'whole'}".split())) == 0
    seen = 0

    def train_until_stopped() -> int:
        loss = Objective.forward

        def signalled(self: Objective, batch: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen == 4 * 10 + 2:  # the second of four micro-batches of step 11
                os.kill(os.getpid(), signal.SIGTERM)
            return loss(self, batch)

        Objective.forward = signalled  # type: ignore[method-assign]
        code = cli.run(f"{words} runs={tmp_path / 'stopped'}".split())
        return code if seen == 4 * 10 + 2 else 98

    assert in_child(train_until_stopped) == 130
    run = only_run(tmp_path / "stopped", "pretrain")
    assert checkpoint.steps_of(run)[-1] == 10
    assert in_child(lambda: cli.run(f"{words} runs={tmp_path / 'stopped'}".split())) == 0
    assert_same_end(run, only_run(tmp_path / "whole", "pretrain"))


def test_a_process_asked_to_stop_starts_no_further_cell(tmp_path: Path) -> None:
    def stopped_already() -> int:
        with stop.watched():
            os.kill(os.getpid(), signal.SIGTERM)
        return cli.run(f"{COMMANDS['pretrain']} runs={tmp_path}".split())

    assert in_child(stopped_already) == 130
    assert not list(tmp_path.glob("pretrain/*/checkpoints"))


def test_a_loss_that_is_not_finite_stops_and_names_step_and_checkpoint(tmp_path: Path) -> None:
    said = tmp_path / "said"
    step = Trainer.optimize

    def train_into_nan() -> int:
        def poisoned(self: Trainer, at: int, *given: Any) -> None:
            if at == 9:
                with torch.no_grad():
                    self.model.norm_out.weight[0] = float("nan")
            step(self, at, *given)

        Trainer.optimize = poisoned  # type: ignore[method-assign]
        sys.stderr = said.open("w", buffering=1)
        return cli.run(f"{COMMANDS['pretrain']} runs={tmp_path / 'runs'}".split())

    assert in_child(train_into_nan) == 1
    assert "at step 9" in said.read_text()
    assert "last good checkpoint is step 6" in said.read_text()
    run = only_run(tmp_path / "runs", "pretrain")
    assert checkpoint.steps_of(run)[-1] == 6
    assert not (run / "result.json").exists()


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    said = tmp_path / "said"

    def train_on_a_full_disk() -> int:
        original = os.fsync

        def fsync(file: int) -> None:
            if "step-00000012" in str(Path(f"/proc/self/fd/{file}").readlink()):
                raise OSError(28, "No space left on device")
            original(file)

        folder.os.fsync = fsync  # type: ignore[assignment]
        sys.stderr = said.open("w", buffering=1)
        return cli.run(f"{COMMANDS['pretrain']} runs={tmp_path / 'runs'}".split())

    assert in_child(train_on_a_full_disk) == 1
    assert "No space left on device" in said.read_text()
    assert "Traceback" not in said.read_text()
    run = only_run(tmp_path / "runs", "pretrain")
    assert checkpoint.steps_of(run) == [6]
    assert not list((run / "checkpoints").glob(".*"))


def test_the_newest_checkpoints_and_the_best_one_are_kept(uninterrupted: tuple[str, Path]) -> None:
    _, run = uninterrupted
    best = json.loads((run / "result.json").read_text())["best_step"]
    kept = checkpoint.steps_of(run)
    assert kept[-2:] == [36, 40]
    assert set(kept) <= {36, 40, best}
