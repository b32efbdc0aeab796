"""How long commands take before they work: a Markdown table, medians of five (or so many as are asked for).

    python tests/benchmarks/start_up.py [repeats]

Each is a process of its own, as a user starts it, on as many threads as torch takes; the basic launcher runs all its
cells in one. A first step is timed from the start of the process to the end of the first optimizer step.
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ONE_STEP = "train.steps=1 tracking=off quiet=true"
PRETRAIN = f"pretrain world=count20 model=mini {ONE_STEP}"
MINI = f"finetune task=parity pretraining=pause {ONE_STEP}"
TINY = f"finetune task=squad model=tiny init=random {ONE_STEP}"
FIRST_STEP = """
import os, sys
from pausebench import cli
from pausebench.training.trainer import Trainer
optimize = Trainer.optimize
Trainer.optimize = lambda *given: (optimize(*given), os._exit(0))
cli.run(sys.argv[1:])
"""
CELLS = 20
SWEEP = f"{MINI} -m pretraining_seed=0 threads=1 seed={','.join(map(str, range(CELLS)))}"


def main() -> None:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for command in (PRETRAIN, MINI, TINY):  # the last makes the tokenizer
            spent(command)
        [run] = Path("runs").glob("finetune/parity*")
        evaluate = f"evaluate run={run} mt=[0,8] limit=8 quiet=true"
        spent(evaluate)
        print("| command | seconds | processor seconds |")
        print("|---|---|---|")
        line("--help", "--help", repeats)
        line("pretrain, already done", PRETRAIN, repeats)
        line("finetune on a generated world, already done", MINI, repeats)
        line("finetune on the embedded SQuAD, already done", TINY, repeats)
        line("evaluate, two M already done", evaluate, repeats)
        first = "first step of tiny on the embedded SQuAD, tracking"
        line(f"{first}=off", f"{TINY} seed=1NUMBER", repeats, "-c", FIRST_STEP)
        line(f"{first}=wandb, offline", f"{TINY} seed=2NUMBER tracking=wandb", repeats, "-c", FIRST_STEP)
        for launcher in ("basic", "joblib"):
            sweep = f"{SWEEP} hydra/launcher={launcher} placement={'append' if launcher == 'basic' else 'prepend'}"
            line(f"{CELLS} cells of one step of mini, {launcher} launcher", f"{sweep} train.lr=0.00NUMBER", repeats)
            line(f"{CELLS} cells already done, {launcher} launcher", f"{sweep} train.lr=0.001", repeats)


def line(name: str, command: str, repeats: int, *program: str) -> None:
    """Print the medians of a command; each repetition puts its own digits for NUMBER."""
    costs = [spent(command.replace("NUMBER", str(number)), *program) for number in range(1, repeats + 1)]
    medians = (f"{statistics.median(column):.2f}" for column in zip(*costs, strict=True))
    print(f"| {name} | {' | '.join(medians)} |", flush=True)


def spent(command: str, *program: str) -> tuple[float, float]:
    """(seconds, processor seconds) of one command and the workers it started."""
    before, began = processor_seconds(), time.perf_counter()
    environment = os.environ | {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    words = [sys.executable, *(program or ("-m", "pausebench")), *command.split()]
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return time.perf_counter() - began, processor_seconds() - before


def processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
