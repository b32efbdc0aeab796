"""Contenders that do the same work in turn, and what comes of it.

Invariant: in every round each contender works once, ours first in one round and last in the next, so that a machine
that slows down or speeds up favours nobody; ratios are taken within a round.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

OURS = "pausebench"


@dataclass
class Contender:
    """One side of a comparison.

    warm_up: brings it to its steady speed (compiles, fills caches). timed: does the work once and returns its rate in
    units a second. close: lets go of what it holds.
    """

    name: str
    warm_up: Callable[[], object]
    timed: Callable[[], float]
    close: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Line:
    """Ours beside one peer: an amount a round of each side.

    lower: the smaller amount is the better one. target: what the ratio ours / peer is to reach (at most, where lower).
    flops: operations a unit, for MFU. checks: what says that both did the same work, such as ``same_loss``.
    """

    work: str
    what: str
    peer: str
    unit: str
    ours: Sequence[float]
    theirs: Sequence[float]
    target: float
    lower: bool = False
    flops: float | None = None
    checks: dict[str, Any] = field(default_factory=dict)

    @property
    def ratios(self) -> list[float]:
        """Ours / theirs of each round."""
        return [mine / other for mine, other in zip(self.ours, self.theirs, strict=True)]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def met(self) -> bool:
        return self.ratio <= self.target if self.lower else self.ratio >= self.target

    def as_json(self, peak: float) -> dict[str, Any]:
        """Medians, every round's amounts and ratios, and MFU against ``peak`` FLOP/s where operations are known."""
        ours, theirs = statistics.median(self.ours), statistics.median(self.theirs)
        found: dict[str, Any] = {
            "work": self.work,
            "what": self.what,
            "peer": self.peer,
            "unit": self.unit,
            "ours": ours,
            "theirs": theirs,
            "ratio": self.ratio,
            "ratio_low": min(self.ratios),
            "ratio_high": max(self.ratios),
            "target": self.target,
            "lower_is_better": self.lower,
            "met": self.met,
            "rounds": {"ours": list(self.ours), "theirs": list(self.theirs), "ratios": self.ratios},
        }
        if self.flops is not None:
            found |= {"mfu_ours": ours * self.flops / peak, "mfu_theirs": theirs * self.flops / peak}
        return found | self.checks


def alternate(contenders: Sequence[Contender], repeats: int, say: Callable[[str], None]) -> dict[str, list[float]]:
    """Rates of every contender, one a round. The first is ours; a peer that fails to warm up is left out and said."""
    ready = []
    try:
        for contender in contenders:
            try:
                contender.warm_up()
            except Exception as error:  # a peer's or its compiler's, of any kind
                if contender is contenders[0]:
                    raise
                say(f"{contender.name}: left out, it failed ({reason(error)})")
                continue
            ready.append(contender)
        rates: dict[str, list[float]] = {contender.name: [] for contender in ready}
        for number in range(repeats):
            for contender in ready if number % 2 == 0 else reversed(ready):
                rates[contender.name].append(contender.timed())
        return rates
    finally:
        for contender in contenders:
            contender.close()


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Wall time of ``work``, the device's queue included."""
    synchronize(device)
    began = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - began


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reason(error: BaseException) -> str:
    """Type and first line of somebody else's error."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first[:200]}"
