"""A checkpoint is read as it was written, or named as damaged: the run then goes on from the one before it."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from pausebench import cli
from pausebench.errors import RunFailed
from pausebench.runs.folder import read_metrics
from pausebench.training import checkpoint
from tests.training.test_parallel import run_on, start_ranks, wait_for
from tests.training.test_resume import assert_same_end, only_run

WORDS = (
    "pretrain world=count20 model=mini pause=on precision=fp32 threads=1 train.steps=40 train.batch_size=8 "
    "train.log_every=5 train.validate_every=20 train.validation_rows=16 train.checkpoint_every=10 "
    "train.keep_checkpoints=4 tracking=off quiet=true"
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("finished")
    assert cli.run(f"{WORDS} runs={root}".split()) == 0
    return only_run(root, "pretrain")


@pytest.fixture
def at_step_30(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run as it was after thirty of its forty steps."""
    run = tmp_path / "pretrain" / finished.name
    shutil.copytree(finished, run)
    (run / "result.json").unlink()
    checkpoint.path_of(run, 40).unlink()
    return run


def flip(path: Path, place: int) -> None:
    """Turn one bit of a file's byte."""
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1 << place % 8]))


@pytest.mark.parametrize("draw", range(12))
def test_a_flipped_bit_anywhere_is_found(finished: Path, tmp_path: Path, draw: int) -> None:
    copy = tmp_path / "step-00000030.safetensors"
    shutil.copy(checkpoint.path_of(finished, 30), copy)
    assert checkpoint.damage(copy) is None
    size, header = copy.stat().st_size, 8 + int.from_bytes(copy.read_bytes()[:8], "little")
    place = random.Random(draw).randrange(header if draw % 3 == 0 else size)
    flip(copy, place)
    assert checkpoint.damage(copy) is not None, f"bit of byte {place} of {size}"


@pytest.mark.parametrize("length", [0, 4, 1000, -1])
def test_a_file_cut_short_is_found(finished: Path, tmp_path: Path, length: int) -> None:
    copy = tmp_path / "step-00000030.safetensors"
    copy.write_bytes(checkpoint.path_of(finished, 30).read_bytes()[:length])
    assert checkpoint.damage(copy) is not None


def test_a_run_with_a_damaged_newest_checkpoint_goes_on_from_the_one_before_and_says_so(
    at_step_30: Path, finished: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    newest = checkpoint.path_of(at_step_30, 30)
    flip(newest, newest.stat().st_size - 100)
    assert cli.run(f"{WORDS} runs={at_step_30.parents[1]}".split()) == 0
    said = capfd.readouterr().err
    assert "step-00000030.safetensors is damaged" in said
    assert "goes back to step 20" in said
    assert newest.with_name(newest.name + ".damaged").exists()
    assert_same_end(at_step_30, finished)


def test_a_run_whose_checkpoints_are_all_damaged_starts_anew(
    at_step_30: Path, finished: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for step in checkpoint.steps_of(at_step_30):
        checkpoint.path_of(at_step_30, step).write_bytes(b"")
    assert cli.run(f"{WORDS} runs={at_step_30.parents[1]}".split()) == 0
    assert "starts anew" in capfd.readouterr().err
    assert_same_end(at_step_30, finished)


def test_what_a_killed_save_left_behind_is_cleared(at_step_30: Path, finished: Path) -> None:
    torn = at_step_30 / checkpoint.FOLDER / ".step-00000040.safetensors.tmp"
    torn.write_bytes(b"half a checkpoint")
    (at_step_30 / checkpoint.FOLDER / ".step-00000040.shards.tmp").mkdir()
    assert cli.run(f"{WORDS} runs={at_step_30.parents[1]}".split()) == 0
    assert not list((at_step_30 / checkpoint.FOLDER).glob(".*"))
    assert_same_end(at_step_30, finished)


@pytest.mark.parametrize(
    "harm",
    ["flipped byte", *(pytest.param(harm, marks=pytest.mark.slow) for harm in ("missing shard", "position torn"))],
)
def test_a_damaged_shard_sends_all_ranks_back_to_the_step_before(harm: str, finished: Path, tmp_path: Path) -> None:
    run = run_on_two(tmp_path)
    (run / "result.json").unlink()
    newest = checkpoint.path_of(run, 40)
    shard = sorted(newest.glob("shard-*"))[1]
    if harm == "flipped byte":
        flip(shard, shard.stat().st_size // 2)
    elif harm == "missing shard":
        shard.unlink()
    else:
        position = newest / checkpoint.POSITION
        position.write_text(position.read_text()[:-20])
    assert checkpoint.damage(newest) is not None
    run_on_two(tmp_path)
    assert newest.with_name(newest.name + ".damaged").exists()
    rows, expected = read_metrics(run / "metrics.jsonl"), read_metrics(finished / "metrics.jsonl")
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in expected], rel=1e-5)


def run_on_two(root: Path) -> Path:
    return run_on(2, "fsdp", "pretrain", root, WORDS.partition("pretrain ")[2])


def test_a_damaged_parent_is_refused_by_name(finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    parent = tmp_path / "pretrain" / finished.name
    shutil.copytree(finished, parent)
    weights = parent / json.loads((parent / "result.json").read_text())["checkpoint"]
    offset = 8 + int.from_bytes(weights.read_bytes()[:8], "little") + 1000
    flip(weights, offset)
    words = f"finetune task=parity model=mini init={parent} train.steps=2 tracking=off runs={tmp_path}"
    assert cli.run(words.split()) == 2
    said = capfd.readouterr().err
    assert str(weights) in said
    assert "is damaged" in said


@pytest.mark.slow
def test_a_disk_that_refuses_the_last_file_of_the_shards_ends_all_ranks(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse_at_step_20(rank: int) -> None:
        write = checkpoint.write_json

        def refused(path: Path, content: dict[str, Any]) -> None:
            if "step-00000020" in str(path):
                raise RunFailed(f"{path} could not be written (No space left on device).")
            write(path, content)

        checkpoint.write_json = refused

    words = f"{WORDS} parallel=fsdp runs={tmp_path}"
    assert wait_for(start_ranks(2, words, refuse_at_step_20)) == [1, 1]
    assert capfd.readouterr().err.count("No space left on device") == 2
    run = only_run(tmp_path, "pretrain")
    assert checkpoint.steps_of(run) == [10]
    assert not list((run / checkpoint.FOLDER).glob(".*"))
