"""Models whose training rows drew their own K are an arm of their own, never averaged with those of a fixed K."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import synthetic
from test_report import page_of, terminal_of

from pausebench.report.export import as_csv
from pausebench.report.scores import load_studies
from pausebench.study.study import Arm, Cell

SEEDS = (0, 1, 2)
DRAWN = {"k_range": [0, 10]}


def write_drawn(runs: Path, kind: str, counts: tuple[int, ...] = (10,)) -> Path:
    """StdPT_StdFT and PausePT_PauseFT with K = 10, and beside it the same with K in 0..10, which scores 0.2 more."""
    arms = [("std", 0, 0, {}), *((("pause", 10, mt, more)) for more in ({}, DRAWN) for mt in counts)]
    cells = [synthetic.paper_cell("gsm8k", p, k, seed, mt=mt, **more) for p, k, mt, more in arms for seed in SEEDS]
    panel = {"id": "variants", "kind": kind, "title": "Drawn", "cells": cells}

    def score(raw: dict[str, Any]) -> float:
        return 0.3 + 0.02 * (raw["mt"] > 0) + 0.2 * ("k_range" in raw) + 0.01 * raw["seed"]

    synthetic.write_study(runs, [panel], score, seeds=SEEDS, primary=synthetic.FAMILY, published="table1")
    return runs


def test_a_drawn_k_has_its_own_column_and_bar_and_no_published_figure(tmp_path: Path) -> None:
    page = page_of(write_drawn(tmp_path, "variants"))
    assert "PausePT_PauseFT K in" in terminal_of(tmp_path)
    (head,) = re.findall(r"<thead>(?:(?!</thead>).)*task and metric.*?</thead>", page, re.DOTALL)
    columns = [re.sub("<.*?>", "", column) for column in re.findall(r"<th .*?</th>", head)]
    assert columns[1:] == ["StdPT_StdFT", "PausePT_PauseFT K=10", "PausePT_PauseFT K in 0..10"]
    ours, theirs = (
        [re.sub("<.*?>", "", cell) for cell in re.findall(r"<td.*?</td>", row)]
        for row in re.findall(r'<tr class="(?:ours|published)">(.*?)</tr>', page[page.index(head) :], re.DOTALL)[:2]
    )
    assert ours == ["0.310 ± 0.010 (3)", "0.330 ± 0.010 (3)", "0.530 ± 0.010 (3)"]
    assert theirs == ["0.075 ± 0.005", "0.085 ± 0.009", "-"]


def test_a_drawn_k_is_told_in_csv(tmp_path: Path) -> None:
    rows = csv.DictReader(as_csv(load_studies(write_drawn(tmp_path, "variants"))[0]).splitlines())
    means = {row["k"]: float(row["mean"]) for row in rows if row["metric"] == "final_number"}
    assert means.keys() == {"0", "10", "0..10"}
    assert means["0..10"] > means["10"]


def test_a_drawn_k_is_no_point_of_the_line_of_fixed_ones(tmp_path: Path) -> None:
    page = page_of(write_drawn(tmp_path, "k_curve"))
    lines = re.findall(r'<th scope="row">(PausePT[^<]*)</th><td class="n">10</td><td class="n">(0.\d+)', page)
    assert lines == [("PausePT", "0.330"), ("PausePT, K in 0..10", "0.530")]


def test_a_drawn_k_has_a_curve_over_m_of_its_own_where_no_m_is_marked(tmp_path: Path) -> None:
    page = page_of(write_drawn(tmp_path, "m_curve", (0, 5, 10)))
    titles = re.findall(r'<figcaption class="title">([^<]*)<', page)
    assert [title for title in titles if "K in" in title] == ["Drawn, K in 0..10 · gsm8k · hub"]
    assert "M = K = 10" in page
    assert page.count("M = K = ") == 1 + page.count("M = K = 0")


def test_a_run_outside_any_study_keeps_its_range(tmp_path: Path) -> None:
    for seed in SEEDS:
        for more in ({}, DRAWN):
            synthetic.write_run(tmp_path, synthetic.cell("mod3", "pause", 10, seed, **more), 0.5)
    page = page_of(tmp_path)
    assert "<td>PausePT_PauseFT K=10</td>" in page
    assert "<td>PausePT_PauseFT K in 0..10</td>" in page


def test_a_cell_comes_back_from_its_json() -> None:
    cell = Cell("name", "gsm8k", "hub", 3, Arm("pause", 10, 4, "<end>", "prepend", "causal", "hidden", 2, (0, 10)))
    assert Cell.from_json(cell.to_json()) == cell
