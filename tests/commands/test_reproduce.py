"""A whole study: planned, run side by side, killed, interrupted, resumed, and the same in the end."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pausebench import cli
from pausebench.cli import CellOutcome
from pausebench.commands import reproduce
from pausebench.config.commands import ReproduceConfig
from pausebench.config.groups import TrackingConfig
from pausebench.errors import Interrupted, RunFailed
from pausebench.runs import slurm
from pausebench.runs.folder import RunFolder
from pausebench.study.plan import Plan, PlannedCommand, as_commands, override

pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="needs the extra pausebench[sweep]")
pytest.importorskip("matplotlib", reason="needs the extra pausebench[report]")

STUDY = [
    # All three stages with few cells: two pretrainings, four finetunings, their evaluations.
    *("reproduce", "result=demo", "seeds=1", "task=[parity]", "k=[0,8]", "mt=[0,8]", "limit=50"),
    'overrides=["train.steps=30","train.batch_size=8","train.checkpoint_every=10","train.log_every=10"]',
]


def start(root: Path, *more: str) -> subprocess.Popen[str]:
    """The study in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "pausebench", *STUDY, f"runs={root}", *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(root: Path, pattern: str, count: int, process: subprocess.Popen[str]) -> None:
    while len(list(root.glob(pattern))) < count and process.poll() is None:
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """The launcher's workers: children of the driver that hold a run's lock."""
    root = Path(next(word for word in process.args if str(word).startswith("runs=")).removeprefix("runs="))  # type: ignore[union-attr, arg-type]
    owners = []
    for path in root.glob("*/*/lock.json"):
        try:
            owners.append(json.loads(path.read_text()))
        except (FileNotFoundError, ValueError):
            continue
    return [owner["pid"] for owner in owners if owner["parent_pid"] == process.pid]


def table(root: Path) -> dict[str, Any]:
    """Every evaluated number of a study, by run name."""
    found = {}
    for path in sorted(root.glob("evaluate/*/result.json")):
        result = json.loads(path.read_text())
        del result["examples_per_second"]
        found[path.parent.name] = result
    return found


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("study") / "runs"
    process = start(root)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "PausePT_PauseFT against StdPT_StdFT" in out
    return root


def test_a_study_fills_every_planned_cell_and_writes_the_page(uninterrupted: Path) -> None:
    (plan_file,) = uninterrupted.glob("reproduce/*/plan.json")
    plan = json.loads(plan_file.read_text())
    planned = {cell["name"] for panel in plan["panels"] for cell in panel["cells"]}
    assert planned == set(table(uninterrupted))
    for panel in plan["panels"]:
        for cell in panel["cells"]:
            result = table(uninterrupted)[cell["name"]]
            coordinates = {name: value for name, value in cell.items() if name in result}
            assert cell.keys() - coordinates.keys() == {"name", "control", "control_k"}
            assert {name: result[name] for name in coordinates} == coordinates
    assert (uninterrupted / "report" / "index.html").exists()


@pytest.mark.slow
def test_killing_driver_and_workers_and_starting_again_gives_the_same_table(
    uninterrupted: Path, tmp_path: Path
) -> None:
    root = tmp_path / "runs"
    process = start(root)
    wait_for(root, "finetune/*/result.json", 2, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert len(table(root)) == 0
    process = start(root)
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert table(root) == table(uninterrupted)


@pytest.mark.slow
def test_a_killed_worker_costs_no_cell(uninterrupted: Path, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    process = start(root)
    wait_for(root, "finetune/*/result.json", 1, process)
    killed = []
    while not killed and process.poll() is None:
        killed = workers_of(process)[:1]
    os.kill(killed[0], signal.SIGKILL)
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert table(root) == table(uninterrupted)


@pytest.mark.slow
def test_ctrl_c_says_what_is_done_and_how_to_go_on(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    process = start(root)
    wait_for(root, "finetune/*/result.json", 1, process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: driver and workers alike
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "cells are done" in err
    assert "Type the same command to resume" in err
    assert "Traceback" not in err
    assert not list(root.glob("*/*/lock.json"))


@pytest.mark.slow
def test_workers_of_a_dead_driver_save_and_stop(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    process = start(root, 'overrides=["train.steps=2000000"]')
    wait_for(root, "pretrain/*/metrics.jsonl", 2, process)
    workers = workers_of(process)
    assert len(workers) == 2
    try:
        process.kill()
        process.wait()
        for _ in range(600):
            if not list(root.glob("pretrain/*/lock.json")):
                break
            time.sleep(0.1)
        assert not list(root.glob("pretrain/*/lock.json"))
        assert len(list(root.glob("pretrain/*/checkpoints/*"))) >= 2  # saved at the step they had reached
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # idle workers would linger until the launcher's own time-out


def test_a_finished_study_is_found_done(uninterrupted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.glob("*/*/result.json")}
    assert cli.run([*STUDY, f"runs={uninterrupted}"]) == 0
    assert {path: path.stat().st_mtime_ns for path in uninterrupted.glob("*/*/result.json")} == before


@pytest.mark.slow
def test_a_failing_cell_is_listed_and_only_it_is_retried(uninterrupted: Path, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    subprocess.run(["cp", "-r", uninterrupted, root], check=True)
    run = next(path for path in (root / "finetune").iterdir() if "PausePT" in path.name and "k8" in path.name)
    (run / "result.json").unlink()
    manifest = (run / "manifest.json").read_text()
    (run / "manifest.json").write_text(json.dumps(json.loads(manifest) | {"data_fingerprint": "0" * 16}))
    evaluated = next(path for path in (root / "evaluate").iterdir() if path.name.startswith(run.name[:-9]))
    (evaluated / "result.json").unlink()
    process = start(root)
    _, err = process.communicate()
    assert process.returncode == 1
    assert f"{run.name}: " in err
    assert "was made from data with fingerprint 0000000000000000" in err
    assert f"log: {run / 'error.log'}" in err
    assert "Traceback" in (run / "error.log").read_text()
    assert "retries only what is missing" in err
    (run / "manifest.json").write_text(manifest)
    process = start(root)
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert len(table(root)) == len(table(uninterrupted))
    assert not (run / "error.log").exists()


def test_dry_run_prints_commands_that_compose_into_the_same_cells(
    uninterrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert cli.run([*STUDY, f"runs={uninterrupted}", "dry_run=true"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines if line.startswith("#")] == ["# pretrain", "# finetune", "# evaluate"]
    assert all("0 running, 0 to do" in line for line in lines if line.startswith("#"))
    for line in lines:
        if line.startswith("pausebench pretrain") or "task=parity" in line:
            assert cli.run([*line.split()[1:], "tracking=off"]) == 0
            assert "already done" in capsys.readouterr().err


def test_cells_that_form_a_product_are_joined_into_one_sweep() -> None:
    cells = [[f"task={task}", f"k={k}"] for task in ("a", "b") for k in (0, 8)]
    assert as_commands("finetune", cells, "runs") == ["pausebench finetune -m task=a,b k=0,8"]
    assert as_commands("finetune", cells[:3], "my runs") == [
        "pausebench finetune -m task=a k=0,8 runs='my runs'",
        "pausebench finetune task=b k=0 runs='my runs'",
    ]


@pytest.mark.parametrize("path", ["runs/a-b_c.d", "my runs", "it's", "a,b", "x=y", "back\\slash"])
def test_any_folder_name_survives_hydras_grammar(path: str) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    (parsed,) = OverridesParser.create().parse_overrides([override("runs", path)])
    assert parsed.value() == path


class FailingCells:
    """Stands in for the launcher: notes what it is given and fails each cell with ``error``."""

    def __init__(self, error: Exception | None = None) -> None:
        self.launched: list[list[str]] = []
        self.error = error or ValueError("no such luck")

    run_elsewhere = False

    def compose(self, command: str, overrides: Sequence[str]) -> Any:
        raise AssertionError

    def launch(self, command: str, cells: Sequence[Sequence[str]], names: Sequence[str]) -> list[CellOutcome]:
        self.launched += [list(cell) for cell in cells]
        return [CellOutcome(self.error) for _ in cells]


def fail(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception | None = None,
    parents: Sequence[RunFolder] = (),
    **options: Any,
) -> tuple[FailingCells, str]:
    """A study of one evaluation, ``cell``, that fails: what was launched, and what the user is told."""
    cell = PlannedCommand("evaluate", ["run=x"], [RunFolder(root, "evaluate", "cell")], list(parents))
    monkeypatch.setattr(
        reproduce, "build_plan", lambda config, cells, precision: Plan(config, {"evaluate": [cell]}, [], precision)
    )
    result = {"name": "study", "title": "", "seeds": [0], "unit": "", "primary": None}
    cells = FailingCells(error)
    options = {"tracking": TrackingConfig(enabled=False)} | options
    with pytest.raises(RunFailed) as told:
        reproduce.run(ReproduceConfig(runs=str(root), result=result, **options), cells)
    return cells, str(told.value)


@pytest.mark.parametrize(("group", "told"), [(None, "study"), ("mine", "mine")])
def test_every_cell_is_tracked_in_the_group_of_its_study(
    group: str | None, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells, _ = fail(tmp_path, monkeypatch, tracking=TrackingConfig(enabled=True, group=group))
    assert {"tracking=wandb", f"tracking.group={told}"} <= set(cells.launched[0])
    cells, _ = fail(tmp_path, monkeypatch, tracking=TrackingConfig(enabled=False))
    assert [word for word in cells.launched[0] if word.startswith("tracking")] == ["tracking=off"]


def test_a_log_that_cannot_stand_in_the_run_folder_stands_in_the_studys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evaluate" / "cell" / "error.log").mkdir(parents=True)
    _, told = fail(tmp_path, monkeypatch, tracking=TrackingConfig(enabled=False))
    log = tmp_path / "reproduce" / "study" / "errors" / "cell.log"
    assert f"log: {log}" in told
    assert log.read_text().startswith(f"pausebench evaluate run=x runs={tmp_path}\nValueError: no such luck")


def test_a_cell_that_waits_in_slurms_queue_is_not_submitted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, queue: Callable[..., None]
) -> None:
    name = slurm.record(str(tmp_path), "pausebench-evaluate", ["cell"])
    queue(mine=f"5|5|PENDING|{name}")
    cells, told = fail(tmp_path, monkeypatch, wait=False)
    assert cells.launched == []
    assert "the rest is left to other processes" in told


def test_a_cell_whose_parent_is_left_to_others_is_left_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells, _ = fail(tmp_path, monkeypatch, parents=[RunFolder(tmp_path, "finetune", "parent")])
    assert cells.launched == []


def test_a_stopped_cell_whose_job_was_queued_again_has_not_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, queue: Callable[..., None]
) -> None:
    name = slurm.record(str(tmp_path), "pausebench-evaluate", ["cell"])
    monkeypatch.setattr(FailingCells, "launch", requeued(queue, f"5|5|PENDING|{name}"))
    _, told = fail(tmp_path, monkeypatch, Interrupted("SIGTERM: saved step 5"), wait=False)
    assert "cells failed" not in told


def test_a_stopped_cell_whose_job_is_gone_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, queue: Callable[..., None]
) -> None:
    name = slurm.record(str(tmp_path), "pausebench-evaluate", ["cell"])
    monkeypatch.setattr(FailingCells, "launch", requeued(queue, f"5|5|COMPLETING|{name}"))
    monkeypatch.setattr(reproduce.time, "sleep", lambda seconds: queue())
    cells, told = fail(tmp_path, monkeypatch, Interrupted("SIGTERM: saved step 5"))
    assert len(cells.launched) == 1
    assert "cell: SIGTERM: saved step 5" in told


def requeued(queue: Callable[..., None], line: str) -> Callable[..., Any]:
    """``FailingCells.launch`` after which the queue lists the cell's job."""
    launch = FailingCells.launch

    def launch_and_list(self: FailingCells, *given: Any) -> list[CellOutcome]:
        queue(mine=line)
        return launch(self, *given)

    return launch_and_list
