"""``pausebench bench``: speed and memory beside what people would use instead, taking turns on the same machine."""

from __future__ import annotations

import platform
import shlex
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from pausebench import __version__
from pausebench.bench import peak, table
from pausebench.bench.contest import Line
from pausebench.bench.setting import Setting
from pausebench.bench.workloads import WORKLOADS
from pausebench.config.commands import BenchConfig
from pausebench.config.options import identity_fields
from pausebench.console import Progress
from pausebench.errors import Interrupted
from pausebench.runs.folder import run_name, write_atomically, write_json
from pausebench.training.device import choose_device, cpu_threads, describe

VERSIONED = ("torch", "transformers", "accelerate", "litgpt")


def run(config: BenchConfig) -> dict[str, Any]:
    """Measure every workload asked for; what is done stands in the JSON and Markdown files at any time."""
    device = choose_device(config.device)
    out = _out(config)
    lines: list[Line] = []
    with tempfile.TemporaryDirectory() as scratch, cpu_threads(config.threads):
        setting = Setting(config, device, Path(scratch), Progress("bench", 0, config.quiet))
        tokens = (config.batch_size or 4) * (config.sequence_length or 512)
        reached = peak.measure(device, setting.dtype, config.model, tokens, setting.tokenizer.vocab_size)
        try:
            for name in config.work_list:
                if not config.quiet:
                    setting.progress.say(f"{name} ...")
                lines += WORKLOADS[name](setting)
                _write(out, setting, reached, lines)
        except KeyboardInterrupt:
            found = _write(out, setting, reached, lines)
            _show(found, out)
            raise Interrupted(f"stopped in {name}: {len(lines)} comparisons are in {out}.") from None
        found = _write(out, setting, reached, lines)
    if not config.quiet:
        _show(found, out)
    return {"names": []}


def _out(config: BenchConfig) -> Path:
    """The JSON file: the same command finds it again."""
    if config.out is not None:
        return Path(config.out)
    work = "all" if config.work is None else "-".join(config.work_list)
    name = run_name(f"{config.model.name}-{work}", identity_fields(config))
    return Path(config.runs, "bench", f"{name}.json")


def _write(out: Path, setting: Setting, reached: peak.Peak, lines: list[Line]) -> dict[str, Any]:
    """What is known so far, as JSON and as Markdown beside it."""
    found = {
        "command": shlex.join(["pausebench", "bench", *_overrides()]),
        "machine": {
            "device": describe(setting.device),
            "cpu": _cpu(),
            "threads": torch.get_num_threads(),
            "system": platform.platform(),
        },
        "versions": {"pausebench": __version__, "python": platform.python_version(), **_versions()},
        "peak": {**reached._asdict(), "dtype": str(setting.dtype).removeprefix("torch.")},
        "vocab_size": setting.tokenizer.vocab_size,
        "repeats": setting.config.repeats,
        "steps": setting.config.steps,
        "lines": [line.as_json(reached.flops) for line in lines],
        "notes": setting.notes,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, found)
    write_atomically(out.with_suffix(".md"), table.markdown(found))
    return found


def _show(found: dict[str, Any], out: Path) -> None:
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = table.WIDTH
    for line in [table.about(found), *table.described(found["lines"]), ""]:
        console.print(line, soft_wrap=True)
    console.print(table.terminal(found["lines"]))
    console.print(f"{out} and {out.with_suffix('.md').name}", soft_wrap=True)


def _overrides() -> list[str]:
    """What was typed behind the command: Hydra has it in ``sys.argv`` while it runs."""
    return [word for word in sys.argv[1:] if "=" in word]


def _versions() -> dict[str, str]:
    found = {}
    for name in VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _cpu() -> str:
    """The processor's name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())
