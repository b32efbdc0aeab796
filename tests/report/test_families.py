"""What a family of several comparisons says, and how often it reads a run."""

from __future__ import annotations

import builtins
import io
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import planted
import pytest
import synthetic
from rich.console import Console
from synthetic import print_report, write_report

from pausebench.report.comparisons import Family, primary_family, secondary_contrasts
from pausebench.report.scores import load_studies
from pausebench.report.statistics import holm
from pausebench.runs.folder import write_atomically

NOISE = (0.0, 0.004, -0.005, 0.003, -0.002)


def gains(by_task: dict[str, float]) -> Callable[[dict[str, Any]], float | None]:
    """A score of 0.5 with a little noise that differs by arm and seed, and a task's gain with pauses."""

    def score(raw: dict[str, Any]) -> float | None:
        shift = (3 * len(raw["task"]) + raw["k"]) % 5
        noise = NOISE[(raw["seed"] + shift) % 5] if raw["k"] else 0.5 * NOISE[raw["seed"]]
        return 0.5 + noise + (by_task.get(raw["task"], 0.0) if raw["k"] else 0.0)

    return score


def family_of(
    runs: Path,
    score: Callable[[dict[str, Any]], float | None],
    tasks: tuple[str, ...] = ("coqa", "gsm8k", "squad"),
    ks: tuple[int, ...] = (10, 50),
) -> Family:
    cells = [
        synthetic.cell(task, "pause" if k else "std", k, seed)
        for task in tasks
        for k in (0, *ks)
        for seed in range(len(NOISE))
    ]
    panel = {"id": "variants", "kind": "variants", "title": "Variants", "cells": cells}
    primary = {"panel": "variants", "treatment": planted.TREATMENT, "control": planted.CONTROL}
    synthetic.write_study(runs, [panel], score, seeds=range(len(NOISE)), primary=primary)
    return primary_family(load_studies(runs)[0])


def test_a_family_tells_how_many_are_settled_in_which_direction_and_where(tmp_path: Path) -> None:
    family = family_of(tmp_path, gains({"gsm8k": 0.1, "squad": -0.1}))
    assert family.sentence == (
        "PausePT_PauseFT against StdPT_StdFT, 6 comparisons (3 tasks, K = 10, 50) under one Holm correction: "
        "4 of 6 are settled; PausePT_PauseFT scores higher in 2 (gsm8k K = 10, 50); "
        "StdPT_StdFT scores higher in 2 (squad K = 10, 50); "
        "the seeds do not settle the sign of 2, which is no evidence of equal scores."
    )
    assert [contrast.direction for contrast in family.contrasts] == [0, 0, 1, 1, -1, -1]


def test_a_family_without_a_finding_claims_neither_a_difference_nor_its_absence(tmp_path: Path) -> None:
    family = family_of(tmp_path, gains({}))
    assert "0 of 6 are settled; the seeds do not settle the sign of 6" in family.sentence
    assert "scores higher" not in family.sentence
    assert "no effect" not in family.sentence


def test_an_interval_that_excludes_zero_is_no_verdict_when_the_family_does_not_confirm_it(tmp_path: Path) -> None:
    family = family_of(tmp_path, gains({"gsm8k": 0.004}), tuple(planted.TASKS))
    alone = [c for c in family.contrasts if c.comparison.interval and c.comparison.interval[0] > 0]
    assert alone
    assert all(contrast.direction == 0 for contrast in alone)
    assert "0 of 18 are settled" in family.sentence


def test_every_k_counts_in_the_family_and_the_better_one_is_said_to_be_chosen(tmp_path: Path) -> None:
    family = family_of(tmp_path, lambda raw: gains({"gsm8k": 0.02})(raw) + 0.001 * (raw["k"] == 50))
    assert len(family.contrasts) == 6
    assert [contrast.treatment.arm.k for contrast in family.best] == [50, 50, 50]
    assert all(contrast in family.contrasts for contrast in family.best)
    assert {contrast.selection for contrast in family.best} == {"better of K = 10, 50, chosen on the test set"}
    smallest = min(family.contrasts, key=lambda contrast: contrast.comparison.p or 1.0)
    assert smallest.adjusted_p == pytest.approx(6 * (smallest.comparison.p or 0.0))
    assert not family_of(tmp_path / "one", gains({}), ks=(10,)).best


def test_a_selection_among_runs_that_are_not_all_there_says_so(tmp_path: Path) -> None:
    score = gains({})
    family = family_of(tmp_path, lambda raw: None if (raw["k"], raw["seed"]) == (50, 4) else score(raw))
    assert all(contrast.selection.endswith("chosen on the test set, some runs missing") for contrast in family.best)


def test_comparisons_whose_runs_are_missing_stay_in_the_family_and_are_said_to_be_late(tmp_path: Path) -> None:
    score = gains({"gsm8k": 0.1})

    def partial(raw: dict[str, Any]) -> float | None:
        if raw["task"] == "squad" and raw["k"] == 50:
            return None
        return None if raw["task"] == "coqa" and raw["seed"] > 2 else score(raw)

    family = family_of(tmp_path, partial)
    smallest = min(family.contrasts, key=lambda contrast: contrast.comparison.p or 1.0)
    assert smallest.adjusted_p == pytest.approx(6 * (smallest.comparison.p or 0.0))
    assert "2 of 6 are settled; PausePT_PauseFT scores higher in 2 (gsm8k K = 10, 50)" in family.sentence
    assert "without any seed yet: 1 (squad K = 50)" in family.sentence
    assert family.sentence.endswith("Partial data: 3 of 6 are still short of planned seeds.")
    assert "nothing can be said yet" in family_of(tmp_path / "empty", lambda raw: None).sentence


def test_a_finding_on_few_seeds_comes_with_a_caution(tmp_path: Path) -> None:
    score = gains({"gsm8k": 0.1})
    few = family_of(tmp_path, lambda raw: None if raw["seed"] > 2 else score(raw), ks=(10,))
    assert "Caution: 1 of the settled rests on fewer than 5 seeds, where runs that are either solved" in few.sentence
    assert "Caution" not in family_of(tmp_path / "whole", score, ks=(10,)).sentence
    assert "Caution" not in family_of(tmp_path / "null", gains({}), ks=(10,)).sentence


def test_a_family_of_one_says_how_many_of_its_seeds_are_in(tmp_path: Path) -> None:
    score = gains({})
    late = family_of(tmp_path, lambda raw: None if raw["seed"] > 2 else score(raw), ("gsm8k",), (10,))
    assert late.sentence.endswith("3 seeds do not settle the sign. So far 3 of 5 planned seeds have both arms.")
    whole = family_of(tmp_path / "whole", score, ("gsm8k",), (10,))
    assert whole.sentence.endswith("5 seeds do not settle the sign.")
    assert "corrected" not in whole.sentence


def test_identical_arms_and_arms_without_spread_are_named_and_not_counted_as_open(tmp_path: Path) -> None:
    def score(raw: dict[str, Any]) -> float:
        return 0.5 + 0.25 * (raw["task"] == "squad" and raw["k"] > 0)

    family = family_of(tmp_path, score, ks=(10,))
    assert "0 of 3 are settled; identical in every seed: 2 (coqa K = 10; gsm8k K = 10)" in family.sentence
    assert "without a test (one seed, or no spread between seeds): 1 (squad K = 10)" in family.sentence
    assert "do not settle" not in family.sentence
    assert family.power is None


def test_secondary_comparisons_are_judged_in_a_family_of_their_own(tmp_path: Path) -> None:
    synthetic.write_study(tmp_path, synthetic.demo_panels((0, 1, 2)), synthetic.realistic)
    secondary = secondary_contrasts(load_studies(tmp_path)[0])
    holms = holm([contrast.comparison.p for contrast in secondary])
    assert [contrast.adjusted_p for contrast in secondary] == holms
    raw = [contrast for contrast in secondary if (contrast.comparison.p or 1.0) < 0.05 < (contrast.adjusted_p or 0.0)]
    assert raw
    assert not any(contrast.direction for contrast in raw)


def test_a_report_opens_no_result_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for result in ("demo", "again"):
        synthetic.write_study(tmp_path, synthetic.demo_panels((0, 1)), synthetic.realistic, result=result)
    synthetic.write_run(tmp_path, synthetic.cell("mod3", "std", 4, 0), 0.5)
    opened: Counter[str] = Counter()
    genuine = io.open

    def counting(file: Any, *more: Any, **options: Any) -> Any:
        if not isinstance(file, int) and Path(os.fspath(file)).name == "result.json":
            opened[str(file)] += 1
        return genuine(file, *more, **options)

    monkeypatch.setattr(io, "open", counting)
    monkeypatch.setattr(builtins, "open", counting)
    write_report(tmp_path)
    print_report(tmp_path, None, Console(file=io.StringIO()))
    assert len(opened) == len(list(tmp_path.glob("evaluate/*/result.json")))
    assert set(opened.values()) == {1}


def test_a_result_that_was_written_again_is_read_again(tmp_path: Path) -> None:
    family = family_of(tmp_path, gains({}), ("gsm8k",), (10,))
    path = tmp_path / "evaluate" / sorted(family.contrasts[0].treatment.names)[0] / "result.json"
    raw = json.loads(path.read_text())
    write_atomically(path, json.dumps(raw | {"value": 0.99}))
    assert 0.99 in primary_family(load_studies(tmp_path)[0]).contrasts[0].treatment.values().values()
    path.unlink()
    assert len(load_studies(tmp_path)[0].missing()) == 1
