"""What a study is: its panels, the arms they compare, and every cell that has to be scored.

The planner makes these objects, ``plan.json`` is what ``Study.to_json`` writes, and the report reads them back. A cell
holds no score: scores are in the run folders (``report.scores``). No torch and no Hydra here, so that a report needs
neither.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pausebench.config.pauses import PRETRAINING_NAMES, variant
from pausebench.errors import BadInput
from pausebench.runs.folder import read_if_whole

PAUSE = "<pause>"

# The controls of ``reproduce controls=[...]``, and what each takes away.
CONTROLS = {
    "hidden_pretraining": "pauses hidden in pretraining from every position but themselves and the read-out",
    "hidden_finetuning": "pauses hidden so in finetuning and at inference",
    "hidden": "pauses hidden in both",
    "one_pause": "K = 1",
    "shifted": "no pauses, the answer's positions moved on by K",
    "filler": "the text . in the pauses' places, in finetuning and at inference",
    "layers": "no pauses, more layers, pretrained with them, at equal inference FLOPs",
    "steps": "no pauses, more finetuning steps at equal training FLOPs",
}


@dataclass(frozen=True)
class Arm:
    """Everything that tells two cells of a panel apart except task, world and seed.

    k_range: (first, last) where every training row drew its own K; ``k`` is then the last, the most that a row had.
    control: a name in ``CONTROLS``, "" for the paper's own variants. control_k: the K whose positions or FLOPs a
    control without pauses matches.
    """

    pretraining: str
    k: int
    mt: int
    filler: str = PAUSE
    placement: str = "append"
    prefix: str = ""
    control: str = ""
    control_k: int = 0
    k_range: tuple[int, int] | None = None

    @property
    def variant(self) -> str:
        """StdPT_StdFT, StdPT_PauseFT, PausePT_StdFT or PausePT_PauseFT; NoPT_* without pretraining."""
        return variant(self.pretraining, self.k)

    @property
    def stage(self) -> str:
        """The pretraining alone: StdPT, PausePT or NoPT."""
        return PRETRAINING_NAMES.get(self.pretraining, self.pretraining)

    @property
    def pauses(self) -> str:
        """K in words: ``K=8``, or ``K in 0..10`` where it was drawn."""
        return f"K={self.k}" if self.k_range is None else f"K in {self.counts}"

    @property
    def counts(self) -> str:
        """The number of pauses alone: ``8``, or ``0..10``."""
        return str(self.k) if self.k_range is None else "{}..{}".format(*self.k_range)

    @property
    def label(self) -> str:
        """Everything that may differ: `PausePT_PauseFT K=8 M=4`, `StdPT_StdFT (shifted, K=8)`."""
        parts = [self.variant]
        if self.k:
            parts.append(self.pauses)
        # M is said only where it differs: that is what a reader looks for.
        if self.mt != self.k:
            parts.append(f"M={self.mt}" if self.filler in ("", PAUSE) else f"M={self.mt} of {self.filler}")
        if self.placement == "prepend":
            parts[-1] += ", prepended"
        if self.control:
            parts.append(f"({self.control}, K={self.control_k})" if self.control_k else f"({self.control})")
        return " ".join(parts)

    @property
    def inserted(self) -> str:
        """What is inserted at inference: `8 x <pause>`."""
        return f"{self.mt} x {self.filler}" if self.mt else "nothing added"

    @property
    def is_own(self) -> bool:
        """Whether this is one of the paper's variants, scored with the pauses that it was finetuned with."""
        return not self.control and self.mt == self.k and self.k_range is None and self.filler in ("", PAUSE)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Arm:
        """The arm that a plan or a ``result.json`` tells; what it leaves out has the paper's value."""
        drawn = raw.get("k_range")
        # With a drawn K, the most that a row had: it is the M of an evaluation that names none.
        k = int(drawn[1] if drawn else raw.get("k") or 0)
        mt = int(raw["mt"]) if raw.get("mt") is not None else k
        return cls(
            pretraining=str(raw.get("pretraining") or "none"),
            k=k,
            mt=mt,
            # Without pauses at inference neither their token nor their place means anything: such cells are one arm.
            filler=str(raw.get("filler") or PAUSE) if mt else "",
            placement=str(raw.get("placement") or "append") if mt else "",
            prefix=str(raw.get("prefix") or ""),
            control=str(raw.get("control") or ""),
            control_k=int(raw.get("control_k") or 0),
            k_range=(int(drawn[0]), int(drawn[1])) if drawn else None,
        )


@dataclass(frozen=True)
class Cell:
    """One evaluation that a study asks for, under the name of its run folder."""

    name: str
    task: str
    world: str
    seed: int
    arm: Arm

    def to_json(self) -> dict[str, Any]:
        """One flat object, with the variant for whoever reads the file."""
        flat = {"name": self.name, "task": self.task, "world": self.world, "variant": self.arm.variant}
        return flat | {key: value for key, value in asdict(self.arm).items() if value is not None} | {"seed": self.seed}

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Cell:
        task, world = str(raw.get("task") or "unknown task"), str(raw.get("world") or "")
        return cls(str(raw["name"]), task, world, int(raw.get("seed") or 0), Arm.from_json(raw))


@dataclass(frozen=True)
class Panel:
    """A part of a study: `kind` is variants, k_curve, m_curve, filler, placement, controls or bottleneck."""

    id: str
    kind: str
    title: str
    cells: tuple[Cell, ...]

    def to_json(self) -> dict[str, Any]:
        cells = [cell.to_json() for cell in self.cells]
        return {"id": self.id, "kind": self.kind, "title": self.title, "cells": cells}

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Panel:
        return cls(raw["id"], raw["kind"], raw["title"], tuple(map(Cell.from_json, raw["cells"])))


@dataclass(frozen=True)
class Primary:
    """The comparisons fixed before the runs started: treatment against control, for every K of a panel.

    task: the one task they are about; None is every task of the panel.
    """

    panel: str
    treatment: str
    control: str
    task: str | None = None


@dataclass(frozen=True)
class Stage:
    """One command of a study: its overrides by run name, and the same as lines that a user can paste."""

    command: str
    overrides: dict[str, list[str]]
    lines: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        cells = [{"name": name, "overrides": overrides} for name, overrides in self.overrides.items()]
        return {"command": self.command, "cells": cells, "commands": list(self.lines)}

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Stage:
        overrides = {cell["name"]: [str(word) for word in cell["overrides"]] for cell in raw["cells"]}
        command = raw["command"]
        lines = raw.get("commands") or [f"pausebench {command} {shlex.join(words)}" for words in overrides.values()]
        return cls(command, overrides, tuple(lines))


@dataclass(frozen=True)
class Study:
    """A comparison fixed in advance, as ``runs/reproduce/<result>/plan.json`` holds it.

    unit: what a seed repeats. precision: of every wide cell that names none. published: the paper's table whose figures
    are shown beside ours, None where it has none. command: what to type to fill in the missing cells.
    """

    result: str
    title: str
    seeds: tuple[int, ...]
    unit: str
    notes: tuple[str, ...]
    command: str
    panels: tuple[Panel, ...]
    stages: tuple[Stage, ...]
    primary: Primary | None = None
    published: str | None = None
    precision: str = "bf16"

    def of_kind(self, *kinds: str) -> Iterator[Panel]:
        """The panels of these kinds, in the plan's order."""
        return (panel for panel in self.panels if panel.kind in kinds)

    def cells(self) -> list[Cell]:
        """Every cell once; panels share cells."""
        return list({cell.name: cell for panel in self.panels for cell in panel.cells}.values())

    def names(self) -> set[str]:
        """Every evaluation that the study asks for, those outside its panels too."""
        evaluated = {name for stage in self.stages if stage.command == "evaluate" for name in stage.overrides}
        return evaluated | {cell.name for panel in self.panels for cell in panel.cells}

    def to_json(self) -> dict[str, Any]:
        panels, stages = [panel.to_json() for panel in self.panels], [stage.to_json() for stage in self.stages]
        return asdict(self) | {"panels": panels, "stages": stages}

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Study:
        """Raises KeyError, TypeError or ValueError for anything that `to_json` does not write."""
        return cls(
            **{name: raw[name] for name in ("result", "title", "unit", "command")},
            seeds=tuple(raw["seeds"]),
            notes=tuple(raw["notes"]),
            panels=tuple(map(Panel.from_json, raw["panels"])),
            stages=tuple(map(Stage.from_json, raw["stages"])),
            primary=Primary(**raw["primary"]) if raw.get("primary") else None,
            published=raw.get("published"),
            precision=raw.get("precision", "bf16"),
        )


def read_study(path: Path) -> Study:
    """The study of a `plan.json`. Raises ``BadInput`` where the file is not one."""
    raw = read_if_whole(path)
    try:
        if not isinstance(raw, dict):
            raise TypeError("not a JSON object")
        return Study.from_json(raw)
    except (KeyError, TypeError, ValueError) as broken:
        raise BadInput(
            f"{path} is not a readable plan ({type(broken).__name__}: {broken}); allowed: what reproduce writes; "
            f"next: pausebench reproduce result={path.parent.name} (it writes the plan again and keeps finished runs)"
        ) from broken
