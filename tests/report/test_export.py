"""The exported files: same runs, same bytes; nothing from a run is a command, a formula or markup."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import synthetic
from synthetic import write_report

from pausebench.report.export import as_csv, as_latex, as_markdown, folder_names, latex, markdown
from pausebench.report.scores import load_studies
from pausebench.report.tables import Group, Line, Sheet, table1

TASKS = ("gsm8k", "piqa")
SEEDS = (0, 1, 2)


def paper_study(runs: Path, name: str = "table1", score: synthetic.Score = synthetic.paper_score) -> Path:
    panels = synthetic.paper_panels(name, TASKS, SEEDS)
    primary = synthetic.FAMILY | {"panel": panels[0]["id"]}
    published = "table2" if name == "table2" else "table1"
    synthetic.write_study(runs, panels, score, result=name, seeds=SEEDS, primary=primary, published=published)
    return runs


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(paper_study(tmp_path_factory.mktemp("exported"))).parent / "table1"


def test_the_same_runs_give_the_same_bytes_in_every_file(exported: Path, tmp_path: Path) -> None:
    again = write_report(paper_study(tmp_path)).parent / "table1"
    files = sorted(path.relative_to(exported) for path in exported.rglob("*") if path.is_file())
    assert len([path for path in files if path.suffix == ".png"]) == len(TASKS) * 3 + 1
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert all((exported / path).read_bytes() == (again / path).read_bytes() for path in files)


def test_a_figure_that_a_study_no_longer_has_is_dropped_and_other_files_stay(tmp_path: Path) -> None:
    runs = paper_study(tmp_path)
    figures = runs / "report" / "table1" / "figures"
    figures.mkdir(parents=True)
    (figures / "old.svg").write_text("old")
    (figures / "notes.txt").write_text("mine")
    write_report(runs)
    assert not (figures / "old.svg").exists()
    assert (figures / "notes.txt").exists()


def test_a_standalone_figure_is_well_formed_and_keeps_its_own_colours(exported: Path) -> None:
    for path in (exported / "figures").glob("*.svg"):
        text = path.read_text(encoding="utf-8")
        ElementTree.fromstring(text.encode())
        assert "var(--" not in text
        assert "currentColor" not in text
        assert "<title>" in text
        assert not re.search(r'(?:href|src)="(?!#)', text)


def test_a_png_holds_no_date_and_no_program(exported: Path) -> None:
    for path in (exported / "figures").glob("*.png"):
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG")
        assert b"Software" not in content
        assert b"tIME" not in content


def test_csv_has_a_row_for_each_arm_and_metric_with_the_published_figure(exported: Path) -> None:
    with open(exported / "table.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    (row,) = [
        row for row in rows
        if (row["task"], row["metric"], row["variant"], row["k"]) == ("piqa", "accuracy", "PausePT_PauseFT", "50")
    ]  # fmt: skip
    seeds = [float(row[f"seed_{seed}"]) for seed in SEEDS]
    assert float(row["mean"]) == pytest.approx(sum(seeds) / 3)
    assert (row["n"], row["planned"], row["m"], row["placement"]) == ("3", "3", "50", "append")
    assert (float(row["published_mean"]), float(row["published_deviation"])) == pytest.approx((0.742, 0.002))
    assert row["published_metric"] == "F1"
    assert float(row["inference_flops"]) == pytest.approx(2.7e9 * 250)
    # Two tasks of six arms; each has two metrics and the likelihood.
    assert len(rows) == 2 * 6 * 3


def test_csv_says_missing_with_empty_fields_and_what_was_planned(tmp_path: Path) -> None:
    runs = paper_study(tmp_path, score=lambda raw: None if raw["k"] == 50 else synthetic.paper_score(raw))
    rows = list(csv.DictReader(as_csv(load_studies(runs)[0]).splitlines()))
    empty = [row for row in rows if row["k"] == "50"]
    assert len(empty) == 4
    assert {(row["mean"], row["n"], row["planned"], row["seed_0"]) for row in empty} == {("", "0", "3", "")}


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_text_that_starts_like_a_formula_is_quoted_in_csv(tmp_path: Path, text: str) -> None:
    cells = [synthetic.paper_cell("gsm8k", "pause" if k else "std", k, 0, prefix=text) for k in (0, 10)]
    panel = {"id": "variants", "kind": "variants", "title": "V", "cells": [{**c, "name": c["task"]} for c in cells]}
    synthetic.write_study(tmp_path, [panel], lambda raw: -0.5, seeds=(0,), primary=synthetic.FAMILY)
    made = as_csv(load_studies(tmp_path)[0])
    assert made.count(f",'{text},final_number,-0.5,") == 2


def test_the_primary_and_the_secondary_family_are_exported(exported: Path) -> None:
    with open(exported / "comparisons.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    primary = [row for row in rows if row["family"] == "primary"]
    assert len(primary) == len(TASKS) * 2
    assert float(primary[0]["published_difference"]) == pytest.approx(0.085 - 0.075)
    assert len(rows) > len(primary)


ATTACK = r"a_b & 50% \write18{rm} $x$ #1 ~ ^ <b> | [z](http://x) `c` * =1"


def test_latex_sets_every_special_character_as_text() -> None:
    escaped = latex(ATTACK)
    bare = re.sub(r"\\(textbackslash|textasciitilde|textasciicircum|textless|textgreater|textbar)\{\}", "", escaped)
    bare = re.sub(r"\\[{}$&#%_]|\{\[\}|\{\]\}", "", bare)
    assert not set(bare) & set("\\{}$&#%_^~<>|[]")
    assert latex("0.1 ± 0.2 − 中") == r"0.1 $\pm$ 0.2 $-$ U+4E2D"


def test_latex_tables_are_balanced_and_every_row_has_every_column(exported: Path) -> None:
    text = (exported / "table.tex").read_text(encoding="utf-8")
    assert text.isascii()
    assert text.count("\\begin{table}") == text.count("\\end{table}") > 2
    plain = re.sub(r"\\[{}]", "", text)
    depth = 0
    for character in plain:
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0
    for spec, body in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", text, re.DOTALL):
        rows = [row for row in body.splitlines() if row.endswith("\\\\") and "\\multicolumn" not in row]
        assert rows
        assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {len(spec)}
        assert all(rule in body for rule in ("\\toprule", "\\midrule", "\\bottomrule"))


def test_markdown_shows_text_as_it_is_in_one_row(exported: Path) -> None:
    escaped = markdown(ATTACK + "\nnext")
    assert "\n" not in escaped
    assert not re.search(r"(?<!\\)[|<>`*_\[\]&]", escaped)
    for block in re.findall(r"(?:^\|.*\n)+", (exported / "table.md").read_text(encoding="utf-8"), re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in block.splitlines()}) == 1


def test_all_formats_show_the_same_cells(tmp_path: Path) -> None:
    study = load_studies(paper_study(tmp_path))[0]
    sheet = table1(study, study.study.panels[0])
    made = as_markdown("t", [sheet]), as_latex("t", [sheet]).replace("$\\pm$", "±")
    cells = [cell for group in sheet.groups for line in group.lines for cell in line.cells]
    assert "0.075 ± 0.005" in cells
    assert all(cell in text for cell in cells for text in made)


def test_a_sheet_of_attacks_stays_text() -> None:
    sheet = Sheet(ATTACK, ATTACK, (ATTACK,), (Group(ATTACK, (Line(ATTACK, (ATTACK,)),)),), (ATTACK,))
    assert "\\write18" not in as_latex(ATTACK, [sheet])
    assert "<b>" not in re.sub(r"\\<b\\>", "", as_markdown(ATTACK, [sheet]))


@pytest.mark.parametrize("name", ["../../outside", "index.html", "INDEX.HTML", ".", "a/b", "=1"])
def test_no_study_name_leaves_the_report_folder_or_takes_the_page(tmp_path: Path, name: str) -> None:
    synthetic.write_study(tmp_path, [], synthetic.realistic, result="x", primary=None)
    study = replace(load_studies(tmp_path)[0].study, result=name)
    first, second = folder_names([study, study])
    assert first.lower() != second.lower()
    for folder in (first, second):
        assert re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", folder)
        assert folder.lower() != "index.html"
