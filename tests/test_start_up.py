"""Start-up: help and a run that is already done import nothing heavy, and cells of a process share their rows."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pausebench import cli
from pausebench.data import task_rows
from pausebench.runs import lineage
from pausebench.runs.folder import write_json

HEAVY = (
    "torch",
    "datasets",
    "wandb",
    "pyarrow",
    "scipy",
    "matplotlib",
    "transformers",
    "sklearn",
    "pandas",
    "submitit",
)
RUN = """
import sys
from pausebench.cli import run
assert run(sys.argv[2:]) == 0
print("IMPORTED", *(name for name in sys.argv[1].split(",") if name in sys.modules))
"""


def imported(*arguments: str) -> list[str]:
    """Which of ``HEAVY`` a command line has imported by its end."""
    command = [sys.executable, "-c", RUN, ",".join((*HEAVY, "hydra")), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.rpartition("IMPORTED")[2].split()


@pytest.mark.parametrize("arguments", [["--help"], ["finetune", "--help"]], ids=["overview", "command"])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    assert imported(*arguments) == []


@pytest.mark.slow
def test_a_run_that_is_already_done_imports_no_torch(tmp_path: Path) -> None:
    place = [f"runs={tmp_path}", "tracking=off"]
    commands = [
        ["pretrain", "world=count20", "model=mini", "train.steps=1", *place],
        ["finetune", "task=parity", "pretraining=pause", "train.steps=1", *place],
    ]
    for command in commands:
        assert "torch" in imported(*command)
    [run] = tmp_path.glob("finetune/*")
    commands.append(["evaluate", f"run={run}", "mt=[0,8]", "limit=2", *place])
    assert "torch" in imported(*commands[-1])
    assert [imported(*command) for command in commands] == [["hydra"]] * 3


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often a split was read, training rows encoded, a cell composed, a file of a pretrained run read."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    calls: Counter[str] = Counter()

    def count(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def counting(*given: Any, **named: Any) -> Any:
            calls[name] += 1
            return real(*given, **named)

        monkeypatch.setattr(owner, name, counting)

    count(task_rows, "_read")
    count(task_rows, "encode")
    count(ConfigLoaderImpl, "load_sweep_config")
    count(lineage, "read_json")
    return calls


def write_squad(root: Path) -> None:
    for split, rows in (("train", 40), ("validation", 4)):
        (root / "squad").mkdir(parents=True, exist_ok=True)
        with (root / "squad" / f"{split}.jsonl").open("w") as file:
            for number in range(rows):
                row = {"question": f"Which number is {number}?", "context": f"It is {number}."}
                file.write(json.dumps({**row, "answers": {"text": [str(number)], "answer_start": [6]}}) + "\n")


def test_cells_of_a_process_share_rows_and_their_tokens_and_each_is_composed_once(
    tmp_path: Path, counted: Counter[str]
) -> None:
    write_squad(tmp_path)
    command = ["finetune", "-m", "task=squad", "model=tiny", "init=random", "k=0,2", "seed=0,1", "train.steps=1"]
    command += ["train.batch_size=2", "data=files", f"data.root={tmp_path}", "tokenizer=byte", "quiet=true"]
    assert cli.run([*command, f"runs={tmp_path / 'runs'}", "tracking=off"]) == 0
    assert len(list(tmp_path.glob("runs/finetune/*/result.json"))) == 4
    assert (counted["_read"], counted["encode"], counted["load_sweep_config"]) == (2, 1, 4)


def test_a_manifest_is_read_once_for_all_that_look_for_a_parent_until_it_changes(
    tmp_path: Path, counted: Counter[str]
) -> None:
    paths = [tmp_path / name / "manifest.json" for name in ("one", "two")]
    for path in paths:
        path.parent.mkdir()
        write_json(path, {"seed": 1})
    for _ in range(3):
        assert [lineage._manifest(path.parent)["seed"] for path in paths] == [1, 1]
    assert counted["read_json"] == 2
    write_json(paths[0], {"seed": 2})
    assert [lineage._manifest(path.parent)["seed"] for path in paths] == [2, 1]
    assert counted["read_json"] == 3
