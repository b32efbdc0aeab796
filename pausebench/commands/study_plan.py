"""The plan of a study: which cells it has, in which run folders, and as which commands a user could type them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pausebench.commands import runs
from pausebench.commands.evaluate import evaluate_folder, filler_id
from pausebench.commands.runs import override
from pausebench.config import EvaluateConfig, ReproduceConfig
from pausebench.data.vocabulary import open_tokenizer
from pausebench.errors import BadInput
from pausebench.groups import Source
from pausebench.results.run_folder import RunFolder
from pausebench.stages import FinetuneConfig, PretrainConfig

KINDS = ("bottleneck", "variants", "k_curve", "m_curve", "filler")
ON_OFF = {"std": "off", "pause": "on"}


class Cells(Protocol):
    """How cells are composed and run; the command line's Hydra side implements it."""

    def compose(self, command: str, overrides: Sequence[str]) -> Any: ...

    def launch(self, command: str, cells: Sequence[Sequence[str]]) -> Sequence[Any]: ...


@dataclass
class Cell:
    """One command: its overrides, the folders it fills, and the folders it needs."""

    command: str
    overrides: list[str]
    folders: list[RunFolder]
    parents: list[RunFolder] = field(default_factory=list)
    finetune: FinetuneConfig | None = None

    @property
    def name(self) -> str:
        return self.folders[0].name

    def done(self) -> bool:
        return all((folder.path / "result.json").exists() for folder in self.folders)

    def running(self) -> bool:
        return any(folder.lock_owner() is not None for folder in self.folders)

    def died(self) -> bool:
        """Whether a process that is gone left its lock."""
        return any((folder.path / "lock.json").exists() and folder.lock_owner() is None for folder in self.folders)

    def describe_owner(self) -> str:
        owner = next((owner for folder in self.folders if (owner := folder.lock_owner())), None)
        return f"{self.name}" + (f", run by process {owner['pid']} on {owner['host']}" if owner else "")

    def launch_overrides(self, config: ReproduceConfig) -> list[str]:
        """The overrides to run it with here: beside its own, what does not change the result."""
        own = [*self.overrides, override("runs", config.runs), f"device={config.device}", "quiet=true"]
        own.append(f"threads={config.threads or config.result.get('threads', 1)}")
        tracking = config.tracking
        own.append(f"tracking={'wandb' if tracking.enabled else 'off'}")
        if tracking.enabled:
            own += [override("tracking.project", tracking.project), override("tracking.group", tracking.group or "")]
        if self.finetune is not None and self.parents:
            # Other runs in the folder may fit pretraining= as well; then the plan's own parent is named.
            try:
                found = runs.find_parent(self.finetune, open_tokenizer(self.finetune).fingerprint).name
            except BadInput:
                found = ""
            if found != self.parents[0].name:
                own.append(override("init", str(self.parents[0].path)))
        return own


@dataclass
class Plan:
    """Stages by command name, and the panels of the report with the evaluate cells they show."""

    config: ReproduceConfig
    stages: dict[str, list[Cell]]
    panels: list[dict[str, Any]]

    def cells(self) -> list[Cell]:
        return [cell for stage in self.stages.values() for cell in stage]

    def as_json(self, name: str) -> dict[str, Any]:
        """What ``plan.json`` holds; the report reads nothing else of the study."""
        result = self.config.result
        command = f"pausebench reproduce result={result['name']}"
        if self.config.seeds is not None:
            command += f" seeds={self.config.seeds}".replace(", ", ",")
        command += "".join(f" {word}" for word in chosen_data(self.config))
        if self.config.limit is not None:
            command += f" limit={self.config.limit}"
        if self.config.overrides:
            quoted = ",".join(f'"{item}"' for item in self.config.overrides)
            command += f" 'overrides=[{quoted}]'"
        if self.config.runs != "runs":
            command += f" {override('runs', self.config.runs)}"
        chosen = chosen_names(self.config)
        narrowed = "" if name == "-".join([result["name"], *chosen]) else " (narrowed)"
        return {
            "result": name,
            "title": " · ".join([result["title"], *chosen]) + narrowed,
            "seeds": study_seeds(self.config),
            "unit": result["unit"],
            "notes": result.get("notes", []),
            "primary": result["primary"],
            "command": command,
            "panels": self.panels,
            "stages": [
                {
                    "command": stage,
                    "cells": [{"name": cell.name, "overrides": cell.overrides} for cell in cells],
                    "commands": as_commands(stage, [cell.overrides for cell in cells], self.config.runs),
                }
                for stage, cells in self.stages.items()
            ],
        }


def study_seeds(config: ReproduceConfig) -> list[int]:
    """``seeds=``, or the study's own."""
    if config.seeds is None:
        return list(config.result["seeds"])
    return list(range(config.seeds)) if isinstance(config.seeds, int) else list(config.seeds)


def chosen_data(config: ReproduceConfig) -> list[str]:
    """The overrides by which a study's cells get another model or other data than their task's own."""
    words = [f"model={config.model.name}"] if config.model is not None else []
    words += runs.source_overrides(config.data) if config.data is not None else []
    words += runs.corpus_overrides(config.corpus) if config.corpus is not None else []
    return words + (runs.tokenizer_overrides(config.tokenizer) if config.tokenizer is not None else [])


def chosen_names(config: ReproduceConfig) -> list[str]:
    """The same for people: model and data."""
    names = [config.model.name] if config.model is not None else []
    if config.data is not None:
        names.append("english" if config.data.source is Source.embedded else config.data.source.value)
    return [*names[:1], config.corpus.name] if config.corpus is not None else names


def build_plan(config: ReproduceConfig, cells: Cells) -> Plan:
    """Compose every cell of a study. Raises ``BadInput`` for the first one that is not valid.

    A panel is a product of its lists: task, world, pretraining, k, seeds, and for the evaluation filler and mt. Panels
    share cells, and each is run once. A panel's ``overrides`` and ``pretrain_overrides`` are appended to its finetune
    and pretrain cells.
    """
    pretrains: dict[tuple[str, ...], Cell] = {}
    finetunes: dict[str, Cell] = {}
    evaluated: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    panels = []
    # With two pretrainings of one kind in a study, pretraining= no longer says which.
    ambiguous = any("pretrain_overrides" in panel for panel in config.result["panels"].values())
    for panel_id, panel in config.result["panels"].items():
        if panel["kind"] not in KINDS:
            raise BadInput(f"panel {panel_id} has kind={panel['kind']}; allowed are {', '.join(KINDS)}.")
        shown: list[dict[str, Any]] = []
        seeds = list(panel.get("seeds", study_seeds(config)))
        grid = itertools.product(panel["task"], panel.get("world", [None]), panel["pretraining"], panel["k"], seeds)
        for task, world, pretraining, k, seed in grid:
            overrides = [f"task={task}", *([f"world={world}"] if world else []), *chosen_data(config)]
            overrides += ["init=random"] if pretraining == "none" else [f"pretraining={pretraining}"]
            overrides += [f"k={k}", f"seed={seed}", *panel.get("overrides", []), *config.overrides]
            finetuned: FinetuneConfig = cells.compose("finetune", [*overrides, override("runs", config.runs)])
            parent, needed = runs.RANDOM, []
            if pretraining != "none":
                extra = [*panel.get("pretrain_overrides", []), *config.overrides]
                pretrain = _pretrain_cell(finetuned, pretraining, extra, config.runs, cells, pretrains)
                needed = [pretrain.folders[0]]
                parent = runs.planned_parent(pretrain.name, pretraining, finetuned.pretraining_seed)
                if ambiguous:
                    which = overrides.index(f"pretraining={pretraining}")
                    overrides[which] = override("init", str(pretrain.folders[0].path))
            folder = runs.finetune_folder(finetuned, parent)
            searched = finetuned if needed and not ambiguous else None
            finetunes.setdefault(folder.name, Cell("finetune", overrides, [folder], needed, searched))
            fillers = panel.get("filler", ["pause"])
            for filler, m in itertools.product(fillers, panel.get("mt", [finetuned.pauses])):
                filler = "pause" if m == 0 else filler
                if filler not in ("pause", "end"):
                    filler_id(filler, open_tokenizer(finetuned))
                evaluation = EvaluateConfig(runs=config.runs, run=folder.name, filler=filler, limit=config.limit)
                target = evaluate_folder(evaluation, folder.name, finetuned.placement, m)
                entry = {
                    "name": target.name,
                    "task": task,
                    "world": finetuned.corpus_name,
                    "pretraining": pretraining,
                    "variant": runs.variant(pretraining, finetuned.pauses),
                    "k": finetuned.k,
                    "mt": m,
                    "filler": {"pause": "<pause>", "end": "<end>"}.get(filler, filler),
                    "prefix": finetuned.prefix.value,
                    "seed": seed,
                }
                evaluated.setdefault((folder.name, filler), {})[m] = {"entry": entry, "folder": target, "run": folder}
                if entry not in shown:
                    shown.append(entry)
        panels.append({"id": panel_id, "kind": panel["kind"], "title": panel["title"], "cells": shown})
    by_name = {cell.name: cell for cell in pretrains.values()}  # other overrides may spell the same run
    stages = {"pretrain": list(by_name.values()), "finetune": list(finetunes.values())}
    stages["evaluate"] = [_evaluate_cell(filler, config.limit, by_m) for (_, filler), by_m in evaluated.items()]
    return Plan(config, {command: stage for command, stage in stages.items() if stage}, panels)


def _pretrain_cell(
    finetuned: FinetuneConfig,
    pretraining: str,
    extra: list[str],
    root: str,
    cells: Cells,
    known: dict[tuple[str, ...], Cell],
) -> Cell:
    """The parent's cell, composed once for all the finetunings that share it."""
    own = [*runs.data_overrides(finetuned), f"pause={ON_OFF[pretraining]}", f"seed={finetuned.pretraining_seed}"]
    overrides = list(dict.fromkeys([*own, *extra]))
    key = tuple(overrides)
    if key not in known:
        pretrain: PretrainConfig = cells.compose("pretrain", [*overrides, override("runs", root)])
        known[key] = Cell("pretrain", overrides, [runs.pretrain_folder(pretrain)])
    return known[key]


def _evaluate_cell(filler: str, limit: int | None, by_m: dict[int, dict[str, Any]]) -> Cell:
    """All M of one finetuned run and one filler: they share the load."""
    run: RunFolder = next(iter(by_m.values()))["run"]
    overrides = [override("run", str(run.path)), f"mt=[{','.join(map(str, sorted(by_m)))}]"]
    if filler != "pause":
        overrides.append(f"filler={filler}")
    if limit is not None:
        overrides.append(f"limit={limit}")
    return Cell("evaluate", overrides, [by_m[m]["folder"] for m in sorted(by_m)], [run])


def as_commands(command: str, cells: Iterable[Sequence[str]], runs_root: str) -> list[str]:
    """Commands a user can paste, joined into ``-m`` lines wherever the cells form a product."""
    suffix = "" if runs_root == "runs" else f" {override('runs', runs_root)}"
    pairs = [tuple(tuple(item.split("=", 1)) for item in cell) for cell in cells]
    by_keys: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for cell in pairs:
        by_keys.setdefault(tuple(key for key, _ in cell), []).append(tuple(value for _, value in cell))
    lines = []
    for keys, rows in by_keys.items():
        for values in _products(rows):
            sweep = any(len(column) > 1 for column in values)
            words = [f"{key}={','.join(column)}" for key, column in zip(keys, values, strict=True)]
            lines.append(f"pausebench {command} {'-m ' if sweep else ''}{' '.join(words)}{suffix}")
    return lines


def _products(rows: Sequence[tuple[str, ...]]) -> list[list[list[str]]]:
    """Split rows into as few products as a cut along the first uneven column gives."""
    columns = [list(dict.fromkeys(column)) for column in zip(*rows, strict=True)]
    if math.prod(len(column) for column in columns) == len(set(rows)):
        return [columns]
    index = next(index for index, column in enumerate(columns) if len(column) > 1)
    return [product for value in columns[index] for product in _products([row for row in rows if row[index] == value])]
