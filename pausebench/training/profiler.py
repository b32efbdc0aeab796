"""``profile=true``: where the time of a few steps goes, as torch's profiler sees it.

Invariant: what a run computes is the same with and without. The table and the timeline are torch's own; this module
says which steps are recorded, names the parts of a step, and writes the files.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from pausebench.console import Progress
from pausebench.runs.folder import write_whole

WARM_UP = 2  # steps before the first that counts: kernels are made, buffers and caches filled
STEPS = 3
PASSES = 100  # of an evaluation, where a pass may be one decoded token
MOST_SECONDS = 60.0  # after which no further step is recorded: a step may have many micro-batches
ROWS = 25  # operations of the table


class Profiler:
    """Records steps of ``model`` inside ``over`` and writes ``profile/`` in ``folder``; does nothing unless enabled."""

    def __init__(self, folder: Path, enabled: bool, progress: Progress, model: nn.Module) -> None:
        self._path = folder / "profile"
        self._enabled = enabled
        self._progress = progress
        self._model = model
        self._device = next(model.parameters()).device
        self._recording: profile | None = None
        self._hook: Any = None
        self._passes = False
        self._warm_up = 0
        self._seen: list[tuple[float, float]] = []  # (tokens, seconds at the device's peak) of each recorded step
        self._began = 0.0

    @contextmanager
    def over(self, steps: int | None = None) -> Iterator[None]:
        """Around ``steps`` steps, each ended by ``step``; None: each pass of the model is a step."""
        self._passes = steps is None
        self._warm_up = 0 if steps is None else min(WARM_UP, max(0, steps - 1))
        if self._enabled and self._warm_up == 0:
            self._start()
        try:
            yield
        finally:
            self._finish()

    def range(self, name: str) -> AbstractContextManager[Any]:
        """Names a part of a step in the table and the timeline."""
        return nullcontext() if self._recording is None else record_function(name)

    def step(self, tokens: float, peak_seconds: float) -> None:
        """End of a step of ``tokens`` tokens that takes ``peak_seconds`` at the device's peak (0: unknown)."""
        if self._recording is not None:
            self._seen.append((tokens, peak_seconds))
            most = PASSES if self._passes else STEPS
            if len(self._seen) >= most or time.perf_counter() - self._began > MOST_SECONDS:
                self._finish()
        elif self._enabled:
            self._warm_up -= 1
            if self._warm_up == 0:
                self._start()

    def _start(self) -> None:
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else it prints when it starts and stops
        if self._passes:
            self._hook = self._model.register_forward_hook(lambda _, given, hidden: self.step(given[0].numel(), 0.0))
        self._wait()
        on_gpu = [ProfilerActivity.CUDA] if self._device.type == "cuda" else []
        self._recording = profile(activities=[ProfilerActivity.CPU, *on_gpu])
        self._recording.start()
        self._began = time.perf_counter()

    def _wait(self) -> None:
        """For the kernels that were started, so that those of recorded steps, and no others, are recorded whole."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _finish(self) -> None:
        """Stop, and write what was recorded if it holds a whole step."""
        recording, self._recording, self._enabled = self._recording, None, False
        if recording is None:
            return
        self._wait()
        seconds = time.perf_counter() - self._began
        recording.stop()
        if self._hook is not None:
            self._hook.remove()
        if not self._seen:
            return
        head = self._head(seconds)
        order = f"self_{self._device.type}_time_total"
        table = recording.key_averages().table(sort_by=order, row_limit=ROWS, max_name_column_width=60)
        try:
            self._path.mkdir(exist_ok=True)
            recording.export_chrome_trace(str(self._path / "trace.json.gz"))
            write_whole(self._path / "summary.txt", f"{head}\n{table}".encode())
        except OSError as error:
            self._progress.say(f"{self._path} could not be written ({error.strerror}); the run continues")
            return
        if not self._progress.quiet:
            self._progress.say(f"{head}; {self._path} has the slowest operations and the timeline")

    def _head(self, seconds: float) -> str:
        unit, many = ("pass", "passes") if self._passes else ("step", "steps")
        count = len(self._seen)
        tokens, peak_seconds = (sum(values) for values in zip(*self._seen, strict=True))
        return (
            f"profiled {count} {unit if count == 1 else many}: {seconds / count:.3g} s a {unit}, "
            f"{tokens / seconds:,.0f} tokens/s" + (f", MFU {peak_seconds / seconds:.1%}" if peak_seconds else "")
        )
