"""Every task through finetune and evaluate, on the embedded world and on published rows, as one table.

    python tests/benchmarks/every_task.py runs=DIR [data.root=DIR]

Embedded: `tiny` pretrained without pauses by its own recipe, finetuned with K = 0 by the task's, all test rows.
Published rows, with data.root: `tiny` from random weights, rows of at most 512 tokens, 13 steps of 16 examples with
K = 10, 200 test rows: it shows that every kind of row goes through, not that anything is learned.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from pausebench import cli
from pausebench.evaluation.metrics import METRICS
from pausebench.tasks import PAPER_TASKS, TASKS

SHORT = "model=tiny tracking=off quiet=true threads=1"
PUBLISHED = "data=files corpus=corpus_standin tokenizer=bpe init=random k=10 train.steps=13 train.batch_size=16"
SHARE = "task.train_fraction=0.8"
CARVED = {"coqa", "hellaswag", "lambada_openai"}  # no training split in a folder of test rows


def typed(line: str) -> None:
    """Run a command; a failing one ends the table."""
    if code := cli.run(line.split()):
        sys.exit(code)


def main(runs: str, root: str | None) -> None:
    typed(f"pretrain pause=off {SHORT} runs={runs}")
    print("| rows | task | n | truncated | metric | value ± stderr | 95 % interval | best constant | NLL | seconds |")
    print("|---" * 10 + "|")
    for task in (*PAPER_TASKS, TASKS["lambada_openai"]):
        line(runs, f"task={task.name} k=0 pretraining=std {SHARE if task.name == 'lambada_openai' else ''}", "")
    for task in (*PAPER_TASKS, TASKS["lambada_openai"]) if root else ():
        if task.name != "lambada":
            share = SHARE if task.name in CARVED else ""
            line(runs, f"task={task.name} {PUBLISHED} data.root={root} {share}", "limit=200")


def line(runs: str, options: str, scoring: str) -> None:
    """Train and score one task and print its line of the table."""
    before, began = folders(runs, "finetune"), time.perf_counter()
    typed(f"finetune {options} {SHORT} runs={runs}")
    [run] = folders(runs, "finetune") - before
    trained, scored = time.perf_counter(), folders(runs, "evaluate")
    typed(f"evaluate run={run} runs={runs} quiet=true threads=1 {scoring}")
    [folder] = folders(runs, "evaluate") - scored
    result = json.loads((folder / "result.json").read_text())
    low, high = result["interval"]
    rows = [json.loads(row) for row in (folder / "predictions.jsonl").read_text().splitlines()]
    seconds = f"{trained - began:.0f} + {time.perf_counter() - trained:.0f}"
    cells = [
        result["data"] if result["data"] == "embedded" else "published",
        result["task"],
        result["n"],
        result["truncated"],
        result["metric"],
        f"{result['value']:.3f} ± {result['stderr']:.3f}",
        f"{low:.3f} to {high:.3f}",
        f"{best_constant(rows, result['metric']):.3f}",
        f"{result['target_nll']:.3f}",
        seconds,
    ]
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def best_constant(rows: list[dict[str, Any]], metric: str) -> float:
    """The score of the one answer among the rows', or of the one place among candidates, that does best."""
    if "right" in rows[0]:
        return max(Counter(row["right"] for row in rows).values()) / len(rows)
    answers = [answer for answer, _ in Counter(row["target"] for row in rows).most_common(300)]
    return max(sum(METRICS[metric](answer, row["references"]) for row in rows) / len(rows) for answer in answers)


def folders(runs: str, command: str) -> set[Path]:
    return set(Path(runs, command).glob("*"))


if __name__ == "__main__":
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    main(given["runs"], given.get("data.root"))
