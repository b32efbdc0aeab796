"""The schema of every command: frozen dataclasses of options and groups, and the rules between them.

Invariant: an object of these classes is valid. The commands that train are in ``config.training``.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import Any

from pausebench.config import groups, training
from pausebench.config.devices import DEVICES
from pausebench.config.groups import (
    Arithmetic,
    CorpusConfig,
    DataConfig,
    ModelConfig,
    Placement,
    TokenizerConfig,
    TrackingConfig,
)
from pausebench.config.options import MISSING, Identity, as_list, option, require, require_at_least, whole_numbers
from pausebench.config.training import FinetuneConfig, PretrainConfig, RunConfig, ShowConfig, TextConfig


@dataclass(frozen=True)
class TasksData:
    """The data of ``tasks``: a folder is all that can be chosen, so this is no group."""

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
        require_at_least(1, self, "workers", "shard_tokens")
        require(
            not self.text.embedded,
            "data=embedded",
            "generated text has no end and is not prepared",
            "Type data=hub, or data=files data.root=DIR.",
        )

    def resolved(self) -> PrepareConfig:
        """The config with every open value filled in."""
        # Under Slurm or taskset a process may use fewer cores than the machine has; macOS cannot tell.
        own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = own if self.workers is None else self.workers
        return dataclasses.replace(self, tokenizer=self.tokenizer.resolved(), workers=workers)


@dataclass(frozen=True)
class EvaluateConfig(RunConfig):
    """Score a finetuned run with any number of pauses."""

    run: str = option(MISSING, "folder or name of a finetune run")
    # Any, since OmegaConf cannot type a number or a list of them; ``__post_init__`` checks.
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
    # exact is slow, but in float32 a near-tie between two tokens can flip with the batch size.
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
        require(
            whole_numbers(self.mt),
            f"mt={self.mt}",
            "must be an integer from 0 upwards or a list of them",
            "For example mt=8 or mt=[0,2,8].",
        )
        values = as_list(self.mt) or []
        require(len(set(values)) == len(values), f"mt={self.mt}", "names a number twice")
        require_at_least(1, self, "batch_size", "limit")

    def slug(self, run: str, m: int) -> str:
        """The readable part of the result's name for M = ``m``; ``run`` is the name of the finetune run."""
        # Without the finetune run's own hash: the result's hash covers it.
        return f"{run.rpartition('-')[0]}-m{m}"

    def identity(self, run: str, placement: Placement, m: int) -> dict[str, Any]:
        """What determines the result for M = ``m``; ``filler`` has to be filled in."""
        assert self.filler is not None
        # One result per M, whatever list it was scored in, and no options that do nothing: without pauses neither
        # filler nor placement matters, so all such evaluations share one folder.
        identity: dict[str, Any] = {"run": run, "m": m}
        if m > 0:
            identity |= {"filler": self.filler, "placement": placement.value}
        if self.limit is not None:
            identity["limit"] = self.limit
        if self.precision is not Arithmetic.exact:
            identity["precision"] = self.precision.value
        return identity

    def pause_counts(self, k: int) -> list[int]:
        """Every M to score; ``k`` alone if none is given."""
        return as_list(self.mt) or [k]


@dataclass(frozen=True)
class ReproduceConfig(RunConfig):
    """Plan, run, resume and report a whole study."""

    result: Any = option(MISSING, "group: the study")  # a free tree: ``study.arms`` reads it
    # Lists may be empty or None ("the study's own"), and Any as above: a single number is easier to type than a list.
    seeds: Any = option(None, "number of seeds, or a list of seeds (none: the study's)")
    tasks: Any = option(None, "written task=[A,B]: tasks instead of the study's own")
    k: Any = option(None, "K, pauses in finetuning: a number or a list; the baseline keeps K = 0 (none: the study's)")
    mt: Any = option(None, "M, pauses at inference, if the study sweeps it: a number or a list (none: the study's)")
    controls: Any = option(
        None,
        "controls to add: hidden_pretraining, hidden_finetuning, hidden, one_pause, shifted, filler, layers, steps",
    )
    # None is not the group's default: it leaves the choice to each task, as for a finetuning typed by hand.
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
        # A number counts seeds, a list names them: seeds=0 would be a study of nothing, seeds=[0] is one seed.
        smallest = 0 if isinstance(self.seeds, list) else 1
        require(
            whole_numbers(self.seeds, smallest),
            f"seeds={self.seeds}",
            "must be a number of seeds or a list",
            "For example seeds=3 or seeds=[0,1].",
        )
        for name in ("k", "mt"):
            given = getattr(self, name)
            require(
                whole_numbers(given),
                f"{name}={given}",
                "must be a number from 0 upwards or a list of them",
                f"For example {name}=10 or {name}=[10,50].",
            )
        names = self.task_list
        require(
            names is None or (len(names) > 0 and all(isinstance(name, str) for name in names)),
            f"task={self.tasks}",
            "must be a task or a list of tasks",
            "For example task=[squad,gsm8k]; pausebench tasks lists them.",
        )

    @property
    def task_list(self) -> list[str] | None:
        return as_list(self.tasks)

    @property
    def k_list(self) -> list[int] | None:
        return as_list(self.k)

    @property
    def control_list(self) -> list[str]:
        return as_list(self.controls) or []

    @property
    def mt_list(self) -> list[int] | None:
        return as_list(self.mt)


@dataclass(frozen=True)
class PlanConfig(ReproduceConfig):
    """Estimate what a study would cost."""

    gpu: str = option("h100", "device: h100, h200, a100 (data sheets), or cpu (one core, its peak measured now)")
    gpus: int = option(1, "devices that share the work")
    # 0.4 is what well tuned training of models near 1b reaches; small models on large devices reach far less.
    mfu: float = option(0.4, "fraction of the peak that is reached: an assumption, not a measurement")
    peak_tflops: float | None = option(None, "dense bf16 peak of a device in TFLOP/s (none: the data sheet's)")
    answer_tokens: int | None = option(None, "length of a decoded answer in tokens (none: that of the right answers)")
    json: str | None = option(None, "also write the cost of every cell to this JSON file")

    def __post_init__(self) -> None:
        super().__post_init__()
        allowed = (*DEVICES, "cpu")
        fix = "For another device take the nearest and give peak_tflops=."
        require(self.gpu in allowed, f"gpu={self.gpu}", f"allowed are {', '.join(allowed)}", fix)
        require_at_least(1, self, "gpus", "answer_tokens")
        require(0 < self.mfu <= 1, f"mfu={self.mfu}", "must be above 0 and at most 1", "For example mfu=0.4.")
        valid = self.peak_tflops is None or self.peak_tflops > 0
        require(valid, f"peak_tflops={self.peak_tflops}", "must be above 0")


@dataclass(frozen=True)
class ReportConfig(RunConfig):
    """Make tables and a page from the run folders alone."""

    study: str | None = option(None, "name of one study in runs/reproduce (none: every study found)")


# In the order of ``pausebench --help``: the stages of a run first, then what looks at them.
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


# OmegaConf makes the config of a frozen class read-only, so Hydra could not fill anything in. Only the mark that it
# looks at is taken off: the objects stay frozen. Last in this file, since a frozen class cannot inherit from a class
# without that mark.
_schemas: list[Any] = [*vars(groups).values(), *vars(training).values(), *globals().values()]
for _schema in _schemas:
    if hasattr(_schema, "__dataclass_params__"):
        _schema.__dataclass_params__.frozen = False
