"""How cost grows with what a user can make larger: a Markdown table, in under three minutes on two cores.

    python tests/benchmarks/growth.py [word ...]

Words choose the axes that have one of them in their name. Each figure is processor seconds of one thread, the smallest
of three runs where one is short, each in a process of its own, and beside it the peak memory above what the process
began with. The exponent is the slope between the sizes of the upper half, in logarithms: 1 is linear. Linux only.
"""

import contextlib
import io
import json
import math
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from pausebench import cli
from pausebench.config.groups import (
    AttentionKind,
    CorpusConfig,
    DataConfig,
    ModelConfig,
    Source,
    TaskConfig,
    TokenizerConfig,
    TokenizerKind,
    TrackingConfig,
    TrainConfig,
)
from pausebench.config.options import plain
from pausebench.config.pauses import PausePolicy
from pausebench.config.training import FinetuneConfig
from pausebench.data.batch import Batch
from pausebench.data.batches import DatasetBatches, RowLayout
from pausebench.data.task_rows import DatasetRows, GeneratedRows, open_task
from pausebench.data.tokenizer import ByteTokenizer
from pausebench.errors import BadInput
from pausebench.evaluation.evaluator import Evaluator
from pausebench.model import build
from pausebench.model.attention import AttentionMask
from pausebench.model.fast import FastDecoder
from pausebench.runs.folder import RunFolder
from pausebench.runs.lineage import find_parent
from pausebench.training.loss import build_optimizer

MODEL = ModelConfig("small", 2, 2, 64, 256, 4096)
SHORT_SECONDS = 0.3  # a run below it is repeated
TOKENIZER = ByteTokenizer()


class Axis(NamedTuple):
    """What grows, and by how much. ``prepare`` makes a run of one size; only the run is measured."""

    name: str
    sizes: Sequence[int]
    prepare: Callable[[int, Path], Callable[[], object]]


def main() -> None:
    chosen = [axis for axis in AXES if not sys.argv[1:] or any(word in axis.name for word in sys.argv[1:])]
    print("| what grows | sizes | processor seconds | peak memory, MiB | exponent |")
    print("|---|---|---|---|---|", flush=True)
    for axis in chosen:
        costs = [measured(axis, size) for size in axis.sizes]
        seconds, memory = zip(*costs, strict=True)
        cells = [
            axis.name,
            " / ".join(f"{size:,}" for size in axis.sizes),
            " / ".join(f"{value:.3g}" for value in seconds),
            " / ".join(f"{value:.0f}" for value in memory),
            f"{exponent(axis.sizes, seconds):.2f}",
        ]
        print("| " + " | ".join(cells) + " |", flush=True)


def measured(axis: Axis, size: int) -> tuple[float, float]:
    """(processor seconds, MiB) of one size: the least of up to three processes."""
    costs = [in_a_child(axis, size)]
    while len(costs) < 3 and costs[0][0] < SHORT_SECONDS:
        costs.append(in_a_child(axis, size))
    return min(seconds for seconds, _ in costs), statistics.median(memory for _, memory in costs)


def in_a_child(axis: Axis, size: int) -> tuple[float, float]:
    """One run in a forked process, which shares no cache with the next."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            torch.set_num_threads(1)
            with tempfile.TemporaryDirectory() as folder:
                run = axis.prepare(size, Path(folder))
                Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
                before, began = peak_mib(), time.process_time()
                with contextlib.redirect_stdout(io.StringIO()):
                    run()
                os.write(writer, json.dumps([time.process_time() - began, peak_mib() - before]).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        seconds, memory = json.load(answer)
    os.waitpid(child, 0)
    return seconds, memory


def peak_mib() -> float:
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found.group(1)) / 1024


def exponent(sizes: Sequence[int], costs: Sequence[float]) -> float:
    """Least-squares slope of log cost over log size, in the upper half of the sizes."""
    points = [(math.log(size), math.log(cost)) for size, cost in zip(sizes, costs, strict=True) if size]
    upper = points[-(len(points) // 2 + 1) :]
    return statistics.linear_regression(*zip(*upper, strict=True)).slope


# The models' part


def decoder() -> FastDecoder:
    model = build(MODEL, TOKENIZER.vocab_size)
    model.initialize(0)
    return model


def step_of(model: FastDecoder, batch: Batch) -> Callable[[], None]:
    """An optimizer step; the first one, which allocates, is made here."""
    optimizer = build_optimizer(model, TrainConfig(steps=1, warmup_steps=0, lr=1e-3))

    def step() -> None:
        (model.summed_loss(batch) / batch.supervised).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    return step


def pretraining_step(rows: int, length: int) -> Callable[[], None]:
    tokens = torch.randint(TOKENIZER.end_id, (rows, length + 1), generator=torch.Generator().manual_seed(0))
    return step_of(decoder(), Batch(tokens[:, :-1], tokens[:, 1:], AttentionMask(AttentionKind.causal), length))


def layout(k: int) -> RowLayout:
    none = torch.zeros(0, dtype=torch.int64)
    kind = AttentionKind.bidirectional
    return RowLayout(PausePolicy(k=k), kind, none, TOKENIZER.pause_id, TOKENIZER.end_id)


def finetuning_step(k: int, folder: Path, batch_size: int = 16) -> Callable[[], None]:
    rows = opened(squad(folder, 100, 20))
    assert isinstance(rows, DatasetRows)
    batches = DatasetBatches(rows, layout(k), TOKENIZER, 1024).batches(0, batch_size)
    return step_of(decoder(), batches.batch(1))


def evaluation(m: int, folder: Path, test: int = 32, context: int = 400, batch_size: int = 16) -> Callable[[], None]:
    rows, model = opened(squad(folder, 100, test, context)), decoder()

    def run() -> None:
        given = {"batch_size": batch_size, "max_length": 1024, "max_new_tokens": 4}
        Evaluator(model, rows.task, rows.test(), TOKENIZER, **given).evaluate(layout(m), m)

    return run


# Rows


def squad(folder: Path, train: int, test: int, context: int = 400) -> FinetuneConfig:
    """A finetuning on local rows of SQuAD's schema, four questions about a text, which are written here."""
    words = "the river runs past an old mill where grain was once ground into flour "
    for split, count in (("train", train), ("validation", test)):
        path = folder / "squad" / f"{split}.jsonl"
        path.parent.mkdir(exist_ok=True)
        with path.open("w") as file:
            for number in range(count):
                text = f"{split} {number // 4}: " + words * (context // len(words) + 1)
                answers = {"text": ["mill"], "answer_start": [0]}
                row = {"id": f"{split} {number}", "question": f"Where, {number}?", "answers": answers}
                file.write(json.dumps({**row, "context": text[:context]}) + "\n")
    return FinetuneConfig(
        task=TaskConfig(name="squad"),
        model=MODEL,
        data=DataConfig(source=Source.files, root=str(folder)),
        corpus=CorpusConfig(name="c4", field="text"),
        tokenizer=TokenizerConfig(kind=TokenizerKind.byte),
        tracking=TrackingConfig(enabled=False),
        k=10,
        runs=str(folder / "runs"),
    ).resolved()


def opened(config: FinetuneConfig) -> GeneratedRows | DatasetRows:
    return open_task(config.task, config.text)


def start_up(train: int, folder: Path, context: int = 400, limit: int = 1024) -> Callable[[], None]:
    """Everything between the files and the first batch."""
    config = squad(folder, train, 100, context)

    def run() -> None:
        rows = open_task(config.task, config.text)
        assert isinstance(rows, DatasetRows)
        DatasetBatches(rows, layout(10), TOKENIZER, limit).batches(0, 16).batch(1)

    return run


# Folders


def dry_run(cells: int, folder: Path) -> Callable[[], None]:
    """The demo has about 30 cells a seed, half of them evaluations."""
    words = ["reproduce", "result=demo", f"seeds={cells // 30}", "dry_run=true", f"runs={folder}"]

    def run() -> None:
        assert cli.run(words) == 0

    return run


def parents(count: int, folder: Path, finetunings: int = 50) -> Callable[[], None]:
    """The search for a parent that is not there by several finetunings, among so many pretrained runs."""
    config = squad(folder, 1, 1)
    for number in range(count):
        run = RunFolder(config.runs, "pretrain", f"run-{number}")
        run.create()
        content = {"command": "pretrain", "model": plain(config.model), "tokenizer": "another", "seed": number}
        (run.path / "manifest.json").write_text(json.dumps({**content, "versions": ["1.2.3"] * 20}))

    def search() -> None:
        for seed in range(finetunings):
            with contextlib.suppress(BadInput):
                find_parent(replace(config.parent, seed=seed), config.runs, TOKENIZER.fingerprint)

    return search


def resume(rows: int, folder: Path) -> Callable[[], None]:
    run = RunFolder(folder, "pretrain", "run")
    run.create()
    row = {"loss": 2.5, "lr": 1e-4, "grad_norm": 1.0, "tokens": 1, "tokens_per_second": 1e5, "mfu": 0.4}
    content = "".join(json.dumps({"step": step, **row}) + "\n" for step in range(rows))
    (run.path / "metrics.jsonl").write_text(content)
    return lambda: run.cut_metrics(rows - 10)


SPLIT = CHARACTERS = (1000, 3000, 10_000, 30_000)
AXES = (
    Axis("tokens in a row (4,096 a step)", (128, 256, 512, 1024, 2048), lambda n, _: pretraining_step(4096 // n, n)),
    Axis("rows of a pretraining step (128 tokens)", (8, 16, 32, 64), lambda n, _: pretraining_step(n, 128)),
    Axis("K (a finetuning step, 16 rows)", (0, 10, 25, 50, 100), finetuning_step),
    Axis("M (32 test rows)", (0, 10, 25, 50, 100), evaluation),
    Axis("batch size of finetuning", (8, 16, 32, 64), lambda n, files: finetuning_step(10, files, n)),
    Axis("batch size of evaluation (64 rows)", (8, 16, 32, 64), lambda n, files: evaluation(10, files, 64, 400, n)),
    Axis("test rows", (16, 32, 64, 128), lambda n, files: evaluation(10, files, n)),
    Axis("training rows (start-up)", SPLIT, start_up),
    Axis("characters of 200 contexts (start-up)", (1000, 10_000, 100_000), lambda n, files: start_up(200, files, n)),
    Axis("characters of a context (evaluation, 1 row)", CHARACTERS, lambda n, files: evaluation(10, files, 1, n)),
    Axis("cells of a study (dry run)", (30, 90, 300, 900), dry_run),
    Axis("pretrained runs (50 finetunings look for a parent)", (10, 100, 1000), parents),
    Axis("rows of metrics.jsonl (resume)", (1000, 10_000, 100_000), resume),
)


if __name__ == "__main__":
    main()
