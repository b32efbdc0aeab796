"""The plan of a study: which cells it has, in which run folders, and as which commands a user could type them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from pausebench.config.arithmetic import LEAST_WIDTH, bfloat16_on
from pausebench.config.commands import EvaluateConfig, ReproduceConfig
from pausebench.config.groups import Precision, Source
from pausebench.config.training import FinetuneConfig, PretrainConfig
from pausebench.data.vocabulary import open_tokenizer
from pausebench.errors import BadInput
from pausebench.model.flops import equal_flops_layers, equal_flops_steps
from pausebench.runs import lineage
from pausebench.runs.folder import RunFolder
from pausebench.runs.lineage import override
from pausebench.study import trainings
from pausebench.study.row_lengths import length_limit, row_lengths, vocabulary
from pausebench.study.study import Arm, Cell, Panel, Primary, Stage, Study
from pausebench.study.trainings import Training
from pausebench.tasks import TASKS

# Composing takes Hydra tens of milliseconds, and a study has hundreds of cells that differ in the seed alone.
ANY_SEED = 2**31 - 1  # a cell is composed once with it, for all its seeds
ON_OFF = {"std": "off", "pause": "on"}

TrainedConfig = TypeVar("TrainedConfig", PretrainConfig, FinetuneConfig)


class Cells(Protocol):
    """How cells are composed and run; the command line's Hydra side implements it."""

    def compose(self, command: str, overrides: Sequence[str]) -> Any: ...

    @property
    def run_elsewhere(self) -> bool:
        """Whether the cells are launched on other machines than this one."""
        ...

    def launch(self, command: str, cells: Sequence[Sequence[str]], names: Sequence[str]) -> Sequence[Any]: ...


@dataclass
class PlannedCommand:
    """One command: its overrides, the folders it fills, and the folders it needs.

    config: of a training cell, resolved. evaluation: of an evaluate cell, mt a list.
    """

    command: str
    overrides: list[str]
    folders: list[RunFolder]
    parents: list[RunFolder] = field(default_factory=list)
    config: PretrainConfig | FinetuneConfig | None = None
    evaluation: EvaluateConfig | None = None

    @property
    def name(self) -> str:
        return self.folders[0].name

    def done(self) -> bool:
        return all((folder.path / "result.json").exists() for folder in self.folders)

    def running(self) -> bool:
        return any(folder.lock_owner() is not None for folder in self.folders)

    def died(self) -> bool:
        """Whether a process that is gone left its lock."""
        return any((folder.path / "lock.json").exists() and folder.lock_owner() is None for folder in self.folders)

    def describe_owner(self) -> str:
        owner = next((owner for folder in self.folders if (owner := folder.lock_owner())), None)
        return f"{self.name}" + (f", run by process {owner['pid']} on {owner['host']}" if owner else "")

    def launch_overrides(self, config: ReproduceConfig) -> list[str]:
        """The overrides to run it with here: beside its own, what does not change the result."""
        own = [*self.overrides, override("runs", config.runs), f"device={config.device}", "quiet=true"]
        own.append(f"threads={config.threads or config.result.get('threads', 1) or 'null'}")
        tracking = config.tracking
        own.append(f"tracking={'wandb' if tracking.enabled else 'off'}")
        if tracking.enabled:
            own += [override("tracking.project", tracking.project), override("tracking.group", tracking.group or "")]
        if self.command == "finetune" and any(given.startswith("pretraining=") for given in self.overrides):
            assert isinstance(self.config, FinetuneConfig)
            # Other runs in the folder may fit pretraining= as well; then the plan's own parent is named.
            try:
                choice, runs = self.config.parent, self.config.runs
                found = lineage.find_parent(choice, runs, open_tokenizer(choice.text, runs).fingerprint).name
            except BadInput:
                found = ""
            # ``pretraining=`` is shorter and is what the printed command has; it is kept wherever it finds the same
            # parent.
            if found != self.parents[0].name:
                own.append(override("init", str(self.parents[0].path)))
        return own


@dataclass
class Plan:
    """Stages by command name, and the panels of the report with the evaluate cells they show."""

    config: ReproduceConfig
    stages: dict[str, list[PlannedCommand]]
    panels: list[Panel]
    precision: Precision

    def cells(self) -> list[PlannedCommand]:
        return [cell for stage in self.stages.values() for cell in stage]

    def command(self) -> str:
        """What the user typed, in one spelling: the study's own command for its report."""
        config = self.config
        words = [f"pausebench reproduce result={config.result['name']}", *trainings.typed_lists(config)]
        if config.seeds is not None:
            words.append(f"seeds={config.seeds}".replace(", ", ","))
        words += chosen_data(config)
        if config.limit is not None:
            words.append(f"limit={config.limit}")
        for option in ("overrides", "pretrain_overrides", "finetune_overrides"):
            if given := getattr(config, option):
                quoted = ",".join(f'"{item}"' for item in given)
                words.append(f"'{option}=[{quoted}]'")
        if config.runs != "runs":
            words.append(override("runs", config.runs))
        return " ".join(words)

    def study(self, name: str) -> Study:
        """What ``plan.json`` holds; the report reads nothing else of the study."""
        config, result = self.config, self.config.result
        chosen, primary = chosen_names(config), result["primary"]
        if primary is not None and config.task_list and primary.get("task") not in config.task_list:
            # Narrowed to other tasks, the comparison is about those.
            primary = {name: value for name, value in primary.items() if name != "task"}
        narrowed = "" if name == "-".join([result["name"], *chosen]) else " (narrowed)"
        return Study(
            result=name,
            title=" · ".join([result["title"], *chosen]) + narrowed,
            seeds=tuple(study_seeds(config)),
            unit=result["unit"],
            notes=tuple(result.get("notes", [])),
            command=self.command(),
            panels=tuple(self.panels),
            stages=tuple(
                Stage(
                    command,
                    {planned.name: planned.overrides for planned in stage},
                    tuple(as_commands(command, [planned.overrides for planned in stage], config.runs)),
                )
                for command, stage in self.stages.items()
            ),
            primary=Primary(**primary) if primary else None,
            published=result.get("published"),
            precision=self.precision.value,
        )


def study_seeds(config: ReproduceConfig) -> list[int]:
    """``seeds=``, or the study's own."""
    if config.seeds is None:
        return list(config.result["seeds"])
    return list(range(config.seeds)) if isinstance(config.seeds, int) else list(config.seeds)


def chosen_data(config: ReproduceConfig) -> list[str]:
    """The overrides by which a study's cells get another model or other data than their task's own."""
    words = [f"model={config.model.name}"] if config.model is not None else []
    words += lineage.source_overrides(config.data) if config.data is not None else []
    words += lineage.corpus_overrides(config.corpus) if config.corpus is not None else []
    return words + (lineage.tokenizer_overrides(config.tokenizer) if config.tokenizer is not None else [])


def chosen_names(config: ReproduceConfig) -> list[str]:
    """The same for people: model and data."""
    names = [config.model.name] if config.model is not None else []
    if config.data is not None:
        names.append("english" if config.data.source is Source.embedded else config.data.source.value)
    return [*names[:1], config.corpus.name] if config.corpus is not None else names


def study_precision(config: ReproduceConfig, cells: Cells, earlier: Mapping[str, Any] | None) -> Precision:
    """What ``precision=auto`` is for all wide cells of a study, on whatever machine each of them runs.

    earlier: the ``plan.json`` that this study has already; it decides, so that a study can change machines. Without one
    this machine does, or bf16 where the cells run on the nodes of a cluster, which this one need not resemble.
    """
    # A plan older than this field was made when every wide cell was trained in bf16.
    if earlier is not None:
        return Precision(earlier.get("precision", Precision.bf16.value))
    return Precision.bf16 if cells.run_elsewhere or bfloat16_on(config.device).fast else Precision.fp32


def build_plan(config: ReproduceConfig, cells: Cells, precision: Precision) -> Plan:
    """Compose every cell of a study. Raises ``BadInput`` for the first one that is not valid.

    ``precision``: that of every wide cell which names none (``study_precision``).

    Panels share cells, and each is run once. A panel's ``overrides`` and ``pretrain_overrides`` are appended to its
    finetune and pretrain cells.
    """
    builder = _Builder(config, cells, precision)
    specs: dict[str, dict[str, Any]] = dict(config.result["panels"])
    trainings.refuse_unused(list(specs.values()), config)
    panels = [
        Panel(name, spec["kind"], spec["title"], builder.cells(trainings.of_panel(name, spec, config), spec))
        for name, spec in specs.items()
    ]
    if config.control_list:
        source = trainings.source_of_controls(config)
        controls = builder.cells(trainings.of_controls(config, source), source)
        panels.append(Panel("controls", "controls", "Controls", controls))
    return Plan(config, builder.stages(), panels, precision)


class _Builder:
    """Collects the cells of all panels and the commands behind them, each once."""

    def __init__(self, config: ReproduceConfig, cells: Cells, precision: Precision) -> None:
        self._config = config
        self._cells = cells
        self._precision = precision
        self._composed: dict[tuple[str, ...], Any] = {}
        self._pretrains: dict[str, PlannedCommand] = {}
        self._finetunes: dict[str, PlannedCommand] = {}
        self._evaluations: dict[tuple[str, str], dict[int, RunFolder]] = {}
        # With two pretrainings of one kind in a study, pretraining= no longer says which.
        self._ambiguous = any("pretrain_overrides" in panel for panel in config.result["panels"].values())

    def cells(self, wanted: Sequence[Training], panel: Mapping[str, Any]) -> tuple[Cell, ...]:
        """The evaluations of these trainings, for every seed of the panel."""
        # The instrument check has seeds of its own; all other panels follow the study.
        seeds = list(panel.get("seeds", study_seeds(self._config)))
        found: dict[str, Cell] = {}
        for training in wanted:
            # Lengths of rows do not depend on the seed, so that one serves for all.
            matched = self._matched(training, seeds[0])
            found |= {cell.name: cell for seed in seeds for cell in self._evaluated(matched, seed)}
        return tuple(found.values())

    def stages(self) -> dict[str, list[PlannedCommand]]:
        """What was collected, by command; a stage without cells is left out."""
        found = {
            "pretrain": list(self._pretrains.values()),
            "finetune": list(self._finetunes.values()),
            "evaluate": [
                _evaluate_cell(self._finetunes[run], filler, self._config, folders)
                for (run, filler), folders in self._evaluations.items()
            ],
        }
        return {command: stage for command, stage in found.items() if stage}

    def _evaluated(self, training: Training, seed: int) -> Iterator[Cell]:
        planned = self._finetuned(training, seed)
        finetuned, run = planned.config, planned.folders[0]
        assert isinstance(finetuned, FinetuneConfig)
        for filler, m in itertools.product(training.fillers, training.mt or (finetuned.longest,)):
            # M = 0 inserts nothing, so all fillers share that evaluation; pauses of a model are the token it knows.
            filler = "pause" if m == 0 else finetuned.filler if filler == "pause" else filler
            evaluation = EvaluateConfig(runs=self._config.runs, run=run.name, filler=filler, limit=self._config.limit)
            identity = evaluation.identity(run.name, finetuned.placement, m)
            folder = RunFolder.of(self._config.runs, "evaluate", evaluation.slug(run.name, m), identity)
            self._evaluations.setdefault((run.name, filler), {})[m] = folder
            arm = Arm(
                pretraining=training.pretraining,
                k=finetuned.longest,
                mt=m,
                filler={"pause": "<pause>", "end": "<end>"}.get(filler, filler),
                placement=finetuned.placement.value,
                prefix=finetuned.prefix.value,
                control=training.control,
                control_k=training.control_k,
                k_range=(finetuned.k_range[0], finetuned.k_range[1]) if finetuned.k_range else None,
            )
            yield Cell(folder.name, training.task, finetuned.text.name, seed, arm)

    def _matched(self, training: Training, seed: int) -> Training:
        """The controls ``layers`` and ``steps``: as dear as with K = ``control_k``, at inference or in training."""
        if training.control not in ("layers", "steps"):
            return training
        plain = self._finetuned(training, seed)
        config = plain.config
        assert isinstance(config, FinetuneConfig)
        parents = [self._pretrains[folder.name].config for folder in plain.parents]
        lengths, vocab_size = row_lengths(config, length_limit(config, parents)), vocabulary(config)
        if training.control == "layers":
            layers = equal_flops_layers(
                config.model, vocab_size, lengths.test_prefix, training.control_k, lengths.answer, config.prefix
            )
            return replace(training, matched=f"model.n_layers={layers}")
        steps = equal_flops_steps(
            config.model,
            vocab_size,
            lengths.train_prefix,
            training.control_k,
            lengths.train_target,
            config.train.steps,
            config.prefix,
        )
        return replace(training, matched=f"train.steps={steps}")

    def _finetuned(self, training: Training, seed: int) -> PlannedCommand:
        """The finetune command of a training and a seed, and behind it its parent's."""
        chosen = self._config
        start = "init=random" if training.pretraining == "none" else f"pretraining={training.pretraining}"
        fixed = [
            f"task={training.task}",
            *([f"world={training.world}"] if training.world else []),
            *chosen_data(chosen),
            start,
        ]
        fixed += [f"k={training.k}", *([f"placement={training.placement}"] if training.placement != "append" else [])]
        own = [
            *training.finetune,
            *chosen.overrides,
            *chosen.finetune_overrides,
            *([training.matched] if training.matched else []),
        ]
        config, fixing = self._fixed(
            _with_seed(self._compose("finetune", [*fixed, f"seed={ANY_SEED}", *own]), seed), own
        )
        overrides = [*fixed, f"seed={seed}", *own, *fixing]
        parents = []
        if training.pretraining != "none":
            parents.append(self._pretrained(training, config).folders[0])
            if self._ambiguous or training.pretrain or training.deeper:
                overrides[overrides.index(start)] = override("init", str(parents[0].path))
        # A run's name holds its parent's, so that a changed pretraining changes the names of all that follow.
        parent = parents[0].name if parents else lineage.RANDOM.name
        identity = config.identity(parent, TASKS[training.task].version)
        folder = RunFolder.of(config.runs, "finetune", config.slug(training.pretraining), identity)
        return self._finetunes.setdefault(folder.name, PlannedCommand("finetune", overrides, [folder], parents, config))

    def _pretrained(self, training: Training, finetuned: FinetuneConfig) -> PlannedCommand:
        """The parent's command, composed once for all the finetunings that share it."""
        pause = f"pause={ON_OFF[training.pretraining]}"
        own = [*lineage.data_overrides(finetuned.text, finetuned.model.name), pause]
        more = [*training.pretrain, *self._config.overrides, *self._config.pretrain_overrides, *training.deeper]
        overrides = list(dict.fromkeys([*own, f"seed={finetuned.pretraining_seed}", *more]))
        config, fixing = self._fixed(self._compose("pretrain", overrides), more)
        overrides += fixing
        folder = RunFolder.of(config.runs, "pretrain", config.slug, config.identity())
        return self._pretrains.setdefault(folder.name, PlannedCommand("pretrain", overrides, [folder], config=config))

    def _fixed(self, config: TrainedConfig, typed: Sequence[str]) -> tuple[TrainedConfig, list[str]]:
        """A cell's config with the study's precision, and the override for it, where ``auto`` would ask the device."""
        if config.model.d_model < LEAST_WIDTH or any(word.startswith("precision=") for word in typed):
            return config, []
        return replace(config, precision=self._precision), [f"precision={self._precision.value}"]

    def _compose(self, command: str, overrides: Sequence[str]) -> Any:
        # Panels share cells, and the seeds of a cell share one composition.
        key = (command, *overrides)
        if key not in self._composed:
            self._composed[key] = self._cells.compose(command, [*overrides, override("runs", self._config.runs)])
        return self._composed[key]


def _with_seed(config: FinetuneConfig, seed: int) -> FinetuneConfig:
    """A config composed with ``ANY_SEED`` for another seed, which its parent's may follow."""
    follows = config.pretraining_seed == ANY_SEED
    return replace(config, seed=seed, pretraining_seed=seed if follows else config.pretraining_seed)


def _trained_filler(run: PlannedCommand) -> str:
    assert isinstance(run.config, FinetuneConfig)
    return run.config.filler


def _evaluate_cell(
    run: PlannedCommand, filler: str, config: ReproduceConfig, folders: dict[int, RunFolder]
) -> PlannedCommand:
    """All M of one finetuned run and one filler: they share the load."""
    counts = sorted(folders)
    overrides = [override("run", str(run.folders[0].path)), f"mt=[{','.join(map(str, counts))}]"]
    if filler not in ("pause", _trained_filler(run)):
        overrides.append(f"filler={filler}")
    if config.limit is not None:
        overrides.append(f"limit={config.limit}")
    evaluation = EvaluateConfig(runs=config.runs, run=run.name, mt=counts, filler=filler, limit=config.limit)
    return PlannedCommand("evaluate", overrides, [folders[m] for m in counts], [run.folders[0]], evaluation=evaluation)


def as_commands(command: str, cells: Iterable[Sequence[str]], runs_root: str) -> list[str]:
    """Commands a user can paste, joined into ``-m`` lines wherever the cells form a product."""
    suffix = "" if runs_root == "runs" else f" {override('runs', runs_root)}"
    pairs = [tuple(tuple(item.split("=", 1)) for item in cell) for cell in cells]
    by_keys: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for cell in pairs:
        by_keys.setdefault(tuple(key for key, _ in cell), []).append(tuple(value for _, value in cell))
    lines = []
    for keys, rows in by_keys.items():
        for values in _products(rows):
            sweep = any(len(column) > 1 for column in values)
            words = [f"{key}={','.join(column)}" for key, column in zip(keys, values, strict=True)]
            lines.append(f"pausebench {command} {'-m ' if sweep else ''}{' '.join(words)}{suffix}")
    return lines


def _products(rows: Sequence[tuple[str, ...]]) -> list[list[list[str]]]:
    """Split rows into products, cutting along the column with the fewest values first."""
    columns = [list(dict.fromkeys(column)) for column in zip(*rows, strict=True)]
    # As many rows as the product has: the rows are the product.
    if math.prod(len(column) for column in columns) == len(set(rows)):
        return [columns]
    index = min((i for i, column in enumerate(columns) if len(column) > 1), key=lambda i: len(columns[i]))
    return [product for value in columns[index] for product in _products([row for row in rows if row[index] == value])]
