"""Which prefixes are read together: rows of like length, for the same M, as many as a cache of two gigabytes holds.

Invariant: every reading of every M is in one batch, and what is read together changes no result.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from pausebench.data.examples import Tokens

CACHE_BYTES = 2**31
MOST_ROWS = 256  # products gain little from more rows


class Reading(NamedTuple):
    """A row's prefix, or one of several: each with another window of its context."""

    row: int
    prefix: Tokens


class Together(NamedTuple):
    """Readings of one batch, the longest continuation first.

    numbers: for each M, the place of each of them among that M's readings. slots: those a row's cache needs.
    """

    readings: list[Reading]
    numbers: Mapping[int, list[int]]
    slots: int


class _Prefix(NamedTuple):
    reading: Reading
    numbers: dict[int, int]  # its place among the readings of each M


def reading_batches(
    readings: Mapping[int, Sequence[Reading]],
    continuation: Callable[[Reading], int],
    given: int,
    slot_bytes: int,
    batch_size: int | None,
) -> Iterator[Together]:
    """Batches of the readings of several M; a prefix that is the same for several M is read once for them.

    continuation: the longest of what is read behind a reading. given: positions of pauses and cue. slot_bytes: those of
    a position in the cache. batch_size: rows of a batch (None: as many as ``CACHE_BYTES`` hold, at most ``MOST_ROWS``).
    """
    prefixes: dict[tuple[int, bytes, int], _Prefix] = {}
    for m, listed in readings.items():
        seen: Counter[tuple[int, bytes]] = Counter()  # windows of a context may be equal
        for number, reading in enumerate(listed):
            tokens = reading.row, array("i", reading.prefix).tobytes()
            prefixes.setdefault((*tokens, seen[tokens]), _Prefix(reading, {})).numbers[m] = number
            seen[tokens] += 1
    of_counts: dict[tuple[int, ...], list[_Prefix]] = {}
    for prefix in prefixes.values():
        of_counts.setdefault(tuple(prefix.numbers), []).append(prefix)
    for alike in of_counts.values():
        alike.sort(key=lambda prefix: len(prefix.reading.prefix))
        batch: list[_Prefix] = []
        longest = 0
        for prefix in alike:
            length = continuation(prefix.reading)
            slots = len(prefix.reading.prefix) + given + max(longest, length)
            room = batch_size or min(MOST_ROWS, CACHE_BYTES // (slots * slot_bytes))
            if batch and len(batch) >= room:
                yield _together(batch, given, continuation)
                batch, longest = [], 0
            batch.append(prefix)
            longest = max(longest, length)
        yield _together(batch, given, continuation)


def _together(batch: list[_Prefix], given: int, continuation: Callable[[Reading], int]) -> Together:
    batch = sorted(batch, key=lambda prefix: continuation(prefix.reading), reverse=True)
    readings = [prefix.reading for prefix in batch]
    slots = max(len(reading.prefix) for reading in readings) + given + continuation(readings[0])
    return Together(readings, {m: [prefix.numbers[m] for prefix in batch] for m in batch[0].numbers}, slots)
