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
    import torch

    from pausebench.data.batch import Batches, Share
    from pausebench.data.batches import RowLayout
    from pausebench.data.tokenizer import Tokenizer
    from pausebench.model.base import Model
    from pausebench.training.parallel import Ranks


def run(config: FinetuneConfig) -> dict[str, Any]:
    """Train to the last step, or return the result that is already there."""
    rows, tokenizer = open_task(config.task, config.text), open_tokenizer(config.text, config.runs)
    # The parent's name is part of this run's, so that it has to be found before anything can be called done.
    parent = lineage.find_parent(config.parent, config.runs, tokenizer.fingerprint)
    folder = folder_of(config, parent)
    progress = start.progress(folder.name, config.train.steps, config.quiet)
    if folder.result is not None:
        folder.check_fingerprint(rows.fingerprint(config.seed), config.data.allow_changed, "data.allow_changed=true")
        say_skipped(rows, progress)
        return progress.already_done(folder, config.profile)
    return _train(config, rows, tokenizer, parent, progress)


def _train(
    config: FinetuneConfig,
    rows: GeneratedRows | DatasetRows,
    tokenizer: Tokenizer,
    parent: lineage.Parent,
    progress: Progress,
) -> dict[str, Any]:
    # torch takes seconds to import, and a run that is done does not need it.
    from pausebench.data.batches import RowLayout
    from pausebench.training.device import choose_device, cpu_threads
    from pausebench.training.parallel import local_device, started

    device = local_device(choose_device(config.device))
    with started(config.parallel, device, config.train.hang_seconds) as ranks:
        folder, fingerprint = folder_of(config, parent), rows.fingerprint(config.seed)
        # Before any weight is made: a row that is too long would otherwise show after minutes of tokenising.
        check_length(config, rows, tokenizer, parent, config.longest, "k")
        layout = RowLayout.of(config.policy, config.prefix, rows.task, tokenizer)
        folder.check_fingerprint(fingerprint, config.data.allow_changed, "data.allow_changed=true")
        if ranks.is_first:
            say_skipped(rows, progress)
        # One rank locks for all of them; two processes of two commands must never write into one folder.
        with ranks.on_first(folder.locked()), stop.watched(), cpu_threads(config.threads):
            model = _model(config, parent, tokenizer, device, ranks)
            batches, lengths = open_batches(config, rows, layout, tokenizer, parent, ranks.share)
            # Before the first step, so that a run which is killed still says what it was.
            start.write_manifest(
                folder,
                plain(config),
                model,
                device,
                ranks,
                **_about(config, parent),
                filler=tokenizer.spelling(layout.pause_id),
                tokenizer=tokenizer.fingerprint,
                data_fingerprint=fingerprint,
                **rows.about(),
                # As many as the first batch has; packed rows differ by a few from step to step.
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
                resolved=plain(config),
                precision=config.precision,
                device=device,
                tracking=config.tracking,
                group=rows.task.name,
                progress=progress,
                ranks=ranks,
                profile=config.profile,
            )
        return progress.done(folder, result)


def _model(
    config: FinetuneConfig, parent: lineage.Parent, tokenizer: Tokenizer, device: torch.device, ranks: Ranks
) -> Model:
    """The parent's model, or one with random weights."""
    from pausebench.training import checkpoint

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
    return model


def _about(config: FinetuneConfig, parent: lineage.Parent) -> dict[str, Any]:
    """What the manifest says of the parent and of the config, beside the config itself."""
    return {
        "variant": config.variant(parent.pretraining),
        "pretraining": parent.pretraining,
        "parent": parent.name,
        "pretraining_seed": parent.seed,
        "pretraining_visibility": parent.pause_visibility,
        "pretrained_length": parent.length,
        "shift": config.shift,
        "task": config.task.name,
        "corpus": config.text.name,
    }


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

    # Generated rows have one length: there is nothing to pack and nothing to cut.
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
    # Learned positions past the pretrained length are still random numbers.
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
        # The turns can go, and windows take half of the context at a time; the question has to stay whole.
        (len(example.question) + len(example.context) // 2, cue + len(example.target))
        for example in encode(rows.sample(), rows.task, tokenizer)
    ]
    # The median: one long row is cut, a long typical row would make a study of cut rows.
    prefix, answer = sorted(sizes, key=sum)[len(sizes) // 2]
    if prefix + pauses + answer > limit:
        raise BadInput(
            f"{name}={pauses}: prefix {prefix} + {what} {pauses} + answer {answer} = {prefix + pauses + answer} "
            f"tokens, but {reason}. The largest {name} that fits is {max(0, limit - prefix - answer)}."
        )
