"""What a finetuning does with pauses: one type, whose fields are options of the command line.

To add an idea about pauses, add a field here and its tensors in ``pausebench.pauses``. Batches, run names, manifests
and results take the policy whole and never list its fields. No torch here: run names need none.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from pausebench.config.groups import PauseVisibility, Placement, Trim
from pausebench.config.options import Identity, option, plain, require, require_at_least


@dataclass(frozen=True)
class PauseInjection:
    """What a pretraining does with pauses (section 3.1, Algorithm 1).

    fraction: pauses inserted, as a fraction of the row's length; 0 is StdPT.
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
    """How many pauses a row has, where, which token is used and who sees them (sections 3.1, 5.2, 5.3)."""

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
            # A range of one number is refused: it would be k= under a second name.
            valid = len(self.k_range) == 2 and 0 <= self.k_range[0] < self.k_range[1]
            require(valid, given, "must be two numbers of pauses, the smaller first", "For example k_range=[0,10].")
            fix = "Type one of them; evaluate takes any mt=."
            require(self.k in (None, self.k_range[1]), f"{given} k={self.k}", "k is drawn from k_range", fix)
        require_at_least(0, self, "shift")

    @property
    def policy(self) -> PausePolicy:
        """The policy alone, taken out of a config that inherits these options."""
        return PausePolicy(**{item.name: getattr(self, item.name) for item in dataclasses.fields(PausePolicy)})

    @property
    def typed_count(self) -> str:
        """The number of pauses as typed on the command line."""
        return f"k={self.k}" if self.k_range is None else f"k_range={self.k_range}".replace(" ", "")

    @property
    def longest(self) -> int:
        """The most pauses in a row: rows must have room for them, and it is M if an evaluation names none."""
        longest = self.k if self.k_range is None else self.k_range[1]
        assert longest is not None, "k is open until the config is resolved"
        return longest

    @property
    def label(self) -> str:
        """The number of pauses in a run's name."""
        return str(self.longest) if self.k_range is None else "to".join(map(str, self.k_range))

    @property
    def positions(self) -> int:
        """Positions that a row spends on its pauses, or on the gap in their place."""
        # Never both: shift requires k=0.
        return max(self.longest, self.shift)

    def settled(self) -> PausePolicy:
        """The same policy; without pauses, what then does nothing has its default."""
        # So that one behaviour has one name. placement stays: with shift it decides where the gap is.
        if self.longest:
            return self.policy
        return dataclasses.replace(self.policy, pause_visibility=PauseVisibility.all, filler="pause")

    def at(self, m: int) -> PausePolicy:
        """The same policy with M pauses in every row, for inference."""
        return dataclasses.replace(self.policy, k=m, k_range=None)

    def recorded(self) -> dict[str, Any]:
        """The fields that results store."""
        # Without K and the filler, which an evaluation may choose itself and so stores itself; without what is None,
        # so that a field added later leaves earlier results as they are.
        fields = {item.name: plain(getattr(self, item.name)) for item in dataclasses.fields(PausePolicy)}
        return {name: value for name, value in fields.items() if name not in ("k", "filler") and value is not None}
