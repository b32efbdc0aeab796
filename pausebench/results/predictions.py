"""What the models answered: treatment and control side by side on the first rows of the test set.

Invariant: rows are taken in file order, never by what was answered, and how many of how many is said. Texts come from
data sets and models, so that they are only ever embedded as escaped JSON or by the template's escaping.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from pausebench.results.analysis import Contrast, Family, full_label
from pausebench.results.layouts import treatment_words
from pausebench.results.study import Cell, Study

ROWS_A_PAIR = 200
MOST_PAIRS = 100
MOST_BYTES = 4_000_000  # a study; `MOST_BYTES_A_PAGE` is shared between its studies
MOST_BYTES_A_PAGE = 12_000_000
LONGEST_TEXT = 4_000

Answer = tuple[str, str, bool, bool]


@dataclass(frozen=True)
class Pair:
    """Two runs over the same test rows: `texts` (question, answer), `answers` (control, treatment, right, right)."""

    group: str
    seed: int
    control: str
    treatment: str
    total: int | None
    texts: tuple[tuple[str, str], ...]
    answers: tuple[Answer, ...]


def primary_pairs(study: Study, family: Family) -> list[Pair]:
    """Of each primary comparison the finished seeds, the first ones where there are many; at most `MOST_PAIRS`."""
    pairs: list[Pair] = []
    # Only the controls of the task at hand are kept, and rows that runs share are kept once: rows of text add up.
    task, controls = "", dict[str, list[dict[str, Any]]]()
    shared: dict[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]] = {}
    seeds = max(1, MOST_PAIRS // max(1, len(family.contrasts)))
    for contrast in family.contrasts[:MOST_PAIRS]:
        if contrast.setting.task != task:
            task, controls = contrast.setting.task, {}
        for control, treatment in islice(_shared(contrast), seeds):
            if control.name not in controls:
                controls[control.name] = read_predictions(study.runs / "evaluate" / control.name, ROWS_A_PAIR)
            paused = read_predictions(study.runs / "evaluate" / treatment.name, ROWS_A_PAIR)
            pair = _pair(contrast, control, treatment, controls[control.name], paused)
            if pair.answers:
                pairs.append(replace(pair, texts=shared.setdefault(pair.texts, pair.texts)))
    return pairs


def embedded(pairs: Sequence[Pair], most_bytes: int = MOST_BYTES) -> str:
    """The pairs as JSON that may stand in a script element, each cut to so many rows that all fit `most_bytes`."""
    rows = ROWS_A_PAIR
    text = _as_json(pairs, rows)
    while len(text) > most_bytes and rows > 1:
        rows = max(1, min(rows - 1, int(rows * most_bytes / len(text))))
        text = _as_json(pairs, rows)
    return text


def read_predictions(run: Path, count: int) -> list[dict[str, Any]]:
    """The first `count` rows of a run's `predictions.jsonl`, in file order; unreadable rows are left out."""
    rows: list[dict[str, Any]] = []
    try:
        with open(run / "predictions.jsonl", encoding="utf-8", errors="replace") as lines:
            for line in islice(lines, count):
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                if isinstance(row, dict):
                    rows.append(row)
    except OSError:
        pass
    return rows


def _shared(contrast: Contrast) -> Iterator[tuple[Cell, Cell]]:
    control, treatment = (
        {(cell.seed, cell.world): cell for cell in arm.cells if cell.result}
        for arm in (contrast.control, contrast.treatment)
    )
    for key in sorted(control.keys() & treatment.keys()):
        yield control[key], treatment[key]


def _pair(
    contrast: Contrast, control: Cell, treatment: Cell, plain: list[dict[str, Any]], pausing: list[dict[str, Any]]
) -> Pair:
    texts, answers = [], []
    for without, paused in zip(plain, pausing, strict=False):
        complete = all({"prefix", "target", "prediction"} <= row.keys() for row in (without, paused))
        if complete and without["prefix"] == paused["prefix"]:
            texts.append((_text(paused["prefix"]), _text(paused["target"])))
            right = bool(without.get("correct")), bool(paused.get("correct"))
            answers.append((_text(without["prediction"]), _text(paused["prediction"]), *right))
    several = len(contrast.setting.worlds) > 1
    place = f"{control.task} · {control.world}" if several else contrast.setting.label
    return Pair(
        group=f"{place} · {treatment_words(contrast)}",
        seed=control.seed,
        control=full_label(control.arm),
        treatment=full_label(treatment.arm),
        total=treatment.result.n if treatment.result else None,
        texts=tuple(texts),
        answers=tuple(answers),
    )


def _text(value: Any) -> str:
    # A lone surrogate is valid in JSON and in no file.
    text = str(value).encode("utf-8", "replace").decode()
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}… ({len(text) - LONGEST_TEXT:,} more)"


def _as_json(pairs: Sequence[Pair], rows: int) -> str:
    # Seeds and K mostly share the test rows, which are much longer than the answers.
    texts: dict[tuple[tuple[str, str], ...], int] = {}
    shown = []
    for pair in pairs:
        place = texts.setdefault(pair.texts[:rows], len(texts))
        shown.append(
            {
                "group": pair.group,
                "seed": pair.seed,
                "control": pair.control,
                "treatment": pair.treatment,
                "total": pair.total,
                "texts": place,
                "answers": pair.answers[:rows],
            }
        )
    text = json.dumps({"texts": list(texts), "pairs": shown}, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
