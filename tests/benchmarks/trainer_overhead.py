"""Steps a second of the trainer against a bare torch loop of the same model and data, alternating in one run.

    python tests/benchmarks/trainer_overhead.py [repeats]

Both train `mini` on parity with K = 8 from the same weights, one thread, on the same rows. The bare loop has them as
ready batches and does nothing but forward, loss, backward, clipping, AdamW; the trainer makes its rows, sets the rate,
watches for signals and bad losses, logs, validates and checkpoints. Prints milliseconds a step and the median ratio.
"""

import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from pausebench.commands.runs import build_model
from pausebench.data.batch import Batches
from pausebench.data.batches import RowLayout, generated_batches
from pausebench.data.embedded import build_world
from pausebench.groups import (
    AttentionKind,
    ModelConfig,
    Precision,
    TaskConfig,
    TokenizerConfig,
    TokenizerKind,
    TrackingConfig,
    TrainConfig,
    WorldConfig,
)
from pausebench.model.decoder import Decoder
from pausebench.results.run_folder import RunFolder
from pausebench.stages import FinetuneConfig
from pausebench.tasks import TASKS
from pausebench.training.device import cpu_threads
from pausebench.training.parallel import ALONE
from pausebench.training.progress import Progress
from pausebench.training.tracking import Tracker
from pausebench.training.trainer import Trainer

STEPS = 700
CONFIG = FinetuneConfig(
    task=TaskConfig(name="parity"),
    model=ModelConfig("mini", 2, 1, 16, 64, 64, activation="relu", embedding_std=0.5, linear_gain=0.8),
    world=WorldConfig("count20", "count", 28, 10, 20, 20, ["MAJ", "FIRST", "LAST"]),
    tokenizer=TokenizerConfig(kind=TokenizerKind.words),
    prefix=AttentionKind.causal,
    k=8,
    train=TrainConfig(steps=STEPS, warmup_steps=35, lr=1.5e-3),
    tracking=TrackingConfig(enabled=False),
)


def model_and_batches() -> tuple[Decoder, Batches]:
    tokenizer = build_world(CONFIG.world).tokenizer
    batches = generated_batches(CONFIG, RowLayout.of(CONFIG, TASKS["parity"], tokenizer))
    return build_model(CONFIG, tokenizer, torch.device("cpu"), ALONE), batches


def bare() -> float:
    """Seconds a step of the plain loop."""
    model, batches = model_and_batches()
    rows = [batches.batch(step) for step in range(1, STEPS + 1)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.5e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    began = time.perf_counter()
    for batch in rows:
        hidden = model(batch.input_ids, last=1)[:, 0]
        loss = F.cross_entropy(model.logits(hidden), batch.labels[:, -1])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return (time.perf_counter() - began) / STEPS


def trainer() -> float:
    """Seconds a step of the trainer, rows, logs, validation and checkpoints included."""
    model, batches = model_and_batches()
    folder = RunFolder(tempfile.mkdtemp(), "finetune", "bench")
    folder.create()
    progress = Progress("bench", STEPS, quiet=True)
    whole = Trainer(
        model,
        batches,
        CONFIG.train,
        folder,
        precision=Precision.fp32,
        device=torch.device("cpu"),
        tracker=Tracker(CONFIG.tracking, folder.path, "bench", {}, {}, progress),
        progress=progress,
    )
    began = time.perf_counter()
    whole.train()
    seconds = (time.perf_counter() - began) / STEPS
    shutil.rmtree(Path(folder.path).parent.parent)
    return seconds


def main() -> None:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    pairs = []
    with cpu_threads(1):
        bare(), trainer()
        for _ in range(repeats):
            pairs.append((bare(), trainer()))
            print(f"bare {1e3 * pairs[-1][0]:.2f} ms   trainer {1e3 * pairs[-1][1]:.2f} ms")
    ratio = statistics.median(a / b for a, b in pairs)
    overhead = 1e3 * statistics.median(b - a for a, b in pairs)
    print(f"median: trainer runs at {ratio:.3f} of the bare loop's steps/s, {overhead:+.2f} ms a step")


if __name__ == "__main__":
    main()
