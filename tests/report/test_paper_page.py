"""The page of the paper's results: its invariants for every kind of study, and what a reader finds on it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import synthetic
from test_report import page_of, parsed, terminal_of, without_scripts

from pausebench.report.page import Limits, read_runs, write_page
from pausebench.report.scores import load_studies

NAMES = ("table1", "table2", "figure3", "figure4a", "figure4b", "figure4c", "figure5", "figure6", "figure7", "controls")
TASKS = ("gsm8k", "piqa")
SEEDS = (0, 1)


def paper(runs: Path, name: str, score: synthetic.Score = synthetic.paper_score, **plan: Any) -> Path:
    panels = synthetic.paper_panels(name, TASKS, SEEDS)
    primary = synthetic.FAMILY | {"panel": panels[0]["id"]}
    plan = {"published": "table2" if name == "table2" else "table1"} | plan
    synthetic.write_study(runs, panels, score, result=name, seeds=SEEDS, primary=primary, **plan)
    return runs


def unfinished(raw: dict[str, Any]) -> float | None:
    return None if raw["seed"] == 1 and raw["mt"] else synthetic.paper_score(raw)


@pytest.fixture(scope="module")
def table1_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return page_of(paper(tmp_path_factory.mktemp("table1"), "table1", unfinished))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_page_of_every_result_is_whole(tmp_path: Path, name: str) -> None:
    page = page_of(paper(tmp_path, name, unfinished))
    parsed(page)
    found = re.findall(r'\bid="([^"]+)"', page)
    assert len(found) == len(set(found))
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', page)) <= set(found)
    drawings = re.findall(r"<svg [^>]*>", page)
    assert len(drawings) >= len(TASKS)
    assert all(re.search(r'role="img" aria-label="[^"]{20,}"', drawing) for drawing in drawings)
    assert page.count("<summary>Numbers</summary>") == len(drawings)
    text = re.sub(r"<[^>]*>", " ", without_scripts(page)).lower()
    assert not re.search(r"\bnan\b|\binf\b|\bnone,", text)
    assert "cells are missing" in text
    assert all(len(line) <= 80 for line in terminal_of(tmp_path).splitlines()[:-1] if "next: " not in line)


@pytest.mark.parametrize("name", NAMES)
def test_a_result_that_was_only_planned_has_a_page(tmp_path: Path, name: str) -> None:
    page = page_of(paper(tmp_path, name, lambda raw: None))
    parsed(page)
    assert "missing" in page


def test_the_verdict_comes_before_the_table_and_the_table_before_the_figures(table1_page: str) -> None:
    places = [
        table1_page.index(text)
        for text in ("What was asked", "Fixed in advance:", "FLOPs an answer", "<svg", "What the models answered")
    ]
    assert places == sorted(places)


def test_published_figures_stand_in_table_and_figures_with_their_label(table1_page: str) -> None:
    assert table1_page.count("published, 1B, 5 seeds") > 4
    assert "0.085 ± 0.009" in table1_page
    assert "Hollow, dashed: published" in table1_page
    assert "better of K = 10, 50, chosen on the test set" in table1_page


@pytest.mark.parametrize("name", ["figure4b", "figure4c"])
def test_curves_show_the_printed_points_that_belong_to_them(tmp_path: Path, name: str) -> None:
    page = page_of(paper(tmp_path, name))
    rows = re.findall(r'<th scope="row">Paus[^<]*</th>(.*?)</tr>', page, re.DOTALL)
    printed = [row for row in rows if "0.085 ± 0.009" in row]
    assert printed
    assert all(re.search(r'<td class="n">10</td>', row) for row in printed)


def test_curves_over_m_have_a_figure_for_each_k(tmp_path: Path) -> None:
    page = page_of(paper(tmp_path, "figure4c"))
    titles = re.findall(r'<figcaption class="title">([^<]*K = \d+ · [^<]*)<', page)
    assert titles == [f"Figure4c, K = {k} · {task} · hub" for task in TASKS for k in (10, 50)]
    first = page[page.index(titles[0]) : page.index(titles[1])]
    counts = re.findall(r'<th scope="row">PausePT_PauseFT</th><td class="n">(\d+)</td>', first)
    assert counts == ["0", "1", "2", "5", "8", "10", "12", "15", "20"]


def test_nothing_published_means_no_hollow_marks(tmp_path: Path) -> None:
    page = page_of(paper(tmp_path, "figure5", published=None))
    assert "Hollow" not in page
    assert "The paper prints no figures for this study" in page


def test_a_missing_cell_is_shown_with_its_own_commands(tmp_path: Path) -> None:
    page = page_of(paper(tmp_path, "table1", unfinished))
    name, *_ = load_studies(tmp_path)[0].missing().name
    row = re.search(rf"<tr>(?:(?!</tr>).)*<code>{re.escape(name)}</code>.*?</tr>", page, re.DOTALL)
    assert row is not None
    assert f"pausebench evaluate run={name}" in row.group(0)


def test_a_large_study_makes_a_bounded_page_that_says_what_it_left_out(tmp_path: Path) -> None:
    runs = paper(tmp_path, "table1", unfinished)
    limits = Limits(most_of_a_study=2, rows=3, training_settings=1)
    page = write_page(runs, *read_runs(runs, None), limits).read_text(encoding="utf-8")
    assert len(re.findall("<svg ", page)) == 2
    assert "2 more figures are not drawn" in page
    assert "Training curves are left out" in page
    assert "the first 3 are listed" in page
    assert "Table of the first 3; all are in table1/comparisons.csv" in page


def test_answers_can_be_read_without_a_script(tmp_path: Path) -> None:
    runs = paper(tmp_path, "table1")
    for path in runs.glob("evaluate/*/predictions.jsonl"):
        rows = [{"prefix": f"<i>question {i}</i>", "target": "a & b", "prediction": f"say {i}"} for i in range(9)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = without_scripts(page_of(runs))
    assert text.count("&lt;i&gt;question") == 5
    assert "<i>question" not in text
    assert re.search(r'<div class="browser"[^>]* hidden>', text)


def test_every_run_folder_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = paper(tmp_path, "table1")
    opened: list[str] = []
    original = Path.read_text

    def counted(path: Path, *arguments: Any, **more: Any) -> str:
        opened.append(str(path))
        return original(path, *arguments, **more)

    monkeypatch.setattr(Path, "read_text", counted)
    page_of(runs)
    results = [path for path in opened if path.endswith("result.json")]
    assert len(results) == len(set(results)) == len(TASKS) * 6 * len(SEEDS)
    curves = [path for path in opened if path.endswith("metrics.jsonl")]
    assert len(curves) == len(set(curves))


def test_every_input_has_a_name_and_every_table_names_its_rows_and_columns(table1_page: str) -> None:
    controls = re.findall(r"<label>[^<]*<(select|input)", table1_page) + re.findall(r"<button [^>]*>\w+", table1_page)
    assert len(controls) == len(re.findall(r"<(?:select|input|button)\b", table1_page))
    assert not re.search(r"<th(?![^>]*\bscope=)[ >]", table1_page)
    assert all(
        re.search(r"tabindex=\"0\".*aria-label=", tag) for tag in re.findall(r'<div class="scroll"[^>]*>', table1_page)
    )
