"""What a change of structure must not change: helps, dry runs, composed configs; with --run names, results and tables.

    python tests/benchmarks/pin.py DIR            # a minute: one text file for each help, dry run and composed config
    python tests/benchmarks/pin.py DIR --run      # also the demo and a short study of two tasks; ten minutes

Run it on both sides of a change, from each checkout, and compare with ``diff -r``. Values of results are compared
bit by bit, so both sides have to run on one machine; speeds, times and versions are left out.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
from pathlib import Path

from pausebench import cli
from pausebench.tasks import TASKS

RESULTS = ("demo", "miniature", "text", "table1", "table2", "figure3", "figure4a", "figure4b", "figure4c", "figure5",
           "figure6", "figure7")  # fmt: skip
COMMANDS = ("prepare", "pretrain", "finetune", "evaluate", "reproduce", "report", "plan", "tasks", "show")
MODELS = ("mini", "tiny", "small", "130m", "1b")
UNSTEADY = {"tokens_per_second", "examples_per_second", "mfu", "seconds", "versions", "device", "peak_memory_bytes"}
STUDIES = (
    ["result=demo"],
    ["result=text", "task=[squad,gsm8k]", "seeds=2", "limit=40", 'overrides=["train.steps=30"]'],
)


def printed(words: list[str]) -> str:
    """What a command prints, and its exit code."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            code = cli.run(words)
        except SystemExit as stopped:
            code = stopped.code
    return f"{out.getvalue()}exit {code}\n"


def steady(value: object) -> object:
    """A result without what differs from one run to the next."""
    if isinstance(value, dict):
        return {name: steady(item) for name, item in value.items() if name not in UNSTEADY}
    return value


def pin(folder: Path) -> None:
    """Write what is printed without running anything."""
    for command in COMMANDS:
        (folder / f"help_{command}.txt").write_text(printed([command, "--help"]))
    for name in RESULTS:
        (folder / f"dry_{name}.txt").write_text(printed(["reproduce", f"result={name}", "dry_run=true"]))
    for model in MODELS:
        for pause in ("on", "off"):
            composed = printed(["pretrain", f"model={model}", f"pause={pause}", "--cfg", "job"])
            (folder / f"pretrain_{model}_{pause}.yaml").write_text(composed)
        for task in sorted(TASKS):
            composed = printed(["finetune", f"model={model}", f"task={task}", "--cfg", "job"])
            (folder / f"finetune_{model}_{task}.yaml").write_text(composed)


def run(folder: Path) -> None:
    """Write the names of all run folders, their results and the report's tables, of short studies."""
    runs = folder / "runs"
    for study in STUDIES:
        print(printed(["reproduce", *study, f"runs={runs}", "quiet=true"])[-400:], file=sys.stderr)
    for path in sorted(runs.glob("*/*/result.json")):
        text = json.dumps(steady(json.loads(path.read_text())), indent=1, sort_keys=True)
        (folder / f"result_{path.parent.parent.name}_{path.parent.name}.json").write_text(text)
    for path in sorted((runs / "report").glob("*/*.csv")):
        (folder / f"{path.parent.name}_{path.name}").write_text(path.read_text())
    shutil.rmtree(runs)


if __name__ == "__main__":
    target = Path(sys.argv[1]).resolve()
    target.mkdir(parents=True, exist_ok=True)
    pin(target)
    if "--run" in sys.argv[2:]:
        run(target)
