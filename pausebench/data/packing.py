"""Packing: several finetuning examples in one row, so that hardly a position is padding.

Invariant: an example's loss and gradients are those it has in a row of its own: examples do not see each other
(``documents``), and positions start again with each (``positions``).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pausebench.pauses import IGNORE_INDEX, Role, Rows

MOST_PADDING = 0.02  # share of a batch's positions; more rows than that allows would be narrower and emptier


class PackedExamples(NamedTuple):
    """R rows of W positions, all [R, W].

    documents: the example's number in the batch, -1 for padding. positions: the example's own, from 0 or jumping as its
    row's. readouts: bool, one an example.
    """

    input_ids: Tensor
    labels: Tensor
    roles: Tensor
    documents: Tensor
    positions: Tensor
    readouts: Tensor


def pack(rows: Rows, pad_id: int) -> PackedExamples:
    """Lay rows of one example each into as many equal rows as keep padding under ``MOST_PADDING``.

    Narrow rows are cheaper, because attention is computed over whole rows.
    """
    lengths: list[int] = rows.lengths.tolist()
    places = partition(lengths)
    # The fullest row decides, so that no example is split over two rows.
    width = max(sum(lengths[number] for number in row) for row in places)
    start = torch.zeros(len(lengths), dtype=torch.int64)
    for index, row in enumerate(places):
        offset = index * width
        for number in row:
            start[number] = offset
            offset += lengths[number]
    # Where every token of every example goes, as one index: the six fields are then laid out alike.
    t = torch.arange(rows.input_ids.shape[1])
    real = t < rows.lengths[:, None]
    destination = (start[:, None] + t)[real]

    def laid(values: Tensor, padding: int) -> Tensor:
        packed = torch.full((len(places) * width,), padding, dtype=values.dtype)
        packed[destination] = values[real]
        return packed.view(len(places), width)

    return PackedExamples(
        laid(rows.input_ids, pad_id),
        laid(rows.labels, IGNORE_INDEX),
        laid(rows.roles, Role.PADDING.value),
        laid(torch.arange(len(lengths))[:, None].expand_as(real), -1),
        laid(t.expand_as(real) if rows.positions is None else rows.positions, 0),
        laid(rows.readouts, False),
    )


def partition(lengths: list[int]) -> list[list[int]]:
    """Examples by row, the rows nearly equal in tokens.

    Takes the largest number of rows whose padding stays under ``MOST_PADDING``; one row has none.
    """
    total = sum(lengths)
    most = math.ceil(total / (max(lengths) * (1 - MOST_PADDING)))  # no row is narrower than the longest example
    # Most rows first, since they are narrowest. At most a few dozen rounds for a batch of 256.
    for count in range(min(most, len(lengths)), 0, -1):
        rows = _balanced(lengths, count)
        width = max(sum(lengths[number] for number in row) for row in rows)
        if count * width * (1 - MOST_PADDING) <= total:
            break
    return rows


def _balanced(lengths: list[int], count: int) -> list[list[int]]:
    """Longest first, each to the row with the fewest tokens so far."""
    rows: list[list[int]] = [[] for _ in range(count)]
    loads = [0] * count
    # The classic greedy rule for equal loads (LPT): at worst a third above the best, in practice a few tokens.
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        row = loads.index(min(loads))
        rows[row].append(number)
        loads[row] += lengths[number]
    return rows
