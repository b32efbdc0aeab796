"""Checkpoints: weights, optimizer state and position as safetensors, written atomically and checked when read.

One process, or the first of several that hold the same (ddp), writes one file; ranks that hold shares (fsdp) write a
folder with a file each (torch.distributed.checkpoint), which any number of ranks reads.

Invariants: what carries its final name is complete; what is read is what was written, or is named as damaged; no pickle
is read or written.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pausebench.errors import BadInput, RunFailed
from pausebench.runs.folder import disk_error, write_json
from pausebench.training.parallel import ALONE, Ranks, fill, whole

FOLDER = "checkpoints"
FILE, SHARDS, DAMAGED = ".safetensors", ".shards", ".damaged"
POSITION = "position.json"
WEIGHTS = "weights.safetensors"
HASH_BYTES = 1 << 24


def path_of(run: Path, step: int) -> Path:
    """The checkpoint of a step: the folder of shards where there is one, else the file."""
    shards = run / FOLDER / f"step-{step:08d}{SHARDS}"
    return shards if shards.exists() else shards.with_suffix(FILE)


def steps_of(run: Path) -> list[int]:
    """Steps with a checkpoint, ascending."""
    found = (run / FOLDER).glob("step-*")
    return sorted({int(path.stem.removeprefix("step-")) for path in found if path.suffix in (FILE, SHARDS)})


def save_checkpoint(
    run: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    position: dict[str, Any],
    ranks: Ranks = ALONE,
) -> None:
    """Write weights, optimizer state and ``position`` (what the trainer needs to go on, as JSON).

    Raises ``RunFailed`` where the disk refuses; what was saved before is untouched.
    """
    path = run / FOLDER / f"step-{step:08d}{SHARDS if ranks.sharded else FILE}"
    tensors = _state(model, optimizer)
    if ranks.is_first:
        path.parent.mkdir(parents=True, exist_ok=True)
    if ranks.sharded:
        _write_shards(path, tensors, position, ranks)
    elif ranks.is_first:
        _write_file(path, tensors, position)
    ranks.barrier()


def save_weights(run: Path, model: nn.Module, position: dict[str, Any], ranks: Ranks) -> Path:
    """The weights alone as one file, gathered from all ranks; what finetuning and evaluation read. Its path."""
    tensors = {}
    for name, tensor in _state(model).items():
        full = whole(tensor)  # collective
        if ranks.is_first:
            tensors[name] = full
    if ranks.is_first:
        _write_file(run / WEIGHTS, tensors, position)
    ranks.barrier()
    return run / WEIGHTS


def load_weights(path: Path, model: nn.Module) -> None:
    """Fill a model. Raises ``BadInput`` when the checkpoint is damaged, or another model's."""
    if problem := damage(path, ("model",)):
        raise BadInput(
            f"{path} is damaged: {problem}. Restore it from a copy, or delete its run's folder and make it anew."
        )
    _read(path, _state(model))


def load_newest(
    run: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    say: Callable[[str], None],
    ranks: Ranks = ALONE,
) -> dict[str, Any] | None:
    """Fill model and optimizer from the newest checkpoint that is whole; its position, None where there is none.

    Damaged ones are set aside under another name, and ``say`` gets a line on each.
    """
    if ranks.is_first:
        for torn in (run / FOLDER).glob(".*.tmp"):
            _delete(torn)
    while steps := ranks.first(steps_of(run)):
        path = path_of(run, steps[-1])
        problem = ranks.first(damage(path) if ranks.is_first else None)
        if problem is None:
            _read(path, _state(model, optimizer))
            return _position(path)
        if ranks.is_first:
            aside = path.with_name(path.name + DAMAGED)
            _delete(aside)
            path.rename(aside)
            before = f"goes back to step {steps[-2]}" if steps[:-1] else "starts anew"
            say(f"{path} is damaged ({problem}): kept as {aside.name}, the run {before}")
        ranks.barrier()
    return None


def damage(path: Path, parts: tuple[str, ...] = ("model", "optimizer")) -> str | None:
    """What is wrong with a checkpoint's ``parts``; None when it is as it was written."""
    try:
        if path.suffix == SHARDS:
            for name, expected in json.loads((path / POSITION).read_text())["files"].items():
                if _file_checksum(path / name) != expected:
                    return f"{name} is not what was written"
            return None
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            expected = json.loads(metadata["checksums"])
            json.loads(metadata["position"])
            tensors = {key: file.get_tensor(key) for key in file.keys() if _part(key) in parts}  # noqa: SIM118
        wrong = [part for part, checksum in _checksums(tensors).items() if expected.get(part) != checksum]
        return f"its {wrong[0]} is not what was written" if wrong else None
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


def prune(run: Path, keep: int, best: int | None) -> None:
    """Delete all but the newest ``keep`` checkpoints and the best one."""
    for step in steps_of(run)[:-keep]:
        if step != best:
            _delete(path_of(run, step))


def _state(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Tensor]:
    """The live tensors of a model and its AdamW by name; moments that do not exist yet are zero."""
    tensors = {f"model.{name}": tensor.detach() for name, tensor in model.state_dict().items()}
    if optimizer is None:
        return tensors
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, parameter in enumerate(parameters):
        state = optimizer.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        tensors |= {f"optimizer.{index}.{name}": value.detach() for name, value in state.items()}
    return tensors


def _write_file(path: Path, tensors: Mapping[str, Tensor], position: dict[str, Any]) -> None:
    here = {name: tensor.contiguous() for name, tensor in tensors.items()}
    metadata = {"position": json.dumps(position), "checksums": json.dumps(_checksums(here))}
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        save_file(here, temporary, metadata)
        _sync(temporary, os.O_RDWR)
        os.replace(temporary, path)
        _sync(path.parent)
    except (OSError, SafetensorError) as error:  # safetensors hides the system's error in its text
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise disk_error(path, error if isinstance(error, OSError) else OSError(0, str(error))) from None


def _write_shards(path: Path, tensors: dict[str, Any], position: dict[str, Any], ranks: Ranks) -> None:
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    temporary = path.with_name(f".{path.name}.tmp")
    if ranks.is_first:
        _delete(temporary)
    ranks.barrier()
    problem, own = None, {}
    try:
        writer = HuggingFaceStorageWriter(str(temporary), save_distributed=True)
        save(tensors, storage_writer=writer)
        shards = temporary.glob(f"shard-{ranks.share.rank + 1:05d}-*")
        own = {shard.name: _file_checksum(shard) for shard in shards}
    except (CheckpointException, OSError) as error:
        problem = str(error).splitlines()[-1]
    told = ranks.gathered((problem, own))
    if ranks.is_first and not any(said for said, _ in told):
        try:
            files = {name: checksum for _, shards in told for name, checksum in shards.items()}
            write_json(temporary / POSITION, {"position": position, "files": files})
            _delete(path)
            os.replace(temporary, path)
            _sync(path.parent)
        except (OSError, RunFailed) as error:  # told to the others, who wait
            problem = str(error)
    problems = [said for said in ranks.gathered(problem) if said]
    if problems:
        if ranks.is_first:
            _delete(temporary)
        raise disk_error(path, OSError(0, problems[0]))


def _read(path: Path, targets: dict[str, Any]) -> None:
    """Fill ``targets``, whole tensors or shares of them, from a checkpoint that holds them all."""
    if path.suffix == SHARDS:
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
        from torch.distributed.checkpoint.state_dict_loader import load

        reader = HuggingFaceStorageReader(str(path))
        known: Mapping[str, Any] = reader.read_metadata().state_dict_metadata
        _same_model(path, targets, {name: tuple(entry.size) for name, entry in known.items()})
        load(targets, storage_reader=reader)
        return
    with safe_open(path, framework="pt") as file:
        _same_model(path, targets, {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()})  # noqa: SIM118
        for name, target in targets.items():
            fill(target, file.get_tensor(name))


def _same_model(path: Path, targets: Mapping[str, Tensor], found: Mapping[str, tuple[int, ...]]) -> None:
    own = {name: tuple(tensor.shape) for name, tensor in targets.items()}
    there = {name: shape for name, shape in found.items() if name in own or _part(name) == "model"}
    if own != there:
        key = next(name for name in sorted(own.keys() | there.keys()) if own.get(name) != there.get(name))
        raise BadInput(
            f"{path} holds another model: {key.partition('.')[2]} is {there.get(key, 'absent')} there and "
            f"{own.get(key, 'absent')} here. Give the model= and tokenizer it was trained with, or another init=."
        )


def _position(path: Path) -> dict[str, Any]:
    position: dict[str, Any]
    if path.suffix == SHARDS:
        position = json.loads((path / POSITION).read_text())["position"]
    else:
        with safe_open(path, framework="pt") as file:
            position = json.loads(file.metadata()["position"])
    return position


def _part(name: str) -> str:
    return name.partition(".")[0]


def _checksums(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """{part: checksum} over names, types, shapes and bytes."""
    digests: dict[str, Any] = {}
    for name in sorted(tensors):
        tensor = tensors[name].cpu()
        digest = digests.setdefault(_part(name), xxhash.xxh3_128())
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return {part: digest.hexdigest() for part, digest in digests.items()}


def _file_checksum(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while block := file.read(HASH_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path, flags: int = os.O_RDONLY) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
