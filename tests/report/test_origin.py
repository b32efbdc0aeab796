"""The commands that fill a missing cell are the plan's own, with what has to be trained first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import synthetic

from pausebench.report.page import missing_cells
from pausebench.report.scores import load_studies

TASKS = ("gsm8k",)


def planned(runs: Path, **plan: Any) -> Path:
    """One task, one seed, nothing run; stages shaped like reproduce's, with a space in the folder's name."""
    synthetic.write_study(
        runs, synthetic.paper_panels("table1", TASKS, (0,)), lambda raw: None, result="table1", seeds=(0,),
        primary=synthetic.FAMILY, **plan,
    )  # fmt: skip
    path = runs / "reproduce" / "table1" / "plan.json"
    content = json.loads(path.read_text())
    names = [cell["name"] for cell in content["panels"][0]["cells"]]
    trained = [{"name": f"trained-{name}", "overrides": ["task=gsm8k", "train.note=a b"]} for name in names]
    scored = [{"name": name, "overrides": [f"run=runs/finetune/trained-{name}", "mt=[0]"]} for name in names]
    content["stages"] = [{"command": "finetune", "cells": trained}, {"command": "evaluate", "cells": scored}]
    path.write_text(json.dumps(content))
    return runs


def test_a_cell_without_a_model_names_both_commands(tmp_path: Path) -> None:
    cell, *_ = missing_cells(load_studies(planned(tmp_path))[0], 10)
    assert cell.command == (
        f"pausebench finetune task=gsm8k 'train.note=a b' && "
        f"pausebench evaluate run=runs/finetune/trained-{cell.name} 'mt=[0]'"
    )


def test_a_cell_with_a_model_names_the_evaluation_alone(tmp_path: Path) -> None:
    runs = planned(tmp_path)
    for name in load_studies(runs)[0].cells.name:
        synthetic.write_json(runs / "finetune" / f"trained-{name}" / "result.json", {})
    cell, *_ = missing_cells(load_studies(runs)[0], 10)
    assert cell.command == f"pausebench evaluate run=runs/finetune/trained-{cell.name} 'mt=[0]'"


def test_another_runs_folder_is_part_of_the_command(tmp_path: Path) -> None:
    study = load_studies(planned(tmp_path, command="pausebench reproduce result=table1 runs=elsewhere"))[0]
    assert all(cell.command.count("runs=elsewhere") == 2 for cell in missing_cells(study, 10))


@pytest.mark.parametrize("stages", [[], [{"command": "evaluate", "cells": []}]])
def test_a_cell_that_no_stage_names_gets_the_studys_command(tmp_path: Path, stages: list[Any]) -> None:
    runs = planned(tmp_path)
    path = runs / "reproduce" / "table1" / "plan.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"stages": stages}))
    scored = load_studies(runs)[0]
    assert {cell.command for cell in missing_cells(scored, 10)} == {scored.study.command}


def test_no_more_cells_are_listed_than_asked_for(tmp_path: Path) -> None:
    assert len(missing_cells(load_studies(planned(tmp_path))[0], 2)) == 2
