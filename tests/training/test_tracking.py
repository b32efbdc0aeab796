"""W&B is a view: absent, broken or offline, it never stops a run, and the run folder has everything."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pausebench import cli

LINE = "pretrain world=count20 train.steps=6 train.batch_size=8 train.log_every=2 tracking=wandb quiet=true"


def finished(root: Path) -> bool:
    (run,) = (root / "pretrain").iterdir()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return (run / "result.json").exists() and [row["step"] for row in rows] == [2, 4, 6]


class Recorder:
    """Stands in for the wandb module and notes what it is told."""

    def __init__(self, failing: str | None = None) -> None:
        self.failing = failing
        self.initialised: dict[str, Any] = {}
        self.rows: list[dict[str, Any]] = []
        self.Settings = SimpleNamespace

    def init(self, **given: Any) -> "Recorder":
        self.initialised = given
        self._fail("init")
        return self

    def log(self, row: dict[str, Any], step: int) -> None:
        self._fail("log")
        self.rows.append(row)

    def finish(self, exit_code: int) -> None:
        self._fail("finish")

    def _fail(self, where: str) -> None:
        if self.failing == where:
            raise RuntimeError(f"no {where} today")


@pytest.mark.parametrize("failing", ["init", "log", "finish"])
def test_a_broken_wandb_costs_one_line_and_no_run(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", Recorder(failing))
    assert cli.run([*LINE.split(), f"runs={tmp_path}"]) == 0
    assert f"no {failing} today" in capsys.readouterr().err.replace("\n", " ")
    assert finished(tmp_path)


def test_an_absent_wandb_costs_one_line_and_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert cli.run([*LINE.split(), f"runs={tmp_path}"]) == 0
    assert "W&B failed and is left out" in capsys.readouterr().err
    assert finished(tmp_path)


def test_wandb_is_told_the_same_numbers_offline_under_a_name_that_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    monkeypatch.setitem(sys.modules, "wandb", recorder)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cli.run([*LINE.split(), f"runs={tmp_path / 'runs'}"]) == 0
    (run,) = (tmp_path / "runs" / "pretrain").iterdir()
    assert recorder.rows == [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert recorder.initialised["mode"] == "offline"
    assert recorder.initialised["id"] == run.name
    assert recorder.initialised["resume"] == "allow"


def test_tracking_off_never_imports_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert cli.run([*LINE.replace("tracking=wandb", "tracking=off").split(), f"runs={tmp_path}"]) == 0
    assert finished(tmp_path)
