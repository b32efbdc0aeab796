"""One run on many processes: who they are, how the model is spread over them, what they tell each other.

torchrun (or srun, one task a process) starts the processes; torch.distributed does the rest. What ranks agree on goes
over gloo on the CPU, so that no accelerator is waited for; gradients and weights take the device's own backend.

Invariant: with one process no process group exists and nothing here changes a number.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import _get_default_store
from torch.nn.parallel import DistributedDataParallel

from pausebench.config.groups import Parallel, Precision
from pausebench.data.batch import Share
from pausebench.errors import BadInput, RunFailed
from pausebench.model.fast import FastBlock, FastDecoder

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


@dataclass(frozen=True)
class Ranks:
    """The processes of this run. ``kind`` is None where there is one; ``heartbeat`` watches the others."""

    share: Share = Share()
    kind: Parallel | None = None
    heartbeat: Heartbeat | None = None

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

    def at(self, step: int, place: str) -> None:
        """Note for the others what this rank is doing: ``heartbeat.PLACES``."""
        if self.heartbeat is not None:
            self.heartbeat.at(step, place)

    def sum(self, values: Sequence[float]) -> list[float]:
        """Element-wise sum over ranks, in float64 on the CPU."""
        if self.count == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return [float(value) for value in total.tolist()]

    def gathered(self, value: Any) -> list[Any]:
        """Every rank's value (strings and numbers), in their order."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def first(self, value: Any) -> Any:
        """The first rank's value."""
        return self.gathered(value)[0]

    def barrier(self) -> None:
        self.sum([0.0])

    @contextmanager
    def on_first(self, context: AbstractContextManager[Any]) -> Iterator[None]:
        """Enter ``context`` on the first rank alone; the others go on once it is entered."""
        with context if self.is_first else nullcontext():
            self.barrier()
            yield

    def distribute(self, model: FastDecoder, precision: Precision, device: torch.device) -> None:
        """fsdp: give a model on the meta device its share of memory here, one FSDP2 unit a block and one for the rest.

        Matrices are gathered in the arithmetic of training, norms and embeddings in float32, as they are read on
        one process; gradients are reduced in float32. The root stays gathered between forward and backward, because
        the loss reads the tied embedding there.
        """
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        full = MixedPrecisionPolicy(cast_forward_inputs=False)
        low = torch.bfloat16 if precision is Precision.bf16 else None
        policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32, cast_forward_inputs=False)
        for block in model.blocks:
            assert isinstance(block, FastBlock)
            norms: list[nn.Module] = [block.norm_attention, block.norm_mlp]
            for norm in norms:
                norm.register_forward_hook(_copied)
            fully_shard(norms, mp_policy=full, reshard_after_forward=False)  # the block reads them after their calls
            fully_shard(block, mp_policy=policy)
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
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=2 * hang_seconds))
    except dist.DistError as error:
        raise RunFailed(
            f"rank {rank} of {count} on {socket.gethostname()} did not meet the others at "
            f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} ({_first_line(error)}). Are all of them started, "
            "and is that address reachable from here?"
        ) from error
    heartbeat = Heartbeat(rank, count, hang_seconds)
    try:
        with heartbeat:
            try:
                yield Ranks(Share(rank, count), kind, heartbeat)
            except RuntimeError as error:
                if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
                    raise
                raise RunFailed(  # what collectives raise when a neighbour is gone
                    f"rank {rank} on {socket.gethostname()} lost the others. {heartbeat.missing()} "
                    f"({_first_line(error)}.) Type the same command to go on from the last checkpoint."
                ) from error
    finally:
        dist.destroy_process_group()


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


# ------------------------------
# Which rank is gone or stuck: every rank tells the others where it is, and a thread of each one watches.

PLACES = ("starting", "reading", "training", "validating", "saving")  # in the order of a step


class Beat(NamedTuple):
    """What a rank last said."""

    host: str
    pid: int
    number: int
    step: int
    place: str

    @property
    def progress(self) -> tuple[int, int]:
        return self.step, PLACES.index(self.place)


class Heartbeat:
    """A context manager around the life of a rank."""

    def __init__(self, rank: int, ranks: int, hang_seconds: int) -> None:
        self._rank = rank
        self._ranks = ranks
        self._hang_seconds = hang_seconds
        self._every = min(5.0, hang_seconds / 10)
        self._store = _get_default_store().clone()  # type: ignore[attr-defined]  # a connection of its own
        self._now = (0, "starting")
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)
        self._seen: dict[int, tuple[Beat, float]] = {}  # each rank's last beat and when its number last changed
        self._moved = time.monotonic()

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stopped.set()
        self._thread.join(timeout=2 * self._every)

    def at(self, step: int, place: str) -> None:
        """Where this rank is now."""
        self._now = (step, place)

    def missing(self) -> str:
        """A sentence on the ranks that stopped beating; waits for a few beats to be sure."""
        deadline = time.monotonic() + 5 * self._every
        while time.monotonic() < deadline and self._thread.is_alive():
            time.sleep(self._every / 4)
            if silent := self._silent(2.5 * self._every):
                return f"Gone: {self._named(silent)}."
        return "All ranks still answer."

    def _watch(self) -> None:
        count = 0
        while not self._stopped.wait(self._every):
            count += 1
            try:
                self._beat(count)
            except RuntimeError as error:  # the store lives with the agent of the first node
                if not self._stopped.is_set():
                    self._end(f"the key-value store of the job is gone ({str(error).splitlines()[0]})")
                return
            if time.monotonic() - self._moved > self._hang_seconds:
                self._end(f"no step for {self._hang_seconds} s (train.hang_seconds): {self._stuck()}")

    def _beat(self, count: int) -> None:
        mine = Beat(socket.gethostname(), os.getpid(), count, *self._now)
        self._store.set(f"beat/{self._rank}", json.dumps(mine))
        known = [rank for rank in range(self._ranks) if self._store.check([f"beat/{rank}"])]
        now = time.monotonic()
        for rank in known:
            beat = Beat(*json.loads(self._store.get(f"beat/{rank}")))
            before, since = self._seen.get(rank, (None, now))
            if before is None or before.progress != beat.progress:
                self._moved = now
            self._seen[rank] = (beat, since if before is not None and before.number == beat.number else now)

    def _silent(self, seconds: float) -> list[int]:
        now = time.monotonic()
        return [
            rank
            for rank in range(self._ranks)
            if rank != self._rank and (rank not in self._seen or now - self._seen[rank][1] > seconds)
        ]

    def _stuck(self) -> str:
        silent = self._silent(self._hang_seconds / 2)
        if silent:
            return f"silent: {self._named(silent)}"
        behind = min(beat.progress for beat, _ in self._seen.values())
        last = [rank for rank, (beat, _) in self._seen.items() if beat.progress == behind]
        if len(last) == self._ranks:
            return f"all {self._ranks} ranks wait for each other ({self._named(last[:1])})"
        return f"furthest behind: {self._named(last)}"

    def _named(self, ranks: list[int]) -> str:
        def one(rank: int) -> str:
            if rank not in self._seen:
                return f"rank {rank} (never heard of)"
            beat = self._seen[rank][0]
            return f"rank {rank} ({beat.host}, process {beat.pid}, {beat.place} at step {beat.step})"

        return ", ".join(one(rank) for rank in ranks)

    def _end(self, why: str) -> None:
        """End this process at once: its main thread may be waiting in a collective for ever."""
        print(f"pausebench: rank {self._rank} on {socket.gethostname()} ends: {why}", file=sys.stderr, flush=True)
        os._exit(1)
