"""Checkpoints: one safetensors file a step with weights, optimizer state and position, written atomically.

Invariant: a file that carries its final name is complete. No pickle is read or written.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pausebench.errors import BadInput
from pausebench.model.decoder import Decoder
from pausebench.results.run_folder import write_atomically

FOLDER = "checkpoints"


def path_of(run: Path, step: int) -> Path:
    return run / FOLDER / f"step-{step:08d}.safetensors"


def steps_of(run: Path) -> list[int]:
    """Steps with a checkpoint, ascending."""
    return sorted(int(file.stem.removeprefix("step-")) for file in (run / FOLDER).glob("step-*.safetensors"))


def save_checkpoint(
    run: Path, step: int, model: Decoder, optimizer: torch.optim.Optimizer, position: dict[str, Any]
) -> None:
    """Write weights, optimizer state and ``position`` (what the trainer needs to go on, as JSON)."""
    tensors = {f"model.{name}": tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
    path = path_of(run, step)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, save(tensors, metadata={"position": json.dumps(position)}))


def load_position(path: Path) -> dict[str, Any]:
    """The ``position`` of a checkpoint. Raises ``BadInput`` for a file that is none."""
    try:
        with safe_open(path, framework="pt") as file:
            position: dict[str, Any] = json.loads((file.metadata() or {})["position"])
            return position
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise BadInput(
            f"{path} is not a readable checkpoint ({error}). Delete this file to go on from the one before it, "
            "or its run's folder to start anew."
        ) from None


def load_checkpoint(path: Path, model: Decoder, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """Fill model and optimizer; returns the position. Raises ``BadInput`` when it is another model's."""
    position = load_position(path)
    weights: dict[str, Tensor] = {}
    states: dict[int, dict[str, Tensor]] = {}
    with safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 (a safetensors file is no mapping)
            kind, _, name = key.partition(".")
            if kind == "model":
                weights[name] = file.get_tensor(key)
            elif optimizer is not None:
                index, _, name = name.partition(".")
                states.setdefault(int(index), {})[name] = file.get_tensor(key)
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if own != found:
        name = next(name for name in sorted(own.keys() | found.keys()) if own.get(name) != found.get(name))
        raise BadInput(
            f"{path} holds another model: {name} is {found.get(name, 'absent')} there and {own.get(name, 'absent')} "
            "here. Give the model= and tokenizer it was trained with, or another init=."
        )
    model.load_state_dict(weights)
    if optimizer is not None:
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": states, "param_groups": groups})
    return position


def prune(run: Path, keep: int, best: int | None) -> None:
    """Delete all but the newest ``keep`` checkpoints and the best one."""
    for step in steps_of(run)[:-keep]:
        if step != best:
            path_of(run, step).unlink()
