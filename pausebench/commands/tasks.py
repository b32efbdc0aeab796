"""``pausebench tasks``: every task with its metric, splits, rows, K, and steps on each model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pausebench.config.commands import TasksConfig
from pausebench.config.recipes import finetuning_steps
from pausebench.data.files import read_split
from pausebench.errors import BadInput
from pausebench.tasks import TASKS, Dataset, Task
from pausebench.worlds.english import EnglishWorld

# The models of conf/recipes.yaml with a finetuning recipe of their own, small to large.
MODELS = ("tiny", "small", "130m", "1b")
LINE = "{:<19}{:<9}{:<19}{:<32}{:>3}  {}"


def run(config: TasksConfig) -> dict[str, Any]:
    """Print the table, one line per task."""
    root = None if config.data.root is None else Path(config.data.root).expanduser()
    if root is not None and not root.is_dir():
        raise BadInput(f"data.root={root} is no folder; it has to hold squad/train.jsonl.gz and the like.")
    where = "of the embedded worlds" if root is None else f"in {root}"
    print(LINE.format("task=", "answer", "metric", f"rows {where}", "K", "steps " + "/".join(MODELS)))
    for name, task in sorted(TASKS.items()):
        steps = [str(finetuning_steps(model, name) or "-") for model in MODELS]
        kind = "scored" if task.scored else "decoded"
        print(LINE.format(name, kind, task.metrics[0], _rows(task, root), task.default_k, "/".join(steps)).rstrip())
    return {"names": []}


def _rows(task: Task, root: Path | None) -> str:
    """Number of rows in each of the two splits; "-" if they are not there."""
    if task.dataset is None:
        return f"test {task.generated_rows}, training as needed" if root is None else "-"
    if root is None and not task.worlds:
        return "-"
    counts = (
        f"{split} {_count(task.dataset, split, root)}" for split in (task.dataset.train, task.dataset.test) if split
    )
    return " + ".join(counts)


def _count(dataset: Dataset, split: str, root: Path | None) -> str:
    # A folder may hold some of the datasets only: the table then shows which.
    if root is not None and not any((root / dataset.name).glob(f"{split}[.-]*")):
        return "-"
    rows = EnglishWorld().rows(dataset.name, split) if root is None else read_split(root, dataset.name, split)
    return f"{sum(1 for _ in rows):,}"
