"""Embedded worlds: generated text that needs no download and in which pauses have a measurable effect.

The count world: lists of bits, and facts about them. A pretraining document is a list of n bits with a probability of
ones drawn for the document (so that predicting the next bit already teaches counting), then facts in random order:

    1 1 0 1 FIRST 1 MAJ more LAST 1

The relay world: strings over a small alphabet, to be copied through the pauses alone. It has no pretraining text.

Invariant: a document or row is a function of (seed, its number) alone, and reads the same on every machine.
"""

from __future__ import annotations

import hashlib
import string

import numpy as np
from numpy.typing import NDArray

from pausebench.config.groups import WorldConfig
from pausebench.counter_rng import uniform_array
from pausebench.data.tokenizer import WordTokenizer
from pausebench.errors import BadInput

TEST_SEED = 2**31  # above every seed a user may give: test rows are the same for all runs
VALIDATION_SEED = 2**31 + 1
Row = dict[str, str]


class CountWorld:
    """Lists of bits and facts about them (64 tokens)."""

    def __init__(self, config: WorldConfig) -> None:
        self.config = config
        # 0 to 46: with the other words 62 in all, and 64 ids with the end token and <pause>.
        numbers = [f"n{number}" for number in range(47)]
        questions = ["MAJ", "FIRST", "LAST", "CNT", "PAR", "M3"]
        answers = ["even", "odd", "rest0", "rest1", "rest2", "less", "more"]
        self.tokenizer = WordTokenizer(["0", "1", *questions, *numbers, *answers])

    def documents(self, seed: int, start: int, count: int) -> list[str]:
        """Pretraining documents ``start`` to ``start + count`` of this seed."""
        world, rows = self.config, np.arange(start, start + count)
        # One draw for the length and one for each fact, whose order is that of its draw.
        shape = uniform_array(seed, "document shape", rows, 1 + len(world.facts))
        lengths = (world.n_min + (shape[:, 0] * (world.n_max - world.n_min + 1)).astype(np.int64)).tolist()
        orders = shape[:, 1:].argsort(axis=1).tolist()
        # The longest list for everyone, then cut: a document depends on its own number alone.
        bits = self._bits(seed, "document", rows, world.n_max)
        documents = []
        for length, order, row in zip(lengths, orders, bits, strict=True):
            row = row[:length]
            facts = [self._fact(world.facts[index], row) for index in order]
            documents.append(" ".join([*row, *facts]))
        return documents

    def task_rows(self, seed: int, start: int, count: int) -> list[Row]:
        """Rows ``{"bits": "0 1 1 ..."}`` with ``n_task`` bits each."""
        # A stream of its own: no list of a task is one that was read in pretraining with the same seed.
        bits = self._bits(seed, "task", np.arange(start, start + count), self.config.n_task)
        return [{"bits": " ".join(row)} for row in bits]

    @staticmethod
    def _bits(seed: int, stream: str, rows: NDArray[np.int64], length: int) -> list[str]:
        """One string of ``length`` bits a row; each row has its own probability of a one, uniform in 0..1."""
        draws = uniform_array(seed, f"{stream} bits", rows, length + 1)
        # All bits of a block become one string at once: joining them one by one in Python is far slower.
        characters = ((draws[:, 1:] < draws[:, :1]) + np.uint8(ord("0"))).tobytes().decode()
        return [characters[index : index + length] for index in range(0, len(characters), length)]

    @staticmethod
    def _fact(name: str, bits: str) -> str:
        ones = bits.count("1")
        # A tie is "less", as in the task.
        if name == "MAJ":
            return f"MAJ {'more' if 2 * ones > len(bits) else 'less'}"
        if name == "FIRST":
            return f"FIRST {bits[0]}"
        if name == "LAST":
            return f"LAST {bits[-1]}"
        return f"CNT n{ones}"


class RelayWorld:
    """Strings over a small alphabet; ``=`` is the answer mark."""

    def __init__(self, config: WorldConfig) -> None:
        self.config = config
        self.tokenizer = WordTokenizer([*string.ascii_lowercase[: config.alphabet], "="])

    def documents(self, seed: int, start: int, count: int) -> list[str]:
        raise BadInput(
            f"world={self.config.name} has no text to pretrain on: its task starts from random weights. "
            "Type pausebench finetune task=relay, or pretrain with world=count20."
        )

    def task_rows(self, seed: int, start: int, count: int) -> list[Row]:
        """Rows ``{"symbols": "c a a ..."}`` with ``n_task`` symbols each, all equally likely."""
        draws = uniform_array(seed, "relay symbols", np.arange(start, start + count), self.config.n_task)
        # By number: the answer mark is the last word, so it is never drawn.
        letters = self.tokenizer.words
        return [
            {"symbols": " ".join([letters[index] for index in row])}
            for row in (draws * self.config.alphabet).astype(np.int64).tolist()
        ]


World = CountWorld | RelayWorld


def build_world(config: WorldConfig) -> World:
    """The generator for a ``world`` group."""
    return CountWorld(config) if config.kind == "count" else RelayWorld(config)


def corpus_fingerprint(world: World, seed: int) -> str:
    """Hex digest of the first documents and the vocabulary: changes when the generator's output changes."""
    # 64 stand for all: they are drawn by one code from one seed, so a change of the generator shows in the first ones.
    return _digest(world, world.documents(seed, 0, 64))


def task_fingerprint(world: World, seed: int) -> str:
    """Hex digest of the first training rows, the first test rows and the vocabulary."""
    rows = world.task_rows(seed, 0, 64) + world.task_rows(TEST_SEED, 0, 64)
    return _digest(world, [value for row in rows for value in row.values()])


def _digest(world: World, texts: list[str]) -> str:
    return hashlib.sha256("\n".join([world.tokenizer.fingerprint, *texts]).encode()).hexdigest()[:16]
