"""Greedy decoding of GSM8K and SQuAD prefixes with M pauses: ours beside transformers' ``generate``.

The weights are random, so that every row gets the same number of new tokens on both sides: neither may end early.
Rows are sorted by length and each side decodes all of them in the batch size that suits it best.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch

from pausebench.commands.finetune import length_limit
from pausebench.config.groups import AttentionKind
from pausebench.data.batches import EncodedExamples, RowLayout
from pausebench.data.examples import Tokens, encode, fit
from pausebench.data.task_rows import DatasetRows, open_task
from pausebench.evaluation.generate import generate
from pausebench.model.fast import FastDecoder
from pausebench.model.flops import inference_flops
from pausebench.runs import lineage
from pausebench.tasks import TASKS
from tests.benchmarks.compare import gpt2
from tests.benchmarks.compare.contest import OURS, Contender, Line, alternate, seconds
from tests.benchmarks.compare.setting import Setting

TARGET = 2.5
BATCH_SIZES = (8, 32, 128)
NEW_TOKENS = {"gsm8k": 64, "squad": 16}
PEER = "transformers generate"

Decode = Callable[[Sequence[Tokens]], list[list[int]]]


def run(setting: Setting) -> list[Line]:
    if absent := gpt2.missing("transformers"):
        setting.note(f"decode: {absent}")
        return []
    if "eager" not in setting.options.peers:
        return []
    return [line for task in NEW_TOKENS for line in _task(setting, task)]


def _task(setting: Setting, task: str) -> list[Line]:
    given, new_tokens = setting.options, setting.options.new_tokens or NEW_TOKENS[task]
    config = setting.finetuning(task, 1)
    rows = open_task(config.task, config.text)
    layout = RowLayout.of(config.policy, config.prefix, TASKS[task], setting.tokenizer)
    assert isinstance(rows, DatasetRows)
    room = length_limit(config, lineage.RANDOM)[0] - layout.given - new_tokens
    examples = encode(rows.test()[: given.rows], rows.task, setting.tokenizer)
    prefixes = sorted((fit(example, room).prefixes[0] for example in examples), key=len)
    model = setting.build(config).to(setting.dtype).eval()
    theirs = gpt2.gpt2_of(model).to(setting.dtype).eval()
    sides: dict[str, Decode] = {
        OURS: our_decoding(model, layout, setting.tokenizer.pause_id, new_tokens),
        PEER: their_decoding(theirs, layout, setting.tokenizer.pause_id, new_tokens),
    }
    tokens = len(prefixes) * new_tokens
    contenders, chosen = [], {}
    for name, decode in sides.items():
        chosen[name] = _best_size(decode, prefixes, given.batch_size, setting)
        contenders.append(_contender(name, decode, prefixes, chosen[name], tokens, setting))
    rates = alternate(contenders, given.repeats, setting.note)
    if PEER not in rates:
        return []
    compared = prefixes[: min(chosen.values())]
    pairs = list(zip(*(chain.from_iterable(decode(compared)) for decode in sides.values()), strict=True))
    mean = sum(map(len, prefixes)) / len(prefixes)
    flops = inference_flops(
        setting.model,
        setting.tokenizer.vocab_size,
        mean + given.k,
        new_tokens,
        AttentionKind.causal,
        len(layout.cue),
    )
    return [
        Line(
            "decode",
            f"{task}, {len(prefixes)} rows of {mean:.0f} + {given.k} pauses, {new_tokens} new tokens each",
            PEER,
            "new tokens/s",
            rates[OURS],
            rates[PEER],
            TARGET,
            flops=flops / new_tokens,
            checks={
                "batch_size_ours": chosen[OURS],
                "batch_size_theirs": chosen[PEER],
                "same_tokens": sum(ours == other for ours, other in pairs) / len(pairs),
            },
        )
    ]


def our_decoding(model: FastDecoder, layout: RowLayout, pause_id: int, new_tokens: int) -> Decode:
    """``generate`` with an end token that is never emitted: ``<pause>``."""

    def decode(prefixes: Sequence[Tokens]) -> list[list[int]]:
        rows = layout.inference_rows(EncodedExamples.of(prefixes, [[]] * len(prefixes), layout.pad_id))
        kind = layout.attention
        answers = generate(
            model, rows, kind, max_new_tokens=new_tokens, end_id=pause_id, pause_id=pause_id, means=False
        )
        return [answer.tokens for answer in answers]

    return decode


def their_decoding(model: Any, layout: RowLayout, pause_id: int, new_tokens: int) -> Decode:
    """``model.generate``, greedy, rows padded on the left, the pause token suppressed, no token that ends."""
    device = next(model.parameters()).device
    behind = [layout.pause_id] * layout.policy.longest + layout.cue.tolist()

    def decode(prefixes: Sequence[Tokens]) -> list[list[int]]:
        rows = [[*prefix, *behind] for prefix in prefixes]
        width = max(map(len, rows))
        input_ids = torch.tensor([[layout.pad_id] * (width - len(row)) + row for row in rows], device=device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
        decoded = model.generate(
            input_ids=input_ids,
            attention_mask=mask,
            max_new_tokens=new_tokens,
            do_sample=False,
            suppress_tokens=[pause_id],
            pad_token_id=layout.pad_id,
        )
        answers: list[list[int]] = decoded[:, width:].tolist()
        return answers

    return decode


def _in_batches(decode: Decode, prefixes: Sequence[Tokens], size: int) -> None:
    for start in range(0, len(prefixes), size):
        decode(prefixes[start : start + size])


def _best_size(decode: Decode, prefixes: Sequence[Tokens], given: int | None, setting: Setting) -> int:
    """The batch size in which this side is fastest, each tried once."""
    sizes = sorted({min(size, len(prefixes)) for size in BATCH_SIZES}) if given is None else [given]
    if len(sizes) == 1:
        return sizes[0]
    decode(prefixes[: sizes[0]])
    spent = {size: seconds(lambda size=size: _in_batches(decode, prefixes, size), setting.device) for size in sizes}
    return min(spent, key=spent.__getitem__)


def _contender(
    name: str, decode: Decode, prefixes: Sequence[Tokens], size: int, tokens: int, setting: Setting
) -> Contender:
    def timed() -> float:
        return tokens / seconds(lambda: _in_batches(decode, prefixes, size), setting.device)

    return Contender(name, lambda: decode(prefixes[:size]), timed)
