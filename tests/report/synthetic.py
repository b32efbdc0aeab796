"""Synthetic run folders: what reproduce and evaluate leave behind, with scores we choose."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from pausebench.report.page import read_runs, write_page
from pausebench.report.terminal import print_studies

Score = Callable[[dict[str, Any]], float | None]

VARIANTS = ("StdPT_StdFT", "StdPT_PauseFT", "PausePT_StdFT", "PausePT_PauseFT")
RELAY = {0: 0.124, 1: 0.43, 4: 0.81, 12: 0.97}
PARITY = {
    "StdPT_StdFT": (0.81, 0.06),
    "StdPT_PauseFT": (0.85, 0.09),
    "PausePT_StdFT": (0.72, 0.11),
    "PausePT_PauseFT": (0.91, 0.10),
}


# Each task of the paper with its headline and what stands beside it.
PAPER_METRICS = {
    "gsm8k": ("final_number", "rouge1"),
    "squad": ("squad_exact_match", "squad_f1"),
    "commonsense_qa": ("exact_match", None),
    "lambada": ("exact_match", None),
    "web_questions": ("squad_exact_match", "squad_f1"),
    "natural_questions": ("nq_exact_match", "nq_f1"),
    "coqa": ("coqa_f1", "coqa_exact_match"),
    "piqa": ("accuracy", "macro_f1"),
    "hellaswag": ("accuracy", "macro_f1"),
}
PAPER_TASKS = tuple(PAPER_METRICS)
PAPER_SEEDS = (0, 1, 2, 3, 4)
FAMILY = {"panel": "variants", "treatment": "PausePT_PauseFT", "control": "StdPT_StdFT"}


def cell(task: str, pretraining: str, k: int, seed: int, **more: Any) -> dict[str, Any]:
    """One planned cell with its coordinates; the name follows from them, so panels share cells as in a real plan."""
    variant = ("PausePT" if pretraining == "pause" else "StdPT") + ("_PauseFT" if k else "_StdFT")
    world = "relay" if task == "relay" else "count20"
    raw = {
        "task": task,
        "world": world,
        "pretraining": pretraining,
        "variant": variant,
        "k": k,
        "mt": k,
    }
    raw |= {"filler": "<pause>", "prefix": "causal", "seed": seed} | more
    raw["name"] = "-".join(str(value).strip("<>") for value in raw.values())
    return raw


def variants(
    seeds: Sequence[int],
    tasks: Sequence[str] = ("parity", "majority"),
    k: int = 8,
    **more: Any,
) -> list[dict[str, Any]]:
    """The four variants of each task."""
    return [
        cell(task, pretraining, pauses, seed, **more)
        for task in tasks
        for pretraining in ("std", "pause")
        for pauses in (0, k)
        for seed in seeds
    ]


def demo_panels(seeds: Sequence[int]) -> list[dict[str, Any]]:
    """All five kinds of panel, shaped like the demo's."""
    grid = [cell("parity", p, k, seed) for p in ("std", "pause") for k in (0, 2, 8, 16) for seed in seeds]
    sweep = [
        cell("parity", p, 8, seed, mt=mt) for p in ("std", "pause") for mt in (0, 2, 4, 8, 12, 16) for seed in seeds
    ]
    filler = [
        cell(task, p, 0, seed, mt=mt, filler=filler)
        for task in ("parity", "majority")
        for p in ("std", "pause")
        for mt, filler in ((0, "<pause>"), (8, "<pause>"), (8, "<end>"))
        for seed in seeds
    ]
    relay = [cell("relay", "none", k, 0, variant="NoPT_PauseFT" if k else "NoPT_StdFT") for k in RELAY]
    return [
        {
            "id": "variants",
            "kind": "variants",
            "title": "Four variants",
            "cells": variants(seeds),
        },
        {
            "id": "k_grid",
            "kind": "k_curve",
            "title": "Pauses in finetuning (K)",
            "cells": grid,
        },
        {
            "id": "m_sweep",
            "kind": "m_curve",
            "title": "Pauses at inference (M)",
            "cells": sweep,
        },
        {
            "id": "filler",
            "kind": "filler",
            "title": "Fillers at inference",
            "cells": filler,
        },
        {"id": "relay", "kind": "bottleneck", "title": "Relay", "cells": relay},
    ]


def paper_cell(task: str, pretraining: str, k: int, seed: int, **more: Any) -> dict[str, Any]:
    """A cell of the paper's own studies: bidirectional prefix, pauses appended unless `more` says otherwise."""
    placed = {"placement": "append", "control": ""} | more
    return cell(task, pretraining, k, seed, **{"world": "hub", "prefix": "bidirectional"} | placed)


def paper_variants(
    seeds: Sequence[int] = PAPER_SEEDS, tasks: Sequence[str] = PAPER_TASKS, counts: Sequence[int] = (0, 10, 50)
) -> dict[str, Any]:
    """Table 1's panel: every task, both pretrainings, each K."""
    cells = [paper_cell(t, p, k, s) for t in tasks for p in ("std", "pause") for k in counts for s in seeds]
    return {"id": "variants", "kind": "variants", "title": "Four variants", "cells": cells}


def paper_panels(name: str, tasks: Sequence[str] = PAPER_TASKS, seeds: Sequence[int] = PAPER_SEEDS) -> list[Any]:
    """The panels of one of the paper's results, by its name in the plan."""
    if name in ("table1", "figure3", "figure5"):
        return [paper_variants(seeds, tasks)]
    arms: list[dict[str, Any]]
    if name == "table2":
        kind, arms = "placement", [
            {"pretraining": p, "k": 10 if task == "gsm8k" else 50, "placement": placement, "task": task}
            for task in tasks for p in ("std", "pause") for placement in ("prepend", "append")
        ]  # fmt: skip
        arms += [{"pretraining": "std", "k": 0, "task": task} for task in tasks]
    elif name == "figure4a":
        kind = "filler"
        arms = [{"pretraining": "std", "k": 0, "mt": m, "filler": "." if m else "<pause>"} for m in (0, 10, 50)]
    elif name in ("figure4b", "figure6"):
        kind = "k_curve"
        grid = (0, 1, 2, 5, 10, 15, 20, 25, 35, 50)
        arms = [{"pretraining": p, "k": k} for p in ("std", "pause") for k in grid]
    elif name in ("figure4c", "figure7"):
        kind = "m_curve"
        grids = {10: (0, 1, 2, 5, 8, 10, 12, 15, 20), 50: (0, 2, 5, 10, 25, 40, 50, 60, 75, 100)}
        arms = [
            {"pretraining": p, "k": k, "mt": mt} for p in ("std", "pause") for k, grid in grids.items() for mt in grid
        ]
    else:
        kind = "controls"
        names = (
            "hidden_pretraining",
            "hidden_finetuning",
            "hidden",
            "one_pause",
            "shifted",
            "filler",
            "layers",
            "steps",
        )
        arms = [{"pretraining": "pause", "k": 10, "control": name} for name in names]
        arms += [{"pretraining": "std", "k": 0}, {"pretraining": "pause", "k": 10}]
    cells = [
        paper_cell(**({"task": task, "seed": seed} | arm))
        for task in tasks for arm in arms if arm.get("task", task) == task for seed in seeds
    ]  # fmt: skip
    return [{"id": kind, "kind": kind, "title": name.capitalize(), "cells": cells}]


def paper_score(raw: dict[str, Any]) -> float:
    """Scores of the right size: easier tasks higher, pauses worth a little with both stages and nothing else."""
    noise = random.Random(raw["name"])
    level = 0.08 + 0.07 * PAPER_TASKS.index(raw["task"])
    both = raw["variant"] == "PausePT_PauseFT" and not raw["control"]
    gain = (0.05 if both else 0.01) * min(raw["mt"], 10) / 10 - 0.0005 * abs(raw["mt"] - raw["k"])
    return round(max(0.001, level + gain + noise.gauss(0, 0.008)), 4)


def write_study(
    runs: Path,
    panels: list[dict[str, Any]],
    score: Score,
    result: str = "demo",
    seeds: Sequence[int] = (0, 1, 2),
    primary: dict[str, str] | None = None,
    **plan: Any,
) -> None:
    """Write `plan.json` and the run folder of every cell for which `score` gives a number."""
    cells = list({raw["name"]: raw for panel in panels for raw in panel["cells"]}.values())
    for raw in cells:
        value = score(raw)
        if value is not None:
            write_run(runs, raw, value)
    finetuned = sorted({finetune_name(raw) for raw in cells})
    stages = [
        {
            "command": "finetune",
            "cells": [{"name": name, "overrides": [f"slug={name}"]} for name in finetuned],
            "commands": ["pausebench finetune -m task=parity,majority k=0,8"],
        },
        {"command": "evaluate", "cells": [{"name": raw["name"], "overrides": [f"run={raw['name']}"]} for raw in cells]},
    ]
    write_json(
        runs / "reproduce" / result / "plan.json",
        {
            "result": result,
            "title": "The paper in miniature",
            "seeds": list(seeds),
            "unit": "pipeline: its own pretraining and finetuning seed",
            "notes": ["A gain in learning speed at equal steps, not in what can be learned."],
            "primary": primary
            or {
                "panel": "variants",
                "task": "parity",
                "treatment": "PausePT_PauseFT",
                "control": "StdPT_StdFT",
            },
            "panels": panels,
            "stages": stages,
            "command": f"pausebench reproduce result={result}",
        }
        | plan,
    )


def write_run(runs: Path, raw: dict[str, Any], value: float, **more: Any) -> Path:
    """One evaluated run with its finetune and pretrain runs; returns the evaluate folder."""
    finetune = finetune_name(raw)
    pretrain = None if raw["pretraining"] == "none" else f"{raw['world']}-{raw['pretraining']}-s{raw['seed']}"
    folder = runs / "evaluate" / raw["name"]
    metric, second = PAPER_METRICS.get(raw["task"], ("exact_match", "token_accuracy"))
    if raw["task"] == "relay":
        metric = "token_accuracy"
    metrics = dict.fromkeys(("exact_match", "token_accuracy"), value)
    if raw["task"] in PAPER_METRICS:
        metrics = {metric: value} | ({second: round(1.2 * value, 4)} if second else {})
        more = {"chance": None, "model": "1b", "inference_flops": 2.7e9 * (200 + raw["mt"])} | more
    result = {
        **{key: raw[key] for key in raw if key != "name"},
        "value": value,
        "stderr": 0.006,
        "n": 2000,
        "metric": metric,
        "metrics": metrics,
        "target_nll": round(1.2 * (1 - value), 3),
        "chance": 0.125 if raw["task"] == "relay" else 0.524,
        "model": "mini",
        "finetune_run": finetune,
        "pretrain_run": pretrain,
    }
    write_json(folder / "result.json", result | more)
    rows = [
        {
            "index": i,
            "prefix": "0 1 1 0 PAR",
            "target": "odd",
            "references": ["odd"],
            "prediction": "even" if i % 3 else "odd",
        }
        for i in range(8)
    ]
    (folder / "predictions.jsonl").write_text(
        "".join(json.dumps(row | {"correct": True, "nll": 0.1}) + "\n" for row in rows)
    )
    if not (runs / "finetune" / finetune).exists():
        write_curve(runs / "finetune" / finetune, value, 3500, 0.7)
        write_json(runs / "finetune" / finetune / "result.json", {})
        write_json(
            runs / "finetune" / finetune / "manifest.json",
            {"versions": {"torch": "2.9.0"}, "device": "cpu"},
        )
    if pretrain and not (runs / "pretrain" / pretrain).exists():
        write_curve(runs / "pretrain" / pretrain, 0.3, 1000, 2.2)
    return folder


def finetune_name(raw: dict[str, Any]) -> str:
    """The finetune run behind a cell: cells that differ in M or filler share it."""
    special = "".join(f"-{raw[key]}" for key in ("placement", "control") if raw.get(key) not in (None, "", "append"))
    return f"{raw['task']}-{raw['world']}-{raw['pretraining']}-{raw['prefix']}-k{raw['k']}-s{raw['seed']}{special}"


def write_curve(folder: Path, value: float, steps: int, start: float) -> None:
    """`metrics.jsonl` of a run whose loss falls from `start` towards what fits `value`."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = random.Random(folder.name)
    floor = start * (1 - value)
    rows = [
        {
            "step": step,
            "loss": floor + (start - floor) * math.exp(-3 * step / steps) * noise.uniform(0.93, 1.0),
            "lr": 1e-3,
        }
        for step in range(0, steps + 1, 100)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_json(path: Path, content: Any) -> None:
    """Write JSON and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def realistic(raw: dict[str, Any]) -> float:
    """Scores like a small study's: seeded by the cell's name, capped at 1."""
    noise = random.Random(raw["name"])
    if raw["task"] == "relay":
        return RELAY[raw["k"]]
    if raw["task"] == "majority":
        return 1.0 if noise.random() < 0.7 else round(noise.uniform(0.995, 1.0), 4)
    mean, deviation = PARITY[raw["variant"]]
    if raw["mt"] != raw["k"]:
        mean -= 0.035 * abs(raw["mt"] - raw["k"])
    return round(min(1.0, max(0.45, noise.gauss(mean, deviation))), 4)


def write_report(runs: Path, result: str | None = None) -> Path:
    """The page of a folder of runs, written; its path."""
    return write_page(runs, *read_runs(runs, result))


def print_report(runs: Path, result: str | None, console: Console) -> None:
    """The terminal report of a folder of runs."""
    print_studies(runs, *read_runs(runs, result), console)
