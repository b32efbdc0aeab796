"""The schema of every command: frozen dataclasses of options and groups, and the rules between them.

Invariant: an object of these classes is valid. The two stages that train are in ``config.training``.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import Any

from pausebench.config.devices import DEVICES
from pausebench.config.groups import (
    Arithmetic,
    CorpusConfig,
    DataConfig,
    ModelConfig,
    PauseConfig,
    Placement,
    TaskConfig,
    TokenizerConfig,
    TrackingConfig,
    TrainConfig,
    WorldConfig,
)
from pausebench.config.options import MISSING, Identity, option, require
from pausebench.config.training import (
    FinetuneConfig,
    PretrainConfig,
    RunConfig,
    ShowConfig,
    TextConfig,
    TrainingConfig,
)


@dataclass(frozen=True)
class TasksData:
    """The data of ``tasks``: not a group, since nothing but a folder can be chosen."""

    root: str | None = option(None, "folder of local files whose rows are counted (none: the embedded worlds)")


@dataclass(frozen=True)
class TasksConfig(RunConfig):
    """List the tasks."""

    data: TasksData = option(TasksData, "source of the rows")


@dataclass(frozen=True)
class PrepareConfig(TextConfig):
    """Write a corpus as tokens to disk, once for many runs."""

    workers: int | None = option(None, "CPU cores to use (none: all)", identity=Identity.never)
    shard_tokens: int | None = option(
        None, "most tokens in a shard; results do not depend on it (none: 67,108,864)", identity=Identity.never
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.workers is None or self.workers >= 1, f"workers={self.workers}", "must be at least 1")
        valid = self.shard_tokens is None or self.shard_tokens >= 1
        require(valid, f"shard_tokens={self.shard_tokens}", "must be at least 1")
        require(
            not self.text.embedded,
            "data=embedded",
            "generated text has no end and is not prepared",
            "Type data=hub, or data=files data.root=DIR.",
        )

    def resolved(self) -> PrepareConfig:
        """Every open value filled in."""
        own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = own if self.workers is None else self.workers
        return dataclasses.replace(self, tokenizer=self.tokenizer.resolved(), workers=workers)


@dataclass(frozen=True)
class EvaluateConfig(RunConfig):
    """Score a finetuned run with any number of pauses."""

    run: str = option(MISSING, "folder or name of a finetune run")
    mt: Any = option(None, "M, pauses at inference: a number or a list (none: the run's K)")
    filler: str | None = option(
        None, "token used as the pause: pause, end, or text of one token (section 5.2; none: as finetuned)"
    )
    placement: Placement | None = option(None, "append or prepend (none: as finetuned)")
    limit: int | None = option(None, "score only the first N test rows (none: all)")
    batch_size: int | None = option(
        None,
        "rows read at once; exact scores do not depend on it (none: what fits a 2 GB cache, at most 256)",
        identity=Identity.never,
    )
    precision: Arithmetic = option(
        Arithmetic.exact,
        "exact (float64); fp32 and bf16 are faster, but near-ties may depend on the batch size",
        identity=Identity.changed,
    )
    allow_changed: bool = option(
        False, "score even if the data's fingerprint differs from the manifest's", identity=Identity.never
    )
    profile: bool = option(
        False, "profile a few passes; the result is profile/ in the run's folder", identity=Identity.never
    )
    tracking: TrackingConfig = option(MISSING, "group: W&B", identity=Identity.never)

    def __post_init__(self) -> None:
        super().__post_init__()
        values = self.mt if isinstance(self.mt, list) else [self.mt]
        valid = all(value is None or (type(value) is int and value >= 0) for value in values)
        require(
            valid and len(values) > 0,
            f"mt={self.mt}",
            "must be an integer from 0 upwards or a list of them",
            "For example mt=8 or mt=[0,2,8].",
        )
        require(len(set(values)) == len(values), f"mt={self.mt}", "names a number twice")
        valid = self.batch_size is None or self.batch_size >= 1
        require(valid, f"batch_size={self.batch_size}", "must be at least 1")
        require(self.limit is None or self.limit >= 1, f"limit={self.limit}", "must be at least 1")

    def slug(self, run: str, m: int) -> str:
        """The readable part of the name of the result for M = ``m``; ``run`` names the finetune run."""
        return f"{run.rpartition('-')[0]}-m{m}"

    def identity(self, run: str, placement: Placement, m: int) -> dict[str, Any]:
        """What determines that result; ``filler`` has to be filled in."""
        assert self.filler is not None
        identity: dict[str, Any] = {"run": run, "m": m}
        if m > 0:
            identity |= {"filler": self.filler, "placement": placement.value}
        if self.limit is not None:
            identity["limit"] = self.limit
        if self.precision is not Arithmetic.exact:
            identity["precision"] = self.precision.value
        return identity

    def pause_counts(self, k: int) -> list[int]:
        """The list of M to score; ``k`` where none is given."""
        return [k if value is None else value for value in (self.mt if isinstance(self.mt, list) else [self.mt])]


def _listed(given: Any) -> list[Any] | None:
    """A number or a list as a list; None stays None."""
    return given if given is None or isinstance(given, list) else [given]


@dataclass(frozen=True)
class ReproduceConfig(RunConfig):
    """Plan, run, resume and report a whole study."""

    result: Any = option(MISSING, "group: the study")
    seeds: Any = option(None, "number of seeds, or a list of seeds (none: the study's)")
    tasks: Any = option(None, "written task=[A,B]: tasks instead of the study's own")
    k: Any = option(None, "K, pauses in finetuning: a number or a list; the baseline keeps K = 0 (none: the study's)")
    mt: Any = option(None, "M, pauses at inference, if the study sweeps it: a number or a list (none: the study's)")
    controls: Any = option(
        None,
        "controls to add: hidden_pretraining, hidden_finetuning, hidden, one_pause, shifted, filler, layers, steps",
    )
    model: ModelConfig | None = option(None, "group: model of every cell (none: the tasks' own)")
    data: DataConfig | None = option(None, "group: source of text and task rows (none: the tasks' own)")
    corpus: CorpusConfig | None = option(None, "group: pretraining text for data=files and data=hub (none: c4)")
    tokenizer: TokenizerConfig | None = option(None, "group: how text becomes tokens (none: the model's own)")
    limit: int | None = option(None, "score only the first N test rows (none: all)")
    overrides: list[str] = option([], "added to every pretrain and finetune cell: 'overrides=[\"train.steps=50\"]'")
    pretrain_overrides: list[str] = option([], "added to pretrain cells only")
    finetune_overrides: list[str] = option([], "added to finetune cells only; parents stay the same")
    dry_run: bool = option(False, "print the cells as commands instead of running them")
    wait: bool = option(True, "wait for cells that another process is running")
    tracking: TrackingConfig = option(
        MISSING, "group: W&B, one run per cell, grouped by study", identity=Identity.never
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        valid = self.seeds is None or (type(self.seeds) is int and self.seeds >= 1)
        if isinstance(self.seeds, list):
            valid = len(self.seeds) > 0 and all(type(seed) is int and seed >= 0 for seed in self.seeds)
        require(
            valid, f"seeds={self.seeds}", "must be a number of seeds or a list", "For example seeds=3 or seeds=[0,1]."
        )
        for name in ("k", "mt"):
            given, values = getattr(self, name), _listed(getattr(self, name)) or []
            require(
                given is None or (len(values) > 0 and all(type(value) is int and value >= 0 for value in values)),
                f"{name}={given}",
                "must be a number from 0 upwards or a list of them",
                f"For example {name}=10 or {name}=[10,50].",
            )
        names = _listed(self.tasks)
        require(
            names is None or (len(names) > 0 and all(isinstance(name, str) for name in names)),
            f"task={self.tasks}",
            "must be a task or a list of tasks",
            "For example task=[squad,gsm8k]; pausebench tasks lists them.",
        )

    @property
    def task_list(self) -> list[str] | None:
        return _listed(self.tasks)

    @property
    def k_list(self) -> list[int] | None:
        return _listed(self.k)

    @property
    def control_list(self) -> list[str]:
        return _listed(self.controls) or []

    @property
    def mt_list(self) -> list[int] | None:
        return _listed(self.mt)


@dataclass(frozen=True)
class PlanConfig(ReproduceConfig):
    """What a study would cost."""

    gpu: str = option("h100", "device: h100, h200, a100 (data sheets), or cpu (one core, its peak measured now)")
    gpus: int = option(1, "devices that share the work")
    mfu: float = option(0.4, "fraction of the peak that is reached: an assumption, not a measurement")
    peak_tflops: float | None = option(None, "dense bf16 peak of a device in TFLOP/s (none: the data sheet's)")
    answer_tokens: int | None = option(None, "length of a decoded answer in tokens (none: that of the right answers)")
    json: str | None = option(None, "also write the cost of every cell to this JSON file")

    def __post_init__(self) -> None:
        super().__post_init__()
        allowed = (*DEVICES, "cpu")
        fix = "For another device take the nearest and give peak_tflops=."
        require(self.gpu in allowed, f"gpu={self.gpu}", f"allowed are {', '.join(allowed)}", fix)
        require(self.gpus >= 1, f"gpus={self.gpus}", "must be at least 1")
        require(0 < self.mfu <= 1, f"mfu={self.mfu}", "must be above 0 and at most 1", "For example mfu=0.4.")
        valid = self.peak_tflops is None or self.peak_tflops > 0
        require(valid, f"peak_tflops={self.peak_tflops}", "must be above 0")
        valid = self.answer_tokens is None or self.answer_tokens >= 1
        require(valid, f"answer_tokens={self.answer_tokens}", "must be at least 1")


@dataclass(frozen=True)
class ReportConfig(RunConfig):
    """Tables and page from the run folders alone."""

    study: str | None = option(None, "name of one study in runs/reproduce (none: every study found)")


COMMANDS: dict[str, type[RunConfig]] = {
    "prepare": PrepareConfig,
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "evaluate": EvaluateConfig,
    "reproduce": ReproduceConfig,
    "report": ReportConfig,
    "plan": PlanConfig,
    "tasks": TasksConfig,
    "show": ShowConfig,
}


for _schema in (
    *COMMANDS.values(),
    RunConfig,
    TextConfig,
    TasksData,
    ModelConfig,
    TrainingConfig,
    WorldConfig,
    TaskConfig,
    DataConfig,
    CorpusConfig,
    TokenizerConfig,
    PauseConfig,
    TrainConfig,
    TrackingConfig,
):
    # OmegaConf makes the config of a frozen class read-only, and Hydra could then fill nothing in. The objects stay
    # frozen; only the mark that OmegaConf looks at is taken off.
    _schema.__dataclass_params__.frozen = False  # type: ignore[attr-defined]
