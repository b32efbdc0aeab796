"""``pausebench plan``: what a study would cost before anybody runs it. Trains nothing, writes nothing but ``json=``.

The cells are those of ``reproduce``; the arithmetic is in ``study.cost``, the rows' lengths come from ``row_lengths``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from pausebench.config.commands import PlanConfig
from pausebench.config.devices import DEVICES, Device
from pausebench.config.groups import Parallel, Precision, Source, TokenizerKind
from pausebench.config.training import FinetuneConfig, PretrainConfig, TrainingConfig
from pausebench.model.flops import parameters
from pausebench.runs.folder import write_json
from pausebench.study import cost
from pausebench.study.cost import PlannedCell, RowLengths
from pausebench.study.plan import Cells, Plan, build_plan, study_precision
from pausebench.study.row_lengths import SAMPLED_ROWS, length_limit, row_lengths, vocabulary
from pausebench.training.device import peak_flops


def run(config: PlanConfig, cells: Cells) -> dict[str, Any]:
    """Print what the study costs, what dominates, and whether its largest pretraining fits into a device."""
    # The precision is that of the device asked about, which need not be this machine.
    precision = study_precision(config, cells, None) if config.gpu == "cpu" else Precision.bf16
    plan, device = build_plan(config, cells, precision), _device(config)
    planned = planned_cells(plan, config, device)
    console = Console(highlight=False, markup=False)
    command = plan.command()
    console.print(f"{command}\n{_assumptions(config, device)}\n", soft_wrap=True)
    console.print(_stage_table(planned, config))
    for line in ["", *_remarks(plan, planned, config, device)]:
        console.print(line, soft_wrap=True)
    if config.json is not None:
        about = {"command": command, "gpu": config.gpu, "gpus": config.gpus, "mfu": config.mfu}
        write_json(Path(config.json), about | cost.as_json(planned))
    return {"names": []}


def planned_cells(plan: Plan, config: PlanConfig, device: Device) -> list[PlannedCell]:
    """Every cell with its cost."""
    trained = {cell.name: cell for cell in plan.cells() if cell.config is not None}

    def lengths_of(finetuned: FinetuneConfig, name: str) -> RowLengths:
        parents = [trained[parent.name].config for parent in trained[name].parents]
        return row_lengths(finetuned, length_limit(finetuned, parents))

    found = []
    for cell in plan.cells():
        made = cell.config
        if isinstance(made, PretrainConfig):
            spent = cost.pretrain_cost(made, vocabulary(made), device, config.mfu)
        elif isinstance(made, FinetuneConfig):
            spent = cost.finetune_cost(made, lengths_of(made, cell.name), vocabulary(made), device, config.mfu)
        else:
            evaluation, run = cell.evaluation, cell.parents[0].name
            finetuned = trained[run].config
            assert evaluation is not None and isinstance(finetuned, FinetuneConfig)
            lengths, vocab_size = lengths_of(finetuned, run), vocabulary(finetuned)
            spent = cost.evaluate_cost(
                evaluation, finetuned, lengths, vocab_size, device, config.mfu, config.answer_tokens
            )
        found.append(PlannedCell(cell.command, cell.name, cell.done(), spent))
    return found


def _device(config: PlanConfig) -> Device:
    if config.gpu == "cpu":
        peaks = [peak_flops(torch.device("cpu"), kind, 1) for kind in (torch.bfloat16, torch.float32, torch.float64)]
        device = Device("cpu", *peaks)
    else:
        device = DEVICES[config.gpu]
    return device if config.peak_tflops is None else device.with_bf16(config.peak_tflops * 1e12)


def _assumptions(config: PlanConfig, device: Device) -> str:
    source = "measured here, one core" if config.gpu == "cpu" else "data sheet, dense"
    source = source if config.peak_tflops is None else "given"
    memory = f", {device.memory / 1e9:.0f} GB" if device.memory else ""
    return (
        f"{config.gpus} x {device.name}: {device.bf16 / 1e12:.4g} TFLOP/s in bf16 ({source}), "
        f"{device.fp64 / 1e12:.3g} in fp64, in which evaluation computes{memory}\n"
        f"mfu={config.mfu:g} is an assumption: measure yours (metrics.jsonl has it) and give mfu="
    )


def _stage_table(planned: Sequence[PlannedCell], config: PlanConfig) -> Table:
    """A line per stage, then what is paid, what is to pay, and the total."""
    unit = "core" if config.gpu == "cpu" else "GPU"
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("stage", "cells", "tokens", "FLOPs", f"{unit}-hours", "wall time", "checkpoints", "disk"):
        table.add_column(name, justify="left" if name == "stage" else "right", no_wrap=True)
    sums = cost.by_command(planned)
    if any(cell.paid for cell in planned):
        sums["paid"] = cost.total([cell for cell in planned if cell.paid])
        sums["to pay"] = cost.total([cell for cell in planned if not cell.paid])
    for name, spent in [*sums.items(), ("total", cost.total(planned))]:
        table.add_row(
            name,
            str(spent.cells),
            _count(spent.tokens),
            f"{spent.flops:.2e}",
            _hours(spent.seconds),
            _time(spent.wall_seconds(config.gpus)),
            f"{spent.checkpoints:,}",
            _bytes(spent.disk),
        )
    return table


def _remarks(plan: Plan, planned: Sequence[PlannedCell], config: PlanConfig, device: Device) -> Iterator[str]:
    """What dominates, what the wall time assumes, what fits, and where the numbers come from."""
    stages = cost.by_command(planned)
    stage, share = cost.dominant(stages, "seconds")
    yield f"Time: {100 * share:.1f} % is {stage}."
    hoarder, disk = cost.dominant(stages, "disk")
    written = sum(spent.written for spent in stages.values())
    line = f"Disk: {100 * disk:.1f} % is {hoarder}; {_bytes(written)} of checkpoints are written and pruned on the way."
    if stages[hoarder].checkpoints > stages[hoarder].cells:
        line += " 'overrides=[\"train.keep_checkpoints=1\"]' keeps at most two a run."
    yield line
    divided = cost.total(planned).wall_seconds(config.gpus)
    apart = divided + sum(
        spent.wall_seconds_undivided(config.gpus) - spent.wall_seconds(config.gpus)
        for command, spent in stages.items()
        if command != "pretrain"
    )
    if apart > 1.01 * divided:
        yield (
            f"Wall time divides the work evenly over {config.gpus} devices. Finetunings and evaluations take one "
            f"device each: with those side by side it is at least {_time(apart)}."
        )
    yield from _memory(plan, config, device)
    made = [cell.config for cell in plan.cells() if cell.config is not None]
    yield f"Rows: {_rows(made)}. Formulas: docs/cost.md."


def _memory(plan: Plan, config: PlanConfig, device: Device) -> Iterator[str]:
    """Whether a step of the largest pretraining fits into a device, where its memory is known."""
    pretrains = [cell.config for cell in plan.stages.get("pretrain", []) if isinstance(cell.config, PretrainConfig)]
    if device.memory is None or not pretrains:
        return
    largest = max(pretrains, key=lambda made: parameters(made.model, vocabulary(made)))
    train, length = largest.train, largest.sequence_length
    assert length is not None  # resolved
    share = math.ceil(train.batch_size / config.gpus)
    rows = min(train.micro_batch_size or share, share)
    needed = cost.step_bytes(
        largest.model,
        vocabulary(largest),
        length,
        rows,
        precision=largest.precision,
        activation_checkpointing=train.activation_checkpointing,
        shards=config.gpus if largest.parallel is Parallel.fsdp else 1,
    )
    room = (1 - cost.RESERVE) * device.memory
    line = (
        f"Memory: model={largest.model.name} needs about {_bytes(needed)} on a device with micro-batches of {rows} x "
        f"{length:,} tokens; {100 * (1 - cost.RESERVE):.0f} % of {device.name}'s memory is {_bytes(room)}"
    )
    if needed <= room:
        yield f"{line}: it fits."
    else:
        yield (
            f"{line}: it does not fit. A smaller train.micro_batch_size=, train.activation_checkpointing=true or "
            "parallel=fsdp needs less."
        )


def _rows(made: Sequence[TrainingConfig]) -> str:
    if made[0].data.source is not Source.hub:
        return f"lengths are those of {SAMPLED_ROWS} rows of each split, in the tokens of this study"
    gpt2 = all(config.tokenizer.kind is TokenizerKind.gpt2 for config in made)
    return "typical lengths of the published rows in GPT-2's tokens" + ("" if gpt2 else "; yours are other tokens")


def _count(number: float) -> str:
    for size, name in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if number >= size:
            return f"{number / size:.4g} {name}"
    return f"{number:,.0f}"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.2f}" if seconds < 360_000 else f"{seconds / 3600:,.0f}"


def _time(seconds: float) -> str:
    for size, name in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {name}"
    return f"{seconds:.0f} s"


def _bytes(number: float) -> str:
    for size, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if number >= size:
            return f"{number / size:,.1f} {name}"
    return f"{number / 1e3:,.0f} kB"
