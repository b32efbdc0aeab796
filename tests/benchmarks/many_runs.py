"""`pausebench report` over ten thousand run folders: seconds and peak memory of the command.

    python tests/benchmarks/many_runs.py [seeds] [runs=DIR]

Writes 686 folders a seed, 15 seeds by default: pretrain, finetune and evaluate runs of four studies that share them
(nine tasks: four variants, a grid of K, two sweeps of M, a filler), finetune curves of 400 rows, 200 predictions a run.
The folders go to a temporary place unless runs= names one; an existing one is reported on as it is.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))

from planted import TASKS
from synthetic import cell, finetune_name, write_json

GRID = (0, 1, 2, 5, 10, 15, 20, 25, 35, 50)
SWEEPS = {10: (0, 1, 2, 5, 8, 10, 12, 15, 20), 50: (0, 2, 5, 10, 25, 40, 50, 60, 75, 100)}
CURVE_ROWS = {"finetune": 400, "pretrain": 1000}
PREDICTIONS = 200


def panels(seeds: int) -> dict[str, list[dict[str, Any]]]:
    """{study: its panels}."""

    def grid(ks: tuple[int, ...]) -> list[dict[str, Any]]:
        return [
            cell(task, pretraining, k, seed, world="c4")
            for task in TASKS
            for pretraining in ("std", "pause")
            for k in ks
            for seed in range(seeds)
        ]

    def sweep(k: int) -> list[dict[str, Any]]:
        return [
            {**raw, "mt": mt, "name": f"{raw['name']}-m{mt}"} if mt != k else raw
            for raw in grid((k,))
            for mt in SWEEPS[k]
        ]

    fillers = [
        {**raw, "mt": mt, "filler": ".", "name": f"{raw['name']}-dots{mt}"} if mt else raw
        for raw in grid((0,))
        if raw["pretraining"] == "std"
        for mt in (0, 10, 50)
    ]
    variants = {"id": "variants", "kind": "variants", "title": "Four variants", "cells": grid((0, 10, 50))}
    curves = [
        {"id": f"m{k}", "kind": "m_curve", "title": f"Pauses at inference, K = {k}", "cells": sweep(k)} for k in SWEEPS
    ]
    return {
        "table1": [variants],
        "figure4a": [{"id": "filler", "kind": "filler", "title": "Fillers", "cells": fillers}],
        "figure4b": [variants, {"id": "k", "kind": "k_curve", "title": "Pauses in finetuning", "cells": grid(GRID)}],
        "figure4c": [variants, *curves],
    }


def write_runs(runs: Path, seeds: int) -> int:
    """Plans and folders; returns how many run folders there are."""
    studies = panels(seeds)
    cells = {raw["name"]: raw for study in studies.values() for panel in study for raw in panel["cells"]}
    predictions = runs / "predictions.jsonl"
    runs.mkdir(parents=True)
    row = {"prefix": "word " * 40, "target": "word", "references": ["word"], "prediction": "other", "correct": False}
    predictions.write_text("".join(json.dumps({"index": i, **row, "nll": 1.5}) + "\n" for i in range(PREDICTIONS)))
    parents: dict[str, set[str]] = {"finetune": set(), "pretrain": set()}
    for raw in cells.values():
        parent = {"finetune": finetune_name(raw), "pretrain": f"c4-{raw['pretraining']}-s{raw['seed']}"}
        for command, name in parent.items():
            parents[command].add(name)
        score = Random(raw["name"]).gauss(0.5, 0.02)
        folder = runs / "evaluate" / raw["name"]
        folder.mkdir(parents=True)
        # The content is the same; as links the folders take seconds to write and not the disk.
        os.link(predictions, folder / "predictions.jsonl")
        write_json(
            folder / "result.json",
            {
                **{key: raw[key] for key in raw if key != "name"},
                "value": score,
                "stderr": 0.01,
                "interval": [score - 0.02, score + 0.02],
                "n": 2000,
                "metric": "exact_match",
                "metrics": {"exact_match": score, "f1": score + 0.1},
                "target_nll": 1.5,
                "chance": 0.1,
                "model": "130m",
                "finetune_run": parent["finetune"],
                "pretrain_run": parent["pretrain"],
            },
        )
    for command, names in parents.items():
        for name in names:
            write_parent(runs / command / name, CURVE_ROWS[command])
    for result, study in studies.items():
        named = sorted({raw["name"] for panel in study for raw in panel["cells"]})
        finetuned = sorted({finetune_name(raw) for panel in study for raw in panel["cells"]})
        stages = [
            {"command": command, "cells": [{"name": name, "overrides": [f"run={name}"]} for name in members]}
            for command, members in (("finetune", finetuned), ("evaluate", named))
        ]
        plan = {
            "result": result,
            "title": result,
            "seeds": list(range(seeds)),
            "unit": "finetuning seed",
            "notes": [],
            "primary": {"panel": "variants", "treatment": "PausePT_PauseFT", "control": "StdPT_StdFT"},
            "command": f"pausebench reproduce result={result}",
            "panels": study,
            "stages": stages,
        }
        write_json(runs / "reproduce" / result / "plan.json", plan)
    predictions.unlink()
    return len(cells) + sum(map(len, parents.values()))


def write_parent(folder: Path, rows: int) -> None:
    """A training run: its curve, manifest and result."""
    noise = Random(folder.name)
    folder.mkdir(parents=True)
    lines = (
        {
            "step": 25 * row,
            "tokens": 26160 * row,
            "loss": 2.0 + noise.uniform(0.0, 5.0 / row),
            "lr": 3e-4 * noise.random(),
            "grad_norm": noise.uniform(0.5, 6.0),
            "tokens_per_second": noise.uniform(1300.0, 1400.0),
            "mfu": noise.uniform(0.18, 0.2),
        }
        for row in range(1, rows + 1)
    )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_json(folder / "manifest.json", {"versions": {"torch": "2.13.0", "python": "3.11.7"}, "device": "cpu"})
    write_json(folder / "result.json", {"value": 2.0})


def main(seeds: int, runs: Path) -> None:
    count = sum(1 for _ in runs.glob("[pfe]*/*/result.json")) if runs.exists() else write_runs(runs, seeds)
    started = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "pausebench", "report", f"runs={runs}"], check=True, stdout=subprocess.DEVNULL
    )
    seconds = time.monotonic() - started
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    page = (runs / "report" / "index.html").stat().st_size
    print(
        f"{count} run folders: {seconds:.1f} s ({used.ru_utime + used.ru_stime:.1f} s of processor), "
        f"peak memory {used.ru_maxrss / 1024:.0f} MiB, page {page / 1e6:.1f} MB"
    )


if __name__ == "__main__":
    chosen = next((word.removeprefix("runs=") for word in sys.argv[1:] if word.startswith("runs=")), None)
    number = int(next((word for word in sys.argv[1:] if word.isdigit()), 15))
    if chosen:
        main(number, Path(chosen))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(number, Path(folder) / "runs")
