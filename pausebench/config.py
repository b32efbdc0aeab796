"""The schema of every command: frozen dataclasses of options and groups, and the rules between them.

Invariant: an object of these classes is valid. The two stages that train are in ``stages``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pausebench.groups import (
    MISSING,
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
    option,
    require,
)
from pausebench.stages import FinetuneConfig, PretrainConfig, RunConfig, ShowConfig, TrainingConfig


@dataclass(frozen=True)
class TasksData:
    """The data of ``tasks``: not a group, since nothing but a folder can be chosen."""

    root: str | None = option(None, "count the rows of these local files (none: of the embedded worlds)")


@dataclass(frozen=True)
class TasksConfig(RunConfig):
    """List the tasks."""

    data: TasksData = option(TasksData, "where rows are counted")


@dataclass(frozen=True)
class EvaluateConfig(RunConfig):
    """Score a finetuned run with any number of pauses."""

    run: str = option(MISSING, "folder of a finetune run, or its name")
    mt: Any = option(None, "M, pauses at inference: an integer or a list (none: the run's K)")
    filler: str = option("pause", "pause, or a word of the vocabulary that stands in for it (section 5.2)")
    placement: Placement | None = option(None, "append or prepend (none: as finetuned)")
    limit: int | None = option(None, "score only the first so many test rows (none: all)")
    batch_size: int | None = option(
        None, "rows decoded together; scores do not depend on it (none: 250 short ones, 32 of text)", identity=False
    )
    allow_changed: bool = option(
        False, "score a run whose data fingerprint is another than in its manifest", identity=False
    )
    tracking: TrackingConfig = option(MISSING, "group: W&B", identity=False)

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

    def pause_counts(self, k: int) -> list[int]:
        """The list of M to score; ``k`` where none is given."""
        return [k if value is None else value for value in (self.mt if isinstance(self.mt, list) else [self.mt])]


@dataclass(frozen=True)
class ReproduceConfig(RunConfig):
    """Plan, run, resume and report a whole study."""

    result: Any = option(MISSING, "group: which study")
    seeds: Any = option(None, "a number of seeds or a list of them (none: the study's)")
    model: ModelConfig | None = option(None, "group: the model of every cell (none: the tasks' own)")
    data: DataConfig | None = option(None, "group: where text and rows come from (none: the tasks' own)")
    corpus: CorpusConfig | None = option(None, "group: the pretraining text of data=files and data=hub (none: c4)")
    tokenizer: TokenizerConfig | None = option(None, "group: how text becomes tokens (none: the model's own)")
    limit: int | None = option(None, "score only the first so many test rows (none: all)")
    overrides: list[str] = option([], "appended to every pretrain and finetune cell: 'overrides=[\"train.steps=50\"]'")
    dry_run: bool = option(False, "print the cells as commands instead of running them")
    wait: bool = option(True, "wait for cells that another process is running")
    tracking: TrackingConfig = option(MISSING, "group: W&B, a run for each cell, grouped by study", identity=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        valid = self.seeds is None or (type(self.seeds) is int and self.seeds >= 1)
        if isinstance(self.seeds, list):
            valid = len(self.seeds) > 0 and all(type(seed) is int and seed >= 0 for seed in self.seeds)
        require(
            valid, f"seeds={self.seeds}", "must be a number of seeds or a list", "For example seeds=3 or seeds=[0,1]."
        )


@dataclass(frozen=True)
class SyncConfig(RunConfig):
    """Upload offline W&B runs."""

    dry_run: bool = option(False, "list what would be uploaded")


@dataclass(frozen=True)
class ReportConfig(RunConfig):
    """Tables and page from the run folders alone."""

    study: str | None = option(None, "one study by its name in runs/reproduce (none: every study found)")


COMMANDS: dict[str, type[RunConfig]] = {
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "evaluate": EvaluateConfig,
    "reproduce": ReproduceConfig,
    "report": ReportConfig,
    "sync": SyncConfig,
    "tasks": TasksConfig,
    "show": ShowConfig,
}


for _schema in (
    *COMMANDS.values(),
    RunConfig,
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
