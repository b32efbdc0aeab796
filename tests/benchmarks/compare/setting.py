"""What every workload needs: the options, the device, text and tokenizer, and our own side."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import torch
import yaml

from pausebench.commands.pretrain import open_batches, open_text
from pausebench.config.arithmetic import resolved_precision
from pausebench.config.groups import (
    AttentionKind,
    Compile,
    CorpusConfig,
    DataConfig,
    ModelConfig,
    PauseConfig,
    Precision,
    Source,
    TaskConfig,
    TokenizerConfig,
    TokenizerKind,
    TrackingConfig,
    TrainConfig,
    WorldConfig,
)
from pausebench.config.help import conf_dir
from pausebench.config.source import TextSource
from pausebench.config.training import FinetuneConfig, PretrainConfig
from pausebench.console import Progress
from pausebench.data.batch import ALL, Batch, Batches
from pausebench.data.tokenizer import Tokenizer
from pausebench.data.vocabulary import open_tokenizer
from pausebench.model.fast import FastDecoder
from pausebench.runs.folder import RunFolder
from pausebench.training import start
from pausebench.training.parallel import ALONE
from pausebench.training.tracking import Tracker
from pausebench.training.trainer import Trainer
from tests.benchmarks.compare.contest import OURS, Contender, seconds

OFF = TrackingConfig(enabled=False)


@dataclass(frozen=True)
class Options:
    """What was typed. data: a folder of local files, None for generated English. None elsewhere: the workload's own."""

    model: str = "130m"
    data: str | None = None
    tokenizer: str | None = None
    vocab_size: int = 50258
    work: Sequence[str] = ()
    peers: Sequence[str] = ()
    batch_size: int | None = None
    sequence_length: int | None = None
    k: int = 10
    rows: int = 64
    new_tokens: int | None = None
    steps: int = 2
    repeats: int = 3
    precision: str = "auto"
    compile: str = "on"
    seed: int = 0
    device: str = "auto"
    threads: int | None = None


def group(kind: str, name: str) -> dict[str, Any]:
    """The values of a file in conf/, with or without the group's own name around them."""
    found: dict[str, Any] = yaml.safe_load(Path(conf_dir(), kind, f"{name}.yaml").read_text())
    return found.get(kind, found)


class Widened(Tokenizer):
    """A tokenizer in a larger vocabulary, of which its text uses the first ids: the head's work is that of the larger.

    The embedded English world then trains a model of GPT-2's vocabulary.
    """

    def __init__(self, inner: Tokenizer, vocab_size: int) -> None:
        super().__init__(vocab_size, f"{inner.fingerprint}-{vocab_size}")
        self._inner = inner

    def encode_lists(self, texts: Sequence[str]) -> list[list[int]]:
        return self._inner.encode_lists(texts)

    def decode(self, ids: Sequence[int]) -> str:
        """Ids that no text has are left out: a model with random weights decodes many."""
        return self._inner.decode([index for index in ids if index < self._inner.end_id])


@dataclass
class Setting:
    """One comparison: ``scratch`` holds run folders that nobody keeps, ``notes`` what was left out and why."""

    options: Options
    device: torch.device
    scratch: Path
    notes: list[str] = field(default_factory=list)
    _folders: count[int] = field(default_factory=count)

    @cached_property
    def model(self) -> ModelConfig:
        return ModelConfig(**group("model", self.options.model))

    @cached_property
    def precision(self) -> Precision:
        return resolved_precision(Precision(self.options.precision), self.model, self.options.device)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        inner = open_tokenizer(TextSource(**self._text()), str(self.scratch))
        wanted = self.options.vocab_size
        return inner if inner.vocab_size >= wanted else Widened(inner, wanted)

    @property
    def bf16(self) -> bool:
        return self.precision is Precision.bf16

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.bf16 else torch.float32

    def note(self, line: str) -> None:
        """Say and keep why a comparison is missing."""
        self.notes.append(line)
        print(line, flush=True)

    def pretraining(self, length: int, rows: int, pauses: bool = False) -> PretrainConfig:
        """The pretrain config of these options."""
        return PretrainConfig(
            **self._shared(rows), pause=PauseConfig(enabled=pauses), sequence_length=length
        ).resolved()

    def finetuning(self, task: str, examples: int) -> FinetuneConfig:
        """The finetune config of these options: K pauses behind a causal prefix, which a plain GPT-2 can do as well."""
        return FinetuneConfig(
            **self._shared(examples),
            task=TaskConfig(name=task),
            k=self.options.k,
            prefix=AttentionKind.causal,
            init="random",
        ).resolved()

    def text(self, config: PretrainConfig) -> Batches:
        """The pretraining rows of a config."""
        return open_batches(config, open_text(config, self.tokenizer)[1], self.tokenizer, ALL)

    def _text(self) -> dict[str, Any]:
        source = Source.embedded if self.options.data is None else Source.files
        kind = self.options.tokenizer or ("bpe" if self.options.data is None else "gpt2")
        return {
            "data": DataConfig(source=source, root=self.options.data),
            "corpus": CorpusConfig(**group("corpus", "c4")),
            "world": WorldConfig(**group("world", "english")),
            "tokenizer": TokenizerConfig(kind=TokenizerKind(kind)).resolved(),
        }

    def _shared(self, batch_size: int) -> dict[str, Any]:
        given = self.options
        # Far more steps than are ever taken: the learning rate's schedule must not end within a measurement.
        train = TrainConfig(steps=100_000, batch_size=batch_size, lr=1e-4, compile=Compile(given.compile))
        return {
            **self._text(),
            "model": self.model,
            "train": train,
            "seed": given.seed,
            "precision": self.precision,
            "device": given.device,
            "threads": given.threads,
            "runs": str(self.scratch),
            "quiet": True,
            "tracking": OFF,
        }

    def build(self, config: PretrainConfig | FinetuneConfig) -> FastDecoder:
        """Our decoder as training builds it, on this device."""
        built = start.build_model(
            config.model, self.tokenizer.vocab_size, config.seed, self.device, ALONE, precision=config.precision
        )
        return built.to(self.device)

    def folder(self, command: str) -> RunFolder:
        """A new run folder in ``scratch``; the process is in its name, since `memory` has two at work in one place."""
        folder = RunFolder(self.scratch, command, f"compare{os.getpid()}-{next(self._folders)}")
        folder.create()
        return folder


class OurTraining:
    """Our trainer, step by step, as ``pretrain`` and ``finetune`` run it; ``units`` of work are in a step.

    made_together: batches that are made at once; their making is measured and its share counted in every step, unless
    it is 0: then batches are taken as ready.
    """

    def __init__(
        self,
        setting: Setting,
        config: PretrainConfig | FinetuneConfig,
        model: FastDecoder,
        batches: Batches,
        units: float,
        made_together: int = 0,
    ) -> None:
        self.setting, self.units, self.step = setting, units, 0
        began = time.perf_counter()
        batches.batch(1)
        self._making = (time.perf_counter() - began) / made_together if made_together else 0.0
        folder, progress = setting.folder("pretrain"), Progress("compare", config.train.steps, quiet=True)
        tracker = Tracker(OFF, folder.path, "compare", {}, {}, progress)
        self._trainer = Trainer(
            model,
            batches,
            config.train,
            folder,
            precision=config.precision,
            device=setting.device,
            tracker=tracker,
            progress=progress,
            ranks=ALONE,
        )

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.step += 1
            batch = self._trainer.batches.batch(self.step)
            self._trainer.optimize(self.step, batch, batch.supervised)

    def contender(self, name: str = OURS, warm_up: int = 1) -> Contender:
        given, count = self.setting, self.setting.options.steps

        def timed() -> float:
            spent = seconds(lambda: self.steps(count), given.device) + count * self._making
            return count * self.units / spent

        return Contender(name, lambda: self.steps(warm_up), timed)


def stepping(
    name: str,
    steps: Callable[[int], object],
    units: float,
    setting: Setting,
    warm_up: int,
    close: Callable[[], object] = lambda: None,
) -> Contender:
    """A peer that takes optimizer steps of ``units`` of work each."""
    count = setting.options.steps

    def timed() -> float:
        return count * units / seconds(lambda: steps(count), setting.device)

    return Contender(name, lambda: steps(warm_up), timed, close)


def ready(batches: Batches, count: int) -> list[Batch]:
    """The first batches, made: both sides read the same rows and neither makes them."""
    return [batches.batch(step) for step in range(1, count + 1)]


def as_batches(made: Sequence[Batch]) -> Batches:
    """Batches that are there, again and again."""
    return Batches(lambda first, count: [made[first % len(made)]], 1, lambda count: made[0])
