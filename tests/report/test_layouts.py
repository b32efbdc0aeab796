"""The layouts of the paper's tables: ours, the published line, the cost, what is missing, and what was chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import synthetic

from pausebench.report.comparisons import primary_family
from pausebench.report.scores import ScoredStudy, load_studies
from pausebench.report.tables import (
    MISSING,
    better_arms,
    controls_sheet,
    family_sheet,
    flops,
    like_table1,
    table1,
    table2,
)
from pausebench.tasks.published import LABEL

TASKS = ("gsm8k", "piqa")
SEEDS = (0, 1, 2)


def study_of(runs: Path, name: str, score: synthetic.Score = synthetic.paper_score, **plan: Any) -> ScoredStudy:
    panels = synthetic.paper_panels(name, TASKS, SEEDS)
    primary = synthetic.FAMILY | {"panel": panels[0]["id"]}
    plan = {"published": "table2" if name == "table2" else "table1"} | plan
    synthetic.write_study(runs, panels, score, result=name, seeds=SEEDS, primary=primary, **plan)
    return load_studies(runs)[0]


def rows_of(sheet: Any) -> dict[tuple[str, str], tuple[str, ...]]:
    return {(group.title, line.head): line.cells for group in sheet.groups for line in group.lines}


def test_table_1_has_a_column_for_each_variant_and_k_in_the_papers_order(tmp_path: Path) -> None:
    study = study_of(tmp_path, "table1")
    assert table1(study, study.study.panels[0]).columns == (
        "StdPT_StdFT", "StdPT_PauseFT K=10", "StdPT_PauseFT K=50",
        "PausePT_StdFT", "PausePT_PauseFT K=10", "PausePT_PauseFT K=50",
    )  # fmt: skip


def test_table_1_shows_ours_the_published_line_and_the_cost(tmp_path: Path) -> None:
    study = study_of(tmp_path, "table1", lambda raw: 0.5 + 0.1 * raw["seed"])
    sheet = table1(study, study.study.panels[0])
    rows = rows_of(sheet)
    title = "piqa · hub · accuracy (published as F1)"
    assert rows[title, "ours"] == ("0.600 ± 0.100 (3)",) * 6
    assert rows[title, LABEL][0] == "0.733 ± 0.002"
    assert rows[title, LABEL][5] == "0.742 ± 0.002"
    assert rows[title, "FLOPs an answer"][0] == "540 GFLOP"
    assert rows[title, "FLOPs an answer"][5] == "675 GFLOP"
    assert rows["gsm8k · hub · rouge1 (published as Rouge-1)", LABEL][4] == "0.442 ± 0.002"
    assert rows["gsm8k · hub · rouge1 (published as Rouge-1)", "ours"] == ("0.720 ± 0.120 (3)",) * 6
    assert any("1B model" in note for note in sheet.notes)


def test_a_smaller_model_is_told_beside_the_published_figures(tmp_path: Path) -> None:
    study = study_of(tmp_path, "figure5")
    for path in tmp_path.glob("evaluate/*/result.json"):
        path.write_text(path.read_text().replace('"model": "1b"', '"model": "130m"'))
    study = load_studies(tmp_path)[0]
    assert any("ours is 130m" in note for note in table1(study, study.study.panels[0]).notes)


def test_generated_rows_are_told_beside_the_published_figures(tmp_path: Path) -> None:
    study = study_of(tmp_path, "table1")
    assert not any("generated" in note for note in table1(study, study.study.panels[0]).notes)
    path = next(tmp_path.glob("evaluate/*/result.json"))
    path.write_text(path.read_text().replace('"model": "1b"', '"model": "1b", "data": "embedded"'))
    study = load_studies(tmp_path)[0]
    assert any(
        "generated rows, which are not the published" in note for note in table1(study, study.study.panels[0]).notes
    )


def test_without_a_published_table_there_is_no_published_line_and_the_sheet_says_so(tmp_path: Path) -> None:
    study = study_of(tmp_path, "figure5", published=None)
    assert like_table1(study, study.study.panels[0])
    sheet = table1(study, study.study.panels[0])
    assert {line.kind for group in sheet.groups for line in group.lines} == {"ours", "cost"}
    assert any("prints no figures" in note for note in sheet.notes)


def test_missing_seeds_and_arms_are_said_in_the_cell(tmp_path: Path) -> None:
    def score(raw: dict[str, Any]) -> float | None:
        gone = raw["variant"] == "PausePT_PauseFT" and (raw["k"] == 50 or raw["seed"] == 2)
        return None if gone else synthetic.paper_score(raw)

    study = study_of(tmp_path, "table1", score)
    ours = rows_of(table1(study, study.study.panels[0]))["piqa · hub · accuracy (published as F1)", "ours"]
    assert ours[3].endswith(" (3)")
    assert ours[4].endswith(" (2/3)")
    assert ours[5] == MISSING


def test_a_table_without_any_result_still_shows_the_published_line(tmp_path: Path) -> None:
    study = study_of(tmp_path, "table1", lambda raw: None)
    rows = rows_of(table1(study, study.study.panels[0]))
    assert rows["gsm8k · hub · final number (published as accuracy)", "ours"] == (MISSING,) * 6
    assert rows["gsm8k · hub · final number (published as accuracy)", LABEL][4] == "0.085 ± 0.009"


def test_table_2_tells_placements_apart_and_says_the_k_of_each_task(tmp_path: Path) -> None:
    study = study_of(tmp_path, "table2")
    sheet = table2(study, study.study.panels[0])
    assert sheet.columns == (
        "StdPT_StdFT", "StdPT_PauseFT prepended", "StdPT_PauseFT appended",
        "PausePT_PauseFT prepended", "PausePT_PauseFT appended",
    )  # fmt: skip
    rows = rows_of(sheet)
    assert rows["gsm8k · hub · final number (published as accuracy)", "K"] == ("0", "10", "10", "10", "10")
    assert rows["piqa · hub · accuracy (published as F1)", "K"] == ("0", "50", "50", "50", "50")
    assert rows["gsm8k · hub · final number (published as accuracy)", LABEL] == (
        "0.075 ± 0.005", "0.080 ± 0.010", "0.069 ± 0.010", "0.080 ± 0.004", "0.085 ± 0.009",
    )  # fmt: skip


def test_arms_that_differ_in_their_prefix_alone_keep_a_column_each(tmp_path: Path) -> None:
    cells = [
        synthetic.paper_cell("gsm8k", "std", k, 0, prefix=prefix) for k in (0, 10, 50) for prefix in ("causal", "other")
    ]
    panel = {"id": "variants", "kind": "variants", "title": "Prefixes", "cells": cells}
    synthetic.write_study(tmp_path, [panel], synthetic.paper_score, seeds=(0,), primary=synthetic.FAMILY)
    study = load_studies(tmp_path)[0]
    sheet = table1(study, study.study.panels[0])
    assert len(sheet.columns) == 6
    assert MISSING not in sheet.groups[0].lines[0].cells


def test_the_family_has_every_task_and_k_then_the_best_of_each_labelled_as_a_selection(tmp_path: Path) -> None:
    study = study_of(tmp_path, "table1", lambda raw: synthetic.paper_score(raw) + 0.02 * (raw["k"] == 10))
    sheet = family_sheet(primary_family(study), study.study.published)
    assert sheet is not None
    fixed, best = sheet.groups
    assert fixed.title == "Fixed in advance: 4 comparisons"
    assert [line.head for line in fixed.lines] == [f"{task} · hub, K={k}" for task in TASKS for k in (10, 50)]
    assert best.title == "For each task the better of K = 10, 50, chosen on the test set"
    assert [line.head for line in best.lines] == ["gsm8k · hub, K=10", "piqa · hub, K=10"]
    assert best.lines[0].cells == fixed.lines[0].cells
    published = sheet.columns.index("published difference")
    assert [line.cells[published] for line in fixed.lines] == ["+0.010", "+0.002", "+0.008", "+0.009"]


@pytest.mark.parametrize(("gain", "words"), [(0.2, "higher"), (-0.2, "lower"), (0.0, "identical"), (None, "missing")])
def test_the_verdict_is_one_word(tmp_path: Path, gain: float | None, words: str) -> None:
    def score(raw: dict[str, Any]) -> float | None:
        if raw["variant"] != "PausePT_PauseFT":
            return 0.5
        return None if gain is None else 0.5 + gain * (1 + 0.001 * raw["seed"] * raw["k"])

    study = study_of(tmp_path, "table1", score)
    sheet = family_sheet(primary_family(study), study.study.published)
    assert sheet is not None
    verdict = sheet.columns.index("verdict")
    assert {line.cells[verdict] for line in sheet.groups[0].lines} == {words}


def test_a_difference_that_the_correction_takes_away_is_not_settled(tmp_path: Path) -> None:
    steps = {0: 0.03, 1: 0.05, 2: 0.04}  # p is 0.02 for each of four, 0.08 after Holm

    def score(raw: dict[str, Any]) -> float:
        return 0.5 + steps[raw["seed"]] * (raw["variant"] == "PausePT_PauseFT") * (1 + raw["k"] / 100)

    study = study_of(tmp_path, "table1", score)
    sheet = family_sheet(primary_family(study), study.study.published)
    assert sheet is not None
    verdict = sheet.columns.index("verdict")
    assert {line.cells[verdict] for line in sheet.groups[0].lines} == {"not settled"}


def test_the_better_k_is_chosen_by_the_mean_and_says_that_it_was_chosen(tmp_path: Path) -> None:
    study = study_of(tmp_path, "table1", lambda raw: 0.5 + 0.001 * raw["seed"] + 0.1 * (raw["k"] == 50))
    setting, *_ = study.settings(study.study.panels[0])
    arms, words = better_arms(setting.arms)
    assert [(scores.arm.variant, scores.arm.k) for scores in arms] == [
        ("StdPT_StdFT", 0), ("StdPT_PauseFT", 50), ("PausePT_StdFT", 0), ("PausePT_PauseFT", 50),
    ]  # fmt: skip
    assert words == "better of K = 10, 50, chosen on the test set"


def test_a_second_metric_of_a_seed_that_lacks_a_world_is_left_out(tmp_path: Path) -> None:
    cells = [synthetic.paper_cell("gsm8k", "std", 0, seed, world=world) for world in ("one", "two") for seed in SEEDS]
    panel = {"id": "variants", "kind": "variants", "title": "Worlds", "cells": cells}

    def score(raw: dict[str, Any]) -> float | None:
        return None if (raw["world"], raw["seed"]) == ("two", 2) else {"one": 0.2, "two": 0.4}[raw["world"]]

    synthetic.write_study(tmp_path, [panel], score, seeds=SEEDS, primary=synthetic.FAMILY)
    study = load_studies(tmp_path)[0]
    pooled, *_ = study.settings(study.study.panels[0])
    (scores,) = pooled.arms
    assert scores.values("rouge1") == pytest.approx({0: 0.36, 1: 0.36})
    assert scores.values() == pytest.approx({0: 0.3, 1: 0.3})


def test_every_control_stands_against_the_full_method_and_the_baseline(tmp_path: Path) -> None:
    values = {"": 0.6, "hidden": 0.5}

    def score(raw: dict[str, Any]) -> float:
        return (0.4 if raw["k"] == 0 else values.get(raw["control"], 0.55)) + 0.01 * raw["seed"]

    study = study_of(tmp_path, "controls", score)
    sheet = controls_sheet(study, study.study.panels[0])
    rows = {line.head: line.cells for line in sheet.groups[0].lines}
    assert list(rows)[:2] == ["PausePT_PauseFT K=10", "StdPT_StdFT"]
    assert len(rows) == 2 + 8
    assert rows["PausePT_PauseFT K=10 (hidden)"][1].startswith("-0.100")
    assert rows["PausePT_PauseFT K=10 (hidden)"][2].startswith("+0.100")
    assert rows["PausePT_PauseFT K=10"][1] == "-"
    assert "; hidden: " in sheet.notes[1]


def test_controls_take_their_references_from_the_table_of_the_variants(tmp_path: Path) -> None:
    (controls,) = synthetic.paper_panels("controls", TASKS, SEEDS)
    controls["cells"] = [cell for cell in controls["cells"] if cell["control"]]
    panels = [synthetic.paper_variants(SEEDS, TASKS), controls]
    synthetic.write_study(tmp_path, panels, synthetic.paper_score, seeds=SEEDS, primary=synthetic.FAMILY)
    study = load_studies(tmp_path)[0]
    heads = [line.head for line in controls_sheet(study, study.study.panels[1]).groups[0].lines]
    assert heads[:2] == ["PausePT_PauseFT K=10", "StdPT_StdFT"]


@pytest.mark.parametrize(
    ("value", "words"), [(None, "-"), (0.0, "-"), (999.0, "999 FLOP"), (1.234e12, "1.23 TFLOP"), (5e16, "50 PFLOP")]
)
def test_flops_have_a_unit(value: float | None, words: str) -> None:
    assert flops(value) == words
