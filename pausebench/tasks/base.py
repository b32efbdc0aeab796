"""What a task is: a function from a source row to an Example, and how its answers are scored."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple


class Example(NamedTuple):
    """One question and its answer, as text.

    prefix: what the model reads before the pauses. target: what it is trained to say. references: answers that count
    as right, in evaluation.
    """

    prefix: str
    target: str
    references: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """A task.

    metric: headline metric, a name in ``evaluation.metrics``. version: raised when prompt or scoring change.
    world_kind: the kind of embedded world that has its rows. test_rows: size of the test split.
    cue: given after the pauses, on the target's side, never predicted. max_new_tokens: length of the longest answer.
    chance: score of the best constant or blind guess where it is known exactly, as a function of the row's size.
    """

    name: str
    version: int
    world_kind: str
    to_example: Callable[[dict[str, str]], Example]
    metric: str
    test_rows: int
    max_new_tokens: int
    chance: Callable[[int, int], float]
    cue: str = ""

    def prompt_hash(self, row: dict[str, str]) -> str:
        """Short digest of one row's prompt: tells results with different prompts apart."""
        example = self.to_example(row)
        return hashlib.sha256(f"{example.prefix}|{self.cue}|{example.target}".encode()).hexdigest()[:8]
