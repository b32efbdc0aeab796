"""What the commands that train share: manifest, model, trainer, the run to its last step."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from pausebench import __version__
from pausebench.config.arithmetic import precision_line
from pausebench.config.groups import Precision
from pausebench.config.options import plain
from pausebench.config.training import FinetuneConfig, PretrainConfig
from pausebench.console import Progress
from pausebench.runs import lineage
from pausebench.runs.folder import NUMERICS_VERSION, RunFolder, write_atomically, write_json
from pausebench.training.tracking import Tracker, reference

if TYPE_CHECKING:
    import torch

    from pausebench.data.batch import Batches
    from pausebench.data.tokenizer import Tokenizer
    from pausebench.model.fast import FastDecoder
    from pausebench.training.parallel import Ranks
    from pausebench.training.trainer import Trainer


VERSIONED = ("torch", "hydra-core", "omegaconf", "safetensors")


def progress(folder: RunFolder, config: PretrainConfig | FinetuneConfig) -> Progress:
    """What a training run says: of several processes (torchrun, srun) the first speaks."""
    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    return Progress(folder.name, config.train.steps, config.quiet or rank != "0")


def write_manifest(
    folder: RunFolder,
    config: PretrainConfig | FinetuneConfig,
    model: FastDecoder,
    device: torch.device,
    ranks: Ranks,
    **fields: Any,
) -> None:
    """config.yaml and manifest.json of a training run, by its first rank."""
    from pausebench.training.device import describe

    if not ranks.is_first:
        return
    folder.create()
    write_atomically(folder.path / "config.yaml", OmegaConf.to_yaml(plain(config)))
    write_json(
        folder.path / "manifest.json",
        {
            "command": folder.command,
            "name": folder.name,
            **fields,
            "pause_visibility": config.pause_visibility.value,
            "seed": config.seed,
            "model": plain(config.model),
            "parameters": model.parameter_count(),
            "precision": config.precision.value,
            "world_size": ranks.count,
            "parallel": ranks.kind and ranks.kind.value,
            "device": describe(device),
            "versions": {
                "pausebench": __version__,
                "python": platform.python_version(),
                **{name: version(name) for name in VERSIONED},
            },
            "numerics_version": NUMERICS_VERSION,
        },
    )


def build_model(
    config: PretrainConfig | FinetuneConfig, tokenizer: Tokenizer, device: torch.device, ranks: Ranks
) -> FastDecoder:
    """The decoder of a config for a vocabulary, drawn from the run's seed: the same for any number of ranks."""
    import torch

    from pausebench.model import build
    from pausebench.training.parallel import fill

    if ranks.sharded:
        with torch.device("meta"):  # no rank ever holds the whole model
            model = build(config.model, tokenizer.vocab_size)
        ranks.distribute(model, config.precision, device)
    else:
        model = build(config.model, tokenizer.vocab_size)
    model.initialize(config.seed, fill)
    if config.train.activation_checkpointing:
        model.recompute_activations()
    return model


def build_trainer(
    folder: RunFolder,
    config: PretrainConfig | FinetuneConfig,
    model: FastDecoder,
    batches: Batches,
    device: torch.device,
    tracker: Tracker,
    progress: Progress,
    ranks: Ranks,
) -> Trainer:
    """The trainer of a config: what ``train`` runs."""
    from pausebench.training.trainer import Trainer

    return Trainer(
        model,
        batches,
        config.train,
        folder,
        precision=config.precision,
        device=device,
        tracker=tracker,
        progress=progress,
        ranks=ranks,
        profile=config.profile,
    )


def train(
    folder: RunFolder,
    config: PretrainConfig | FinetuneConfig,
    model: FastDecoder,
    batches: Batches,
    device: torch.device,
    progress: Progress,
    ranks: Ranks,
    *,
    group: str,
) -> dict[str, Any]:
    """Train to the last step and write ``result.json``; ``group`` is the run's group in W&B."""
    resolved = plain(config)
    ranks.barrier()  # the manifest is there
    if ranks.is_first:
        for line in _about_precision(folder, config):
            progress.say(line)
    cell = {**resolved, "task": None, "data": config.data.source.value, **folder.manifest}
    tracking = replace(config.tracking, enabled=config.tracking.enabled and ranks.is_first)
    tracker = Tracker(tracking, folder.path, group, resolved, cell, progress, reference(cell))
    trainer = build_trainer(folder, config, model, batches, device, tracker, progress, ranks)
    with tracker:
        result = trainer.train()
    if ranks.is_first:
        write_json(folder.path / "result.json", result)
    ranks.barrier()
    return result


def _about_precision(folder: RunFolder, config: PretrainConfig | FinetuneConfig) -> Iterator[str]:
    """What this device decides about the precision, and that a run exists which differs in it alone.

    Folders travel: where another machine chose the other precision, the same command gives another run here.
    """
    if (line := precision_line(config.precision, config.model, config.device)) is not None:
        yield line
    other = Precision.fp32 if config.precision is Precision.bf16 else Precision.bf16
    if isinstance(config, PretrainConfig):
        twin = lineage.pretrain_folder(replace(config, precision=other))
    else:
        manifest = folder.manifest
        parent = lineage.planned_parent(manifest["parent"], manifest["pretraining"], config.pretraining_seed)
        twin = lineage.finetune_folder(replace(config, precision=other), parent)
    if twin.result is not None:
        yield f"{twin.path} is the same run in {other.value}; precision={other.value} finds it."
