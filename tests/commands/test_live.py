"""The view of a running study: what it shows comes from run folders, fits the screen, and never runs ahead of them."""

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pausebench.runs.folder import RunFolder
from pausebench.study.view import StudyView, duration, watching


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def entry(task: str, variant: str, k: int, seed: int) -> dict[str, Any]:
    place = {"task": task, "world": "w", "pretraining": "std", "variant": variant, "k": k, "mt": k}
    return {"name": f"{task}-{variant}-k{k}-s{seed}", **place, "filler": "<pause>", "prefix": "causal", "seed": seed}


def planned(tasks: int = 2, seeds: int = 3) -> dict[str, Any]:
    """Two arms on every task and seed."""
    arms = (("StdPT_StdFT", 0), ("PausePT_PauseFT", 8))
    cells = [entry(f"task{n}", *arm, seed) for n in range(tasks) for arm in arms for seed in range(seeds)]
    return {
        "primary": {"panel": "variants"},
        "panels": [{"id": "variants", "cells": cells}],
        "stages": [
            {"command": "finetune", "cells": [{"name": f"f{n}"} for n in range(5)]},
            {"command": "evaluate", "cells": [{"name": cells[0]["name"]}]},
        ],
    }


def finish(root: Path, command: str, name: str, **result: Any) -> None:
    folder = root / command / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "lock.json").unlink(missing_ok=True)
    (folder / "result.json").write_text(json.dumps(result))


def begin(root: Path, command: str, name: str, pid: int | None = None) -> None:
    """As if this process (or ``pid``) held the folder and had logged two rows."""
    folder = RunFolder(root, command, name)
    with folder.locked():
        lock = json.loads((folder.path / "lock.json").read_text())
    (folder.path / "lock.json").write_text(json.dumps(lock | {"pid": pid or lock["pid"]}))
    folder.append_metrics({"step": 10, "loss": 2.0})
    folder.append_metrics({"step": 20, "loss": 1.25})


def screen(view: StudyView, width: int = 80, height: int = 24) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, record=True, force_terminal=True)
    console.print(view.render(width, height))
    return console.export_text().splitlines()


def screen_of(file: io.StringIO) -> Console:
    return Console(file=file, width=80, force_terminal=True, highlight=False)


def gone() -> int:
    """The number of a process that has ended."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return child


def test_every_state_of_a_cell_is_counted_from_its_folder(tmp_path: Path) -> None:
    finish(tmp_path, "finetune", "f0")
    begin(tmp_path, "finetune", "f1")
    begin(tmp_path, "finetune", "f2", pid=gone())
    view = StudyView(str(tmp_path), planned())
    view.failed.add("f3")
    view.refresh()
    assert view.counts("finetune") == {"done": 1, "running": 1, "failed": 1, "stopped": 1, "left": 1}
    lines = screen(view)
    assert lines[0].startswith("finetune  1/5 done, 1 running, 1 failed, 1 stopped")
    assert "step     20  loss 1.250  f1" in lines[2]


def test_a_cell_that_ran_and_left_no_result_is_stopped_until_its_error_is_known(tmp_path: Path) -> None:
    view = StudyView(str(tmp_path), planned())
    begin(tmp_path, "finetune", "f1")
    view.refresh()
    (tmp_path / "finetune" / "f1" / "lock.json").unlink()
    view.refresh()
    assert view.counts("finetune")["stopped"] == 1
    view.failed.add("f1")
    assert view.counts("finetune") == {"done": 0, "running": 0, "failed": 1, "stopped": 0, "left": 4}


def test_the_table_has_the_mean_and_number_of_the_scores_so_far(tmp_path: Path) -> None:
    plan = planned()
    finish(tmp_path, "evaluate", "task1-PausePT_PauseFT-k8-s0", value=0.5)
    finish(tmp_path, "evaluate", "task1-PausePT_PauseFT-k8-s2", value=0.75)
    view = StudyView(str(tmp_path), plan)
    view.refresh()
    row = next(line for line in screen(view) if line.startswith("task1"))
    assert row.split() == ["task1", "·", "w", "-", "0.625", "(2)"]


def test_arms_that_differ_in_anything_are_never_averaged(tmp_path: Path) -> None:
    plan = planned(tasks=1, seeds=1)
    cells = plan["panels"][0]["cells"]
    cells.append(cells[1] | {"name": "other", "filler": "."})
    finish(tmp_path, "evaluate", cells[1]["name"], value=0.5)
    finish(tmp_path, "evaluate", "other", value=0.25)
    view = StudyView(str(tmp_path), plan)
    view.refresh()
    row = next(line for line in screen(view) if line.startswith("task0"))
    assert row.split()[-4:] == ["0.500", "(1)", "0.250", "(1)"]


def test_time_left_is_the_median_duration_over_what_runs_side_by_side(tmp_path: Path) -> None:
    clock = Clock()
    finish(tmp_path, "finetune", "f0")  # before this session: says nothing about now
    view = StudyView(str(tmp_path), planned(), clock)
    view.refresh()
    for name in ("f1", "f2"):
        begin(tmp_path, "finetune", name)
    view.refresh()
    assert "about" not in view.line("finetune")
    clock.now = 40
    finish(tmp_path, "finetune", "f1")
    view.refresh()
    assert view.seconds_left("finetune") == 40 * 3 / 2  # f2, f3 and f4, two at a time
    clock.now = 100
    finish(tmp_path, "finetune", "f2")
    view.refresh()
    assert view.seconds_left("finetune") == 70 * 2 / 2
    assert view.line("finetune").endswith("about 1:10 left")


def test_cells_shorter_than_a_look_share_the_time_between_two(tmp_path: Path) -> None:
    clock = Clock()
    view = StudyView(str(tmp_path), planned(tasks=1, seeds=3), clock)
    view.refresh()
    clock.now = 1
    for seed in range(4):
        finish(tmp_path, "evaluate", f"task0-{'PausePT_PauseFT-k8' if seed else 'StdPT_StdFT-k0'}-s{seed % 3}", value=1)
    view.refresh()
    assert view.seconds_left("evaluate") == 2 * 0.25


@pytest.mark.parametrize(("seconds", "said"), [(0, "0:00"), (200, "3:20"), (3599, "59:59"), (9000, "2.5 h")])
def test_long_times_are_said_in_hours(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 12), (120, 50), (20, 3)])
def test_the_view_never_outgrows_the_screen(width: int, height: int, tmp_path: Path) -> None:
    plan = planned(tasks=60)
    plan["stages"][0]["cells"] = [{"name": f"a-rather-long-name-of-a-run-{n}"} for n in range(40)]
    for cell in plan["stages"][0]["cells"]:
        begin(tmp_path, "finetune", cell["name"])
    view = StudyView(str(tmp_path), plan)
    view.refresh()
    lines = screen(view, width, height)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width


def test_a_finished_run_is_read_once_and_metrics_only_when_they_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(tmp_path, "evaluate", "task0-StdPT_StdFT-k0-s0", value=0.5)
    begin(tmp_path, "finetune", "f1")
    view = StudyView(str(tmp_path), planned())
    view.refresh()
    monkeypatch.setattr("pausebench.study.view.read_if_whole", None)
    monkeypatch.setattr("pausebench.study.view.read_last_metrics", None)
    view.refresh()
    assert view.counts("finetune")["running"] == 1


def test_a_pipe_gets_a_plain_line_and_a_terminal_is_restored(tmp_path: Path) -> None:
    view = StudyView(str(tmp_path), planned())
    pipe, terminal = io.StringIO(), io.StringIO()
    with watching(view, "finetune", "stage 1/2 finetune", Console(file=pipe, width=80, highlight=False)):
        finish(tmp_path, "finetune", "f0")
    assert pipe.getvalue() == "stage 1/2 finetune: 1/5 done\n"
    with (
        pytest.raises(KeyboardInterrupt),
        watching(view, "finetune", "stage 1/2 finetune", screen_of(terminal)),
    ):
        raise KeyboardInterrupt
    assert terminal.getvalue().rindex("\x1b[?25h") > terminal.getvalue().rindex("\x1b[?25l")  # the cursor is back
    assert terminal.getvalue().endswith("stage 1/2 finetune: 1/5 done\n")
