"""kill -9 of one rank, or of all, at random moments: does every run end as one that nobody touched?

    python tests/benchmarks/kills.py [kills a run] [seed]

Four runs of torchrun with three ranks: ddp and fsdp, one rank killed (the others have to end by themselves) or all of
them with their agent. A killed run is started again until it has met its kills, then left to finish; weights, loss
curve and counted tokens have to equal, bit for bit, those of a run of the same ranks without a kill.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from pausebench.runs.folder import read_json, read_last_metrics, read_metrics
from pausebench.training import checkpoint

STEPS = 400
WORDS = (
    f"pretrain world=count20 model=mini pause=on precision=fp32 threads=1 train.steps={STEPS} train.batch_size=8 "
    "train.log_every=10 train.validate_every=200 train.validation_rows=16 train.checkpoint_every=20 tracking=off "
    "quiet=true train.hang_seconds=30"
)


def start(kind: str, runs: Path) -> subprocess.Popen[bytes]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=3", "--standalone"]
    log = (runs.parent / f"{runs.name}.log").open("ab")
    return subprocess.Popen(
        [*torchrun, "-m", "pausebench", *WORDS.split(), f"parallel={kind}", f"runs={runs}"],
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


def folder(runs: Path) -> Path | None:
    return next(iter((runs / "pretrain").glob("*")), None)


def step_of(runs: Path) -> int:
    run = folder(runs)
    row = read_last_metrics(run / "metrics.jsonl") if run else None
    return row["step"] if row else 0


def ranks_of(agent: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(agent)], capture_output=True, text=True, check=False)
    return sorted(int(pid) for pid in found.stdout.split())


def kill_at(job: subprocess.Popen[bytes], runs: Path, step: int, delay: float, whom: str, rank: int) -> int:
    """Wait for the step and a moment more, kill; the step that was logged then. -1: the run had ended before."""
    while step_of(runs) < step:
        if job.poll() is not None:
            return -1
        time.sleep(0.02)
    time.sleep(delay)
    at, ranks = step_of(runs), ranks_of(job.pid)
    if job.poll() is not None or len(ranks) < 3:
        return -1
    for pid in ranks if whom == "all" else [ranks[rank]]:
        os.kill(pid, signal.SIGKILL)
    if whom == "all":
        os.kill(job.pid, signal.SIGKILL)
    job.wait()
    return at


def end_of(runs: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]], Any]:
    run = folder(runs)
    assert run is not None
    result = read_json(run / "result.json")
    rows = [
        {name: value for name, value in row.items() if name not in ("tokens_per_second", "mfu")}
        for row in read_metrics(run / "metrics.jsonl")
    ]
    last = checkpoint.path_of(run, STEPS)
    files = sorted(last.glob("*.safetensors")) if last.is_dir() else [last]
    return {f"{file.name} {name}": tensor for file in files for name, tensor in load_file(file).items()}, rows, result


def main(kills: int, seed: int) -> None:
    draw, failures = random.Random(seed), 0
    with tempfile.TemporaryDirectory() as place:
        for kind in ("ddp", "fsdp"):
            untouched = Path(place, kind)
            assert start(kind, untouched).wait() == 0
            expected = end_of(untouched)
            for whom in ("one", "all"):
                runs = Path(place, f"{kind}-{whom}")
                moments = sorted(draw.randrange(5, STEPS - 20) for _ in range(kills))
                met = []
                for moment in moments:
                    job = start(kind, runs)
                    met.append(kill_at(job, runs, moment, draw.random() / 5, whom, draw.randrange(3)))
                code = start(kind, runs).wait()
                tensors, rows, result = end_of(runs)
                same = (
                    tensors.keys() == expected[0].keys()
                    and all(torch.equal(tensor, expected[0][name]) for name, tensor in tensors.items())
                    and (rows, result) == expected[1:]
                )
                failures += not same or code != 0
                print(
                    f"{kind}, {whom} of 3 ranks killed after logged steps {met}: exit {code}, "
                    f"{result['tokens']:,} tokens, {'equal' if same else 'NOT EQUAL'}",
                    flush=True,
                )
    sys.exit(failures > 0)


if __name__ == "__main__":
    main(*(int(word) for word in (sys.argv[1:] + ["3", "0"][len(sys.argv) - 1 :])))
