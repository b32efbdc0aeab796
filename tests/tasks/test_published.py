"""The paper's printed figures: looked up by our names, and never for an arm that the paper does not have."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from pausebench.report.scores import published_score
from pausebench.study.study import Arm
from pausebench.tasks import PAPER_TASKS
from pausebench.tasks.published import KEYS, TABLES, Published, lookup, metrics_of, printed_tables

PAUSED = Arm("pause", 50, 50, prefix="bidirectional")
PLAIN = Arm("std", 0, 0, filler="", placement="", prefix="bidirectional")


def test_the_tables_hold_every_printed_figure() -> None:
    counted = {
        name: sum(1 if isinstance(found, list) else len(found) for row in table.values() for found in row.values())
        for name, table in printed_tables().items()
    }
    assert counted == {"table1_1b": 10 * 6, "table2_placement_1b": 6 * 5}


@pytest.mark.parametrize(
    ("table", "task", "metric", "variant", "column", "mean", "deviation"),
    [
        ("table1", "squad", "squad_exact_match", "StdPT_StdFT", None, 0.364, 0.025),
        ("table1", "squad", "squad_exact_match", "PausePT_PauseFT", 50, 0.559, 0.010),
        ("table1", "gsm8k", "rouge1", "PausePT_PauseFT", 10, 0.442, 0.002),
        ("table1", "hellaswag", "accuracy", "PausePT_StdFT", None, 0.379, 0.001),
        ("table1", "commonsense_qa", "exact_match", "StdPT_PauseFT", 10, 0.288, 0.028),
        ("table2", "commonsense_qa", "exact_match", "StdPT_PauseFT", "append", 0.288, 0.015),
        ("table2", "natural_questions", "nq_exact_match", "PausePT_PauseFT", "prepend", 0.257, 0.009),
    ],
)
def test_a_figure_is_found_by_our_names(
    table: str, task: str, metric: str, variant: str, column: int | str | None, mean: float, deviation: float
) -> None:
    found = lookup(table, task, metric, variant, column)
    assert found is not None
    assert (found.mean, found.deviation) == pytest.approx((mean, deviation))


def test_the_names_are_those_of_the_tasks() -> None:
    metrics = {task.name: task.metrics for task in PAPER_TASKS}
    assert {task for task, _ in KEYS} == metrics.keys()
    assert all(metric in metrics[task] for task, metric in KEYS)
    assert {key for key, _ in KEYS.values()} == printed_tables()[TABLES["table1"]].keys()
    assert all(metrics_of("table1", task)[0] == names[0] for task, names in metrics.items())


@pytest.mark.parametrize(
    "change",
    [
        {"k": 20, "mt": 20},
        {"mt": 10},
        {"filler": "."},
        {"control": "hidden"},
        {"placement": "prepend"},
        {"k_range": (0, 50)},
    ],
)
def test_an_arm_that_table_1_does_not_have_has_no_figure(change: dict[str, object]) -> None:
    assert published_score("table1", "squad", "squad_exact_match", PAUSED) == Published(0.559, 0.01)
    assert published_score("table1", "squad", "squad_exact_match", replace(PAUSED, **change)) is None


def test_table_2_tells_placements_apart_and_prints_no_k() -> None:
    appended, prepended = (
        published_score("table2", "squad", "squad_exact_match", replace(PAUSED, k=7, mt=7, placement=place))
        for place in ("append", "prepend")
    )
    assert appended == Published(0.559, 0.01)
    assert prepended == Published(0.44, 0.032)


@pytest.mark.parametrize(
    ("table", "task", "metric"),
    [
        (None, "squad", "squad_exact_match"),
        ("table1", "lambada_openai", "exact_match"),
        ("table1", "piqa", "macro_f1"),
        ("table2", "coqa", "coqa_f1"),
    ],
)
def test_what_is_not_published_has_no_figure(table: str | None, task: str, metric: str) -> None:
    assert published_score(table, task, metric, PLAIN) is None


def test_the_file_is_figures_and_their_source_alone() -> None:
    for table in printed_tables().values():
        leaves = [found for row in table.values() for found in row.values()]
        pairs = [pair for found in leaves for pair in (found.values() if isinstance(found, dict) else [found])]
        assert all(len(pair) == 2 and all(isinstance(value, float) for value in pair) for pair in pairs)
    assert yaml.safe_dump(printed_tables())
