"""What a run says while it works: one live line on a terminal, plain lines elsewhere, nothing when quiet."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from pausebench.runs.folder import RunFolder


class LiveLine:
    """A context manager around one line that is rewritten on a terminal, and printed again and again elsewhere."""

    def __init__(self, quiet: bool, seconds: float = 0.0) -> None:
        """seconds: the least time between two lines where there is no terminal."""
        self.quiet = quiet
        self._seconds, self._shown = seconds, time.monotonic()
        self._console = Console(stderr=True, highlight=False)
        live = self._console.is_terminal and not quiet
        self._live = Live(console=self._console, refresh_per_second=4) if live else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, line: str) -> None:
        """The line as it is now."""
        if self._live is not None:
            self._live.update(Text(line, overflow="ellipsis", no_wrap=True))
        elif not self.quiet and time.monotonic() - self._shown >= self._seconds:
            self._shown = time.monotonic()
            self._console.print(line, soft_wrap=True, markup=False)

    def say(self, line: str) -> None:
        """A line that stays, even in a quiet run: something the user has to know."""
        self._console.print(line, soft_wrap=True, markup=False)


class Progress(LiveLine):
    """What a training says; ``update`` takes a row of metrics.jsonl."""

    def __init__(self, label: str, steps: int, quiet: bool) -> None:
        super().__init__(quiet)
        self._label = label
        self._steps = steps
        self._began: tuple[float, int] | None = None

    def update(self, row: dict[str, Any]) -> None:
        if self.quiet:
            return
        now, step = time.monotonic(), row["step"]
        began, first = self._began or (now, step)
        self._began = (began, first)
        remaining = (now - began) / (step - first) * (self._steps - step) if step > first else None
        line = (
            f"{self._label}  step {step}/{self._steps}  loss {row['loss']:.4f}  lr {row['lr']:.2e}  "
            f"{row['tokens_per_second']:,.0f} tok/s  mfu {100 * row['mfu']:.1f}%"
        )
        if "validation_loss" in row:
            line += f"  val {row['validation_loss']:.4f}"
        if remaining is not None:
            line += f"  eta {int(remaining) // 60}:{int(remaining) % 60:02d}"
        self.show(line)

    def already_done(self, folder: RunFolder, profile: bool) -> dict[str, Any]:
        """Say that nothing is to do; what the command returns."""
        if not self.quiet:
            self.say(f"already done: {folder.path}")
        if profile:
            self.nothing_to_profile("another seed=, or another folder with runs=DIR")
        return {"names": [folder.name]}

    def nothing_to_profile(self, fix: str) -> None:
        self.say(f"profile=true: the run is done, and nothing is left to profile. Type {fix}.")

    def done(self, folder: RunFolder, result: dict[str, Any]) -> dict[str, Any]:
        """Say where the run stands; what the command returns."""
        if not self.quiet:
            self.say(f"done: step {result['step']}, validation loss {result['validation_loss']:.4f}, {folder.path}")
        return {"names": [folder.name]}
