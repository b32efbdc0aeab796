"""What the trainer costs beside a bare torch loop of the same model and data: the demo's `mini` on parity, K = 8.

Both start from the same weights and read the same rows, on one thread. The bare loop has them as ready batches and does
nothing but forward, loss, backward, clipping and AdamW; the trainer makes its rows, sets the rate, watches for signals
and bad losses, logs, validates and checkpoints.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pausebench.config.groups import (
    AttentionKind,
    ModelConfig,
    Precision,
    TaskConfig,
    TokenizerConfig,
    TokenizerKind,
    TrainConfig,
    WorldConfig,
)
from pausebench.config.training import FinetuneConfig
from pausebench.console import Progress
from pausebench.data.batch import Batches
from pausebench.data.batches import RowLayout, generated_batches
from pausebench.data.task_rows import GeneratedRows
from pausebench.model.base import Model
from pausebench.tasks import TASKS
from pausebench.training import start
from pausebench.training.device import cpu_threads
from pausebench.training.parallel import ALONE
from pausebench.training.tracking import Tracker
from pausebench.training.trainer import Trainer
from tests.benchmarks.compare.contest import OURS, Contender, Line, alternate, seconds
from tests.benchmarks.compare.setting import OFF, Setting, group

TARGET = 0.9
PEER = "bare torch loop"
STEPS_EACH = 350  # `--steps 2`, the default, is then as long as the demo's runs
CPU = torch.device("cpu")


def run(setting: Setting, steps_each: int = STEPS_EACH) -> list[Line]:
    steps = steps_each * setting.options.steps
    config = FinetuneConfig(
        runs=str(setting.scratch),
        task=TaskConfig(name="parity"),
        model=ModelConfig(**group("model", "mini")),
        world=WorldConfig(**group("world", "count20")),
        tokenizer=TokenizerConfig(kind=TokenizerKind.words),
        prefix=AttentionKind.causal,
        k=8,
        precision=Precision.fp32,
        train=TrainConfig(steps=steps, lr=1.5e-3),
        tracking=OFF,
    ).resolved()

    def bare() -> float:
        model, batches = _made(config)
        rows = [batches.batch(step) for step in range(1, steps + 1)]
        optimizer = torch.optim.AdamW(model.parameters(), lr=1.5e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

        def loop() -> None:
            for batch in rows:
                hidden = model(batch.input_ids, last=1)[:, 0]
                loss: Tensor = F.cross_entropy(model.logits(hidden), batch.labels[:, -1])
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()

        return steps / seconds(loop, CPU)

    def ours() -> float:
        model, batches = _made(config)
        folder, progress = setting.folder("finetune"), Progress("compare", steps, quiet=True)
        tracker = Tracker(OFF, folder.path, "compare", {}, {}, progress)
        trainer = Trainer(
            model,
            batches,
            config.train,
            folder,
            precision=config.precision,
            device=CPU,
            tracker=tracker,
            progress=progress,
            ranks=ALONE,
        )
        return steps / seconds(trainer.train, CPU)

    contenders = [Contender(name, work, work) for name, work in ((OURS, ours), (PEER, bare))]
    with cpu_threads(1):
        rates = alternate(contenders, setting.options.repeats, setting.note)
    what = f"mini on parity, {steps} steps with logs and checkpoints, one thread"
    return [Line("overhead", what, PEER, "steps/s", rates[OURS], rates[PEER], TARGET)]


def _made(config: FinetuneConfig) -> tuple[Model, Batches]:
    rows = GeneratedRows(TASKS["parity"], config.world)
    tokenizer = rows.world.tokenizer
    layout = RowLayout.of(config.policy, config.prefix, rows.task, tokenizer)
    batches = generated_batches(rows, layout, config.seed, config.train.batch_size)
    model = start.build_model(config.model, tokenizer.vocab_size, config.seed, CPU, ALONE, precision=config.precision)
    return model, batches
