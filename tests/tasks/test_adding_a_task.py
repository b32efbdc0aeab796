"""docs/adding-a-task.md, done: its files, as they stand there, make a tenth task that trains and is scored."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

from pausebench import cli
from pausebench.commands.tasks import _rows
from pausebench.tasks import TASKS

DOCS = Path(__file__).parents[2] / "docs" / "adding-a-task.md"
FILE = Path(__file__).parent / "boolq.py"
TINY = "model=tiny data=files tokenizer=byte init=random threads=1 tracking=off quiet=true"


def block(language: str) -> str:
    [found] = re.findall(rf"```{language}\n(.*?)```", DOCS.read_text(), re.DOTALL)
    return str(found)


def test_the_page_shows_the_file_and_it_is_short() -> None:
    assert block("python") == FILE.read_text()
    assert len(FILE.read_text().splitlines()) < 40


def test_a_tenth_task_is_shown_trained_and_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("boolq", FILE)
    assert spec is not None and spec.loader is not None
    boolq = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(boolq)
    monkeypatch.setitem(TASKS, "boolq", boolq.BOOLQ)
    data = tmp_path / "data" / "boolq"
    data.mkdir(parents=True)
    rows = [
        {"question": f"is it {n}", "passage": "It is. " * (n % 7) + f"It is not {n + 1}.", "answer": n % 3 > 0}
        for n in range(60)
    ]
    for split, some in (("train", rows[:40]), ("validation", rows[40:])):
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    where = f"task=boolq data.root={data.parent} runs={tmp_path / 'runs'} {TINY}"
    assert cli.run(["show", *where.split(), "k=3", "examples=1"]) == 0
    shown = capsys.readouterr().out
    assert "Question: is it 0?" in shown and "candidates, scored by likelihood:\n  yes\n  no" in shown
    assert _rows(boolq.BOOLQ, data.parent) == "train 40 + validation 20" and _rows(boolq.BOOLQ, None) == "-"
    assert cli.run(["finetune", *where.split(), "k=2", "train.steps=3", "train.batch_size=4"]) == 0
    [run] = (tmp_path / "runs" / "finetune").iterdir()
    assert cli.run(["evaluate", f"run={run}", f"runs={tmp_path / 'runs'}", "mt=[0,2]", "quiet=true"]) == 0
    results = [json.loads((folder / "result.json").read_text()) for folder in (run.parents[1] / "evaluate").iterdir()]
    assert {result["mt"] for result in results} == {0, 2}
    for result in results:
        assert (result["task"], result["metric"], result["n"]) == ("boolq", "accuracy", 20)
        assert set(result["metrics"]) == {"accuracy", "macro_f1"}
