"""``show`` and ``tasks``: what they print is what a finetuning does."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pausebench import cli
from pausebench.commands.show import _printable
from pausebench.tasks import PAPER_TASKS, TASKS

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples.md"


def printed(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.run(line.split()) == 0
    return capsys.readouterr().out


def test_the_page_of_examples_is_what_the_commands_print(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```text\n\$ pausebench (.*?)\n(.*?)```", EXAMPLES.read_text(), re.DOTALL)
    assert len(blocks) == len(PAPER_TASKS)
    for command, shown in blocks:
        assert printed(f"{command.replace('DIR', str(shared_data))} runs={tmp_path}", capsys) == shown


@pytest.mark.slow
def test_every_embedded_task_can_be_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, task in ((name, task) for name, task in TASKS.items() if task.worlds):
        share = "task.train_fraction=0.5" if name == "lambada_openai" else ""
        options = f"k=3 examples=2 runs={tmp_path} {share}"
        if "english" in task.worlds:
            options += " model=tiny tokenizer=byte length_limit=positions"
        shown = printed(f"show task={name} {options}", capsys)
        assert shown.startswith(f"{name}: ") and shown.count("\nrow ") == 2
        assert shown.count("<pause>           pause") == 6 and shown.count("candidates, scored") == 2 * task.scored
        assert "cut)" not in shown, "no row is longer than the position table"


def test_supervision_and_attention_of_one_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Parity over three bits, written out: causal, the last pause says the answer."""
    shown = printed(f"show task=parity world.n_task=3 k=2 examples=1 runs={tmp_path}", capsys)
    *_, last_token = re.findall(r"^ +(\d+)  (\S+) +(\w+) *(\S*)$", shown, re.MULTILINE)
    assert last_token[:3] == ("5", "<pause>", "pause") and last_token[3] in ("'odd'", "'even'")
    assert shown.count("'odd'") + shown.count("'even'") == 1, "nothing else is supervised"
    picture = [line.split(maxsplit=1)[1] for line in shown.splitlines()[-6:]]
    assert picture == ["#... ..", "##.. ..", "###. ..", "#### ..", "#### #.", "#### ##"]


def test_the_bottleneck_shows_that_the_answer_sees_the_pauses_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = printed(f"show task=relay k=2 examples=1 runs={tmp_path}", capsys)
    answer = shown.splitlines()[-1].split(maxsplit=1)[1]
    prefix, pauses, target = answer.split(" ")
    assert set(prefix) == {".", ":"} and pauses == "##" and set(target) == {"#", ":"}


def test_a_long_row_is_shown_as_it_is_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = printed(
        f"show task=squad model=tiny tokenizer=byte world.sequence_length=64 examples=1 k=3 runs={tmp_path}", capsys
    )
    assert "row 0  (longer than 64 tokens: context" in shown
    assert max(int(place) for place in re.findall(r"^ +(\d+)  ", shown, re.MULTILINE)) <= 64


def test_a_row_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = f"show task=squad model=tiny tokenizer=byte start=8000 runs={tmp_path}"
    assert cli.run(line.split()) == 2
    assert "start=8000: task=squad has 8000 training rows here, numbered from 0" in capsys.readouterr().err


def test_control_characters_of_a_dataset_do_not_reach_the_terminal() -> None:
    assert _printable("a\x1b[2Jb\r\n\tü日") == "a\\x1b[2Jb\\r\n\tü日"


def test_a_reader_that_leaves_ends_a_command_quietly(tmp_path: Path) -> None:
    line = f"pausebench show task=parity examples=400 runs={tmp_path} | head -1"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} -m {line}"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("parity: ")


def test_the_list_has_every_task_with_its_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = {line.split()[0]: line for line in printed("tasks", capsys).splitlines()[1:]}
    assert set(listed) == set(TASKS)
    assert "train 8,000 + validation 500" in listed["piqa"] and "scored" in listed["piqa"]
    assert re.search(r" 10  .*/40000/10000$", listed["squad"]), "K, and the steps of Tables 3 and 4"
    (tmp_path / "squad").mkdir()
    (tmp_path / "squad" / "train.jsonl").write_text(json.dumps({"context": "x"}) + "\n")
    counted = printed(f"tasks data.root={tmp_path}", capsys)
    assert "train 1 + validation -" in counted and "in " + str(tmp_path) in counted


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["tasks", f"data.root={tmp_path / 'no'}"]) == 2
    assert "is no folder" in capsys.readouterr().err
