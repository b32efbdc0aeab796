"""Finetuning on SQuAD: our packed rows beside transformers' Trainer with rows padded to the longest of their batch.

The same examples in the same order and batch size, K pauses between prefix and target, labels on the target alone, a
causal prefix: a plain GPT-2 attends so. The Trainer's collator works within its steps, our packing within ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pausebench.commands.finetune import length_limit
from pausebench.config.groups import AttentionKind
from pausebench.data.batch import Batch
from pausebench.data.batches import BLOCK_EXAMPLES, DatasetBatches, RowLayout
from pausebench.data.examples import Tokens
from pausebench.data.task_rows import DatasetRows, open_task
from pausebench.model.fast import FastDecoder
from pausebench.model.flops import finetuning_flops
from pausebench.pauses import IGNORE_INDEX
from pausebench.runs import lineage
from pausebench.tasks import TASKS
from tests.benchmarks.compare import gpt2
from tests.benchmarks.compare.contest import OURS, Line, alternate
from tests.benchmarks.compare.hf_trainer import Row, SteppedTrainer, padded
from tests.benchmarks.compare.pretrain import compared
from tests.benchmarks.compare.setting import OurTraining, Setting, stepping

TARGETS = {"transformers Trainer, eager": 5.0, "transformers Trainer, compiled": 2.5}
EXAMPLES = 16
WARM_UP = {"eager": 1, "compiled": 4}  # the compiler meets a second and third length before it settles on any
OUR_WARM_UP = 2
FIRST = max(WARM_UP.values())  # batches before the first timed one; who warms up for less begins later


def run(setting: Setting) -> list[Line]:
    given = setting.options
    size = given.batch_size or EXAMPLES
    config = setting.finetuning("squad", size)
    rows = open_task(config.task, config.text)
    layout = RowLayout.of(config.policy, config.prefix, TASKS["squad"], setting.tokenizer)
    assert isinstance(rows, DatasetRows)
    packed = DatasetBatches(rows, layout, setting.tokenizer, length_limit(config, lineage.RANDOM)[0])
    batches = packed.batches(config.seed, size)
    if absent := gpt2.missing("transformers", "accelerate"):
        setting.note(f"finetune: {absent}")
        return []
    steps = FIRST + given.steps * given.repeats + 1
    pairs = [packed.fitting[number] for number in rows.training(config.seed, 0, steps * size)]
    fitting = [pair for pair in pairs if pair is not None]
    theirs = [as_row(prefix, target, layout) for prefix, target in fitting]
    model = setting.build(config)
    checks = same_loss(model, batches.batch(1), gpt2.gpt2_of(model), theirs[:size], setting.tokenizer.end_id)
    contenders = []
    if "trainer" in given.peers:
        for name in [name for name in WARM_UP if name in given.peers]:
            trainer = SteppedTrainer(
                gpt2.gpt2_of(model),
                theirs[(FIRST - WARM_UP[name]) * size :],
                pad_id=setting.tokenizer.end_id,
                batch_size=size,
                bf16=setting.bf16,
                compiled=name == "compiled",
                cpu=setting.device.type == "cpu",
                scratch=setting.scratch,
            )
            called = f"transformers Trainer, {name}"
            contenders.append(stepping(called, trainer.steps, size, setting, WARM_UP[name], trainer.close))
    if not contenders:
        return []
    ours = OurTraining(setting, config, model, batches, size, max(1, BLOCK_EXAMPLES // size))
    ours.step = FIRST - OUR_WARM_UP
    rates = alternate([ours.contender(warm_up=OUR_WARM_UP), *contenders], given.repeats, setting.note)
    prefix, answer = (sum(len(pair[side]) for pair in fitting) / len(fitting) for side in (0, 1))
    flops = finetuning_flops(
        setting.model, setting.tokenizer.vocab_size, prefix + given.k, answer, AttentionKind.causal, len(layout.cue)
    )
    mean = prefix + given.k + len(layout.cue) + answer
    return [
        Line(
            "finetune",
            f"squad, {size} examples a step, K={given.k}, {mean:.0f} tokens an example",
            contender.name,
            "examples/s",
            rates[OURS],
            rates[contender.name],
            TARGETS[contender.name],
            flops=flops,
            checks=checks,
        )
        for contender in contenders
        if contender.name in rates
    ]


def as_row(prefix: Tokens, target: Tokens, layout: RowLayout) -> Row:
    """Prefix, K pauses, cue, target: labels on the target alone."""
    before = [*prefix, *[layout.pause_id] * layout.policy.longest, *layout.cue.tolist()]
    return {"input_ids": [*before, *target], "labels": [IGNORE_INDEX] * len(before) + list(target)}


@torch.no_grad()
def same_loss(model: FastDecoder, batch: Batch, theirs: Any, rows: Sequence[Row], pad_id: int) -> dict[str, Any]:
    """Whether packed and padded rows of the first batch have the same loss before any step, in float32."""
    device = model.token_embedding.weight.device
    filled = {name: values.to(device) for name, values in padded(rows, pad_id).items()}
    ours = float(model.summed_loss(batch) / batch.supervised)
    return compared(ours, float(theirs(**filled, use_cache=False).loss))
