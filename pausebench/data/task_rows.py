"""Rows of a task from any source, as examples.

Two kinds: a world that makes rows without end (count, relay), and a dataset with a training and a test split (hub,
files, or the embedded English world in the same schema).

Invariant: no validation row is ever trained on, and test rows are the same for every run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

import torch

from pausebench.config import FinetuneConfig
from pausebench.counter_rng import uniform
from pausebench.data import files, hub
from pausebench.data.embedded import TEST_SEED, VALIDATION_SEED, build_world, task_fingerprint
from pausebench.data.english import EnglishWorld
from pausebench.data.lengths import EncodedExample, encode
from pausebench.data.tokenizer import Tokenizer
from pausebench.errors import BadInput
from pausebench.groups import Source, WorldConfig
from pausebench.tasks import TASKS, Dataset, Example, Task

VALIDATION_SHARE = 20  # one training row in so many is held out for the validation loss
VALIDATION_MOST = 512


class GeneratedRows:
    """Rows of a count or relay world: every training row is a new one."""

    def __init__(self, task: Task, config: WorldConfig) -> None:
        self.task = task
        self.world = build_world(config)
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

    def test(self) -> list[Example]:
        return self.training(TEST_SEED, 0, self.task.generated_rows)


class DatasetRows:
    """Rows of a dataset's two splits; one training row in ``VALIDATION_SHARE`` is held out."""

    def __init__(self, task: Task, train: Iterable[files.Located], test: Iterable[files.Located]) -> None:
        assert task.dataset is not None
        self.task = task
        self._digest = hashlib.sha256()
        self._examples, _ = self._read("train", train)
        self._test, self.prompt_hash = self._read("test", test)
        size = len(self._examples)
        held_out = min(VALIDATION_MOST, size // VALIDATION_SHARE)
        if held_out == 0:
            raise BadInput(
                f"{task.dataset.name}/{task.dataset.train} has {size} rows; at least {VALIDATION_SHARE} are needed, "
                f"because one in {VALIDATION_SHARE} is held out for the validation loss."
            )
        order = _order(VALIDATION_SEED, 0, size)
        self.validation = order[:held_out]
        self._training = sorted(order[held_out:])

    def _read(self, split: str, rows: Iterable[files.Located]) -> tuple[list[Example], str]:
        examples, prompt_hash = [], ""
        for located in rows:
            example = _to_example(self.task, located)
            prompt_hash = prompt_hash or self.task.prompt_hash(located.row)
            self._digest.update(json.dumps([split, *example]).encode())
            examples.append(example)
        return examples, prompt_hash

    def fingerprint(self, seed: int) -> str:
        """Hex digest of every row of both splits: equal rows from hub and files have the same."""
        return self._digest.hexdigest()[:16]

    @lru_cache(maxsize=2)  # noqa: B019 - task rows live as long as the process
    def encoded(self, tokenizer: Tokenizer) -> list[EncodedExample]:
        """All training-side rows, held-out ones among them, by their number in the split."""
        return encode(self._examples, self.task, tokenizer)

    def training(self, seed: int, start: int, count: int) -> list[int]:
        """Numbers of the training rows ``start`` to ``start + count``: pass after pass, each in an order of its own."""
        size = len(self._training)
        places = [divmod(number, size) for number in range(start, start + count)]
        return [self._training[_order(seed, epoch, size)[place]] for epoch, place in places]

    def longest_target(self, tokenizer: Tokenizer) -> int:
        """Tokens of the longest training-side target, its end token included."""
        return max(len(example.target) for example in self.encoded(tokenizer))

    @property
    def training_side(self) -> list[Example]:
        """Every example of the training split, in its order; those held out are among them."""
        return self._examples

    def sample(self) -> list[Example]:
        """A few rows that show how long rows are."""
        return self._test[:64]

    def test(self) -> list[Example]:
        return self._test


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, size: int) -> list[int]:
    """A permutation of 0..size-1 drawn from (seed, epoch)."""
    order: list[int] = uniform(seed, f"row order {epoch}", torch.arange(size), 1)[:, 0].argsort(stable=True).tolist()
    return order


def open_task(config: FinetuneConfig) -> GeneratedRows | DatasetRows:
    """The rows that a config names; read once a process. Raises ``BadInput`` for rows that are missing or broken."""
    world = config.world if config.embedded else None
    root = config.data.root if config.data.source is Source.files else None
    return _open_task(config.task.name, config.data.source, root, world)


@lru_cache(maxsize=8)
def _open_task(name: str, source: Source, root: str | None, world: WorldConfig | None) -> GeneratedRows | DatasetRows:
    task = TASKS[name]
    if world is not None and world.kind not in task.worlds:
        fit = {"count": "count16, count20, count24", "relay": "relay", "english": "english"}
        allowed = ", ".join(fit[kind] for kind in task.worlds)
        raise BadInput(f"task={name} has no rows in world={world.name}; allowed are {allowed}.")
    if world is not None and world.kind != "english":
        return GeneratedRows(task, world)
    if task.dataset is None:
        raise BadInput(f"task={name} has no rows in data={source.value}; its rows are generated: type data=embedded.")
    train, test = (_read(task.dataset, split, source, root, world) for split in (task.dataset.train, task.dataset.test))
    return DatasetRows(task, train, test)


def _read(
    dataset: Dataset, split: str, source: Source, root: str | None, world: WorldConfig | None
) -> Iterator[files.Located]:
    if root is not None:
        yield from files.read_split(Path(root).expanduser(), dataset.name, split)
        return
    if source is Source.hub:
        where, rows = dataset.hub_id, hub.load_split(dataset.hub_id, dataset.subset, dataset.revision, split)
    else:
        assert world is not None
        where, rows = world.name, iter(EnglishWorld(world).rows(dataset.name, split))
    for number, row in enumerate(rows, start=1):
        yield files.Located(row, f"{where}, {dataset.name}/{split}, row {number}")


def _to_example(task: Task, located: files.Located) -> Example:
    assert task.dataset is not None
    row = files.require_fields(located, task.dataset.fields)
    try:
        return task.to_example(row)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise BadInput(f"{located.where} does not fit task={task.name}: {error}") from None
