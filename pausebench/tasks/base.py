"""What a task is: a function from a source row to an Example, and how its answers are scored."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

Row = Mapping[str, Any]


class Example(NamedTuple):
    """One question and its answer, as text.

    prefix: what the model reads before the pauses. target: what it is trained to say. references: answers that count
    as right, in evaluation.
    """

    prefix: str
    target: str
    references: tuple[str, ...]


@dataclass(frozen=True)
class Dataset:
    """Where a task's rows are published.

    name: the short name, which is the folder of local files (``data.root/name/split.jsonl.gz``). hub_id, subset,
    revision: its place on the Hugging Face hub, pinned. train, test: names of the splits that are read. fields: what
    every row must have (a dot reaches into a nested field).
    """

    name: str
    hub_id: str
    subset: str | None
    revision: str
    train: str
    test: str
    fields: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """A task.

    version: raised when prompt or scoring change. metrics: names in ``evaluation.metrics``, the headline first.
    worlds: kinds of embedded world that have its rows. dataset: the published rows, for tasks that have some.
    chance: score of the best blind guess where it is known exactly, from (n_task, alphabet) of the world.
    cue: given after the pauses, on the target's side, never predicted. generated_rows: size of the test split where
    the world makes rows without end. answer_tokens: length of every answer; None where answers are text that ends in
    an end token.
    """

    name: str
    version: int
    to_example: Callable[[Row], Example]
    metrics: tuple[str, ...]
    worlds: tuple[str, ...]
    dataset: Dataset | None = None
    chance: Callable[[int, int], float] | None = None
    cue: str = ""
    generated_rows: int = 0
    answer_tokens: int | None = None

    def prompt_hash(self, row: Row) -> str:
        """Short digest of one row's prompt: tells results with different prompts apart."""
        example = self.to_example(row)
        return hashlib.sha256(f"{example.prefix}|{self.cue}|{example.target}".encode()).hexdigest()[:8]
