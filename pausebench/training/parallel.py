"""One run on many processes: who they are, how the model is spread over them, what they tell each other.

torchrun (or srun, one task a process) starts the processes; torch.distributed does the rest. What ranks agree on goes
over gloo on the CPU, so that no accelerator is waited for; gradients and weights take the device's own backend.

Invariant: with one process no process group exists and nothing here changes a number.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import _get_default_store
from torch.nn.parallel import DistributedDataParallel

from pausebench.config.groups import Parallel, Precision
from pausebench.data.batch import Share
from pausebench.errors import BadInput, RunFailed
from pausebench.model.base import Model

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


ROLL_CALL_SECONDS = 10  # the first rank to give up closes its connections, so the others give up with it


@dataclass(frozen=True)
class Ranks:
    """The processes of this run. ``kind`` and ``control``, a gloo group for what ranks agree on, are None for one."""

    share: Share = Share()
    kind: Parallel | None = None
    control: dist.ProcessGroup | None = None

    @property
    def count(self) -> int:
        return self.share.ranks

    @property
    def is_first(self) -> bool:
        """Whether this process writes the run's folder, log lines and W&B."""
        return self.share.rank == 0

    @property
    def sharded(self) -> bool:
        return self.kind is Parallel.fsdp

    def sum(self, values: Sequence[float]) -> list[float]:
        """Element-wise sum over ranks, in float64 on the CPU."""
        if self.count == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self.control)
        return [float(value) for value in total.tolist()]

    def gathered(self, value: Any) -> list[Any]:
        """Every rank's value (strings and numbers), in their order."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value, group=self.control)
        return values

    def first(self, value: Any) -> Any:
        """The first rank's value."""
        return self.gathered(value)[0]

    def barrier(self) -> None:
        self.sum([0.0])

    @contextmanager
    def on_first(self, context: AbstractContextManager[Any]) -> Iterator[None]:
        """Enter ``context`` on the first rank alone; the others continue once it is entered."""
        with context if self.is_first else nullcontext():
            self.barrier()
            yield

    def distribute(self, model: Model, precision: Precision, device: torch.device) -> None:
        """fsdp: give a model on the meta device its share of memory here, unit by unit (``Model.shard_units``).

        Matrices are gathered in the arithmetic of training, norms and embeddings in float32, as they are read on
        one process; gradients are reduced in float32. The root stays gathered between forward and backward, because
        the loss reads the tied embedding there.
        """
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        full = MixedPrecisionPolicy(cast_forward_inputs=False)
        low = torch.bfloat16 if precision is Precision.bf16 else None
        policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32, cast_forward_inputs=False)
        for modules, lowered in model.shard_units():
            if lowered:
                fully_shard(modules, mp_policy=policy)
                continue
            for module in modules:
                module.register_forward_hook(_copied)
            fully_shard(modules, mp_policy=full, reshard_after_forward=False)  # read after their calls, in a later unit
        fully_shard(model, mp_policy=full)
        model.sharded = True
        model.to_empty(device=device)

    def wrap(self, objective: nn.Module) -> nn.Module:
        """ddp: the module whose backward pass averages gradients over ranks; else the objective itself."""
        if self.kind is not Parallel.ddp:
            return objective
        return DistributedDataParallel(objective, gradient_as_bucket_view=True)

    def accumulating(self, wrapped: nn.Module) -> AbstractContextManager[Any]:
        """ddp: around a micro-batch that is not the last of its step, whose gradients stay here. fsdp reduces them with
        every one: whole gradients are what its memory has no room for."""
        return wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) else nullcontext()


ALONE = Ranks()


def is_share(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether a tensor is one rank's share of a larger one.

    Asked by the method that only those have: their class takes half as long to import as torch itself.
    """
    return hasattr(tensor, "full_tensor")


def _copied(module: nn.Module, given: object, weights: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A forward hook for modules that return their weights: FSDP puts a hook on what a unit returns, and on a weight,
    which outlives the step, these would add up."""
    return tuple(weight.clone() for weight in weights)


def fill(target: Tensor, full: Tensor) -> None:
    """Copy a whole tensor into a parameter; a sharded one takes its share of it, without communication."""
    if is_share(target):
        from torch.distributed.tensor import distribute_tensor

        full = distribute_tensor(full.to(target.device), target.device_mesh, target.placements, src_data_rank=None)
    target.copy_(full)


def whole(tensor: Tensor) -> Tensor:
    """A tensor with the shares of all ranks (collective), on the CPU."""
    return (tensor.full_tensor() if is_share(tensor) else tensor).detach().cpu()


def local_device(device: torch.device) -> torch.device:
    """The device of this process: where it sees several GPUs, that of its number on this machine."""
    if device.type != "cuda":
        return device
    index, seen = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if 1 < seen <= index:
        raise BadInput(
            f"process {index} of {socket.gethostname()}: torch sees {seen} GPUs there. Start at most one process a "
            "GPU (torchrun --nproc-per-node=), or type device=cpu."
        )
    device = torch.device("cuda", index if seen > 1 else 0)
    torch.cuda.set_device(device)
    return device


@contextmanager
def started(kind: Parallel, device: torch.device, hang_seconds: int) -> Iterator[Ranks]:
    """The ranks that torchrun or srun started this process among; ``ALONE`` outside of them.

    Raises ``RunFailed`` with the name of a rank that was lost while the others worked.
    """
    adopt_slurm_tasks()
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield ALONE
        return
    names = ("RANK", "MASTER_ADDR", "MASTER_PORT")
    if missing := [name for name in names if name not in os.environ]:
        raise BadInput(
            f"WORLD_SIZE={count} without {', '.join(missing)}: start several processes with torchrun or srun, or unset "
            "WORLD_SIZE for one."
        )
    rank = int(os.environ["RANK"])
    on_gpu = device.type == "cuda"
    # On GPUs the main thread waits over gloo, whose error names a rank, and NCCL's watchdog, which kills the process
    # without a word, comes second.
    patience = timedelta(seconds=2 * hang_seconds if on_gpu else hang_seconds)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=patience)
    except dist.DistError as error:
        raise RunFailed(
            f"rank {rank} of {count} on {socket.gethostname()} did not meet the others at "
            f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} ({_first_line(error)}). Are all of them started, "
            "and is that address reachable from here?"
        ) from error
    # On a GPU the gradients' group is NCCL's, so what ranks agree on has its own, with the shorter patience.
    control = dist.new_group(backend="gloo", timeout=timedelta(seconds=hang_seconds))
    ranks = Ranks(Share(rank, count), kind, control)
    everyone = [f"rank {number}" for number in range(count)]
    lost = False
    try:
        everyone = ranks.gathered(f"rank {rank} ({socket.gethostname()}, process {os.getpid()})")
        yield ranks
    except RuntimeError as error:
        # What collectives raise when a rank is gone, or has not come for hang_seconds.
        lost = isinstance(error, dist.DistError) or "gloo" in str(error)
        if not lost:
            raise
        raise RunFailed(
            f"{everyone[rank]} lost the others ({_first_line(error)}; train.hang_seconds={hang_seconds}). "
            f"{_missing(rank, everyone, min(hang_seconds, ROLL_CALL_SECONDS))} "
            "Type the same command to resume from the last checkpoint."
        ) from error
    finally:
        if not lost:  # NCCL would wait for the lost rank, and the message would not be printed
            dist.destroy_process_group()


def _missing(rank: int, everyone: Sequence[str], seconds: float) -> str:
    """A sentence on the ranks that do not answer a roll call.

    It goes through the store: torch's monitored_barrier names a rank that hangs, but not one that was killed.
    """
    keys = [f"here/{number}" for number in range(len(everyone))]
    try:
        store = _get_default_store()
        store.set(keys[rank], "")
        with suppress(dist.DistStoreError):  # it waited long enough
            store.wait(keys, timedelta(seconds=seconds))
        missing = [name for key, name in zip(keys, everyone, strict=True) if not store.check([key])]
    except RuntimeError:  # rank 0 or torchrun's agent on its machine keeps the store
        return f"No answer from {everyone[0]}: it is lost, or has ended and named the one that is."
    return f"No answer from {', '.join(missing)}." if missing else "All ranks still answer."


def _first_line(error: Exception) -> str:
    """What torch says, without the place in its source."""
    return str(error).splitlines()[0].rpartition("] ")[2].partition(". ")[0].rstrip(".")


def adopt_slurm_tasks() -> None:
    """Take the names of srun's tasks for those of torchrun's processes, where srun started several."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if "WORLD_SIZE" in os.environ or not os.environ.get("SLURM_STEP_ID", "").isdigit() or tasks == "1":
        return
    nodes = os.environ.get("SLURM_STEP_NODELIST", "")
    try:
        shown = subprocess.run(
            ["scontrol", "--oneliner", "show", "node", nodes], capture_output=True, text=True, check=True
        )
        address = re.search(r"\bNodeAddr=(\S+)", shown.stdout)
    except (OSError, subprocess.CalledProcessError):
        address = None
    if address is None:
        raise BadInput(
            f"srun started {tasks} tasks on {nodes}, but scontrol does not say where the first of these nodes is. "
            "Start the processes with torchrun."
        )
    os.environ.update(
        WORLD_SIZE=tasks,
        RANK=os.environ["SLURM_PROCID"],
        LOCAL_RANK=os.environ["SLURM_LOCALID"],
        MASTER_ADDR=address[1],
        MASTER_PORT=str(20000 + int(os.environ["SLURM_JOB_ID"]) % 20000),  # two jobs on a node must not meet
    )
