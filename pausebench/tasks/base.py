"""What a task is: a function from a source row to an Example, and how its answers are scored."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

Row = Mapping[str, Any]


class Example(NamedTuple):
    """One question and its answer, as text.

    What the model reads before the pauses is ``prefix``: context, then history, then question. Where a row is too long
    the question stays whole, the oldest turns of the history go first, and then the context is cut.

    target: what the model is trained to say. references: answers that count as right, in evaluation. candidates: what a
    scored task chooses from; the target is one of them. context: a passage to read; it ends in a line break. history:
    earlier turns of a conversation, oldest first. group: examples about the same thing have the same (the story of a
    conversation): their scores are not independent.
    """

    question: str
    target: str
    references: tuple[str, ...]
    candidates: tuple[str, ...] = ()
    context: str = ""
    history: tuple[str, ...] = ()
    group: str = ""

    # Parts, not one text: each is tokenised apart, so that a part can go without changing the ids of the others.
    @property
    def prefix(self) -> str:
        return "".join((self.context, *self.history, self.question))


@dataclass(frozen=True)
class Dataset:
    """Where a task's rows are published.

    name: the short name, which is the folder of local files (``data.root/name/split.jsonl.gz``). hub_id, subset,
    revision: its place on the Hugging Face hub, pinned. train, test: names of the splits that are read; train is None
    where none is published, and ``task.train_fraction`` then carves one from the test rows. fields: what every row must
    have (a dot reaches into a nested field). unfold: the rows that one published row stands for (a conversation: one a
    question); None is the row itself. companion: a split of local files with one row for each row of the test split;
    what its rows hold is added to the test's.
    """

    name: str
    hub_id: str
    subset: str | None
    revision: str
    train: str | None
    test: str
    fields: tuple[str, ...]
    unfold: Callable[[Row], Iterable[Row]] | None = None
    companion: str | None = None


@dataclass(frozen=True)
class Task:
    """A task.

    version: raised when prompt or scoring change. metrics: names in ``evaluation.metrics``, the headline first. scored:
    the candidate with the highest log-likelihood is the answer; otherwise the answer is decoded. worlds: kinds of
    embedded world that have its rows. dataset: the published rows, for tasks that have some. chance: score of the best
    blind guess where it is known exactly, from (n_task, alphabet) of the world. cue: given after the pauses, on the
    target's side, never predicted. generated_rows: size of the test split where the world makes rows without end.
    answer_tokens: length of every answer; None where answers are text that ends in an end token. default_k: pauses of
    a finetuning that names no ``k``; 10 is the smaller of the paper's two.
    """

    name: str
    version: int
    to_example: Callable[[Row], Example]
    metrics: tuple[str, ...]
    worlds: tuple[str, ...] = ()
    scored: bool = False
    dataset: Dataset | None = None
    chance: Callable[[int, int], float] | None = None
    cue: str = ""
    generated_rows: int = 0
    answer_tokens: int | None = None
    default_k: int = 10

    def prompt_hash(self, row: Row) -> str:
        """Short digest of one row's prompt: tells results with different prompts apart."""
        # Of the row's own text, too: a changed revision shows here as well as a changed prompt.
        example = self.to_example(row)
        return hashlib.sha256(f"{example.prefix}|{self.cue}|{example.target}".encode()).hexdigest()[:8]
