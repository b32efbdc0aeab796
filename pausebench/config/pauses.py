"""What a finetuning does with pauses: one type, whose fields are options of the command line.

A new idea about pauses is a field here and its tensors in ``pausebench.pauses``. Batches, run names, manifests and
results take the policy whole; none of them lists its fields again. No torch here: names need none.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from pausebench.config.groups import PauseVisibility, Placement, Trim
from pausebench.config.options import Identity, option, plain, require


@dataclass(frozen=True)
class PauseInjection:
    """What a pretraining does with pauses (section 3.1, Algorithm 1).

    fraction: pauses inserted, as a share of the row's length; 0 is StdPT. trim: what becomes of the tokens that they
    push over the row's end.
    """

    fraction: float
    trim: Trim
    visibility: PauseVisibility


PRETRAINING_NAMES = {"std": "StdPT", "pause": "PausePT", "none": "NoPT"}


def variant(pretraining: str, k: int) -> str:
    """The paper's name of a combination (section 3.2); NoPT where finetuning starts from random weights."""
    # A result from elsewhere may name a pretraining that we do not have; it is shown as it is.
    return f"{PRETRAINING_NAMES.get(pretraining, pretraining)}_{'PauseFT' if k > 0 else 'StdFT'}"


@dataclass(frozen=True)
class PausePolicy:
    """How many pauses a row has, where, which token stands for them and who sees them (sections 3.1, 5.2, 5.3)."""

    k: int | None = option(None, "K, pauses in every row; 0 is StdFT (none: the task's default_k)")
    k_range: list[int] | None = option(
        None,
        "instead of k: every training row draws its K from [FIRST,LAST] by (seed, row)",
        identity=Identity.changed,
    )
    placement: Placement = option(Placement.append, "append or prepend the pauses to the prefix (section 5.3)")
    pause_visibility: PauseVisibility = option(
        PauseVisibility.all,
        "who attends to a pause, here and in evaluate: all; controls: readout (and itself), or self",
        identity=Identity.changed,
    )
    shift: int = option(
        0,
        "control with k=0: positions jump by N where pauses would be; the M pauses of evaluate fill the gap",
        identity=Identity.changed,
    )
    filler: str = option(
        "pause",
        "token used as the pause: pause, end, or text of one token, such as .",
        identity=Identity.changed,
    )

    def __post_init__(self) -> None:
        require(
            self.k is None or self.k >= 0,
            f"k={self.k}",
            "the number of pauses must not be negative",
            "k=0 finetunes without pauses, k=10 with ten.",
        )
        if self.k_range is not None:
            given = self.typed_count
            valid = len(self.k_range) == 2 and 0 <= self.k_range[0] < self.k_range[1]
            require(valid, given, "must be two numbers of pauses, the smaller first", "For example k_range=[0,10].")
            fix = "Type one of them; evaluate takes any mt=."
            require(self.k in (None, self.k_range[1]), f"{given} k={self.k}", "k is drawn from k_range", fix)
        require(self.shift >= 0, f"shift={self.shift}", "must not be negative")

    @property
    def policy(self) -> PausePolicy:
        """The policy alone, of a config that has its options."""
        return PausePolicy(**{item.name: getattr(self, item.name) for item in dataclasses.fields(PausePolicy)})

    @property
    def typed_count(self) -> str:
        """How many, as the command line says it."""
        return f"k={self.k}" if self.k_range is None else f"k_range={self.k_range}".replace(" ", "")

    @property
    def longest(self) -> int:
        """Pauses of the row that has most of them: what has to fit, and M where an evaluation names none."""
        longest = self.k if self.k_range is None else self.k_range[1]
        assert longest is not None, "a resolved config's"
        return longest

    @property
    def label(self) -> str:
        """How many, as run names say it."""
        return str(self.longest) if self.k_range is None else "to".join(map(str, self.k_range))

    @property
    def positions(self) -> int:
        """Positions that a row gives to its pauses, or to the jump in their place."""
        return max(self.longest, self.shift)

    def settled(self) -> PausePolicy:
        """The same policy with what does nothing without pauses set back, so that one behaviour has one name."""
        if self.longest:
            return self.policy
        return dataclasses.replace(self.policy, pause_visibility=PauseVisibility.all, filler="pause")

    def at(self, m: int) -> PausePolicy:
        """The same with M pauses in every row, at inference."""
        return dataclasses.replace(self.policy, k=m, k_range=None)

    def recorded(self) -> dict[str, Any]:
        """The fields as results hold them, but for K and the filler: a result has those of its own."""
        fields = {item.name: plain(getattr(self, item.name)) for item in dataclasses.fields(PausePolicy)}
        return {name: value for name, value in fields.items() if name not in ("k", "filler") and value is not None}
