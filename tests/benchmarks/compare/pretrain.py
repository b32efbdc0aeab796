"""A pretraining step without pauses: our trainer beside a plain loop over transformers' GPT-2 and over litgpt's GPT.

Both sides read the same rows, which are ready; ours and GPT-2 start from the same weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

import torch

from pausebench.data.batch import Batch
from pausebench.model.fast import FastDecoder
from tests.benchmarks.compare import gpt2, litgpt
from tests.benchmarks.compare.contest import OURS, Contender, Line, alternate
from tests.benchmarks.compare.gpt2 import Loop
from tests.benchmarks.compare.setting import OurTraining, Setting, as_batches, ready, stepping

TARGETS = {"transformers, eager": 4.0, "transformers, compiled": 1.6, "litgpt, compiled": 1.0}
ROWS = 4
MADE = 8  # batches that are read in turn
SAME = 1e-4  # relative difference of two float32 losses that are the same mathematics


def run(setting: Setting) -> list[Line]:
    given = setting.options
    rows, length = given.batch_size or ROWS, given.sequence_length or 512
    config = setting.pretraining(length, rows)
    model = setting.build(config)
    batches = ready(setting.text(config), MADE)
    tokens = rows * length
    contenders: list[Contender] = []
    checks: dict[str, dict[str, Any]] = {}
    if absent := gpt2.missing("transformers"):
        setting.note(f"pretrain: {absent}")
    else:
        same = same_loss(model, batches[0], gpt2.gpt2_of(model))
        for name, compiled in (("eager", False), ("compiled", True)):
            if name in given.peers:
                called = f"transformers, {name}"
                loop = Loop(gpt2.gpt2_of(model), gpt2.causal_loss, bf16=setting.bf16, compiled=compiled)
                contenders.append(_contender(called, loop, batches, tokens, setting))
                checks[called] = same
    if "litgpt" in given.peers:
        if absent := litgpt.missing():
            setting.note(f"pretrain: {absent}")
        else:
            theirs = litgpt.build(setting.model, setting.tokenizer.vocab_size, length).to(setting.device)
            called = "litgpt, compiled"
            loop = Loop(theirs, litgpt.loss_of, bf16=setting.bf16, compiled=True)
            contenders.append(_contender(called, loop, batches, tokens, setting))
            checks[called] = {
                "note": "rotary positions: the same shape, other weights",
                "parameters_theirs": sum(parameter.numel() for parameter in theirs.parameters()),
            }
    if not contenders:
        return []
    ours = OurTraining(setting, config, model, as_batches(batches), tokens).contender(warm_up=2)
    rates = alternate([ours, *contenders], given.repeats, setting.note)
    flops = model.flops_per_token(length)
    return [
        Line(
            "pretrain",
            f"step of {rows} x {length} tokens",
            contender.name,
            "tokens/s",
            rates[OURS],
            rates[contender.name],
            TARGETS[contender.name],
            flops=flops,
            checks=checks[contender.name],
        )
        for contender in contenders
        if contender.name in rates
    ]


@torch.no_grad()
def same_loss(model: FastDecoder, batch: Batch, theirs: Any) -> dict[str, Any]:
    """Whether both give the first batch the same loss before any step, in float32."""
    device = model.token_embedding.weight.device
    input_ids, labels = batch.input_ids.to(device), batch.labels.to(device)
    return compared(
        float(model.summed_loss(batch) / batch.supervised),
        float(gpt2.causal_loss(theirs, input_ids, labels)),
    )


def compared(ours: float, theirs: float) -> dict[str, Any]:
    return {"same_loss": abs(ours - theirs) <= SAME * abs(theirs), "loss_ours": ours, "loss_theirs": theirs}


def _contender(name: str, loop: Loop, batches: Sequence[Batch], tokens: int, setting: Setting) -> Contender:
    placed = [(batch.input_ids.to(setting.device), batch.labels.to(setting.device)) for batch in batches]
    numbers = count()

    def steps(wanted: int) -> None:
        for _ in range(wanted):
            loop.step(*placed[next(numbers) % len(placed)])

    return stepping(name, steps, tokens, setting, warm_up=2)
