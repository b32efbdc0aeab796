"""The options of pretrain, finetune and show, and the rules between them (``config.commands`` has the others).

Invariant: an object of these classes is valid. ``resolved`` fills in what the command line may leave open (``k``,
``train.warmup_steps``, ``sequence_length``). The resolved config is what is hashed, stored in ``config.yaml`` and used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pausebench.config.arithmetic import resolved_precision
from pausebench.config.groups import (
    AttentionKind,
    CorpusConfig,
    DataConfig,
    LengthLimit,
    ModelConfig,
    Parallel,
    PauseConfig,
    PauseVisibility,
    Precision,
    Pretraining,
    Source,
    TaskConfig,
    TokenizerConfig,
    TokenizerKind,
    TrackingConfig,
    TrainConfig,
    WorldConfig,
)
from pausebench.config.options import MISSING, Identity, identity_fields, option, require, require_at_least
from pausebench.config.pauses import PauseInjection, PausePolicy, variant
from pausebench.config.source import ParentChoice, TextSource


@dataclass(frozen=True)
class RunConfig:
    """The options of every command."""

    runs: str = option("runs", "folder of all run folders", identity=Identity.never)
    device: str = option("auto", "auto, cpu or cuda", identity=Identity.never)
    threads: int | None = option(None, "CPU threads (none: torch's default)", identity=Identity.never)
    quiet: bool = option(False, "print no progress", identity=Identity.never)

    def __post_init__(self) -> None:
        require(self.device in ("auto", "cpu", "cuda"), f"device={self.device}", "allowed are auto, cpu and cuda")
        require_at_least(1, self, "threads")


@dataclass(frozen=True)
class TextConfig(RunConfig):
    """Where text and rows come from, and the tokenizer."""

    data: DataConfig = option(DataConfig, "group: source of text and task rows")
    corpus: CorpusConfig = option(MISSING, "group: pretraining text for data=hub and data=files")
    world: WorldConfig = option(MISSING, "group: generator for data=embedded")
    tokenizer: TokenizerConfig = option(MISSING, "group: how text becomes tokens")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.data.source is not Source.files or self.data.root is not None,
            "data=files without data.root",
            "the folder with the local files has to be named",
            "For example data.root=../data, with ../data/squad/train.jsonl.gz in it.",
        )
        # The toy worlds make words, not text: their tokenizer is part of the world, and no other one fits.
        own_words = self.text.embedded and self.world.kind != "english"
        words = self.tokenizer.kind is TokenizerKind.words
        where = f"world={self.world.name}" if self.text.embedded else f"data={self.data.source.value}"
        require(
            own_words == words,
            f"tokenizer={self.tokenizer.kind.value} with {where}",
            "allowed here is words" if own_words else "allowed here are gpt2, bpe and byte",
        )

    @property
    def text(self) -> TextSource:
        """The source alone, for code that knows no command."""
        return TextSource(self.data, self.corpus, self.world, self.tokenizer)

    def refuse_unused(self, overrides: Sequence[str]) -> None:
        """Raise ``BadInput`` for an override of a group that this source does not read."""
        # It would change nothing, and nobody would notice: not even the run's name depends on it.
        unused, fix = ("corpus", "data=files or data=hub") if self.text.embedded else ("world", "data=embedded")
        for given in overrides:
            name = given.lstrip("+").partition("=")[0]
            require(
                name.partition(".")[0] != unused,
                f"{given} with data={self.data.source.value}",
                f"{unused} is read with {fix} only",
                f"Leave it out, or type {fix}.",
            )

    def data_identity(self) -> dict[str, Any]:
        """``identity_fields`` without the groups that this source and tokenizer do not use."""
        fields = identity_fields(self)
        del fields["corpus" if self.text.embedded else "world"]
        if self.tokenizer.kind is TokenizerKind.words:
            del fields["tokenizer"]  # it is the world's
        elif self.tokenizer.kind is not TokenizerKind.bpe:  # vocab_size and train_documents are bpe's alone
            fields["tokenizer"] = self.tokenizer.kind.value
        return fields


@dataclass(frozen=True)
class TrainingConfig(TextConfig):
    """The options of both training commands."""

    model: ModelConfig = option(MISSING, "group: the decoder; a finetuning needs a parent of the same model")
    precision: Precision = option(
        Precision.auto, "arithmetic: auto (bf16 where the device is fast at it), fp32 or bf16"
    )
    # Not in the name, nor are profile and tracking: neither changes what is computed, but for rounding.
    parallel: Parallel = option(
        Parallel.ddp,
        "several processes (torchrun, srun): ddp, or fsdp to shard weights too",
        identity=Identity.never,
    )
    train: TrainConfig = option(TrainConfig, "optimisation")
    profile: bool = option(
        False, "profile a few steps; the result is profile/ in the run's folder", identity=Identity.never
    )
    tracking: TrackingConfig = option(MISSING, "group: W&B", identity=Identity.never)


@dataclass(frozen=True)
class PretrainConfig(TrainingConfig):
    """StdPT (pause=off) or PausePT (pause=on)."""

    pause: PauseConfig = option(PauseConfig, "group: on is PausePT, off is StdPT")
    pause_fraction: float = option(0.1, "pauses inserted, as a fraction of the row's length (section 4.1)")
    pause_visibility: PauseVisibility = option(
        PauseVisibility.all,
        "who attends to a pause: all; controls (docs/controls.md): readout (and itself), or self",
        identity=Identity.changed,
    )
    sequence_length: int | None = option(
        None, "row length in tokens (none: the world's, or 2048 if the model has as many positions)"
    )
    seed: int = option(0, "seed of initialisation, document order and pause places")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.seed < 2**31, f"seed={self.seed}", "must be 0 to 2147483647")
        require(
            0 < self.pause_fraction <= 1,
            f"pause_fraction={self.pause_fraction}",
            "must be above 0 and at most 1",
            "The paper's is 0.1; pause=off pretrains without pauses.",
        )
        if self.sequence_length is not None:
            # A list of the count world must fit a row whole, else its facts would stand in a row without it.
            shortest = self.world.longest_document if self.text.embedded and self.world.kind == "count" else 2
            require(
                self.sequence_length >= shortest,
                f"sequence_length={self.sequence_length}",
                f"must be at least {shortest}"
                + (f", the longest document of world={self.world.name}" if shortest > 2 else ""),
            )
            require(
                self.sequence_length <= self.model.max_positions,
                f"sequence_length={self.sequence_length}",
                f"model={self.model.name} has {self.model.max_positions} positions",
                "Take a shorter sequence_length or set model.max_positions.",
            )

    def resolved(self) -> PretrainConfig:
        """The config with every open value filled in."""
        length = self.sequence_length
        if length is None:
            # 2048 is the paper's; the tiny models have fewer positions.
            length = self.world.sequence_length if self.text.embedded else min(2048, self.model.max_positions)
        return dataclasses.replace(
            self,
            # What does nothing without pauses is set back, so that one computation has one name.
            pause=self.pause if self.pause.enabled else PauseConfig(enabled=False),
            pause_visibility=self.pause_visibility if self.pause.enabled else PauseVisibility.all,
            sequence_length=length,
            tokenizer=self.tokenizer.resolved(),
            precision=resolved_precision(self.precision, self.model, self.device),
            train=self.train.resolved(),
        )

    @property
    def variant(self) -> str:
        return "PausePT" if self.pause.enabled else "StdPT"

    @property
    def injection(self) -> PauseInjection:
        """What this pretraining does with pauses."""
        fraction = self.pause_fraction if self.pause.enabled else 0.0
        return PauseInjection(fraction, self.pause.trim, self.pause_visibility)

    @property
    def slug(self) -> str:
        """The readable part of the run's name."""
        return f"{_joined(self.text.name, self.model.name)}-{self.variant}-s{self.seed}"

    def identity(self) -> dict[str, Any]:
        """What determines the result, for the run's name."""
        fields = self.data_identity()
        if not self.pause.enabled:
            del fields["pause_fraction"]
        return fields


@dataclass(frozen=True)
class FinetuneConfig(TrainingConfig, PausePolicy):
    """StdFT (k=0) or PauseFT (k>0) on one task."""

    task: TaskConfig = option(MISSING, "group: the task")
    # Not in the name, nor is default_k: both only decide k, which is.
    pause: PauseConfig = option(PauseConfig, "group: off means k=0", identity=Identity.never)
    default_k: int = option(8, "K if k is not given; tasks set it", identity=Identity.never)
    prefix: AttentionKind = option(AttentionKind.bidirectional, "prefix attention: causal, bidirectional or bottleneck")
    pretraining: Pretraining = option(
        Pretraining.pause, "which pretrained parent to find in runs/pretrain: std or pause"
    )
    pretraining_seed: int = option(0, "seed of the parent")
    init: str | None = option(None, "folder of the parent run, or random (none: search by pretraining=)")
    length_limit: LengthLimit = option(
        LengthLimit.pretrained, "longest row: the parent's pretrained length, or all the model's positions"
    )
    seed: int = option(0, "seed of row order, and of initialisation with init=random")

    def __post_init__(self) -> None:
        super().__post_init__()
        PausePolicy.__post_init__(self)  # RunConfig ends the chain of super() before it reaches this one
        for name in ("seed", "pretraining_seed"):
            require(0 <= getattr(self, name) < 2**31, f"{name}={getattr(self, name)}", "must be 0 to 2147483647")
        require(
            self.pause.enabled or not (self.k or self.k_range),
            f"pause=off {self.typed_count}",
            "pause=off means k=0",
            f"Type pause=off, or {self.typed_count} alone.",
        )
        require(
            self.shift == 0 or self._k == 0,
            f"shift={self.shift} with k={self._k}" + (" (the task's default)" if self.k is None else ""),
            "shift moves the positions of a finetuning without pauses",
            f"Type shift={self.shift} k=0, or k={self._k} alone.",
        )

    def resolved(self) -> FinetuneConfig:
        """The config with every open value filled in."""
        policy = dataclasses.replace(self.policy, k=self._k).settled()
        return dataclasses.replace(
            self,
            **{item.name: getattr(policy, item.name) for item in dataclasses.fields(policy)},
            pause=PauseConfig(enabled=policy.longest > 0),
            tokenizer=self.tokenizer.resolved(),
            precision=resolved_precision(self.precision, self.model, self.device),
            train=self.train.resolved(),
        )

    @property
    def _k(self) -> int:
        # The most that a row may draw: lengths are planned for it, and it is the M of a plain evaluate.
        if self.k_range is not None:
            return self.longest
        return self.k if self.k is not None else (self.default_k if self.pause.enabled else 0)

    @property
    def parent(self) -> ParentChoice:
        """The pretrained run to start from."""
        return ParentChoice(self.init, self.pretraining, self.pretraining_seed, self.model, self.text, self.precision)

    def variant(self, pretraining: str) -> str:
        """The paper's name of this finetuning behind a kind of pretraining."""
        return variant(pretraining, self.longest)

    def slug(self, pretraining: str) -> str:
        """The readable part of the run's name."""
        what = _joined(self.task.name, self.text.name, self.model.name)
        return f"{what}-{self.variant(pretraining)}-k{self.label}-s{self.seed}"

    def identity(self, parent: str, task_version: int) -> dict[str, Any]:
        """What determines the result."""
        fields = self.data_identity()
        # The parent's name replaces the options that found it: init=DIR and pretraining=pause may find the same run.
        for name in ("pretraining", "pretraining_seed", "init"):
            del fields[name]
        if self.k == 0 and self.shift == 0:
            del fields["placement"]
        if task_version > 1:  # version 1 is left out, so that versions could be introduced without renaming runs
            fields["task_version"] = task_version
        return fields | {"parent": parent}


def _joined(*names: str) -> str:
    """Names with a hyphen between them, each once: a task and its world may have the same name."""
    return "-".join(dict.fromkeys(names))


@dataclass(frozen=True)
class ShowConfig(FinetuneConfig):
    """Print examples of a task as a finetuning with these options would see them."""

    examples: int = option(3, "number of examples")
    start: int = option(0, "number of the first example, in the order of the split")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, self, "examples")
        require_at_least(0, self, "start")
