"""Cells as command lines that a user can paste."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from pausebench.commands.runs import override


def as_commands(command: str, cells: Iterable[Sequence[str]], runs_root: str) -> list[str]:
    """Commands a user can paste, joined into ``-m`` lines wherever the cells form a product."""
    suffix = "" if runs_root == "runs" else f" {override('runs', runs_root)}"
    pairs = [tuple(tuple(item.split("=", 1)) for item in cell) for cell in cells]
    by_keys: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for cell in pairs:
        by_keys.setdefault(tuple(key for key, _ in cell), []).append(tuple(value for _, value in cell))
    lines = []
    for keys, rows in by_keys.items():
        for values in _products(rows):
            sweep = any(len(column) > 1 for column in values)
            words = [f"{key}={','.join(column)}" for key, column in zip(keys, values, strict=True)]
            lines.append(f"pausebench {command} {'-m ' if sweep else ''}{' '.join(words)}{suffix}")
    return lines


def _products(rows: Sequence[tuple[str, ...]]) -> list[list[list[str]]]:
    """Split rows into products, cutting along the column with the fewest values first."""
    columns = [list(dict.fromkeys(column)) for column in zip(*rows, strict=True)]
    if math.prod(len(column) for column in columns) == len(set(rows)):
        return [columns]
    index = min((i for i, column in enumerate(columns) if len(column) > 1), key=lambda i: len(columns[i]))
    return [product for value in columns[index] for product in _products([row for row in rows if row[index] == value])]
