"""The configuration groups that are tables: a recipe for each model and task, and the tasks themselves.

``conf/recipes.yaml`` holds the recipes in rows, as the paper prints them. Hydra wants a config for each choice of a
group; ``generated_groups`` makes them. No Hydra here: ``cli`` registers what this module returns.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import yaml

from pausebench.config.help import conf_dir
from pausebench.tasks import TASKS, Task

Node = dict[str, Any]


@cache
def _file() -> Node:
    file: Node = yaml.safe_load((conf_dir() / "recipes.yaml").read_text())
    return file


def generated_groups() -> dict[tuple[str, str], Node]:
    """The config of each (group, choice), for the package ``_global_``."""
    # One row each instead of a file each: the paper's tables can be checked by eye, and a new task adds a line.
    file = _file()
    groups = {("task", task.name): _task(task, file["task_in_world"]) for task in TASKS.values()}
    for model, values in _rows(file["pretrain_on_text"]).items():
        groups["recipe/text", model] = _recipe(values)
    for group, tables in (("recipe/pretrain", "pretrain_in_world"), ("recipe/finetune", "finetune")):
        for model, table in file[tables].items():
            for row, values in _rows(table).items():
                groups[group, f"{model}_{row}"] = _recipe(values)
    return groups


def finetuning_steps(model: str, task: str) -> int | None:
    """Steps of the recipe for a model and a task; None if there is no recipe."""
    return _rows(_file()["finetune"][model]).get(task, {}).get("steps")


def _rows(table: Node) -> dict[str, Node]:
    """The values of each row by column, with those shared by all rows (``same``)."""
    return {
        name: table.get("same", {}) | dict(zip(table["columns"], values, strict=True))
        for name, values in table["rows"].items()
    }


def _recipe(values: Node) -> Node:
    # sequence_length is the only column that is not an option of train.
    train = {name: value for name, value in values.items() if name != "sequence_length"}
    return {"train": train} | {name: value for name, value in values.items() if name not in train}


def _task(task: Task, in_world: dict[str, Node]) -> Node:
    node: Node = {"task": {"name": task.name}, "default_k": task.default_k}
    if task.dataset is not None:
        return node
    # A generated task needs its world, so it overrides the groups that make it. The command line still wins: Hydra
    # applies it after every defaults list.
    settings = dict(in_world[task.worlds[0]])
    overrides = [{f"override /{group}": choice} for group, choice in settings.pop("override").items()]
    return {"defaults": [*overrides, "_self_"], **node, **settings}
