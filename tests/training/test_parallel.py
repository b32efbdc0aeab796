"""Many processes give what one gives: losses, checkpoints for any number of ranks, stops, the names of lost ranks."""

import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pausebench import cli
from pausebench.data.batch import Batches
from pausebench.errors import BadInput
from pausebench.runs.folder import read_metrics
from pausebench.training import checkpoint
from pausebench.training.parallel import adopt_slurm_tasks
from pausebench.training.trainer import Trainer

STEPS = 20
# 18 rows are no multiple of four ranks, and five rows of a rank are no multiple of the micro-batch.
COMMON = (
    f"precision=fp32 threads=1 train.steps={STEPS} train.micro_batch_size=2 train.log_every=1 train.validate_every=10 "
    "train.validation_rows=30 train.checkpoint_every=10 tracking=off quiet=true"
)
TINY = "data=embedded model.n_layers=2 model.d_model=64 model.d_mlp=64"
COMMANDS = {
    "pretrain": f"pretrain world=count20 model=mini pause=on train.batch_size=18 {COMMON}",
    "finetune": f"finetune task=squad model=tiny {TINY} k=5 init=random train.batch_size=18 {COMMON}",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_ranks(count: int, words: str, before: Callable[[int], None] = lambda rank: None) -> list[int]:
    """Fork ``count`` ranks of a command, as torchrun starts them; their process ids."""
    port, children = free_port(), []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            code = 99
            try:
                os.environ.update(
                    RANK=str(rank),
                    LOCAL_RANK=str(rank),
                    WORLD_SIZE=str(count),
                    MASTER_ADDR="127.0.0.1",
                    MASTER_PORT=str(port),
                )
                before(rank)
                code = cli.run(words.split())
            finally:
                os._exit(code)
        children.append(child)
    return children


def wait_for(children: list[int]) -> list[int]:
    """Exit codes, negative for a signal."""
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def run_on(count: int, kind: str, command: str, runs: Path, more: str = "") -> Path:
    """Run a command to its end on so many ranks; the run's folder."""
    words = f"{COMMANDS[command]} parallel={kind} runs={runs} {more}"
    assert wait_for(start_ranks(count, words)) == [0] * count
    return only_run(runs, command)


def only_run(root: Path, command: str) -> Path:
    (run,) = (root / command).iterdir()
    return run


def assert_same_losses(run: Path, reference: Path) -> None:
    rows, expected = read_metrics(run / "metrics.jsonl"), read_metrics(reference / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    for row, other in zip(rows, expected, strict=True):
        for name in ("loss", "grad_norm", "validation_loss"):
            if name in other:
                assert row[name] == pytest.approx(other[name], rel=1e-5 if name != "grad_norm" else 1e-4), name
        for name in ("tokens", "meaningful_tokens", "lr"):
            assert row[name] == other[name]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``alone("pretrain")``: the run of one process."""
    made: dict[str, Path] = {}

    def run(command: str) -> Path:
        if command not in made:
            root = tmp_path_factory.mktemp(command)
            torch.set_num_threads(1)
            assert cli.run(f"{COMMANDS[command]} runs={root}".split()) == 0
            made[command] = only_run(root, command)
        return made[command]

    return run


@pytest.mark.parametrize(
    ("command", "count", "kind"),
    [
        ("pretrain", 2, "ddp"),
        ("finetune", 2, "fsdp"),
        pytest.param("finetune", 4, "ddp", marks=pytest.mark.slow),
        pytest.param("pretrain", 4, "fsdp", marks=pytest.mark.slow),
    ],
)
def test_ranks_together_lose_what_one_process_loses(
    command: str, count: int, kind: str, alone: Callable[[str], Path], tmp_path: Path
) -> None:
    run = run_on(count, kind, command, tmp_path)
    assert run.name == alone(command).name
    assert_same_losses(run, alone(command))
    manifest = json.loads((run / "manifest.json").read_text())
    assert (manifest["world_size"], manifest["parallel"]) == (count, kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_in_bf16_ranks_differ_by_rounding_alone(kind: str, tmp_path: Path) -> None:
    words = f"{COMMANDS['finetune']} train.steps=12 precision=bf16".replace("precision=fp32", "")
    assert cli.run(f"{words} runs={tmp_path / 'alone'}".split()) == 0
    assert wait_for(start_ranks(2, f"{words} parallel={kind} runs={tmp_path / kind}")) == [0, 0]
    rows, expected = (read_metrics(only_run(tmp_path / name, "finetune") / "metrics.jsonl") for name in (kind, "alone"))
    assert rows[0]["loss"] == pytest.approx(expected[0]["loss"], rel=1e-3)
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in expected], rel=0.01)


@pytest.fixture(scope="module")
def of_four(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished pretraining of four ranks by kind."""
    return {kind: run_on(4, kind, "pretrain", tmp_path_factory.mktemp(kind)) for kind in ("ddp", "fsdp")}


def back_at_step_10(run: Path, root: Path) -> None:
    """A copy of a finished run as it was after its tenth step."""
    copy = root / "pretrain" / run.name
    shutil.copytree(run, copy)
    (copy / "result.json").unlink()
    (copy / checkpoint.WEIGHTS).unlink(missing_ok=True)
    last = checkpoint.path_of(copy, STEPS)
    shutil.rmtree(last) if last.is_dir() else last.unlink()
    assert checkpoint.steps_of(copy) == [10]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("written_by", "count", "kind"),
    [("ddp", 1, "ddp"), ("ddp", 3, "fsdp"), ("fsdp", 2, "ddp"), ("fsdp", 3, "fsdp")],
)
def test_a_checkpoint_of_four_ranks_goes_on_on_any_number(
    written_by: str, count: int, kind: str, of_four: dict[str, Path], alone: Callable[[str], Path], tmp_path: Path
) -> None:
    back_at_step_10(of_four[written_by], tmp_path)
    assert_same_losses(run_on(count, kind, "pretrain", tmp_path), alone("pretrain"))


def test_a_checkpoint_of_one_process_goes_on_sharded(alone: Callable[[str], Path], tmp_path: Path) -> None:
    back_at_step_10(alone("pretrain"), tmp_path)
    assert_same_losses(run_on(2, "fsdp", "pretrain", tmp_path), alone("pretrain"))


@pytest.mark.slow
def test_sharded_training_ends_with_one_file_of_weights_that_finetuning_starts_from(
    of_four: dict[str, Path], alone: Callable[[str], Path], tmp_path: Path
) -> None:
    run = of_four["fsdp"]
    weights = load_file(run / json.loads((run / "result.json").read_text())["checkpoint"])
    expected = load_file(checkpoint.path_of(alone("pretrain"), STEPS))
    assert weights.keys() == {name for name in expected if name.startswith("model.")}
    for name, weight in weights.items():
        if "qkv.bias" not in name:  # no loss depends on the keys' biases: Adam magnifies the rounding of zero gradients
            torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=1e-5)
    words = f"finetune task=parity init={run} model=mini train.steps=2 tracking=off quiet=true runs={tmp_path}"
    assert cli.run(words.split()) == 0


@pytest.mark.slow
def test_recomputed_blocks_change_no_number(alone: Callable[[str], Path], tmp_path: Path) -> None:
    more = f"train.activation_checkpointing=true runs={tmp_path}"
    assert cli.run(f"{COMMANDS['pretrain']} {more}".split()) == 0
    rows, expected = (
        read_metrics(run / "metrics.jsonl") for run in (only_run(tmp_path, "pretrain"), alone("pretrain"))
    )
    assert [row["loss"] for row in rows] == [row["loss"] for row in expected]
    assert_same_losses(run_on(2, "fsdp", "pretrain", tmp_path / "fsdp", more.split()[0]), alone("pretrain"))


@pytest.mark.parametrize("kind", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_a_stop_of_one_rank_saves_one_step_for_all(kind: str, alone: Callable[[str], Path], tmp_path: Path) -> None:
    step = Trainer.optimize

    def stop_rank_1_at_step_7(rank: int) -> None:
        def signalled(self: Trainer, number: int, *given: Any) -> None:
            step(self, number, *given)
            if rank == 1 and number == 7:
                os.kill(os.getpid(), signal.SIGTERM)

        Trainer.optimize = signalled  # type: ignore[method-assign]

    words = f"{COMMANDS['pretrain']} parallel={kind} runs={tmp_path}"
    assert wait_for(start_ranks(2, words, stop_rank_1_at_step_7)) == [130, 130]
    assert checkpoint.steps_of(only_run(tmp_path, "pretrain")) == [8]  # the ranks agree where the next step begins
    assert_same_losses(run_on(2, kind, "pretrain", tmp_path), alone("pretrain"))


@pytest.mark.parametrize("kind", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_a_killed_rank_ends_the_others_with_its_name_and_the_run_goes_on(
    kind: str, alone: Callable[[str], Path], tmp_path: Path
) -> None:
    said = tmp_path / "said"
    step = Trainer.optimize

    def kill_rank_1_at_step_13(rank: int) -> None:
        def fatal(self: Trainer, number: int, *given: Any) -> None:
            if rank == 1 and number == 13:
                os.kill(os.getpid(), signal.SIGKILL)
            step(self, number, *given)

        Trainer.optimize = fatal  # type: ignore[method-assign]
        if rank == 0:
            sys.stderr = said.open("w", buffering=1)

    words = f"{COMMANDS['pretrain']} parallel={kind} train.hang_seconds=3 runs={tmp_path}"
    assert wait_for(start_ranks(2, words, kill_rank_1_at_step_13)) == [1, -signal.SIGKILL]
    assert "No answer from rank 1" in said.read_text()
    assert_same_losses(run_on(2, kind, "pretrain", tmp_path), alone("pretrain"))


def test_a_rank_that_hangs_ends_the_run_with_its_name(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def freeze_rank_1_at_step_5(rank: int) -> None:
        step = Trainer.optimize

        def frozen(self: Trainer, number: int, *given: Any) -> None:
            if rank == 1 and number == 5:
                os.kill(os.getpid(), signal.SIGSTOP)
            step(self, number, *given)

        Trainer.optimize = frozen  # type: ignore[method-assign]

    words = f"{COMMANDS['pretrain']} train.hang_seconds=3 runs={tmp_path}"
    first, second = start_ranks(2, words, freeze_rank_1_at_step_5)
    assert wait_for([first]) == [1]
    os.kill(second, signal.SIGKILL)
    wait_for([second])
    said = capfd.readouterr().err
    assert "hang_seconds=3" in said
    assert "No answer from rank 1" in said


def test_a_rank_that_is_stuck_reading_is_the_one_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def stick_rank_1_at_step_5(rank: int) -> None:
        batch = Batches.batch

        def stuck(self: Any, step: int) -> Any:
            if rank == 1 and step == 5:
                time.sleep(12)  # longer than the others wait and call
            return batch(self, step)

        Batches.batch = stuck  # type: ignore[method-assign]

    words = f"{COMMANDS['pretrain']} train.hang_seconds=3 runs={tmp_path}"
    assert wait_for(start_ranks(3, words, stick_rank_1_at_step_5)) == [1, 1, 1]
    said = capfd.readouterr().err
    assert "No answer from rank 1" in said
    assert "No answer from rank 2" not in said


def test_tasks_of_srun_become_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\nprintf "NodeName=node3 NodeAddr=10.0.0.3\\nNodeName=node4 NodeAddr=10.0.0.4\\n"\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    task = {"STEP_NUM_TASKS": "4", "STEP_ID": "0", "STEP_NODELIST": "node[3-4]", "PROCID": "2", "LOCALID": "0"}
    for name, value in (task | {"JOB_ID": "77"}).items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(name, "")  # so that the test's end takes away what is set below
        monkeypatch.delenv(name)
    adopt_slurm_tasks()
    known = {name: os.environ[name] for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR")}
    assert known == {"WORLD_SIZE": "4", "RANK": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "10.0.0.3"}
    scontrol.unlink()
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput, match="torchrun"):
        adopt_slurm_tasks()


def test_half_an_environment_of_ranks_is_refused_with_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.run(f"{COMMANDS['pretrain']} runs={tmp_path}".split()) == 2
    assert "torchrun" in capfd.readouterr().err


def test_a_rank_that_meets_nobody_says_where_it_looked(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = f"{COMMANDS['pretrain']} train.hang_seconds=1 runs={tmp_path}"
    assert wait_for(start_ranks(1, words, lambda rank: os.environ.update(WORLD_SIZE="2", RANK="1"))) == [1]
    assert "did not meet the others at 127.0.0.1:" in capfd.readouterr().err
