"""``pausebench finetune``: StdFT (k=0) or PauseFT (k>0) of a pretrained run on one task (section 3.1, Algorithm 2)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pausebench import stop
from pausebench.config.groups import LengthLimit
from pausebench.config.options import plain
from pausebench.config.training import FinetuneConfig
from pausebench.console import Progress
from pausebench.data.examples import encode
from pausebench.data.task_rows import DatasetRows, GeneratedRows, open_task
from pausebench.data.vocabulary import open_tokenizer
from pausebench.errors import BadInput
from pausebench.runs import lineage
from pausebench.runs.folder import RunFolder
from pausebench.tasks import TASKS
from pausebench.training import start

if TYPE_CHECKING:
    from pausebench.data.batch import Batches, Share
    from pausebench.data.batches import RowLayout
    from pausebench.data.tokenizer import Tokenizer


def run(config: FinetuneConfig) -> dict[str, Any]:
    """Train to the last step, or return the result that is already there."""
    rows, tokenizer = open_task(config.task, config.text), open_tokenizer(config.text, config.runs)
    parent = lineage.find_parent(config.parent, config.runs, tokenizer.fingerprint)
    folder = folder_of(config, parent)
    progress = start.progress(folder.name, config.train.steps, config.quiet)
    fingerprint = rows.fingerprint(config.seed)
    if folder.result is not None:
        folder.check_fingerprint(fingerprint, config.data.allow_changed, "data.allow_changed=true")
        say_skipped(rows, progress)
        return progress.already_done(folder, config.profile)

    from pausebench.data.batches import RowLayout
    from pausebench.training import checkpoint
    from pausebench.training.device import choose_device, cpu_threads
    from pausebench.training.parallel import local_device, started

    device = local_device(choose_device(config.device))
    with started(config.parallel, device, config.train.hang_seconds) as ranks:
        task = TASKS[config.task.name]
        check_length(config, rows, tokenizer, parent, config.longest, "k")
        layout = RowLayout.of(config.policy, config.prefix, task, tokenizer)
        folder.check_fingerprint(fingerprint, config.data.allow_changed, "data.allow_changed=true")
        if ranks.is_first:
            say_skipped(rows, progress)
        with ranks.on_first(folder.locked()), stop.watched(), cpu_threads(config.threads):
            model = start.build_model(
                config.model,
                tokenizer.vocab_size,
                config.seed,
                device,
                ranks,
                precision=config.precision,
                recompute=config.train.activation_checkpointing,
            )
            if parent.checkpoint is not None:
                checkpoint.load_weights(parent.checkpoint, model)
            batches, lengths = open_batches(config, rows, layout, tokenizer, parent, ranks.share)
            resolved = plain(config)
            start.write_manifest(
                folder,
                resolved,
                model,
                device,
                ranks,
                variant=config.variant(parent.pretraining),
                pretraining=parent.pretraining,
                parent=parent.name,
                pretraining_seed=parent.seed,
                pretraining_visibility=parent.pause_visibility,
                shift=config.shift,
                filler=tokenizer.spelling(layout.pause_id),
                task=task.name,
                corpus=config.text.name,
                pretrained_length=parent.length,
                tokenizer=tokenizer.fingerprint,
                data_fingerprint=fingerprint,
                **rows.about(),
                tokens_per_step=batches.batch(1).input_ids.numel(),
                **lengths,
            )
            twin = folder_of(replace(config, precision=config.precision.other), parent)
            start.say_precision(progress, config.precision, config.model, config.device, twin)
            result = start.train(
                folder,
                model,
                batches,
                config.train,
                resolved=resolved,
                precision=config.precision,
                device=device,
                tracking=config.tracking,
                group=task.name,
                progress=progress,
                ranks=ranks,
                profile=config.profile,
            )
        return progress.done(folder, result)


def folder_of(config: FinetuneConfig, parent: lineage.Parent) -> RunFolder:
    """The folder of a resolved config with this parent."""
    identity = config.identity(parent.name, TASKS[config.task.name].version)
    return RunFolder.of(config.runs, "finetune", config.slug(parent.pretraining), identity)


def say_skipped(rows: GeneratedRows | DatasetRows, progress: Progress) -> None:
    """One line where rows were left out because they do not fit the task."""
    if rows.skipped:
        progress.say(f"rows left out (data.on_bad_row=skip): {len(rows.skipped)}, the first: {rows.skipped[0]}")


def open_batches(
    config: FinetuneConfig,
    rows: GeneratedRows | DatasetRows,
    layout: RowLayout,
    tokenizer: Tokenizer,
    parent: lineage.Parent,
    share: Share,
) -> tuple[Batches, dict[str, int]]:
    """The training batches, and how many rows of the training split were cut to fit or left out of them."""
    from pausebench.data.batches import DatasetBatches, generated_batches

    if isinstance(rows, GeneratedRows):
        return generated_batches(rows, layout, config.seed, config.train.batch_size, share), {}
    limit, _ = length_limit(config, parent)
    packed = DatasetBatches(rows, layout, tokenizer, limit)
    return packed.batches(config.seed, config.train.batch_size, share), {
        "rows_truncated": packed.truncated,
        "rows_too_long": packed.left_out,
    }


def length_limit(config: FinetuneConfig, parent: lineage.Parent) -> tuple[int, str]:
    """(The most tokens a row may have, why)."""
    limit = config.model.max_positions
    if config.length_limit is LengthLimit.pretrained and parent.length is not None and parent.length < limit:
        return parent.length, f"{parent.name} was pretrained with {parent.length} (length_limit=positions lifts that)"
    return limit, f"model={config.model.name} has {limit} positions"


def check_length(
    config: FinetuneConfig,
    rows: GeneratedRows | DatasetRows,
    tokenizer: Tokenizer,
    parent: lineage.Parent,
    pauses: int,
    name: str,
) -> None:
    """Raise ``BadInput`` when a typical row does not fit even without its turns and half of its context.

    ``name``: the option behind ``pauses``. Where ``shift`` takes more positions than they, it is what counts.
    """
    what = "pauses"
    if config.shift > pauses:
        pauses, name, what = config.shift, "shift", "shift"
    limit, reason = length_limit(config, parent)
    cue = len(tokenizer.encode(rows.task.cue))
    sizes = [
        (len(example.question) + len(example.context) // 2, cue + len(example.target))
        for example in encode(rows.sample(), rows.task, tokenizer)
    ]
    prefix, answer = sorted(sizes, key=sum)[len(sizes) // 2]
    if prefix + pauses + answer > limit:
        raise BadInput(
            f"{name}={pauses}: prefix {prefix} + {what} {pauses} + answer {answer} = {prefix + pauses + answer} "
            f"tokens, but {reason}. The largest {name} that fits is {max(0, limit - prefix - answer)}."
        )
