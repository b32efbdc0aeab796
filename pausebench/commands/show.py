"""``pausebench show``: print examples of a task exactly as a finetuning trains on them.

Invariant: rows, cuts, pauses, labels and mask come from the code that finetuning calls; only the printing is here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from pausebench.commands.finetune import length_limit
from pausebench.config.groups import PauseVisibility
from pausebench.config.training import ShowConfig
from pausebench.data.batches import EncodedExamples, RowLayout
from pausebench.data.examples import encode, fit
from pausebench.data.task_rows import GeneratedRows, open_task
from pausebench.data.tokenizer import Tokenizer
from pausebench.data.vocabulary import open_tokenizer
from pausebench.errors import BadInput
from pausebench.model.attention import AttentionMask
from pausebench.pauses import IGNORE_INDEX, Role, Rows
from pausebench.runs.lineage import RANDOM
from pausebench.tasks import TASKS, Example

# How many tokens of a long part are shown, at its start and at its end: in the list, and in the picture of the mask.
# The end of a prefix is the question, and the list should show it.
LISTED = {"prefix": (6, 10), "pause": (2, 2), "target": (10, 4)}
PICTURED = {"prefix": (3, 3), "pause": (2, 2), "target": (4, 2)}
PARTS = {Role.PREFIX.value: "prefix", Role.PAUSE.value: "pause", Role.TARGET.value: "target"}


def run(config: ShowConfig) -> dict[str, Any]:
    """Print the examples. Raises ``BadInput`` if there is no row ``start``."""
    task, rows = TASKS[config.task.name], open_task(config.task, config.text)
    tokenizer = open_tokenizer(config.text, config.runs)
    if isinstance(rows, GeneratedRows):
        examples, total = rows.training(config.seed, config.start, config.examples), "rows made without end"
    else:
        every = rows.training_side
        examples, total = every[config.start : config.start + config.examples], f"{len(every)} training rows"
        if not examples:
            raise BadInput(f"start={config.start}: task={task.name} has {total} here, numbered from 0.")
    layout = RowLayout.of(config.policy, config.prefix, task, tokenizer)
    # show looks for no parent, which need not exist yet, and takes the length that its pretraining has by default.
    pretrained = config.world.sequence_length if config.text.embedded else min(2048, config.model.max_positions)
    longest, _ = length_limit(config, replace(RANDOM, length=None if config.init == "random" else pretrained))
    room = longest - layout.given
    source = config.world.name if config.text.embedded else config.data.source.value
    print(
        f"{task.name}: {total} ({source}), tokenizer={config.tokenizer.kind.value}, K={config.label}, "
        f"placement={config.placement.value}, prefix={config.prefix.value}"
        + (
            f", pause_visibility={config.pause_visibility.value}"
            if config.pause_visibility is not PauseVisibility.all
            else ""
        )
        + (f", shift={config.shift}" if config.shift else "")
    )
    for number, encoded in enumerate(encode(examples, task, tokenizer)):
        # A long context has several windows. Training reads one a row, and the row's number says which.
        prefixes, cut = fit(encoded, room - len(encoded.target))
        row = config.start + number
        print(f"\nrow {row}" + (f"  (longer than {longest} tokens: {', '.join(cut)} cut)" if cut else ""))
        print(_text(examples[number]))
        read = EncodedExamples.of([prefixes[row % len(prefixes)]], [encoded.target], tokenizer.end_id)
        # The row's number matters: a random K is drawn from it and the seed.
        laid_out = layout.finetuning_rows(read, config.seed, torch.tensor([row]))
        print(_tokens(laid_out, tokenizer))
        print(_mask(laid_out, layout.mask(laid_out), tokenizer))
    return {"names": []}


def _text(example: Example) -> str:
    lines = [f"  {line}".rstrip() for line in _printable(f"{example.prefix}<pauses>{example.target}").split("\n")]
    if example.candidates:
        lines += ["candidates, scored by likelihood:", *(f" {_printable(text)}" for text in example.candidates)]
    elif example.references != (example.target.strip(),):
        lines.append(f"right in evaluation: {', '.join(map(repr, example.references))}")
    return "\n".join(lines)


def _printable(text: str) -> str:
    """Text that a terminal can print safely: control characters are escaped, except line breaks and tabs."""
    return "".join(char if char in "\n\t" or char.isprintable() else repr(char)[1:-1] for char in text)


def _chosen(rows: Rows, shown: dict[str, tuple[int, int]]) -> list[int | None]:
    """Positions to show; None marks positions left out."""
    parts = [PARTS[role] for role in rows.roles[0].tolist()]
    chosen: list[int | None] = []
    for name in dict.fromkeys(parts):
        places = [place for place, part in enumerate(parts) if part == name]
        first, last = shown[name]
        # Leaving out one position would not save a line.
        chosen += places if len(places) <= first + last + 1 else [*places[:first], None, *places[-last:]]
    return chosen


def _tokens(rows: Rows, tokenizer: Tokenizer) -> str:
    """One line per position: the token, its part, and the token that it is trained to predict."""
    ids, labels, roles = (part[0].tolist() for part in (rows.input_ids, rows.labels, rows.roles))
    positions = range(len(ids)) if rows.positions is None else rows.positions[0].tolist()
    lines = [f"{'at':>6}  {'token':<18}{'part':<8}trained to say"]
    for place in _chosen(rows, LISTED):
        if place is None:
            lines.append(f"{'...':>6}")
            continue
        said = "" if labels[place] == IGNORE_INDEX else _spelled(labels[place], tokenizer)
        lines.append(
            f"{positions[place]:>6}  {_spelled(ids[place], tokenizer):<18}{PARTS[roles[place]]:<8}{said}".rstrip()
        )
    return "\n".join(lines)


def _mask(rows: Rows, mask: AttentionMask, tokenizer: Tokenizer) -> str:
    """Who attends to whom, for some of the positions; a gap separates prefix, pauses and target."""
    ids, roles = rows.input_ids[0].tolist(), rows.roles[0].tolist()
    # None means plain causal attention, which needs no tensor.
    dense = mask.dense()
    allowed = torch.ones(len(ids), len(ids), dtype=torch.bool).tril() if dense is None else dense[0, 0]
    places = _chosen(rows, PICTURED)
    lines = ["    a line attends to the columns marked #, in the order of the lines"]
    for row in places:
        if row is None:
            lines.append(f"{'...':>24}")
            continue
        cells, before = "", roles[0]
        for column in places:
            if column is None:
                cells += ":"
                continue
            # The gap comes before the first column of a new part.
            cells += (" " if roles[column] != before else "") + ("#" if allowed[row, column] else ".")
            before = roles[column]
        lines.append(f"{_spelled(ids[row], tokenizer):>24}  {cells}")
    return "\n".join(lines)


def _spelled(index: int, tokenizer: Tokenizer) -> str:
    text = tokenizer.spelling(index)
    # Special tokens have a name; others are quoted, to show their spaces.
    return text if index >= tokenizer.end_id else repr(text)
