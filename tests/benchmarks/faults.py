"""A hundred saves of a checkpoint under faults: is the last good one ever lost?

    python tests/benchmarks/faults.py [saves]

Each save goes to a small tmpfs (root mounts it) and meets one fault: its file is cut short or a bit of it flipped
afterwards, the disk is full while it is written, or read-only. Then what a restart would load has to be, bit for bit,
the newest state that was saved in good order.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from pausebench.config.groups import ModelConfig, TrainConfig
from pausebench.errors import RunFailed
from pausebench.model import build
from pausebench.training import checkpoint
from pausebench.training.loss import build_optimizer

MODEL = ModelConfig(name="small", n_layers=2, n_heads=2, d_model=64, d_mlp=128, max_positions=64)
FAULTS = ("none", "cut short", "bit flipped", "disk full", "read-only")
KEEP = 2


@contextmanager
def small_disk(size: int) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as place:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], check=True)
        try:
            yield Path(place)
        finally:
            subprocess.run(["umount", place], check=True)


def remount(place: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(place)], check=True)


class State:
    """A model and its optimizer."""

    def __init__(self) -> None:
        self.model = build(MODEL, 500)
        self.model.initialize(0)
        self.optimizer = build_optimizer(self.model, TrainConfig())

    def step(self) -> None:
        for parameter in self.model.parameters():
            parameter.grad = torch.randn_like(parameter)
        self.optimizer.step()

    def tensors(self) -> dict[str, Tensor]:
        weights = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        moments = {
            f"{index} {name}": value.clone()
            for index, state in self.optimizer.state_dict()["state"].items()
            for name, value in state.items()
        }
        return weights | moments


def harm(run: Path, step: int, fault: str, draw: random.Random) -> None:
    path = checkpoint.path_of(run, step)
    content = bytearray(path.read_bytes())
    if fault == "cut short":
        content = content[: draw.randrange(len(content))]
    else:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def main(saves: int) -> None:
    draw = random.Random(0)
    torch.manual_seed(0)
    state = State()
    counted, refused, lost, found = Counter[str](), 0, 0, 0
    probe = Path(tempfile.mkdtemp())
    checkpoint.save_checkpoint(probe, 1, state.model, state.optimizer, {"step": 1})
    size = checkpoint.path_of(probe, 1).stat().st_size
    good: dict[int, dict[str, Tensor]] = {}
    with small_disk((KEEP + 2) * size + (1 << 20)) as disk:
        run, ballast = disk / "run", disk / "ballast"
        for step in range(1, saves + 1):
            state.step()
            fault = "none" if not good else draw.choice(FAULTS)
            counted[fault] += 1
            if fault == "disk full":
                ballast.write_bytes(bytes(max(0, shutil.disk_usage(disk).free - draw.randrange(size))))
            if fault == "read-only":
                remount(disk, "ro")
            try:
                checkpoint.save_checkpoint(run, step, state.model, state.optimizer, {"step": step})
                good[step] = state.tensors()
            except RunFailed:
                refused += 1
            if fault == "read-only":
                remount(disk, "rw")
            ballast.unlink(missing_ok=True)
            if fault in ("cut short", "bit flipped"):
                harm(run, step, fault, draw)
                del good[step]
            if step in good:
                checkpoint.prune(run, KEEP, None)
            said: list[str] = []
            again = State()
            position = checkpoint.load_newest(run, again.model, again.optimizer, said.append)
            newest = max(good)
            whole = position == {"step": newest} and all(
                torch.equal(tensor, again.tensors()[name]) for name, tensor in good[newest].items()
            )
            lost += not whole
            found += len(said)
            for aside in run.glob("checkpoints/*.damaged"):
                aside.unlink()
    print(f"{saves} saves: {dict(counted)}; refused by the disk: {refused}; damaged and named: {found}; lost: {lost}")
    sys.exit(lost > 0)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
