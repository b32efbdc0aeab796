"""The configuration groups: a dataclass for each folder of conf/ with its ranges, and the enums of named choices.

Invariant: an object of these classes is valid. Fields marked ``Identity.never`` do not determine a result and are left
out of a run's name. So are those marked ``Identity.changed`` while they have their default.

The named choices are enums since OmegaConf checks an Enum and knows no Literal.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import Enum

from pausebench.config.options import MISSING, Identity, option, require, require_at_least


class Placement(Enum):
    """Where the K pauses are put (section 5.3; the paper's default is to append)."""

    append = "append"
    prepend = "prepend"


class AttentionKind(Enum):
    """Who attends to whom."""

    causal = "causal"  # every position sees the ones before it
    bidirectional = "bidirectional"  # prefix-LM: all of prefix and pauses see each other (the paper, appendix A)
    bottleneck = "bottleneck"  # causal, but the target sees only the pauses, not the prefix (task relay)


class PauseVisibility(Enum):
    """Who may attend to a pause (the readers' controls: docs/controls.md)."""

    all = "all"  # whoever the attention kind allows (the paper)
    readout = "readout"  # itself and the read-out, the next position that predicts a real token
    self = "self"  # itself alone: nothing it computes can reach the answer


class Pretraining(Enum):
    """Which pretrained checkpoint a finetuning starts from."""

    std = "std"
    pause = "pause"


class LengthLimit(Enum):
    """How long prefix + pauses + target may get."""

    pretrained = "pretrained"  # the parent's row length: later positions are untrained
    positions = "positions"  # the whole position table: finetuning trains the later positions


class Precision(Enum):
    """Arithmetic of training. Weights and optimizer state are always float32."""

    auto = "auto"  # bf16 from width 64 upwards where the device multiplies it fast, else fp32 (``config.arithmetic``)
    fp32 = "fp32"
    bf16 = "bf16"

    @property
    def other(self) -> Precision:
        """The precision that another device would have chosen."""
        return Precision.fp32 if self is Precision.bf16 else Precision.bf16


class Compile(Enum):
    """Whether the loss and the position-wise parts of a block are compiled by torch."""

    auto = "auto"  # in runs long enough to earn back the compilation (``training.compiled``)
    on = "on"
    off = "off"


class Arithmetic(Enum):
    """Arithmetic of evaluation, weights included."""

    exact = "exact"  # float64: scores do not depend on the batch size
    fp32 = "fp32"
    bf16 = "bf16"


class Source(Enum):
    """Where rows come from."""

    hub = "hub"  # the Hugging Face hub
    files = "files"  # local files in the same layout
    embedded = "embedded"  # generated worlds that need no download


class Trim(Enum):
    """What happens to the tokens that inserted pauses push past the end of a pretraining row."""

    drop = "drop"  # they are lost (section 3.1, Algorithm 1)
    carry = "carry"  # the next row begins with them, so no text is lost


class Parallel(Enum):
    """How the processes of one run share its work."""

    ddp = "ddp"  # each holds the whole model (DistributedDataParallel)
    fsdp = "fsdp"  # each holds a share of weights, gradients and optimizer state (FSDP2)


class OnBadStep(Enum):
    """What happens on a step with a non-finite loss or gradient, or a gradient spike."""

    stop = "stop"  # the run ends and keeps its last good checkpoint
    skip = "skip"  # the step changes nothing and is counted


class OnBadRow(Enum):
    """What happens on a row that its task cannot use."""

    error = "error"  # the command ends and names the row and its field
    skip = "skip"  # the row is left out, counted and named


class TokenizerKind(Enum):
    """How text becomes tokens."""

    gpt2 = "gpt2"  # GPT-2's byte-level BPE, for the paper's models (the paper does not name its tokenizer)
    bpe = "bpe"  # a byte-level BPE trained on the first documents of the corpus
    byte = "byte"  # one token per byte
    words = "words"  # one token per word, in the worlds count and relay


@dataclass(frozen=True)
class ModelConfig:
    """A decoder's shape and initialisation scales (group ``model``)."""

    name: str = option(MISSING, "name of the model group")
    n_layers: int = option(MISSING, "number of transformer blocks")
    n_heads: int = option(MISSING, "number of attention heads; must divide d_model")
    d_model: int = option(MISSING, "width of the hidden states")
    d_mlp: int = option(MISSING, "width of the MLP's hidden layer")
    max_positions: int = option(MISSING, "number of learned positions")
    activation: str = option("gelu", "the MLP's activation: gelu (GPT-2's tanh form), gelu_erf (exact form) or relu")
    embedding_std: float = option(0.02, "initial standard deviation of token and position embeddings")
    linear_std: float = option(0.02, "initial standard deviation of linear weights, unless linear_gain is given")
    linear_gain: float | None = option(None, "instead of linear_std: weights from N(0, (linear_gain / sqrt(fan_in))^2)")
    architecture: str = option("gpt2", "which architecture of pausebench.model", identity=Identity.changed)

    def __post_init__(self) -> None:
        allowed = ("gelu", "gelu_erf", "relu")
        require(self.activation in allowed, f"model.activation={self.activation}", f"allowed are {', '.join(allowed)}")
        require_at_least(1, self, "n_layers", "n_heads", "d_model", "d_mlp", "max_positions", group="model.")
        require(
            self.d_model % self.n_heads == 0,
            f"model.n_heads={self.n_heads}",
            f"must divide model.d_model={self.d_model}",
        )


@dataclass(frozen=True)
class WorldConfig:
    """An embedded world: the generator of pretraining documents and task rows (group ``world``)."""

    name: str = option(MISSING, "name of the world group")
    kind: str = option(MISSING, "count (lists of bits), relay (strings to copy) or english (invented facts)")
    sequence_length: int = option(MISSING, "length of a pretraining row in tokens")
    n_min: int = option(1, "count: shortest list in a pretraining document")
    n_max: int = option(1, "count: longest list in a pretraining document")
    n_task: int = option(1, "length of the list (count) or string (relay) in a task row")
    facts: list[str] = option([], "count: facts after a list in pretraining: any of MAJ, FIRST, LAST, CNT")
    alphabet: int = option(8, "relay: number of symbols")

    def __hash__(self) -> int:
        return hash(repr(self))  # worlds key caches, and the list of facts has no hash

    def __post_init__(self) -> None:
        kinds = ("count", "relay", "english")
        require(self.kind in kinds, f"world.kind={self.kind}", f"allowed are {', '.join(kinds)}")
        require(1 <= self.n_min <= self.n_max, f"world.n_min={self.n_min}", f"must be 1 to n_max={self.n_max}")
        require_at_least(1, self, "n_task", group="world.")
        for name in ("n_max", "n_task"):  # words for 0 to 46 fill the worlds' vocabulary of 64 ids
            require(getattr(self, name) <= 46, f"world.{name}={getattr(self, name)}", "numbers end at 46")
        unknown = [fact for fact in self.facts if fact not in ("MAJ", "FIRST", "LAST", "CNT")]
        require(not unknown, f"world.facts={self.facts}", "allowed are MAJ, FIRST, LAST, CNT")
        require(2 <= self.alphabet <= 26, f"world.alphabet={self.alphabet}", "must be 2 to 26")
        if self.kind == "count":
            require(
                self.sequence_length >= self.longest_document,
                f"world.sequence_length={self.sequence_length}",
                f"the longest document has {self.longest_document} tokens",
            )

    @property
    def longest_document(self) -> int:
        """Tokens of the longest pretraining document, its end token included (count)."""
        return self.n_max + 2 * len(self.facts) + 1


@dataclass(frozen=True)
class DataConfig:
    """Where rows come from (group ``data``)."""

    source: Source = option(Source.embedded, "set by data=hub, data=files and data=embedded")
    root: str | None = option(None, "data=files: folder with DATASET/SPLIT.jsonl.gz", identity=Identity.never)
    # Not in the name: without a bad row both choices give the same result, and with one only skip gives any.
    on_bad_row: OnBadRow = option(
        OnBadRow.error,
        "invalid task row (missing field, empty answer, unknown label): error stops there, skip omits and counts it",
        identity=Identity.never,
    )
    allow_changed: bool = option(
        False, "continue a run even if the data's fingerprint differs from the manifest's", identity=Identity.never
    )


@dataclass(frozen=True)
class CorpusConfig:
    """Pretraining text from the hub or from files (group ``corpus``)."""

    name: str = option(MISSING, "short name of the dataset: its folder under data.root")
    field: str = option("text", "field of a row that holds the text")
    hub_id: str | None = option(None, "data=hub: id of the dataset")
    subset: str | None = option(None, "data=hub: subset of the dataset")
    revision: str | None = option(None, "data=hub: commit of the dataset")
    files: int | None = option(
        None, "use only the first N files of the training split (none: all)", identity=Identity.changed
    )
    bytes: bool = option(
        False,
        "data=files: read one file NAME, NAME.zip or NAME.gz as bytes, split 90 % train, 5 % validation, 5 % test",
        identity=Identity.changed,
    )
    prepared: bool = option(
        False, "read the shards written by pausebench prepare instead of the text", identity=Identity.changed
    )
    document_mask: bool = option(
        False, "documents in the same row do not attend to each other", identity=Identity.changed
    )

    def __post_init__(self) -> None:
        require_at_least(1, self, "files", group="corpus.")


@dataclass(frozen=True)
class TokenizerConfig:
    """How text becomes tokens (group ``tokenizer``). ``<pause>`` is always the last id."""

    kind: TokenizerKind = option(MISSING, "set by tokenizer=gpt2, bpe, byte and words")
    path: str | None = option(
        None,
        "gpt2: folder with vocab.json and merges.txt (none: data.root/gpt2-tokenizer, or the hub)",
        identity=Identity.never,
    )
    vocab_size: int | None = option(None, "bpe: most entries, including the end token and <pause> (none: 4096)")
    train_documents: int = option(2000, "bpe: number of corpus documents to train it on")

    def __post_init__(self) -> None:
        valid = self.vocab_size is None or 300 <= self.vocab_size <= 65536
        require(valid, f"tokenizer.vocab_size={self.vocab_size}", "must be 300 to 65536")
        require_at_least(1, self, "train_documents", group="tokenizer.")

    def resolved(self) -> TokenizerConfig:
        # Filled in before names are made: vocab_size=4096 and no vocab_size are the same run.
        return dataclasses.replace(self, vocab_size=4096 if self.vocab_size is None else self.vocab_size)


@dataclass(frozen=True)
class TaskConfig:
    """What is asked (group ``task``)."""

    name: str = option(MISSING, "name of the task")
    train_fraction: float | None = option(
        None, "train on this fraction of the evaluation rows if there is no training split, score the rest (none: off)"
    )

    def __post_init__(self) -> None:
        require(
            self.train_fraction is None or 0 < self.train_fraction < 1,
            f"task.train_fraction={self.train_fraction}",
            "must be above 0 and below 1",
        )


@dataclass(frozen=True)
class PauseConfig:
    """Whether this stage uses pauses (group ``pause``: on or off)."""

    # conf/*.yaml quote "on" and "off": YAML reads them as booleans otherwise, and Hydra fails without naming the file.

    enabled: bool = option(True, "set by pause=on and pause=off")
    trim: Trim = option(
        Trim.drop,
        "pretraining: text pushed past a row's end by pauses: drop loses it (the paper), carry begins the next row",
        identity=Identity.changed,
    )


@dataclass(frozen=True)
class TrainConfig:
    """The optimisation of one run."""

    steps: int = option(1000, "optimizer steps")
    batch_size: int = option(64, "rows in an optimizer step, all micro-batches and ranks together")
    micro_batch_size: int | None = option(
        None, "rows in one forward pass; changes rounding only (none: the whole batch)", identity=Identity.never
    )
    lr: float = option(1e-3, "peak learning rate")
    warmup_steps: int | None = option(None, "steps of linear warm-up (none: 5 % of train.steps)")
    min_lr_fraction: float = option(0.1, "learning rate at the end of the cosine, as a fraction of the peak")
    beta1: float = option(0.9, "AdamW's decay rate of the first moment")
    beta2: float = option(0.95, "AdamW's decay rate of the second moment")
    weight_decay: float = option(0.1, "AdamW's weight decay, on matrices and embeddings, not on biases and norms")
    clip: float = option(1.0, "largest gradient norm; larger ones are scaled down to it")
    on_bad_step: OnBadStep = option(
        OnBadStep.stop,
        "on a step with a non-finite loss or gradient, or a spike: stop the run, or skip and count the step",
        identity=Identity.changed,
    )
    spike: float | None = option(
        None,
        "a gradient norm above N times its running mean is a spike (none: never)",
        identity=Identity.changed,
    )
    log_every: int = option(100, "steps between log lines", identity=Identity.never)
    validate_every: int = option(500, "steps between validation losses", identity=Identity.never)
    validation_rows: int = option(256, "rows of a validation loss (never evaluation rows)", identity=Identity.never)
    checkpoint_every: int = option(500, "steps between checkpoints", identity=Identity.never)
    keep_checkpoints: int = option(2, "newest checkpoints to keep, besides the best one", identity=Identity.never)
    activation_checkpointing: bool = option(
        False,
        "recompute each block in the backward pass: less memory, about a third more work",
        identity=Identity.never,
    )
    compile: Compile = option(
        Compile.auto, "torch.compile: auto (in long runs), on or off; changes rounding", identity=Identity.never
    )
    hang_seconds: int = option(
        600,
        "with several processes: seconds that one may stand still before the run ends",
        identity=Identity.never,
    )

    def __post_init__(self) -> None:
        counts = ("steps", "batch_size", "log_every", "validate_every", "validation_rows", "checkpoint_every")
        require_at_least(1, self, *counts, "keep_checkpoints", "hang_seconds", group="train.")
        require(
            self.micro_batch_size is None or 1 <= self.micro_batch_size <= self.batch_size,
            f"train.micro_batch_size={self.micro_batch_size}",
            f"must be 1 to train.batch_size={self.batch_size}",
        )
        require(self.lr > 0, f"train.lr={self.lr}", "must be above 0")
        require(
            self.warmup_steps is None or 0 <= self.warmup_steps <= self.steps,
            f"train.warmup_steps={self.warmup_steps}",
            f"must be 0 to train.steps={self.steps}",
        )
        require(
            0 <= self.min_lr_fraction <= 1, f"train.min_lr_fraction={self.min_lr_fraction}", "must be between 0 and 1"
        )
        for name in ("beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, f"train.{name}={getattr(self, name)}", "must be at least 0, below 1")
        require_at_least(0, self, "weight_decay", group="train.")
        require(self.clip > 0, f"train.clip={self.clip}", "must be above 0")
        require(self.spike is None or self.spike > 1, f"train.spike={self.spike}", "must be above 1")

    def resolved(self) -> TrainConfig:
        if self.warmup_steps is not None:
            return self
        return dataclasses.replace(self, warmup_steps=round(0.05 * self.steps))


@dataclass(frozen=True)
class TrackingConfig:
    """Weights & Biases (group ``tracking``: wandb or off). The run folder is complete without it."""

    enabled: bool = option(MISSING, "set by tracking=wandb and tracking=off")
    project: str = option("pausebench", "W&B project")
    group: str | None = option(None, "W&B group (none: the task or the world)")
