"""The paper's printed figures (Tables 1 and 2), looked up by our names.

Invariant: they are the 1B model's over five finetuning seeds whatever model ours is, so every place that shows one
shows `LABEL` with it. What the paper only draws (Figures 4 to 7, everything of 130M) has no figure here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

LABEL = "published, 1B, 5 seeds"
TABLES = {"table1": "table1_1b", "table2": "table2_placement_1b"}

# (task, metric of ours) -> key in published.yaml and the paper's name of its metric.
KEYS = {
    ("gsm8k", "final_number"): ("gsm8k_acc", "accuracy"),
    ("gsm8k", "rouge1"): ("gsm8k_rouge1", "Rouge-1"),
    ("squad", "squad_exact_match"): ("squad_em", "EM"),
    ("commonsense_qa", "exact_match"): ("commonsense_qa_em", "EM"),
    ("lambada", "exact_match"): ("lambada_em", "EM"),
    ("web_questions", "squad_exact_match"): ("web_questions_em", "EM"),
    ("natural_questions", "nq_exact_match"): ("natural_questions_em", "EM"),
    ("coqa", "coqa_f1"): ("coqa_f1", "F1"),
    # The paper does not define the "F1" of tasks with one right candidate; it is shown beside our accuracy.
    ("piqa", "accuracy"): ("piqa_f1", "F1"),
    ("hellaswag", "accuracy"): ("hellaswag_f1", "F1"),
}


@dataclass(frozen=True)
class Published:
    """One printed figure: mean and standard deviation over seeds, as fractions."""

    mean: float
    deviation: float

    @property
    def text(self) -> str:
        """`0.364 ± 0.025`, the precision that is printed."""
        return f"{self.mean:.3f} ± {self.deviation:.3f}"


def metrics_of(table: str | None, task: str) -> tuple[str, ...]:
    """Our names of the metrics that a table prints for a task, the headline first; none for another task."""
    known = _table(table)
    return tuple(metric for (name, metric), (key, _) in KEYS.items() if name == task and key in known)


def headline(table: str | None, task: str) -> str | None:
    """The first of them; None for a task that the table lacks."""
    return next(iter(metrics_of(table, task)), None)


def name_of_metric(task: str, metric: str) -> str | None:
    """How the paper calls what stands beside our metric: `F1` beside our accuracy on PIQA and HellaSwag."""
    known = KEYS.get((task, metric))
    return known[1] if known else None


def lookup(table: str | None, task: str, metric: str, variant: str, column: int | str | None) -> Published | None:
    """The printed figure, or None where the paper prints none.

    column: K in Table 1, `append` or `prepend` in Table 2; None for the variants without pauses in finetuning.
    """
    key, _ = KEYS.get((task, metric), ("", ""))
    found = _table(table).get(key, {}).get(variant.lower())
    if isinstance(found, dict):
        found = found.get(column)
    elif column is not None:
        found = None
    # Rounded: 26.9 / 100 is 0.26899999999999996.
    return Published(round(found[0] / 100, 6), round(found[1] / 100, 6)) if found else None


def beside(table: str, models: Sequence[str], generated: bool) -> str:
    """What has to be said of a table's published figures next to runs of these models.

    generated: whether some of our rows come from an embedded world.
    """
    ours = f"; ours is {', '.join(models)}" if models and list(models) != ["1b"] else ""
    if generated:
        ours += ", on generated rows, which are not the published test sets"
    words = (
        f"Published: Goyal et al., ICLR 2024, the 1B model, mean ± deviation over 5 finetuning seeds{ours}. "
        "PIQA and HellaSwag are published as F1 and stand beside our accuracy."
    )
    if table == "table2":
        words += " Table 2 prints no K, and two of its deviations differ from Table 1's; they are shown as printed."
    return words


@cache
def printed_tables() -> dict[str, Any]:
    """The file as it is: {table: {task and metric: {variant: figure, or figures by K or placement}}}."""
    source = files("pausebench.tasks").joinpath("published.yaml").read_text(encoding="utf-8")
    tables: dict[str, Any] = yaml.safe_load(source)
    return tables


def _table(table: str | None) -> dict[str, Any]:
    found: dict[str, Any] = printed_tables().get(TABLES.get(table or "", ""), {})
    return found
