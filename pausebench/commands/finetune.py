"""``pausebench finetune``: StdFT (k=0) or PauseFT (k>0) of a pretrained run on one task (section 3.1, Algorithm 2)."""

from __future__ import annotations

from typing import Any

from pausebench.commands import runs
from pausebench.config import FinetuneConfig, LengthLimit
from pausebench.data.batches import finetuning_batches
from pausebench.data.embedded import World, build_world, task_fingerprint
from pausebench.errors import BadInput
from pausebench.tasks import TASKS, Task
from pausebench.training import checkpoint, stop
from pausebench.training.device import choose_device, cpu_threads
from pausebench.training.progress import Progress


def run(config: FinetuneConfig) -> dict[str, Any]:
    """Train to the last step, or return the result that is already there."""
    world = build_world(config.world)
    task = TASKS[config.task]
    check_world(task, config)
    parent = runs.find_parent(config, world.tokenizer.fingerprint)
    check_length(config, task, world, parent, config.pauses, "k")
    fingerprint = task_fingerprint(world, config.seed)
    folder = runs.finetune_folder(config, parent)
    folder.check_fingerprint(fingerprint, config.data.allow_changed, "data.allow_changed=true")
    progress = Progress(folder.name, config.train.steps, config.quiet)
    if folder.result is not None:
        return progress.already_done(folder)
    device = choose_device(config.device)
    with folder.locked(), stop.watched(), cpu_threads(config.threads):
        model = runs.build_model(config, world)
        if parent.checkpoint is not None:
            checkpoint.load_checkpoint(parent.checkpoint, model)
        batches = finetuning_batches(config, task, world)
        runs.write_manifest(
            folder,
            config,
            model,
            device,
            variant=runs.variant(parent.pretraining, config.pauses),
            pretraining=parent.pretraining,
            parent=parent.name,
            pretraining_seed=parent.seed,
            task=task.name,
            corpus=config.world.name,
            pretrained_length=parent.length,
            tokenizer=world.tokenizer.fingerprint,
            data_fingerprint=fingerprint,
            tokens_per_step=batches.batch(1).input_ids.numel(),
        )
        result = runs.train(folder, config, model, batches, device, progress, group=task.name)
    return progress.done(folder, result)


def check_world(task: Task, config: FinetuneConfig) -> None:
    """Raise ``BadInput`` when the world has no rows for the task."""
    if config.world.kind != task.world_kind:
        fit = "count16, count20, count24" if task.world_kind == "count" else task.world_kind
        raise BadInput(f"task={task.name} has no rows in world={config.world.name}; allowed are {fit}.")


def check_length(config: FinetuneConfig, task: Task, world: World, parent: runs.Parent, pauses: int, name: str) -> None:
    """Raise ``BadInput`` when prefix + pauses + cue + target do not fit. ``name``: the option behind ``pauses``."""
    limit = config.model.max_positions
    reason = f"model={config.model.name} has {limit} positions"
    if config.length_limit is LengthLimit.pretrained and parent.length is not None and parent.length < limit:
        limit = parent.length
        reason = f"{parent.name} was pretrained with {limit} (length_limit=positions lifts that)"
    example = task.to_example(world.task_rows(0, 0, 1)[0])
    sizes = [len(world.tokenizer.encode(text)) for text in (example.prefix, task.cue, example.target)]
    if sum(sizes) + pauses > limit:
        raise BadInput(
            f"{name}={pauses}: prefix {sizes[0]} + pauses {pauses} + answer {sizes[1] + sizes[2]} = "
            f"{sum(sizes) + pauses} tokens, but {reason}. The largest {name} that fits is {max(0, limit - sum(sizes))}."
        )
