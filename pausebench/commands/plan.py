"""``pausebench plan``: what a study would cost before anybody runs it. Trains nothing, writes nothing but ``json=``.

The cells are those of ``reproduce``; the arithmetic is ``study.cost``, the rows' lengths come from ``row_lengths``.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from pausebench.config.commands import PlanConfig
from pausebench.config.groups import Precision, Source, TokenizerKind
from pausebench.config.training import FinetuneConfig, PretrainConfig, TrainingConfig
from pausebench.model.flops import matrix_weights, parameters, training_flops_per_token
from pausebench.runs.folder import write_json
from pausebench.study import cost
from pausebench.study.cost import (
    Cost,
    Device,
    Layout,
    PlannedCell,
    RowLengths,
)
from pausebench.study.plan import Cells, Plan, build_plan, study_precision, study_seeds
from pausebench.study.row_lengths import SAMPLED_ROWS, length_limit, row_lengths, vocabulary
from pausebench.training.device import peak_flops

TOKENS_A_PARAMETER = 20  # Hoffmann et al. 2022
DEVICES = (1, 8, 64)  # whose memory is shown, beside gpus=
WORTH_A_TABLE = 1e9  # bytes of weights, gradients and moments from which memory is a question


@dataclass(frozen=True)
class Version:
    """A smaller study: what it leaves out, the command that runs it, and its cells."""

    what: str
    command: str
    cells: list[PlannedCell]


def run(config: PlanConfig, cells: Cells) -> dict[str, Any]:
    """Print what the study costs, what dominates, and what smaller versions of it cost."""
    plan, device = build_plan(config, cells, _precision(config, cells)), _device(config)
    planned = planned_cells(plan, config, device)
    versions = smaller_versions(plan, config, cells, device) if config.smaller else []
    console = Console(highlight=False, markup=False)
    command = plan.command()
    console.print(f"{command}\n{_assumptions(config, device)}\n", soft_wrap=True)
    console.print(_stage_table(planned, config))
    for line in [*_remarks(plan, planned, config, device), ""]:
        console.print(line, soft_wrap=True)
    pretrain = _largest_pretraining(plan)
    layouts = [] if pretrain is None else _layouts(pretrain, config, device)
    if pretrain is not None and layouts[0].memory.states > WORTH_A_TABLE:
        console.print(f"{_layout_title(pretrain, config, device)}:", soft_wrap=True)
        console.print(_layout_table(layouts))
        console.print(
            f"Rows of a micro-batch: train.micro_batch_size, and the most that fit, of {pretrain.train.batch_size} a "
            "step. train.activation_checkpointing=true recomputes activations, parallel=fsdp shares the weights.\n",
            soft_wrap=True,
        )
    for line in _formulas(plan, planned, config, device):
        console.print(line, soft_wrap=True)
    if versions:
        console.print("\nSmaller versions; each is the command that runs it:", soft_wrap=True)
        for version in versions:
            console.print(f"  {version.what}: {_in_short(cost.total(version.cells), config)}", soft_wrap=True)
            console.print(f"    {version.command}", soft_wrap=True)
    if config.json is not None:
        about = {"command": command, "gpu": config.gpu, "gpus": config.gpus, "mfu": config.mfu}
        smaller = [{"what": v.what, "command": v.command, "total": cost.as_json(v.cells)["total"]} for v in versions]
        more = {"smaller": smaller, "layouts": [layout.as_json() for layout in layouts]}
        write_json(Path(config.json), about | cost.as_json(planned) | more)
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


def smaller_versions(plan: Plan, config: PlanConfig, cells: Cells, device: Device) -> list[Version]:
    """Fewer tokens, tasks or seeds, or the smaller of the paper's models: those that make this study smaller."""
    words = shlex.split(plan.command())[2:]
    offered: list[tuple[str, list[str]]] = []
    pretrain = next((c.config for c in plan.stages.get("pretrain", []) if isinstance(c.config, PretrainConfig)), None)
    if pretrain is not None and not pretrain.text.embedded:
        tokens = TOKENS_A_PARAMETER * parameters(pretrain.model, vocabulary(pretrain))
        steps = round(tokens / (pretrain.train.batch_size * (pretrain.sequence_length or 0)))
        if steps < pretrain.train.steps:
            fewer = [*config.pretrain_overrides, f"train.steps={steps}"]
            kept = [word for word in words if not word.startswith("pretrain_overrides=")]
            listed = ",".join(f'"{item}"' for item in fewer)
            offered.append(
                (f"{TOKENS_A_PARAMETER} pretraining tokens a parameter", [*kept, f"pretrain_overrides=[{listed}]"])
            )
    if len(study_seeds(config)) > 3:
        offered.append(("three seeds", [*(word for word in words if not word.startswith("seeds=")), "seeds=3"]))
    tasks = list(dict.fromkeys(cell.task for panel in plan.panels for cell in panel.cells))
    if len(tasks) > 2:
        kept = [word for word in words if not word.startswith("task=")]
        offered.append(("two tasks", [*kept, f"task=[{','.join(tasks[:2])}]"]))
    if "model=1b" in words:
        offered.append(("the paper's smaller model", ["model=130m" if word == "model=1b" else word for word in words]))
    versions = []
    for what, overrides in offered:
        smaller: PlanConfig = cells.compose("plan", overrides)
        smaller = replace(smaller, mfu=config.mfu, answer_tokens=config.answer_tokens)
        planned = planned_cells(build_plan(smaller, cells, _precision(smaller, cells)), smaller, device)
        versions.append(Version(what, f"pausebench reproduce {shlex.join(overrides)}", planned))
    return versions


def _precision(config: PlanConfig, cells: Cells) -> Precision:
    """That of the device asked about, which need not be this one."""
    return study_precision(config, cells, None) if config.gpu == "cpu" else Precision.bf16


def _device(config: PlanConfig) -> Device:
    if config.gpu == "cpu":
        peaks = [peak_flops(torch.device("cpu"), kind, 1) for kind in (torch.bfloat16, torch.float32, torch.float64)]
        device = Device("cpu", *peaks)
    else:
        device = cost.DEVICES[config.gpu]
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
    """A line a stage, then what is paid, to pay, and all."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("stage", "cells", "tokens", "FLOPs", f"{_unit(config)}-hours", "wall time", "checkpoints", "disk"):
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


def _largest_pretraining(plan: Plan) -> PretrainConfig | None:
    largest = _largest(plan)
    return largest if isinstance(largest, PretrainConfig) else None


def _layouts(pretrain: PretrainConfig, config: PlanConfig, device: Device) -> list[Layout]:
    counts = sorted({*DEVICES, config.gpus})
    return cost.layouts(pretrain, vocabulary(pretrain), device, config.mfu, counts)


def _layout_title(pretrain: PretrainConfig, config: PlanConfig, device: Device) -> str:
    room = (
        "" if device.memory is None else f" (fits: within {100 * (1 - cost.RESERVE):.0f} % of {_bytes(device.memory)})"
    )
    return (
        f"Pretraining model={pretrain.model.name} on rows of {pretrain.sequence_length:,} tokens in "
        f"{pretrain.precision.value}: memory of a device{room}, tokens/s of all at mfu={config.mfu:g}"
    )


def _layout_table(layouts: Sequence[Layout]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("devices", "parallel", "activations", "rows", "memory", "fits", "most rows", "tokens/s"):
        table.add_column(name, justify="left" if name in ("parallel", "activations") else "right", no_wrap=True)
    for layout in layouts:
        table.add_row(
            str(layout.devices),
            layout.parallel.value if layout.devices > 1 else "",
            "recomputed" if layout.activation_checkpointing else "kept",
            str(layout.rows),
            _bytes(layout.memory.total),
            "" if layout.fits is None else "yes" if layout.fits else "no",
            "" if layout.largest_rows is None else str(layout.largest_rows),
            f"{layout.tokens_per_second:,.0f}",
        )
    return table


def _remarks(plan: Plan, planned: Sequence[PlannedCell], config: PlanConfig, device: Device) -> list[str]:
    """What dominates, what does not fit, and what the wall time takes for granted."""
    stages = cost.by_command(planned)
    stage, share = cost.dominant(stages, "seconds")
    lines = ["", f"Time: {100 * share:.1f} % is {stage}."]
    hoarder, disk = cost.dominant(stages, "disk")
    written = sum(spent.written for spent in stages.values())
    line = f"Disk: {100 * disk:.1f} % is {hoarder}; {_bytes(written)} of checkpoints are written and pruned on the way."
    if stages[hoarder].checkpoints > stages[hoarder].cells:
        line += " 'overrides=[\"train.keep_checkpoints=1\"]' keeps at most two a run."
    lines.append(line)
    divided = cost.total(planned).wall_seconds(config.gpus)
    apart = divided + sum(
        spent.wall_seconds_undivided(config.gpus) - spent.wall_seconds(config.gpus)
        for command, spent in stages.items()
        if command != "pretrain"
    )
    if apart > 1.01 * divided:
        lines.append(
            f"Wall time divides the work evenly over {config.gpus} devices. Finetunings and evaluations take one "
            f"device each: with those side by side it is at least {_time(apart)}."
        )
    largest = _largest(plan)
    if largest is not None:
        needed = cost.TRAINING_BYTES * parameters(largest.model, vocabulary(largest))
        if device.memory is not None and needed > device.memory:
            lines.append(
                f"Memory: model={largest.model.name} needs {_bytes(needed)} for weights, gradients and moments alone; "
                f"{device.name} has {_bytes(device.memory)}."
            )
    return lines


def _formulas(plan: Plan, planned: Sequence[PlannedCell], config: PlanConfig, device: Device) -> list[str]:
    """Every quantity's formula, with the numbers of a cell of this study."""
    lines = ["Formulas (docs/cost.md), with the numbers of the largest model here:"]
    made = [cell.config for cell in plan.cells() if cell.config is not None]
    largest = _largest(plan)
    assert largest is not None
    pretrain = next((c for c in made if isinstance(c, PretrainConfig) and c.model == largest.model), None)
    model, vocab_size = largest.model, vocabulary(largest)
    if pretrain is not None and pretrain.sequence_length is not None:
        train, length = pretrain.train, pretrain.sequence_length
        tokens = train.steps * train.batch_size * length
        each = training_flops_per_token(model, vocab_size, length)
        lines += [
            f"  pretraining tokens = steps x batch x length = {train.steps:,} x {train.batch_size} x {length:,} = "
            f"{_count(tokens)} a run",
            f"  pretraining FLOPs a token = 6 x matrix weights + 12 x layers x width x length = "
            f"6 x {matrix_weights(model, vocab_size):,} + 12 x {model.n_layers} x {model.d_model:,} x {length:,} = "
            f"{each:.2e}",
        ]
    weights = matrix_weights(model, vocab_size)
    head = vocab_size * model.d_model
    lines += [
        f"  answer FLOPs = 2 x {weights - head:,} x positions + 4 x {model.n_layers} x {model.d_model:,} x attended "
        f"pairs + 2 x {head:,} x tokens predicted; positions = prefix + pauses + answer - 1",
        "  finetuning FLOPs = steps x batch x 3 x that of a row; evaluation FLOPs = that of every row's windows, or "
        "candidates, and of its target",
        f"  {_unit(config)}-hours = FLOPs / (peak x {config.mfu:g}) / 3600; wall time = that / {config.gpus} devices",
        f"  checkpoint = {cost.CHECKPOINT_BYTES} bytes x {parameters(model, vocab_size):,} parameters = "
        f"{_bytes(cost.checkpoint_bytes(model, vocab_size))} (float32 weights, AdamW's two moments)",
        "  checkpoints kept = train.keep_checkpoints (the final one among them) + the best one, at most",
        f"  text: {_text(made[0])}",
        f"  rows: {_rows(made)}",
    ]
    return lines


def _text(config: TrainingConfig) -> str:
    if config.data.source is Source.hub:
        return "streamed from the hub, nothing is stored"
    return "read where it lies, nothing is stored" if config.data.source is Source.files else "generated"


def _rows(made: Sequence[TrainingConfig]) -> str:
    if made[0].data.source is not Source.hub:
        return f"lengths are those of {SAMPLED_ROWS} rows of each split, in the tokens of this study"
    gpt2 = all(config.tokenizer.kind is TokenizerKind.gpt2 for config in made)
    return "typical lengths of the published rows in GPT-2's tokens" + ("" if gpt2 else "; yours are other tokens")


def _largest(plan: Plan) -> TrainingConfig | None:
    """A config with the largest model, of the pretrainings where there are some."""
    cells = plan.stages.get("pretrain") or plan.cells()
    made = [cell.config for cell in cells if cell.config is not None]
    return max(made, key=lambda config: parameters(config.model, vocabulary(config)), default=None)


def _in_short(spent: Cost, config: PlanConfig) -> str:
    return (
        f"{_count(spent.tokens)} tokens, {spent.flops:.2e} FLOPs, {_hours(spent.seconds)} {_unit(config)}-hours, "
        f"{_time(spent.wall_seconds(config.gpus))}, {_bytes(spent.disk)}"
    )


def _unit(config: PlanConfig) -> str:
    return "core" if config.gpu == "cpu" else "GPU"


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
