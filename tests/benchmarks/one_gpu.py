"""130m and 1b at 2,048 tokens on one GPU: tokens/s, MFU and peak memory of the command line, and a resume.

    python tests/benchmarks/one_gpu.py data.root=DIR [runs=DIR] [models=130m,1b]

DIR has gpt2-tokenizer/ and corpus_standin/, which is prepared first. Each model trains 60 steps of 32 rows with pauses;
tokens/s, MFU (of the data sheet's bf16 peak) and peak memory are those of the last 20 steps in metrics.jsonl. Then a
copy of the run goes back to step 30 and is resumed: its losses have to be the same.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from pausebench.runs.folder import read_json, read_metrics
from pausebench.training import checkpoint

STEPS, HALF = 60, 30
ROWS = {"130m": (32, 8), "1b": (32, 4)}  # rows of a step and of a micro-batch


def command(words: list[str]) -> None:
    print("pausebench", *words, flush=True)
    subprocess.run([sys.executable, "-m", "pausebench", *words], check=True)


def main(root: str, runs: str, models: list[str]) -> None:
    text = ["data=files", f"data.root={root}", "corpus=corpus_standin", "tokenizer=gpt2", f"runs={runs}"]
    command(["prepare", *text])
    lines = []
    for model in models:
        rows, micro = ROWS[model]
        words = [
            *("pretrain", f"model={model}", "pause=on", "sequence_length=2048", "corpus.prepared=true", *text),
            *(f"train.steps={STEPS}", f"train.batch_size={rows}", f"train.micro_batch_size={micro}"),
            *("train.log_every=10", f"train.validate_every={STEPS}", "train.validation_rows=8"),
            *(f"train.checkpoint_every={HALF}", "tracking=off"),
        ]
        command(words)
        (run,) = Path(runs, "pretrain").glob(f"*-{model}-*")
        whole = read_metrics(run / "metrics.jsonl")
        (run / "result.json").unlink()
        checkpoint.path_of(run, STEPS).unlink()
        command(words)
        again = read_metrics(run / "metrics.jsonl")
        apart = max(abs(a["loss"] / b["loss"] - 1) for a, b in zip(again, whole, strict=True))
        device = read_json(run / "manifest.json")["device"]
        last = whole[-1]
        lines.append(
            f"{model} on {device}, torch {torch.__version__}: {last['tokens_per_second']:,.0f} tokens/s, "
            f"mfu {last['mfu']:.1%}, peak {last.get('peak_memory_bytes', 0) / 1e9:.1f} GB, "
            f"losses after a resume within {apart:.1e}"
        )
        shutil.rmtree(run / checkpoint.FOLDER)
    print(*lines, sep="\n")


if __name__ == "__main__":
    given = dict(word.split("=", 1) for word in sys.argv[1:])
    with tempfile.TemporaryDirectory() as place:
        main(given["data.root"], given.get("runs", place), given.get("models", "130m,1b").split(","))
