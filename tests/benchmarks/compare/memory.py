"""Peak memory of pretraining at GPT-2's vocabulary, each side in a process of its own.

Above what the process held before it built a model: weights, gradients, moments, activations. A step on one row comes
first, since AdamW's moments are there from the second step on.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
import threading
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from pausebench.errors import RunFailed
from pausebench.training.device import choose_device, cpu_threads
from tests.benchmarks.compare import gpt2
from tests.benchmarks.compare.contest import Line
from tests.benchmarks.compare.gpt2 import Loop
from tests.benchmarks.compare.setting import Options, OurTraining, Setting, as_batches, ready

TARGET = 0.5
ROWS, LENGTH = 4, 2048
PEER = "transformers, eager"


def run(setting: Setting) -> list[Line]:
    if absent := gpt2.missing("transformers"):
        setting.note(f"memory: {absent}")
        return []
    if "eager" not in setting.options.peers:
        return []
    used: dict[bool, list[float]] = {True: [], False: []}
    for ours in used:
        found = _measured(setting, ours)
        if found is None:
            who = "pausebench" if ours else PEER
            setting.note(f"memory: the process of {who} was killed: it did not fit into this machine's memory")
            return []
        used[ours].append(found / 2**30)
    rows, length = _shape(setting)
    what = f"step of {rows} x {length} tokens, vocabulary {setting.tokenizer.vocab_size:,}"
    return [Line("memory", what, PEER, "GiB", used[True], used[False], TARGET, lower=True)]


def _shape(setting: Setting) -> tuple[int, int]:
    given = setting.options
    return given.batch_size or ROWS, given.sequence_length or min(LENGTH, setting.model.max_positions)


def _measured(setting: Setting, ours: bool) -> float | None:
    """Bytes at the peak of one side's steps; None where its process died."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(sender, setting.options, setting.scratch, ours), daemon=True)
    child.start()
    sender.close()
    try:
        found: float = receiver.recv()
        return found
    except EOFError:
        child.join()
        if child.exitcode != -signal.SIGKILL:  # what the kernel sends where memory ends
            raise RunFailed("memory: a process ended without a result; its error is above.") from None
        return None
    finally:
        child.join()


def _child(sender: Connection, options: Options, scratch: Path, ours: bool) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # The compiler's own memory is no part of a step's.
    setting = Setting(replace(options, compile="off"), choose_device(options.device), scratch)
    with cpu_threads(options.threads):
        sender.send(_steps(setting, ours))


def _end_with_parent() -> None:
    """A comparison that is killed leaves no process behind that holds gigabytes."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _steps(setting: Setting, ours: bool) -> float:
    rows, length = _shape(setting)
    made = setting.pretraining(length, rows)
    [batch] = ready(setting.text(made), 1)
    if not ours:
        from transformers import GPT2LMHeadModel  # noqa: F401
    weight = torch.nn.Parameter(torch.ones(64, 64, device=setting.device))
    (weight @ weight).sum().item()
    torch.optim.AdamW([weight])  # it loads code, and code is no part of a step
    before = _held(setting.device)
    model = setting.build(made)
    if ours:
        OurTraining(setting, made, model, as_batches([batch.rows(0, 1), batch]), 1).steps(2)
    else:
        theirs = gpt2.gpt2_of(model)
        del model
        loop = Loop(theirs, gpt2.causal_loss, bf16=setting.bf16, compiled=False)
        for part in (batch.rows(0, 1), batch):
            loop.step(part.input_ids.to(setting.device), part.labels.to(setting.device))
    return _peak(setting.device) - before


def _held(device: torch.device) -> int:
    """Bytes now."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else _status("VmRSS")


def _peak(device: torch.device) -> int:
    """Most bytes so far."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")


def _status(name: str) -> int:
    """A line of /proc/self/status in bytes; where there is none, the most that this process ever held."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return int(next(line.split()[1] for line in lines if line.startswith(f"{name}:"))) * 1024
