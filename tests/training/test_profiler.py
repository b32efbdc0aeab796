"""``profile=true`` says where time goes, in shares of the whole, and changes nothing else."""

from __future__ import annotations

import errno
import gzip
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pausebench import cli
from pausebench.training import checkpoint, profiler
from pausebench.training.profiler import ATTENTION, BETWEEN, CATEGORIES, DATA, HEAD, PRODUCTS, _tenths, summarise

TINY = "train.batch_size=8 train.log_every=2 train.checkpoint_every=3 train.validation_rows=8 tracking=off threads=1"
SPEED = ("tokens_per_second", "mfu")


def run(root: Path, line: str, *, exit_code: int = 0) -> Path:
    """Type a command with ``runs=root``; the folder of its only run."""
    assert cli.run([*line.split(), f"runs={root}"]) == exit_code
    (folder,) = (root / line.split()[0]).iterdir()
    return folder


def pretrained(root: Path, steps: int, profile: bool = True) -> Path:
    return run(root, f"pretrain world=count20 train.steps={steps} {TINY} profile={str(profile).lower()}")


def shares(folder: Path) -> dict[str, str]:
    """Category -> share as printed, of a summary."""
    lines = (folder / "profile" / "summary.txt").read_text().splitlines()[1 : 1 + len(CATEGORIES)]
    found = [re.fullmatch(r"  (\S.*?) +(\d+\.\d) % +\d+\.\d+ s", line) for line in lines]
    return {match[1]: match[2] for match in found if match}


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrained(tmp_path_factory.mktemp("profiled"), 7)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrained(tmp_path_factory.mktemp("plain"), 7, profile=False)


# What a run writes


def test_the_shares_of_a_summary_are_those_of_every_category_and_add_up_to_the_whole(profiled: Path) -> None:
    found = shares(profiled)
    assert tuple(found) == CATEGORIES
    assert sum(int(share.replace(".", "")) for share in found.values()) == 1000


def test_a_training_spends_time_in_the_model_and_in_its_own_parts(profiled: Path) -> None:
    found = shares(profiled)
    assert all(float(found[name]) > 0 for name in (ATTENTION, PRODUCTS, HEAD, "optimizer", "clipping", BETWEEN))


def test_the_head_line_has_the_steps_between_warm_up_and_the_rest(profiled: Path) -> None:
    head = (profiled / "profile" / "summary.txt").read_text().splitlines()[0]
    assert re.fullmatch(r"where the time of 3 steps went: \S+ s a step while profiled, [\d,]+ tokens/s, MFU .*%", head)


def test_the_trace_is_one_that_a_browser_opens(profiled: Path) -> None:
    with gzip.open(profiled / "profile" / "trace.json.gz") as file:
        names = [event.get("name") for event in json.load(file)["traceEvents"]]
    ranges = {name: names.count(name) for name in ("data", "forward", "decoder", "backward", "clipping", "optimizer")}
    assert all(count >= 3 for count in ranges.values()), ranges


def test_the_summary_is_printed_unless_the_run_is_quiet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pretrained(tmp_path / "loud", 3)
    assert "where the time of 1 step went" in capsys.readouterr().err
    run(tmp_path / "quiet", f"pretrain world=count20 train.steps=3 {TINY} profile=true quiet=true")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_run_with_fewer_steps_than_are_recorded_has_a_profile_too(tmp_path: Path, steps: int) -> None:
    assert len(shares(pretrained(tmp_path, steps))) == len(CATEGORIES)


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
    found = shares(sorted((tmp_path / "true" / "evaluate").iterdir())[0])
    assert sum(int(share.replace(".", "")) for share in found.values()) == 1000


# What it leaves as it is


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


# How time is divided


def event(name: str, begin: float, end: float, *children: Any, node: int = -1) -> Any:
    """A CPU event from ``begin`` to ``end`` seconds; ``node`` is its number in the autograd graph."""
    made = SimpleNamespace(
        name=name,
        sequence_nr=node,
        thread=1,
        device_type=SimpleNamespace(name="CPU"),
        time_range=SimpleNamespace(start=begin * 1e6, end=end * 1e6),
        self_cpu_time_total=1e6 * (end - begin - sum(child.seconds for child in children)),
        seconds=end - begin,
        cpu_children=list(children),
        cpu_parent=None,
    )
    for child in children:
        child.cpu_parent = made
    return made


def flat(*roots: Any) -> list[Any]:
    return [item for root in roots for item in (root, *flat(*root.cpu_children))]


STEP = (
    event("data", 0, 1),
    event(
        "forward",
        1,
        10,
        event(
            "decoder",
            1,
            7,
            event("BlockwiseAttention", 2, 4, event("aten::mm", 2, 3)),
            event("aten::linear", 4, 6, event("aten::addmm", 4, 6, node=5), node=5),
        ),
        event("aten::linear", 7, 9, event("aten::t", 7, 7, node=8), event("aten::mm", 7, 9, node=9), node=8),
    ),
    event(
        "backward",
        10,
        16,
        event("autograd::engine::evaluate_function: MmBackward0", 10, 13, event("aten::mm", 10, 13), node=9),
        event("autograd::engine::evaluate_function: AddmmBackward0", 13, 15, event("aten::mm", 13, 15), node=5),
    ),
    event("optimizer", 16, 17),
)


def test_a_product_outside_the_decoder_is_the_heads_forwards_and_backwards() -> None:
    found = summarise(flat(*STEP), "cpu").by_category
    assert (found[HEAD], found[PRODUCTS]) == (2 + 3, 2 + 2)


def test_products_inside_attention_are_attention() -> None:
    assert summarise(flat(*STEP), "cpu").by_category[ATTENTION] == 2


def test_what_no_operation_accounts_for_is_python() -> None:
    found = summarise(flat(*STEP), "cpu").by_category
    assert found[BETWEEN] == 4  # at 1 and 6 in the decoder, 9 in forward, 15 in backward
    assert sum(found.values()) == 17


def test_what_happens_between_steps_does_not_count() -> None:
    validation = event("decoder", 20, 30, event("aten::linear", 20, 29))
    summary = summarise(flat(*STEP, validation, event("data", 30, 31)), "cpu")
    assert summary.by_category == summarise(flat(*STEP), "cpu").by_category
    assert summary.by_category[DATA] == 1


def test_rounded_shares_add_up() -> None:
    assert sum(_tenths([1.0] * 7 + [0.0])) == 1000
    assert _tenths([0.0, 3.0, 1.0]) == [0, 750, 250]
