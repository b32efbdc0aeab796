"""``pausebench evaluate``: score a finetuned run with any number M of pauses (sections 3.1 and 5.2)."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import replace
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
from pausebench.data.task_rows import DatasetRows, open_task
from pausebench.data.vocabulary import open_tokenizer
from pausebench.errors import BadInput, Interrupted
from pausebench.runs import lineage
from pausebench.runs.folder import RunFolder, read_json, write_atomically, write_json
from pausebench.tasks import TASKS
from pausebench.training.tracking import SCORES, Tracker, reference

if TYPE_CHECKING:
    from pausebench.data.batches import RowLayout
    from pausebench.data.tokenizer import Tokenizer


def run(config: EvaluateConfig) -> dict[str, Any]:
    """Score every M asked for that has no result yet; the model is loaded once."""
    run_path = lineage.existing_run(config.runs, "finetune", config.run)
    manifest, trained = read_json(run_path / "manifest.json"), read_json(run_path / "result.json")
    finetuned = load_finetune_config(run_path)
    if config.filler is None:
        config = replace(config, filler=finetuned.filler)
    task, rows, tokenizer = TASKS[finetuned.task.name], open_task(finetuned), open_tokenizer(finetuned)
    if tokenizer.fingerprint != manifest["tokenizer"]:
        raise BadInput(
            f"{run_path} was trained with tokenizer {manifest['tokenizer']}; it is now {tokenizer.fingerprint}."
        )
    fingerprint = rows.fingerprint(finetuned.seed)
    RunFolder(run_path.parent.parent, "finetune", run_path.name).check_fingerprint(
        fingerprint, config.allow_changed, "allow_changed=true"
    )
    parent = replace(lineage.RANDOM, name=manifest["parent"], length=manifest["pretrained_length"])
    counts = config.pause_counts(finetuned.longest)
    for m in counts:
        check_length(finetuned, rows, tokenizer, parent, m, "mt")
    placement = evaluated_placement(config, finetuned)
    folders = {m: lineage.evaluate_folder(config, run_path.name, placement, m) for m in counts}
    progress = Progress(run_path.name, 0, config.quiet)
    say_skipped(rows, progress)
    todo = [m for m in counts if folders[m].result is None]
    if config.profile and not todo:
        progress.nothing_to_profile("another mt=, or another limit= of rows")
    if todo:  # torch takes seconds to import, and what is already scored does not need it
        from pausebench.evaluation.evaluator import Evaluator
        from pausebench.model import build
        from pausebench.training import checkpoint
        from pausebench.training.device import choose_device, cpu_threads
        from pausebench.training.profiler import Profiler

        layout = evaluated_layout(config, finetuned, tokenizer)
        device = choose_device(config.device)
        with cpu_threads(config.threads), stop.watched(saves=False):
            model = build(finetuned.model, tokenizer.vocab_size)
            checkpoint.load_weights(run_path / trained["checkpoint"], model)
            model = model.to(device).eval()
            evaluator = Evaluator(
                model,
                task,
                rows.test()[: config.limit],
                tokenizer,
                batch_size=config.batch_size,
                max_length=length_limit(finetuned, parent)[0],
                max_new_tokens=rows.longest_target(tokenizer) if isinstance(rows, DatasetRows) else None,
                precision=config.precision,
            )
            with ExitStack() as held:
                for m in todo:
                    held.enter_context(folders[m].locked())
                held.enter_context(Profiler(folders[todo[0]].path, config.profile, progress, evaluator.model).over())
                for m, result, predictions in evaluator.sweep(layout, todo, lambda: stop.reason() is not None):
                    world = finetuned.world
                    about = {
                        "task": task.name,
                        "task_version": task.version,
                        "world": finetuned.corpus_name,
                        "data": finetuned.data.source.value,
                        "split": task.dataset.test if task.dataset else "test",
                        **result,
                        "chance": task.chance(world.n_task, world.alphabet) if task.chance else None,
                        "variant": manifest["variant"],
                        "pretraining": manifest["pretraining"],
                        "k": finetuned.k,
                        "mt": m,
                        "filler": tokenizer.spelling(layout.pause_id),
                        "precision": config.precision.value,
                        **layout.policy.recorded(),
                        "finetuned_filler": manifest.get("filler", tokenizer.spelling(tokenizer.pause_id)),
                        "pretraining_visibility": manifest.get("pretraining_visibility", PauseVisibility.all.value),
                        "prefix": finetuned.prefix.value,
                        "seed": finetuned.seed,
                        "pretraining_seed": manifest["pretraining_seed"],
                        "model": finetuned.model.name,
                        "parameters": manifest["parameters"],
                        "step": trained["step"],
                        "finetune_run": run_path.name,
                        "pretrain_run": None if manifest["parent"] == "random" else manifest["parent"],
                        "prompt_hash": rows.prompt_hash,
                        "data_fingerprint": fingerprint,
                        **rows.about(),
                    }
                    write_atomically(folders[m].path / "config.yaml", OmegaConf.to_yaml(plain(replace(config, mt=m))))
                    lines = "".join(json.dumps(row) + "\n" for row in predictions)
                    write_atomically(folders[m].path / "predictions.jsonl", lines)
                    write_json(folders[m].path / "result.json", about)
                    resolved = plain(replace(config, mt=m))
                    published = reference(about)
                    with Tracker(
                        config.tracking, folders[m].path, task.name, resolved, about, progress, published
                    ) as tracker:
                        tracker.log({name: about[name] for name in SCORES} | about["metrics"])
                    if stop.reason() is not None and any(folders[m].result is None for m in todo):
                        scored = [m for m in counts if folders[m].result is not None]
                        raise Interrupted(
                            f"{stop.reason()}: M = {', '.join(map(str, scored))} of {counts} are scored. "
                            "Type the same command to go on."
                        )
    results = {m: folders[m].result for m in counts}
    for m, result in results.items():
        if not config.quiet:
            low, high = result["interval"]
            progress.say(
                f"{run_path.name}  M={m}  {result['metric']} {result['value']:.4f} ± {result['stderr']:.4f} "
                f"({low:.4f} to {high:.4f})  target nll {result['target_nll']:.4f}  n={result['n']}  {folders[m].path}"
            )
    return {"names": [folders[m].name for m in counts]}


def evaluated_placement(config: EvaluateConfig, finetuned: FinetuneConfig) -> Placement:
    """Where the pauses go. Raises ``BadInput`` for a jump that would be moved."""
    placement = config.placement or finetuned.placement
    if finetuned.shift and placement is not finetuned.placement:
        raise BadInput(
            f"placement={placement.value}: {config.run} was finetuned with shift={finetuned.shift} "
            f"placement={finetuned.placement.value}, and its positions jump there. Leave placement out."
        )
    return placement


def evaluated_layout(config: EvaluateConfig, finetuned: FinetuneConfig, tokenizer: Tokenizer) -> RowLayout:
    """The rows of the finetuning, with the evaluation's placement and filler (which has to be filled in).

    Raises ``BadInput`` for a filler that is not one token.
    """
    from pausebench.data.batches import RowLayout

    assert config.filler is not None
    policy = replace(finetuned.policy, placement=evaluated_placement(config, finetuned), filler=config.filler)
    return RowLayout.of(policy, finetuned.prefix, TASKS[finetuned.task.name], tokenizer)


def load_finetune_config(run: Path) -> FinetuneConfig:
    """The resolved config that a finetune run was made with."""
    config = OmegaConf.to_object(
        OmegaConf.merge(OmegaConf.structured(FinetuneConfig), OmegaConf.load(run / "config.yaml"))
    )
    assert isinstance(config, FinetuneConfig)
    return config
