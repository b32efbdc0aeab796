"""Rows of a task from any source, as examples.

Two kinds: a world that makes rows without end (count, relay), and a dataset with a training and a test split (hub,
files, or the embedded English world in the same schema).

Invariant: no validation row is ever trained on, nor a test row, and test rows are the same for every run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from pausebench.config.groups import OnBadRow, Source, TaskConfig, WorldConfig
from pausebench.config.source import TextSource
from pausebench.counter_rng import uniform_array
from pausebench.data import files, hub
from pausebench.data.examples import EncodedExample, encode
from pausebench.data.tokenizer import Tokenizer
from pausebench.errors import BadInput
from pausebench.tasks import TASKS, Dataset, Example, Row, Task
from pausebench.worlds.counting import TEST_SEED, VALIDATION_SEED, build_world, task_fingerprint
from pausebench.worlds.english import EnglishWorld

VALIDATION_SHARE = 20  # one training row in 20 is held out for the validation loss
VALIDATION_MOST = 512  # rows; of GSM8K's 7,473 one in 20 is fewer, of SQuAD's 87,599 it would be 4,379
CARVE_SEED = 2**31 + 3  # above every seed a user may give, and not the worlds' or the validation's
SKIPPED_SHOWN = 20  # rows left out that a result names


class GeneratedRows:
    """Rows of a count or relay world: every training row is a new one."""

    def __init__(self, task: Task, config: WorldConfig) -> None:
        self.task = task
        self.world = build_world(config)
        self.skipped: list[str] = []
        # Of a fixed row, so that the hash differs between prompts and not between seeds.
        self.prompt_hash = task.prompt_hash(self.world.task_rows(0, 0, 1)[0])

    def fingerprint(self, seed: int) -> str:
        """Hex digest that changes with the rows of this seed."""
        return task_fingerprint(self.world, seed)

    def training(self, seed: int, start: int, count: int) -> list[Example]:
        """Examples ``start`` to ``start + count`` of this seed."""
        return [self.task.to_example(row) for row in self.world.task_rows(seed, start, count)]

    def sample(self) -> list[Example]:
        """A few rows that show how long rows are; here all have one length."""
        return self.training(TEST_SEED, 0, 1)

    def about(self) -> dict[str, Any]:
        return {}  # nothing was left out, and nothing repeats

    def test(self) -> list[Example]:
        return self.training(TEST_SEED, 0, self.task.generated_rows)


class DatasetRows:
    """Rows of a dataset's two splits; of the training rows one in ``VALIDATION_SHARE`` is held out.

    train is None where there is no training split: ``train_fraction`` of the test rows are trained on instead, and the
    others are the test. on_bad_row: whether a row that does not fit the task ends the reading, or is left out.
    skipped: what is wrong with each row that was left out, and its place.
    """

    def __init__(
        self,
        task: Task,
        train: Iterable[files.Located] | None,
        test: Iterable[files.Located],
        train_fraction: float | None = None,
        on_bad_row: OnBadRow = OnBadRow.error,
    ) -> None:
        assert task.dataset is not None
        self.task, self.train_fraction, self.on_bad_row = task, train_fraction, on_bad_row
        self.skipped: list[str] = []
        self._encoded: tuple[str, list[EncodedExample]] | None = None
        self._repeated = 0
        self.prompt_hash = ""
        training = [] if train is None else self._read(train)
        testing = self._read(test)
        if train is None:
            assert train_fraction is not None
            training, testing = _carved(testing, train_fraction, task.dataset)
        # Every example of the training split in its order; those held out are among them.
        self.training_side = list(chain.from_iterable(training))
        self._test = list(chain.from_iterable(testing))
        self._digest = hashlib.sha256()
        # Over the examples, not the rows: what a task does not read may differ between hub and files.
        for split, examples in (("train", self.training_side), ("test", self._test)):
            for example in examples:
                self._digest.update(json.dumps([split, *example]).encode())
        size, name = len(self.training_side), task.dataset.name
        # Fewer would hold out no row at all, and a validation loss of nothing is no number.
        if size < VALIDATION_SHARE:
            raise BadInput(
                f"{name}/{task.dataset.train or task.dataset.test} has {size} rows; at least {VALIDATION_SHARE} are "
                f"needed, because one in {VALIDATION_SHARE} is held out for the validation loss."
            )
        if not self._test:
            raise BadInput(f"{name}/{task.dataset.test} has no rows; at least one is needed to test.")
        # Turns of one conversation share their text: apart, validation would be on text that was trained on.
        groups = [example.group or number for number, example in enumerate(self.training_side)]
        held_out = min(VALIDATION_MOST, size // VALIDATION_SHARE)
        self.validation, self._training = _parted(groups, held_out, VALIDATION_SEED)
        if not self._training:
            raise BadInput(f"{name} has training rows on one text alone; a second one is held out for validation.")

    def _read(self, rows: Iterable[files.Located]) -> list[list[Example]]:
        """The examples of each published row. The last split that is read, the test, determines the prompt's hash."""
        published: list[list[Example]] = []
        seen: set[Any] = set()
        for located in rows:
            try:
                unfolded = _unfolded(self.task, located)
            except BadInput as error:
                if self.on_bad_row is OnBadRow.error:
                    raise BadInput(f"{error} (data.on_bad_row=skip leaves such rows out and counts them.)") from None
                self.skipped.append(str(error))
                continue
            if not published:
                self.prompt_hash = self.task.prompt_hash(unfolded[0][0])
            examples = [example for _, example in unfolded]
            # A repeated row is counted and kept: published splits have some, and published scores include them.
            marks: set[Any] = {tuple(examples), *([str(located.row["id"])] if "id" in located.row else [])}
            self._repeated += not marks.isdisjoint(seen)
            seen |= marks
            published.append(examples)
        return published

    def about(self) -> dict[str, Any]:
        """What a result says of its rows.

        rows_skipped, rows_repeated: of both splits; a row counts as repeated when an earlier one of its split has all
        of its text, or its id. references_per_question: the mean over the test. skipped: the first rows left out.
        """
        about: dict[str, Any] = {
            "rows_skipped": len(self.skipped),
            "rows_repeated": self._repeated,
            "references_per_question": sum(len(example.references) for example in self._test) / len(self._test),
        }
        if self.train_fraction is not None:
            about["train_fraction"] = self.train_fraction
        if self.skipped:
            about["skipped"] = self.skipped[:SKIPPED_SHOWN]
        return about

    def fingerprint(self, seed: int) -> str:
        """Hex digest of every row of both splits: equal rows from hub and files have the same."""
        return self._digest.hexdigest()[:16]

    def encoded(self, tokenizer: Tokenizer) -> list[EncodedExample]:
        """All training-side rows, held-out ones among them, by their number in the split; kept for one tokenizer."""
        # Every cell of a sweep over K and seeds reads the same ids, so a process tokenises once.
        if self._encoded is None or self._encoded[0] != tokenizer.fingerprint:
            self._encoded = tokenizer.fingerprint, encode(self.training_side, self.task, tokenizer)
        return self._encoded[1]

    def training(self, seed: int, start: int, count: int) -> list[int]:
        """Numbers of the training rows ``start`` to ``start + count``: pass after pass, each in an order of its own."""
        size = len(self._training)
        # (pass, place in it) of each row: a row is found without walking through those before it.
        places = [divmod(number, size) for number in range(start, start + count)]
        return [self._training[_order(seed, epoch, size)[place]] for epoch, place in places]

    def longest_target(self, tokenizer: Tokenizer) -> int:
        """Tokens of the longest training-side target, its end token included."""
        return max(len(example.target) for example in self.encoded(tokenizer))

    def sample(self) -> list[Example]:
        """A few rows that show how long rows are."""
        # Of the test: that a test row does not fit is what has to be known before the training.
        return self._test[:64]

    def test(self) -> list[Example]:
        return self._test


def _parted(groups: Sequence[Hashable], count: int, seed: int) -> tuple[list[int], list[int]]:
    """(Numbers of at least ``count`` rows drawn by the seed, the others in order): whole groups on either side."""
    members: dict[Hashable, list[int]] = {}
    for number, group in enumerate(groups):
        members.setdefault(group, []).append(number)
    in_order, drawn = list(members.values()), list[int]()
    # Whole groups, so it may end a little above ``count``.
    for place in _order(seed, 0, len(in_order)):
        if len(drawn) >= count:
            break
        drawn += in_order[place]
    return drawn, sorted(set(range(len(groups))).difference(drawn))


def _carved(
    rows: list[list[Example]], fraction: float, dataset: Dataset
) -> tuple[list[list[Example]], list[list[Example]]]:
    """Published test rows as (training rows, test rows): rows with the same passage, or question, stay together."""
    # Two rows about one passage on both sides would let the test be looked up.
    texts = [examples[0].context or examples[0].question for examples in rows]
    # A seed of its own for all runs: the test rows are the same whatever the seed of the training.
    drawn, others = _parted(texts, round(fraction * len(rows)), CARVE_SEED)
    if not drawn or not others:
        raise BadInput(
            f"task.train_fraction={fraction}: {dataset.name}/{dataset.test} has {len(rows)} rows on {len(set(texts))} "
            f"texts, which gives {len(drawn)} to train on and {len(others)} to test. Take another share."
        )
    return [rows[number] for number in sorted(drawn)], [rows[number] for number in others]


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, size: int) -> list[int]:
    """A permutation of 0..size-1 drawn from (seed, epoch)."""
    # Stable, and from our own generator: the same order with any version of numpy or torch.
    order: list[int] = uniform_array(seed, f"row order {epoch}", np.arange(size), 1)[:, 0].argsort(stable=True).tolist()
    return order


def open_task(task: TaskConfig, source: TextSource) -> GeneratedRows | DatasetRows:
    """The rows of a task; read once a process. Raises ``BadInput`` for rows that are missing or broken."""
    data, world = source.data, source.world if source.embedded else None
    root = Path(data.root).expanduser() if data.root is not None and data.source is Source.files else None
    return open_rows(task.name, data.source, root, world, task.train_fraction, data.on_bad_row)


@lru_cache(maxsize=16)  # more than the paper's nine tasks: a sweep over them comes back to the first
def open_rows(
    name: str,
    source: Source,
    root: Path | None = None,
    world: WorldConfig | None = None,
    train_fraction: float | None = None,
    on_bad_row: OnBadRow = OnBadRow.error,
) -> GeneratedRows | DatasetRows:
    """``open_task`` from what of its source determines the rows: the same rows for every tokenizer and corpus."""
    task = TASKS[name]
    if world is not None and world.kind not in task.worlds:
        fit = {"count": "count16, count20, count24", "relay": "relay", "english": "english"}
        allowed = f"allowed are {', '.join(fit[kind] for kind in task.worlds)}" if task.worlds else "type data=hub"
        raise BadInput(f"task={name} has no rows in world={world.name}; {allowed}.")
    if world is not None and world.kind != "english":
        if train_fraction is not None:
            raise BadInput(f"task.train_fraction={train_fraction}: training rows of task={name} are generated.")
        return GeneratedRows(task, world)
    if task.dataset is None:
        raise BadInput(f"task={name} has no rows in data={source.value}; its rows are generated: type data=embedded.")
    read = partial(_read, task.dataset, root=root, world=world)
    train, test = _train_split(task.dataset, root, train_fraction), read(task.dataset.test)
    # The companion is optional: without it the rows have the answers of their own file alone.
    companion = task.dataset.companion
    if companion is not None and root is not None and files.has_split(root, task.dataset.name, companion):
        test = _beside(test, read(companion))
    return DatasetRows(task, None if train is None else read(train), test, train_fraction, on_bad_row)


def _train_split(dataset: Dataset, root: Path | None, train_fraction: float | None) -> str | None:
    """The training split, where it is to be had. Raises ``BadInput`` unless there is that or ``train_fraction``."""
    split = dataset.train
    there = split is not None and (root is None or files.has_split(root, dataset.name, split))
    if there and train_fraction is not None:
        raise BadInput(
            f"task.train_fraction={train_fraction}: {dataset.name} has rows to train on in its split {split}. Leave "
            "the option out; it is for a dataset without them."
        )
    if not there and train_fraction is None:
        carve = f"task.train_fraction=0.8 to train on that share of the {dataset.test} rows and to test on the others"
        if split is None or root is None:
            raise BadInput(f"{dataset.name} has no training split. Type {carve}.")
        try:
            files.split_files(root, dataset.name, split)
        except BadInput as error:
            if not files.has_split(root, dataset.name, dataset.test):
                raise
            raise BadInput(f"{error} Or type {carve}.") from None
    return split if there else None


def _read(dataset: Dataset, split: str, root: Path | None, world: WorldConfig | None) -> Iterator[files.Located]:
    if root is not None:
        yield from files.read_split(root, dataset.name, split)
        return
    rows: Iterable[Row]
    if world is None:
        where, rows = dataset.hub_id, hub.load_split(dataset.hub_id, dataset.subset, dataset.revision, split)
    else:
        where, rows = world.name, EnglishWorld().rows(dataset.name, split)
    for number, row in enumerate(rows, start=1):
        yield files.Located(row, f"{where}, {dataset.name}/{split}, row {number}")


def _beside(rows: Iterable[files.Located], companions: Iterable[files.Located]) -> Iterator[files.Located]:
    """Each row with the fields of its companion. Raises ``BadInput`` where either has no more rows than the other."""
    # Matched by place alone: one file that is a row short would shift every answer after it.
    for row, companion in zip_longest(rows, companions):
        if row is None or companion is None:
            lone, other = (companion, "row") if row is None else (row, "companion")
            raise BadInput(f"{lone.where} has no {other}: the two files have to have the same number of rows.")
        yield files.Located({**companion.row, **row.row}, f"{row.where} with {companion.where}")


def _unfolded(task: Task, located: files.Located) -> list[tuple[Row, Example]]:
    """The rows that a published row stands for, and their examples."""
    assert task.dataset is not None
    row = files.require_fields(located, task.dataset.fields)
    try:
        # A published row may hold anything: whatever a task trips over is named with its place.
        rows = [row] if task.dataset.unfold is None else task.dataset.unfold(row)
        return [(each, task.to_example(each)) for each in rows]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise BadInput(f"{located.where} does not fit task={task.name}: {error}") from None
