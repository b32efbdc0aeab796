"""Studies with a known difference, written as run folders and read back as the report reads them.

Nine tasks, one control, several K. Scores are normal: a task's level, the seed's noise, and what was planted in
PausePT_PauseFT. Arms have independent noise; all K of a task share the control, as in a real study. Studies of one draw
share runs: fewer seeds are the first ones, fewer K the first one, and a larger effect has the same noise.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from pausebench.report.comparisons import Contrast, primary_family
from pausebench.report.scores import load_studies

TASKS = ("gsm8k", "squad", "commonsense_qa", "lambada", "web_questions", "nq_open", "coqa", "piqa", "hellaswag")
LOWEST, STEP = 0.25, 0.05  # levels of the tasks, far enough from 0 and 1 for every effect and deviation in use
CONTROL, TREATMENT = "StdPT_StdFT", "PausePT_PauseFT"


@dataclass(frozen=True)
class Design:
    """A study: how many seeds, which K, and by how much the first `affected` tasks are better with pauses."""

    seeds: int
    ks: tuple[int, ...]
    effect: float = 0.0
    affected: int = len(TASKS)

    @property
    def name(self) -> str:
        return f"{self.seeds}-{len(self.ks)}-{self.effect}-{self.affected}"

    def cells(self) -> list[dict[str, Any]]:
        """The planned cells, each with the name of the run that it shares with other designs."""
        cells = []
        for place, task in enumerate(TASKS):
            effect = self.effect if place < self.affected else 0.0
            for k in (0, *self.ks):
                for seed in range(self.seeds):
                    arm = {"pretraining": "pause" if k else "std", "variant": TREATMENT if k else CONTROL, "k": k}
                    run = run_name(task, k, seed, effect if k else 0.0)
                    cells.append({"name": run, "task": task, "world": "", "seed": seed} | arm)
        return cells


def run_name(task: str, k: int, seed: int, effect: float) -> str:
    return f"{task}-k{k}-s{seed}-{effect}"


def write_plans(runs: Path, designs: Iterable[Design]) -> None:
    """The plans alone; they are the same in every draw."""
    for design in designs:
        plan = {
            "result": design.name,
            "title": "Planted",
            "seeds": list(range(design.seeds)),
            "unit": "seed",
            "notes": [],
            "primary": {"panel": "variants", "treatment": TREATMENT, "control": CONTROL},
            "command": "pausebench reproduce",
            "panels": [{"id": "variants", "kind": "variants", "title": "Variants", "cells": design.cells()}],
            "stages": [],
        }
        path = runs / "reproduce" / design.name / "plan.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(plan))


def write_draw(runs: Path, designs: Sequence[Design], deviation: float, random: Random, stuck: float = 0.0) -> None:
    """New scores for every run of the designs; `deviation` is the one of an arm's seeds.

    stuck: by how much every second run, at random, is lower, as where training either solves a task or does not.
    """
    effects = sorted({0.0} | {design.effect for design in designs})
    ks = sorted({k for design in designs for k in design.ks})
    for place, task in enumerate(TASKS):
        for k in (0, *ks):
            for seed in range(max(design.seeds for design in designs)):
                score = random.gauss(LOWEST + STEP * place, deviation)
                score -= stuck * (stuck > 0.0 and random.random() < 0.5)
                for effect in effects if k else (0.0,):
                    folder = runs / "evaluate" / run_name(task, k, seed, effect)
                    folder.mkdir(parents=True, exist_ok=True)
                    (folder / "result.json").write_text(f'{{"value": {score + effect!r}, "metric": "exact_match"}}')


def read_families(runs: Path) -> dict[str, tuple[Contrast, ...]]:
    """{design's name: its contrasts}, by the report's own reading and statistics."""
    return {scored.study.result: primary_family(scored).contrasts for scored in load_studies(runs)}


@dataclass
class Tally:
    """Counts over the draws of one design. `settled` is what the report would call higher or lower."""

    design: Design
    draws: int = 0
    false_families: int = 0
    found: int = 0
    found_any: int = 0
    wrong_sign: int = 0
    planted: int = 0

    def add(self, contrasts: Sequence[Contrast]) -> None:
        affected = TASKS[: self.design.affected] if self.design.effect else ()
        real = [contrast for contrast in contrasts if contrast.setting.task in affected]
        null = [contrast for contrast in contrasts if contrast.setting.task not in affected]
        found = sum(contrast.direction > 0 for contrast in real)
        self.draws += 1
        self.planted += len(real)
        self.found += found
        self.found_any += found > 0
        self.wrong_sign += sum(contrast.direction < 0 for contrast in real)
        self.false_families += any(contrast.direction != 0 for contrast in null)
