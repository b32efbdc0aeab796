"""What the commands that train share: manifest, model, trainer, the run to its last step."""

from __future__ import annotations

import os
import platform
from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from pausebench import __version__
from pausebench.config.arithmetic import precision_line
from pausebench.config.groups import ModelConfig, Precision, TrackingConfig, TrainConfig
from pausebench.console import Progress
from pausebench.runs.folder import NUMERICS_VERSION, RunFolder, write_atomically, write_json
from pausebench.training.tracking import Tracker, reference

if TYPE_CHECKING:
    import torch

    from pausebench.data.batch import Batches
    from pausebench.model.base import Model
    from pausebench.training.parallel import Ranks


VERSIONED = ("torch", "hydra-core", "omegaconf", "safetensors")


def progress(name: str, steps: int, quiet: bool) -> Progress:
    """What a training run says: of several processes (torchrun, srun) the first speaks."""
    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    return Progress(name, steps, quiet or rank != "0")


def write_manifest(
    folder: RunFolder,
    resolved: dict[str, Any],
    model: Model,
    device: torch.device,
    ranks: Ranks,
    **fields: Any,
) -> None:
    """config.yaml and manifest.json of a training run, by its first rank. resolved: the whole config, plain."""
    from pausebench.training.device import describe

    if not ranks.is_first:
        return
    folder.create()
    write_atomically(folder.path / "config.yaml", OmegaConf.to_yaml(resolved))
    write_json(
        folder.path / "manifest.json",
        {
            "command": folder.command,
            "name": folder.name,
            **fields,
            **{name: resolved[name] for name in ("pause_visibility", "seed", "model")},
            "parameters": model.parameter_count(),
            "precision": resolved["precision"],
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
    shape: ModelConfig,
    vocab_size: int,
    seed: int,
    device: torch.device,
    ranks: Ranks,
    *,
    precision: Precision,
    recompute: bool = False,
) -> Model:
    """A decoder drawn from ``seed``: the same for any number of ranks.

    recompute: blocks are computed again in the backward pass instead of kept (``train.activation_checkpointing``).
    """
    import torch

    from pausebench.model import build
    from pausebench.training.parallel import fill

    if ranks.sharded:
        with torch.device("meta"):  # no rank ever holds the whole model
            model = build(shape, vocab_size)
        ranks.distribute(model, precision, device)
    else:
        model = build(shape, vocab_size)
    model.initialize(seed, fill)
    if recompute:
        model.recompute_activations()
    return model


def train(
    folder: RunFolder,
    model: Model,
    batches: Batches,
    optimisation: TrainConfig,
    *,
    resolved: dict[str, Any],
    precision: Precision,
    device: torch.device,
    tracking: TrackingConfig,
    group: str,
    progress: Progress,
    ranks: Ranks,
    profile: bool,
) -> dict[str, Any]:
    """Train to the last step and write ``result.json``.

    resolved: the whole config, plain, for W&B; ``group`` is the run's group there.
    """
    from pausebench.training.trainer import Trainer

    ranks.barrier()  # the manifest is there
    cell = {**resolved, "task": None, "data": resolved["data"]["source"], **folder.manifest}
    tracking = replace(tracking, enabled=tracking.enabled and ranks.is_first)
    tracker = Tracker(tracking, folder.path, group, resolved, cell, progress, reference(cell))
    trainer = Trainer(
        model,
        batches,
        optimisation,
        folder,
        precision=precision,
        device=device,
        tracker=tracker,
        progress=progress,
        ranks=ranks,
        profile=profile,
    )
    with tracker:
        result = trainer.train()
    if ranks.is_first:
        write_json(folder.path / "result.json", result)
    ranks.barrier()
    return result


def say_precision(progress: Progress, precision: Precision, model: ModelConfig, device: str, twin: RunFolder) -> None:
    """Say what this device decides about the precision, and that a run exists which differs in it alone (``twin``).

    Folders travel: where another machine chose the other precision, the same command gives another run here.
    """
    if (line := precision_line(precision, model, device)) is not None:
        progress.say(line)
    if twin.result is not None:
        other = precision.other.value
        progress.say(f"{twin.path} is the same run in {other}; precision={other} finds it.")
