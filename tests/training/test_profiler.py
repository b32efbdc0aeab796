"""``profile=true`` says where time goes and changes nothing else."""

from __future__ import annotations

import errno
import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pausebench import cli
from pausebench.training import checkpoint, profiler

TINY = "train.batch_size=8 train.log_every=2 train.checkpoint_every=3 train.validation_rows=8 tracking=off threads=1"
SPEED = ("tokens_per_second", "mfu")


def run(root: Path, line: str, *, exit_code: int = 0) -> Path:
    """Type a command with ``runs=root``; the folder of its only run."""
    assert cli.run([*line.split(), f"runs={root}"]) == exit_code
    (folder,) = (root / line.split()[0]).iterdir()
    return folder


def pretrained(root: Path, steps: int, profile: bool = True) -> Path:
    return run(root, f"pretrain world=count20 train.steps={steps} {TINY} profile={str(profile).lower()}")


def summary(folder: Path) -> str:
    return (folder / "profile" / "summary.txt").read_text()


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrained(tmp_path_factory.mktemp("profiled"), 7)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrained(tmp_path_factory.mktemp("plain"), 7, profile=False)


def test_a_summary_has_the_operations_and_the_parts_of_a_step(profiled: Path) -> None:
    assert re.search(r"aten::(add)?mm .*%", summary(profiled))
    assert re.search(r"^ +backward .*%.* 3 *$", summary(profiled), re.M)


def test_the_head_line_has_the_steps_between_warm_up_and_the_rest(profiled: Path) -> None:
    head = summary(profiled).splitlines()[0]
    assert re.fullmatch(r"profiled 3 steps: \S+ s a step, [\d,]+ tokens/s, MFU .*%", head)


def test_the_trace_is_one_that_a_browser_opens(profiled: Path) -> None:
    with gzip.open(profiled / "profile" / "trace.json.gz") as file:
        names = [event.get("name") for event in json.load(file)["traceEvents"]]
    ranges = {name: names.count(name) for name in ("data", "forward", "backward", "clipping", "optimizer")}
    assert all(count == 3 for count in ranges.values()), ranges


def test_the_summary_is_printed_unless_the_run_is_quiet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pretrained(tmp_path / "loud", 3)
    assert "profiled 1 step:" in capsys.readouterr().err
    run(tmp_path / "quiet", f"pretrain world=count20 train.steps=3 {TINY} profile=true quiet=true")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_run_with_fewer_steps_than_are_recorded_has_a_profile_too(tmp_path: Path, steps: int) -> None:
    assert "aten::" in summary(pretrained(tmp_path, steps))


def test_an_evaluation_has_its_profile_beside_its_first_m_and_the_same_scores(tmp_path: Path) -> None:
    tuned = run(tmp_path, f"finetune task=parity init=random k=2 train.steps=2 {TINY}")
    results = {}
    for profile in ("true", "false"):
        line = f"evaluate run={tuned} mt=[0,2] limit=40 tracking=off profile={profile} runs={tmp_path / profile}"
        assert cli.run(line.split()) == 0
        folders = sorted((tmp_path / profile / "evaluate").iterdir())
        results[profile] = [(folder / "predictions.jsonl").read_text() for folder in folders]
        assert [(folder / "profile" / "trace.json.gz").exists() for folder in folders] == [profile == "true", False]
    assert results["true"] == results["false"]
    assert re.match(r"profiled \d+ pass(es)?: ", summary(sorted((tmp_path / "true" / "evaluate").iterdir())[0]))


def test_weights_and_metrics_are_those_of_a_run_without(profiled: Path, plain: Path) -> None:
    def metrics(folder: Path) -> list[dict[str, Any]]:
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [{name: value for name, value in row.items() if name not in SPEED} for row in rows]

    assert metrics(profiled) == metrics(plain)
    tensors, expected = (load_file(checkpoint.path_of(folder, 7)) for folder in (profiled, plain))
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


def test_a_run_without_writes_no_profile_and_has_the_same_name(profiled: Path, plain: Path) -> None:
    assert not (plain / "profile").exists()
    assert plain.name == profiled.name


def test_a_finished_run_says_that_nothing_is_left_to_profile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrained(tmp_path, 1, profile=False)
    folder = pretrained(tmp_path, 1)
    assert "another seed=" in capsys.readouterr().err
    assert not (folder / "profile").exists()


def test_a_finished_evaluation_says_that_nothing_is_left_to_profile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = run(tmp_path, f"finetune task=parity init=random k=2 train.steps=1 {TINY}")
    run(tmp_path, f"evaluate run={tuned} limit=8 tracking=off")
    run(tmp_path, f"evaluate run={tuned} limit=8 tracking=off profile=true")
    assert "another mt=" in capsys.readouterr().err


def test_a_disk_that_takes_no_profile_does_not_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(profiler, "write_whole", full)
    assert (pretrained(tmp_path, 1) / "result.json").exists()
    assert "profile could not be written (No space left on device)" in capsys.readouterr().err
