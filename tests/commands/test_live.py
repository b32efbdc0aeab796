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


def folders(root: Path, finetunings: int = 5) -> dict[str, list[RunFolder]]:
    """Finetunings f0, f1, ... and two evaluations of a study."""
    return {
        "finetune": [RunFolder(root, "finetune", f"f{number}") for number in range(finetunings)],
        "evaluate": [RunFolder(root, "evaluate", f"e{number}") for number in range(2)],
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
    console.print(view.render(height))
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
    view = StudyView(folders(tmp_path))
    view.failed.add("f3")
    view.refresh()
    assert view.counts("finetune") == {"done": 1, "running": 1, "failed": 1, "stopped": 1, "left": 1}
    lines = screen(view)
    assert lines[0].startswith("finetune  1/5 done, 1 running, 1 failed, 1 stopped")
    assert "step     20  loss 1.250  f1" in lines[2]


def test_a_cell_that_ran_and_left_no_result_is_stopped_until_its_error_is_known(tmp_path: Path) -> None:
    view = StudyView(folders(tmp_path))
    begin(tmp_path, "finetune", "f1")
    view.refresh()
    (tmp_path / "finetune" / "f1" / "lock.json").unlink()
    view.refresh()
    assert view.counts("finetune")["stopped"] == 1
    view.failed.add("f1")
    assert view.counts("finetune") == {"done": 0, "running": 0, "failed": 1, "stopped": 0, "left": 4}


def test_time_left_is_what_the_rest_takes_at_the_pace_of_this_session(tmp_path: Path) -> None:
    clock = Clock()
    finish(tmp_path, "finetune", "f0")  # before this session: says nothing about now
    view = StudyView(folders(tmp_path), clock)
    for name in ("f1", "f2"):
        begin(tmp_path, "finetune", name)
    view.refresh()
    assert "about" not in view.line("finetune")
    clock.now = 40
    finish(tmp_path, "finetune", "f1")
    view.refresh()
    assert view.seconds_left("finetune") == 40 * 3  # f2, f3 and f4
    clock.now = 100
    finish(tmp_path, "finetune", "f2")
    view.refresh()
    assert view.seconds_left("finetune") == 50 * 2
    assert view.line("finetune").endswith("about 1:40 left")


@pytest.mark.parametrize(("seconds", "said"), [(0, "0:00"), (200, "3:20"), (3599, "59:59"), (9000, "2.5 h")])
def test_long_times_are_said_in_hours(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 12), (120, 50), (20, 3)])
def test_the_view_never_outgrows_the_screen(width: int, height: int, tmp_path: Path) -> None:
    named = {"finetune": [RunFolder(tmp_path, "finetune", f"a-rather-long-name-of-a-run-{n}") for n in range(60)]}
    for folder in named["finetune"]:
        begin(tmp_path, "finetune", folder.name)
    view = StudyView(named)
    view.refresh()
    lines = screen(view, width, height)
    assert len(lines) == min(height, 61)
    assert max(map(len, lines)) <= width


def test_a_pipe_gets_a_plain_line_and_a_terminal_is_restored(tmp_path: Path) -> None:
    view = StudyView(folders(tmp_path))
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
