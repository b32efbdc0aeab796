"""``pausebench evaluate``: score a finetuned run with any number M of pauses (sections 3.1 and 5.2)."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from pausebench import stop
from pausebench.commands.finetune import check_length, length_limit, say_skipped
from pausebench.config.commands import EvaluateConfig
from pausebench.config.groups import PauseVisibility, Placement
from pausebench.config.options import plain
from pausebench.config.training import FinetuneConfig
from pausebench.console import Progress
from pausebench.data.task_rows import DatasetRows, GeneratedRows, open_task
from pausebench.data.vocabulary import open_tokenizer
from pausebench.errors import BadInput, Interrupted
from pausebench.runs import lineage
from pausebench.runs.folder import RunFolder, read_json, write_atomically, write_json
from pausebench.tasks import TASKS, Task
from pausebench.training.tracking import SCORES, Tracker, reference

if TYPE_CHECKING:
    from pausebench.data.batches import RowLayout
    from pausebench.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Finetuned:
    """A finished finetune run, with its rows and its tokenizer opened again."""

    path: Path
    config: FinetuneConfig
    manifest: dict[str, Any]
    result: dict[str, Any]
    rows: GeneratedRows | DatasetRows
    tokenizer: Tokenizer
    fingerprint: str

    @property
    def task(self) -> Task:
        return self.rows.task

    @property
    def parent(self) -> lineage.Parent:
        """What its manifest says of the parent: enough for the length of a row, and the parent's folder may be gone."""
        return replace(lineage.RANDOM, name=self.manifest["parent"], length=self.manifest["pretrained_length"])


def run(config: EvaluateConfig) -> dict[str, Any]:
    """Score every M asked for that has no result yet; the model is loaded once."""
    finetuned = open_finetuned(config)
    # Unless asked otherwise, the places of the pauses hold what they held in finetuning.
    if config.filler is None:
        config = replace(config, filler=finetuned.config.filler)
    counts = config.pause_counts(finetuned.config.longest)
    # All M are checked before the first is scored: a sweep must not end in the middle over a number.
    for m in counts:
        check_length(finetuned.config, finetuned.rows, finetuned.tokenizer, finetuned.parent, m, "mt")
    placement = evaluated_placement(config, finetuned.config)
    folders = {m: folder_of(config, finetuned.path.name, placement, m) for m in counts}
    progress = Progress(finetuned.path.name, 0, config.quiet)
    say_skipped(finetuned.rows, progress)
    # A list of M can grow: those that were scored before are not scored again.
    todo = [m for m in counts if folders[m].result is None]
    if todo:
        score(config, finetuned, folders, todo, progress)
    # Nothing runs, so there is nothing to measure.
    elif config.profile:
        progress.nothing_to_profile("another mt=, or another limit= of rows")
    if not config.quiet:
        for m, folder in folders.items():
            progress.say(summary(finetuned.path.name, m, folder))
    return {"names": [folder.name for folder in folders.values()]}


def open_finetuned(config: EvaluateConfig) -> Finetuned:
    """The run that ``config.run`` names.

    Raises ``BadInput`` where it is not finished, or where its tokenizer or its data is no longer what it was.
    """
    path = lineage.existing_run(config.runs, "finetune", config.run)
    manifest, result = read_json(path / "manifest.json"), read_json(path / "result.json")
    finetuned = load_finetune_config(path)
    rows, tokenizer = open_task(finetuned.task, finetuned.text), open_tokenizer(finetuned.text, finetuned.runs)
    # Ids of another tokenizer would score without an error, and every score would be wrong.
    if tokenizer.fingerprint != manifest["tokenizer"]:
        raise BadInput(f"{path} was trained with tokenizer {manifest['tokenizer']}; it is now {tokenizer.fingerprint}.")
    # Changed rows would make scores of one run incomparable with each other.
    fingerprint = rows.fingerprint(finetuned.seed)
    folder = RunFolder(path.parent.parent, "finetune", path.name)
    folder.check_fingerprint(fingerprint, config.allow_changed, "allow_changed=true")
    return Finetuned(path, finetuned, manifest, result, rows, tokenizer, fingerprint)


def score(
    config: EvaluateConfig, finetuned: Finetuned, folders: dict[int, RunFolder], todo: list[int], progress: Progress
) -> None:
    """Score the M of ``todo``, each into its folder. Raises ``Interrupted`` where a stop leaves some unscored."""
    # torch takes seconds to import, and what is already scored does not need it.
    from pausebench.evaluation.evaluator import Evaluator
    from pausebench.model import build
    from pausebench.training import checkpoint
    from pausebench.training.device import choose_device, cpu_threads
    from pausebench.training.profiler import Profiler

    rows, tokenizer = finetuned.rows, finetuned.tokenizer
    layout = evaluated_layout(config, finetuned.config, tokenizer)
    device = choose_device(config.device)
    # A pass over a test set has nothing to save but whole results: a stop ends it where the next M would begin.
    with cpu_threads(config.threads), stop.watched(saves=False), ExitStack() as held:
        model = build(finetuned.config.model, tokenizer.vocab_size)
        checkpoint.load_weights(finetuned.path / finetuned.result["checkpoint"], model)
        evaluator = Evaluator(
            model.to(device),
            finetuned.task,
            rows.test()[: config.limit],
            tokenizer,
            batch_size=config.batch_size,
            max_length=length_limit(finetuned.config, finetuned.parent)[0],
            # Generated tasks fix the length of an answer; text is decoded up to the longest training target.
            max_new_tokens=rows.longest_target(tokenizer) if isinstance(rows, DatasetRows) else None,
            precision=config.precision,
        )
        # All folders are locked at once, because one pass over the prefixes serves all M.
        for m in todo:
            held.enter_context(folders[m].locked())
        held.enter_context(Profiler(folders[todo[0]].path, config.profile, progress, evaluator.model).over())
        # Each M is written as soon as it is known, so that a stop or a kill loses one M at most.
        for m, scores, predictions in evaluator.sweep(layout, todo, lambda: stop.reason() is not None):
            result = recorded(config, finetuned, layout, m, scores)
            write_result(folders[m], replace(config, mt=m), result, predictions, progress)
            if stop.reason() is not None and any(folders[m].result is None for m in todo):
                scored = [m for m, folder in folders.items() if folder.result is not None]
                raise Interrupted(
                    f"{stop.reason()}: M = {', '.join(map(str, scored))} of {list(folders)} are scored. "
                    "Type the same command to go on."
                )


def recorded(
    config: EvaluateConfig, finetuned: Finetuned, layout: RowLayout, m: int, scores: dict[str, Any]
) -> dict[str, Any]:
    """The fields of result.json: the scores, and every coordinate by which a report finds and compares them."""
    task, trained, manifest = finetuned.task, finetuned.config, finetuned.manifest
    spelling = finetuned.tokenizer.spelling
    return {
        "task": task.name,
        "task_version": task.version,
        "world": trained.text.name,
        "data": trained.data.source.value,
        "split": task.dataset.test if task.dataset else "test",
        **scores,
        # Known exactly for generated data and multiple choice; the report draws it as a line.
        "chance": task.chance(trained.world.n_task, trained.world.alphabet) if task.chance else None,
        "variant": manifest["variant"],
        "pretraining": manifest["pretraining"],
        "k": trained.k,
        "mt": m,
        "filler": spelling(layout.pause_id),
        "precision": config.precision.value,
        **layout.policy.recorded(),
        # Manifests that say nothing of controls are of runs without them.
        "finetuned_filler": manifest.get("filler", spelling(finetuned.tokenizer.pause_id)),
        "pretraining_visibility": manifest.get("pretraining_visibility", PauseVisibility.all.value),
        "prefix": trained.prefix.value,
        "seed": trained.seed,
        "pretraining_seed": manifest["pretraining_seed"],
        "model": trained.model.name,
        "parameters": manifest["parameters"],
        "step": finetuned.result["step"],
        "finetune_run": finetuned.path.name,
        "pretrain_run": None if manifest["parent"] == "random" else manifest["parent"],
        "prompt_hash": finetuned.rows.prompt_hash,
        "data_fingerprint": finetuned.fingerprint,
        **finetuned.rows.about(),
    }


def write_result(
    folder: RunFolder,
    config: EvaluateConfig,
    result: dict[str, Any],
    predictions: list[dict[str, Any]],
    progress: Progress,
) -> None:
    """Write one M's files and track its scores."""
    resolved = plain(config)
    write_atomically(folder.path / "config.yaml", OmegaConf.to_yaml(resolved))
    write_atomically(folder.path / "predictions.jsonl", "".join(json.dumps(row) + "\n" for row in predictions))
    # Last, because a folder with a result counts as done: a kill before this line scores the M again.
    write_json(folder.path / "result.json", result)
    # W&B shows the paper's number beside ours, where the paper has one.
    published = reference(result)
    with Tracker(config.tracking, folder.path, result["task"], resolved, result, progress, published) as tracker:
        tracker.log({name: result[name] for name in SCORES} | result["metrics"])


def summary(run_name: str, m: int, folder: RunFolder) -> str:
    """One M's scores in a line."""
    result = folder.result
    assert result is not None
    low, high = result["interval"]
    return (
        f"{run_name}  M={m}  {result['metric']} {result['value']:.4f} ± {result['stderr']:.4f} "
        f"({low:.4f} to {high:.4f})  target nll {result['target_nll']:.4f}  n={result['n']}  {folder.path}"
    )


def folder_of(config: EvaluateConfig, run: str, placement: Placement, m: int) -> RunFolder:
    """The folder of the result for one M of one finetune run; ``config.filler`` has to be filled in."""
    return RunFolder.of(config.runs, "evaluate", config.slug(run, m), config.identity(run, placement, m))


def evaluated_placement(config: EvaluateConfig, finetuned: FinetuneConfig) -> Placement:
    """Where the pauses are inserted. Raises ``BadInput`` where that would move a jump in the positions."""
    placement = config.placement or finetuned.placement
    # A shifted run has learned one jump, at the place where its pauses would have been.
    if finetuned.shift and placement is not finetuned.placement:
        raise BadInput(
            f"placement={placement.value}: {config.run} was finetuned with shift={finetuned.shift} "
            f"placement={finetuned.placement.value}, and its positions jump there. Leave placement out."
        )
    return placement


def evaluated_layout(config: EvaluateConfig, finetuned: FinetuneConfig, tokenizer: Tokenizer) -> RowLayout:
    """The finetuning's layout of rows, with the placement and the filler of the evaluation.

    ``config.filler`` must be set. Raises ``BadInput`` for a filler that is not one token.
    """
    from pausebench.data.batches import RowLayout

    assert config.filler is not None
    policy = replace(finetuned.policy, placement=evaluated_placement(config, finetuned), filler=config.filler)
    return RowLayout.of(policy, finetuned.prefix, TASKS[finetuned.task.name], tokenizer)


def load_finetune_config(run: Path) -> FinetuneConfig:
    """The resolved config that a finetune run was made with."""
    # Through the schema: a folder from elsewhere is data, and an unknown or mistyped field is refused.
    config = OmegaConf.to_object(
        OmegaConf.merge(OmegaConf.structured(FinetuneConfig), OmegaConf.load(run / "config.yaml"))
    )
    assert isinstance(config, FinetuneConfig)
    return config
