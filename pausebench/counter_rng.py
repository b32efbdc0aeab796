"""Random numbers as a pure function of (seed, stream, row, draw).

A generator that is advanced row by row would make a row depend on the rows before it, on the batch size and on the
rank that reads it. Here every number is SplitMix64 (Steele, Lea and Flood 2014) of its own coordinates, so any row can
be drawn alone, in any order, and a resumed run needs no generator state.

The arithmetic is the same on arrays and on tensors; torch, which takes seconds to import, is needed for tensors alone.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

GOLDEN_GAMMA = 0x9E3779B97F4A7C15
Words = TypeVar("Words", "Tensor", NDArray[np.int64])


def _signed(value: int) -> int:
    """The two's complement reading of a 64-bit word: torch has no unsigned arithmetic."""
    # Python's integers do not wrap; the mask makes them.
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


def _shift_right(x: Words, bits: int) -> Words:
    """Logical right shift (that of signed integers is arithmetic)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def splitmix64(state: Words) -> Words:
    """The SplitMix64 output for each int64 state, any shape; products wrap modulo 2**64."""
    z = state + _signed(GOLDEN_GAMMA)
    z = (z ^ _shift_right(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift_right(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shift_right(z, 31)


def _key(seed: int, stream: str) -> int:
    # The odd multiplier spreads neighbouring seeds over the whole word, so that seed 1 of one stream is not seed 0 of
    # the next.
    state = np.array([_signed(seed * 0x2545F4914F6CDD1D + zlib.crc32(stream.encode()))])
    return int(splitmix64(state)[0])


def uniform(seed: int, stream: str, rows: Tensor, draws: int) -> Tensor:
    """float64 [rows, draws], uniform in [0, 1).

    ``stream`` names what the numbers are for ("pause places", "bits", ...); two streams never share numbers.
    ``rows`` is an int64 vector of row numbers in any order, on the CPU.
    """
    import torch

    return torch.from_numpy(uniform_array(seed, stream, rows.numpy(), draws))


def uniform_array(seed: int, stream: str, rows: NDArray[np.int64], draws: int) -> NDArray[np.float64]:
    """``uniform`` in numpy: the same numbers."""
    # Twice, because row numbers are consecutive: one round would start neighbouring rows at related states.
    row_state = splitmix64(splitmix64(rows.astype(np.int64) + _key(seed, stream)))[:, None]
    counters = np.arange(draws, dtype=np.int64) * _signed(GOLDEN_GAMMA)
    # A float64 holds 53 bits: the upper ones of 64, scaled below 1.
    return _shift_right(splitmix64(row_state + counters), 11).astype(np.float64) * 2.0**-53


# Four rounds are enough in theory for random functions; six cost little and these are cheap mixers.
FEISTEL_ROUNDS = 6


def permuted(seed: int, stream: str, epochs: Tensor, numbers: Tensor, size: int) -> Tensor:
    """Where each of ``numbers`` (0 to size - 1) goes in a permutation of ``size`` things, one for every epoch.

    All tensors int64 [R]. Nothing of the size of the permutation is held: a Feistel network over the next power of two,
    repeated until it lands inside (cycle walking; Black and Rogaway 2002).
    """
    bits = max(8, (size - 1).bit_length())  # halves of less than four bits mix visibly worse
    low = bits // 2
    key = splitmix64(epochs + _key(seed, stream))

    def once(x: Tensor, key: Tensor) -> Tensor:
        left, right = x >> low, x & ((1 << low) - 1)
        for number in range(0, FEISTEL_ROUNDS, 2):
            left = left ^ (splitmix64(key ^ (right * FEISTEL_ROUNDS + number)) & ((1 << bits - low) - 1))
            right = right ^ (splitmix64(key ^ (left * FEISTEL_ROUNDS + number + 1)) & ((1 << low) - 1))
        return left << low | right

    # The domain is at most twice the size, or 256, so that a few rounds settle every number.
    places = once(numbers, key)
    while len(outside := (places >= size).nonzero()[:, 0]):
        places[outside] = once(places[outside], key[outside])
    return places
