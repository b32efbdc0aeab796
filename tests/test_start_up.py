"""Start-up: help and a run that is already done import nothing heavy, and cells of a process share their rows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "datasets", "wandb", "pyarrow", "scipy", "matplotlib", "transformers", "sklearn", "pandas")
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


def test_a_run_that_is_already_done_imports_no_torch(tmp_path: Path) -> None:
    command = ["pretrain", "world=count20", "model=mini", "train.steps=1", f"runs={tmp_path}", "tracking=off"]
    assert "torch" in imported(*command)
    assert imported(*command) == ["hydra"]
