"""The plan of a study: its cells are the study's, its numbers those that runs then have, and it writes nothing."""

from __future__ import annotations

import json
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest

from pausebench import cli
from pausebench.data import hub

pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="the studies take the launcher of pausebench[sweep]")

SHORT = 'overrides=["train.steps=30","train.batch_size=8","train.checkpoint_every=10","train.validate_every=10"]'
TRAIN = [word.strip('"') for word in SHORT.removeprefix("overrides=[").removesuffix("]").split(",")]


def plan(root: Path, *words: str) -> dict[str, Any]:
    """The JSON of ``pausebench plan`` with these words."""
    path = root / "plan.json"
    assert cli.run(["plan", *words, f"runs={root / 'runs'}", f"json={path}"]) == 0
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any, **options: Any) -> Any:
        raise AssertionError("the plan asked the hub")

    for name in ("download", "load_split", "stream_file"):
        monkeypatch.setattr(hub, name, refuse)


@pytest.mark.slow
def test_what_is_planned_is_what_runs_then_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tokens and checkpoints of training, FLOPs of the answers; a cell that is done is paid."""
    study = ["result=demo", "task=[parity]", "k=[0,8]", "seeds=1"]
    words = [*study, "gpu=cpu", "peak_tflops=0.1", SHORT]
    before = plan(tmp_path, *words)
    assert before["to_pay"] == before["total"] and not (tmp_path / "runs").exists()
    arm = ["model=mini", "world=count20"]
    root = [f"runs={tmp_path / 'runs'}", "quiet=true", "device=cpu", "threads=1"]
    assert cli.run(["pretrain", *arm, "pause=on", *TRAIN, "tracking=off", *root]) == 0
    assert cli.run(["finetune", "task=parity", "pretraining=pause", "k=8", *TRAIN, "tracking=off", *root]) == 0
    [finetuned] = (tmp_path / "runs" / "finetune").iterdir()
    assert cli.run(["evaluate", f"run={finetuned}", "mt=[0,2,4,8,12,16]", *root]) == 0
    after = plan(tmp_path, *words)
    paid = {cell["command"]: cell for cell in after["cells"] if cell["paid"]}
    assert set(paid) == {"pretrain", "finetune", "evaluate"}
    for command in ("pretrain", "finetune"):
        folder = tmp_path / "runs" / command / paid[command]["name"]
        assert paid[command]["cost"]["tokens"] == json.loads((folder / "result.json").read_text())["tokens"]
        files = list((folder / "checkpoints").iterdir())
        assert paid[command]["cost"]["checkpoints"] in (len(files), len(files) + 1), "one less where best is new"
        sizes = paid[command]["cost"]["disk"] / paid[command]["cost"]["checkpoints"]
        assert sizes == pytest.approx(files[0].stat().st_size, rel=0.15)
    results = [json.loads(path.read_text()) for path in (tmp_path / "runs" / "evaluate").glob("*/result.json")]
    answers = sum(result["n"] * result["inference_flops"] for result in results)
    assert answers < paid["evaluate"]["cost"]["flops"] < 2 * answers, "an answer, and the likelihood of the target"
    done = sum(cell["cost"]["flops"] for cell in paid.values())
    assert after["to_pay"]["flops"] == pytest.approx(after["total"]["flops"] - done)
    assert after["total"] == before["total"]
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("paid"))
    assert line.split()[1] == "3"


def test_the_plan_of_the_large_model_needs_no_network_and_pretraining_dominates(
    tmp_path: Path, offline: None, capsys: pytest.CaptureFixture[str]
) -> None:
    found = plan(tmp_path, "result=text", "model=1b", "data=hub", "seeds=1", "gpus=8", "mfu=0.5")
    stages = found["stages"]
    assert stages["pretrain"]["tokens"] == 2 * 381_470 * 256 * 2048
    assert stages["pretrain"]["seconds"] == pytest.approx(stages["pretrain"]["flops"] / (989e12 * 0.5))
    out = capsys.readouterr().out
    assert "% is pretrain" in out and "mfu=0.5 is an assumption" in out
    hours = found["total"]["seconds"] / 3600
    assert f"{hours:,.0f}" in out and f"{hours / 8 / 24:,.1f} days" in out


@pytest.mark.slow
def test_the_example_of_the_docs_is_what_the_command_prints(
    tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (Path(__file__).parents[2] / "docs" / "cost.md").read_text()
    block = text.partition("\n    $ pausebench plan result=table1 gpu=h100 gpus=8\n")[2]
    shown = takewhile(lambda line: line.startswith("    ") or not line, block.splitlines())
    lines = [line.removeprefix("    ") for line in shown if line]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    assert cli.run(["plan", "result=table1", "gpu=h100", "gpus=8"]) == 0
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines() if line.strip()] == lines


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["train.micro_batch_size=32"],
            "of 32 x 2,048 tokens; 90 % of h100's memory is 72.0 GB: it does not fit",
        ),
        (["train.micro_batch_size=32", "train.activation_checkpointing=true"], "it fits."),
        (["train.micro_batch_size=200"], "micro-batches of 128 x"),
    ],
)
def test_the_plan_says_whether_a_step_fits_into_a_device(
    tmp_path: Path, offline: None, capsys: pytest.CaptureFixture[str], overrides: list[str], said: str
) -> None:
    """Two devices have 128 of a step's 256 rows each."""
    listed = ",".join(f'"{word}"' for word in overrides)
    plan(tmp_path, "result=text", "model=1b", "data=hub", "seeds=1", "gpus=2", f"pretrain_overrides=[{listed}]")
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Memory: "))
    assert said in line


@pytest.mark.slow
def test_another_device_and_a_given_peak_change_the_time_and_nothing_else(tmp_path: Path, offline: None) -> None:
    words = ["result=text", "model=130m", "data=hub", "seeds=1"]
    fast, slow, given = (plan(tmp_path, *words, *more) for more in ([], ["gpu=a100"], ["peak_tflops=494.5"]))
    assert fast["total"]["flops"] == slow["total"]["flops"] == given["total"]["flops"]
    assert given["total"]["seconds"] == pytest.approx(2 * fast["total"]["seconds"])
    assert slow["stages"]["pretrain"]["seconds"] == pytest.approx(fast["stages"]["pretrain"]["seconds"] * 989 / 312)


@pytest.mark.parametrize(
    ("word", "fix"),
    [("gpu=h300", "peak_tflops="), ("gpus=0", "at least 1"), ("mfu=1.5", "mfu=0.4"), ("peak_tflops=-1", "above 0")],
)
def test_a_bad_value_says_what_is_allowed(capsys: pytest.CaptureFixture[str], word: str, fix: str) -> None:
    assert cli.run(["plan", "result=demo", word]) == 2
    assert word.split("=")[0] in (err := capsys.readouterr().err) and fix in err
