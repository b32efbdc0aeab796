"""Which prefixes are read together: rows of like length, for the same M, as many as fit into a cache of two gigabytes.

Invariant: every reading of every M is in exactly one batch, and no result depends on what is read together.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from pausebench.data.examples import Tokens


class Reading(NamedTuple):
    """A row's prefix, or one of its prefixes where a long context is read through several windows."""

    row: int
    prefix: Tokens


class ReadBatch(NamedTuple):
    """Readings of one batch, the longest continuation first.

    numbers: for each M, the place of each reading among that M's readings. slots: cache slots that a row needs.
    """

    readings: list[Reading]
    numbers: Mapping[int, list[int]]
    slots: int


class _Prefix(NamedTuple):
    """A reading, and its place among the readings of each M that has it."""

    reading: Reading
    numbers: dict[int, int]


def reading_batches(
    readings: Mapping[int, Sequence[Reading]],
    continuation: Callable[[Reading], int],
    given: int,
    slot_bytes: int,
    batch_size: int | None,
    *,
    cache_bytes: int = 2**31,
    most_rows: int = 256,
) -> Iterator[ReadBatch]:
    """Batches of the readings of several M; a prefix that several M share is read once for all of them.

    continuation: tokens of the longest text to be read after a reading. given: positions of pauses and cue. slot_bytes:
    bytes of a position in the cache. batch_size: rows of a batch (None: as many as ``cache_bytes`` hold, at most
    ``most_rows``; beyond those, matrix products gain little).
    """
    prefixes: dict[tuple[int, bytes, int], _Prefix] = {}
    for m, listed in readings.items():
        # Two windows of a repetitive context can be equal; each still is a reading, told apart by its count.
        seen: Counter[tuple[int, bytes]] = Counter()
        for number, reading in enumerate(listed):
            tokens = reading.row, array("i", reading.prefix).tobytes()
            prefixes.setdefault((*tokens, seen[tokens]), _Prefix(reading, {})).numbers[m] = number
            seen[tokens] += 1
    # A long row is cut for a large M and not for a small one. Only prefixes of the same set of M share a batch.
    of_counts: dict[tuple[int, ...], list[_Prefix]] = {}
    for prefix in prefixes.values():
        of_counts.setdefault(tuple(prefix.numbers), []).append(prefix)
    for alike in of_counts.values():
        # Sorted by length, neighbours need little padding, which costs as much as text.
        alike.sort(key=lambda prefix: len(prefix.reading.prefix))
        batch: list[_Prefix] = []
        longest = 0
        for prefix in alike:
            length = continuation(prefix.reading)
            # Every row of a batch reserves the slots of its longest, which is the newest: prefixes come in order.
            slots = len(prefix.reading.prefix) + given + max(longest, length)
            room = batch_size or min(most_rows, cache_bytes // (slots * slot_bytes))
            if batch and len(batch) >= room:
                yield _read_batch(batch, given, continuation)
                batch, longest = [], 0
            batch.append(prefix)
            longest = max(longest, length)
        yield _read_batch(batch, given, continuation)


def _read_batch(batch: list[_Prefix], given: int, continuation: Callable[[Reading], int]) -> ReadBatch:
    # Longest continuation first: a pass over the next tokens then takes a slice of rows (generate.py).
    batch = sorted(batch, key=lambda prefix: continuation(prefix.reading), reverse=True)
    readings = [prefix.reading for prefix in batch]
    # The longest prefix and the longest continuation may be of different rows.
    slots = max(len(reading.prefix) for reading in readings) + given + continuation(readings[0])
    return ReadBatch(readings, {m: [prefix.numbers[m] for prefix in batch] for m in batch[0].numbers}, slots)
