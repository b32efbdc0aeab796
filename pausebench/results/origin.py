"""What a study still lacks, with the commands that fill it, and where its numbers come from.

Invariant: a command shown here is one of the plan's own.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pausebench.results.collect import read_if_whole
from pausebench.results.study import Cell, Study


@dataclass(frozen=True)
class Provenance:
    """Where the numbers come from: values seen in the finetune runs' manifests, with how many runs had each."""

    finetune_runs: int
    devices: tuple[str, ...]
    versions: tuple[str, ...]


def missing_cells(study: Study, most: int) -> tuple[tuple[Cell, str], ...]:
    """The first `most` missing cells, each with the command that fills it: its own where the plan tells one."""
    missing = study.missing()[:most]
    if not missing:
        return ()
    plan = read_if_whole(study.runs / "reproduce" / study.result / "plan.json")
    stages = plan["stages"] if isinstance(plan, dict) else []
    planned = {
        (stage["command"], cell["name"]): shlex.join(map(str, cell["overrides"]))
        for stage in stages
        for cell in stage["cells"]
    }
    root = re.search(r" '?runs=.*$", study.command)
    suffix = root.group(0) if root else ""
    rows = []
    for cell in missing:
        overrides = planned.get(("evaluate", cell.name))
        command = f"pausebench evaluate {overrides}{suffix}" if overrides else study.command
        words = shlex.split(overrides or "")
        run = next((Path(word[4:].strip("'")).name for word in words if word.startswith("run=")), "")
        trained = planned.get(("finetune", run))
        if trained and not (study.runs / "finetune" / run / "result.json").is_file():
            command = f"pausebench finetune {trained}{suffix} && {command}"
        rows.append((cell, command))
    return tuple(rows)


def provenance(study: Study) -> Provenance:
    """What the manifests of a study's finetune runs say of device and versions."""
    names = sorted({cell.result.finetune_run for cell in study.cells() if cell.result and cell.result.finetune_run})
    devices: dict[str, int] = {}
    versions: dict[str, int] = {}
    for name in names:
        manifest = read_if_whole(study.runs / "finetune" / name / "manifest.json")
        if not isinstance(manifest, dict):
            continue
        if manifest.get("device"):
            device = _inline(manifest["device"])
            devices[device] = devices.get(device, 0) + 1
        if manifest.get("versions"):
            version = _inline(manifest["versions"])
            versions[version] = versions.get(version, 0) + 1
    return Provenance(len(names), _counted(devices), _counted(versions))


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_inline(value[name])}" for name in sorted(value))
    return str(value)


def _counted(seen: dict[str, int]) -> tuple[str, ...]:
    if len(seen) < 2:
        return tuple(seen)
    return tuple(f"{value} ({count} runs)" for value, count in sorted(seen.items()))
