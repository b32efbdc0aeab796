"""``profile=true``: where the time of a few steps goes, measured with torch's profiler.

Invariant: what a run computes is the same with and without. Times are shares of the wall clock of whole steps: on a CPU
each operation's own time, on a GPU that of the kernels it started (a profiled step then waits for the device at its
end). What no operation accounts for is Python, launches and waiting.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from pausebench.console import Progress
from pausebench.runs.folder import write_whole

WARM_UP = 2  # steps before the first that counts: kernels are made, buffers and caches filled
STEPS = 3
PASSES = 100  # of an evaluation, where a pass may be one decoded token
MOST_SECONDS = 60.0  # after which no further step is recorded: each may have many micro-batches
TOP = 20  # operations listed in the file

DATA, ATTENTION, PRODUCTS, HEAD = "data", "attention", "other matrix products", "loss and head"
BY_POSITION, OPTIMIZER, CLIPPING = "norms, activations, copies", "optimizer", "clipping"
ELSE, BETWEEN = "everything else", "Python, idle between operations"
CATEGORIES = (DATA, ATTENTION, PRODUCTS, HEAD, BY_POSITION, OPTIMIZER, CLIPPING, ELSE, BETWEEN)

# With everything inside them, whatever it is: custom functions, fused kernels, the trainer's ranges.
WHOLE = {
    HEAD: re.compile(r"HeadLoss|cross_entropy|nll_?loss|log_?softmax", re.I),
    ATTENTION: re.compile(r"scaled_?dot_?product|BlockwiseAttention|flex_?attention|flash|softmax|bmm", re.I),
    DATA: re.compile(r"^data$"),
    CLIPPING: re.compile(r"^clipping$"),
    OPTIMIZER: re.compile(r"^optimizer$"),
}
# Their own time, and that of what is inside and has no category of its own.
OWN = {
    PRODUCTS: re.compile(r"linear|addmm|matmul|\bmm\b|MmBackward", re.I),
    BY_POSITION: re.compile(
        r"norm|gelu|relu|copy|clone|contiguous|::(to|add_?|mul_?|cat)$|AccumulateGrad|AddBackward|Compiled|triton", re.I
    ),
}
RANGES = ("forward", "decoder", "backward")  # their own time is Python's


class Summary(NamedTuple):
    """Seconds in all, by category (they add up to it), and of the slowest operations with their calls."""

    seconds: float
    by_category: dict[str, float]
    by_operation: list[tuple[str, int, float]]


class Profiler:
    """Records steps of ``model`` inside ``over`` and writes ``profile/`` in ``folder``; does nothing unless enabled."""

    def __init__(self, folder: Path, enabled: bool, progress: Progress, model: nn.Module) -> None:
        self._path = folder / "profile"
        self._enabled = enabled
        self._progress = progress
        self._model = model
        self._device = next(model.parameters()).device
        self._recording: profile | None = None
        self._hooks: list[Any] = []
        self._passes = False
        self._warm_up = 0
        self._tokens: list[float] = []
        self._peak_seconds: list[float] = []
        self._began = 0.0

    @contextmanager
    def over(self, steps: int | None = None) -> Iterator[None]:
        """Around work of so many steps, each ended by ``step``; None: each pass of the model is one."""
        self._passes = steps is None
        self._warm_up = min(WARM_UP, max(0, steps - 1)) if steps is not None else 0
        if self._enabled and self._warm_up == 0:
            self._start()
        try:
            yield
        finally:
            self._finish()

    def range(self, name: str) -> AbstractContextManager[Any]:
        """A part of a step: data, forward, backward, clipping, optimizer (the first and the last bound a step)."""
        return nullcontext() if self._recording is None else self._range(name)

    @contextmanager
    def _range(self, name: str) -> Iterator[None]:
        with record_function(name):
            yield
            if name == "optimizer":
                self._wait()

    def step(self, tokens: float, peak_seconds: float) -> None:
        """End of a step of so many tokens, which would take ``peak_seconds`` at the device's peak (0: unknown)."""
        if not self._enabled:
            return
        if self._recording is None:
            self._warm_up -= 1
            if self._warm_up == 0:
                self._start()
            return
        self._tokens.append(tokens)
        self._peak_seconds.append(peak_seconds)
        most = PASSES if self._passes else STEPS
        if len(self._tokens) >= most or time.perf_counter() - self._began > MOST_SECONDS:
            self._finish()

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _start(self) -> None:
        open_ranges = ExitStack()

        def before(module: nn.Module, given: tuple[Any, ...]) -> None:
            open_ranges.enter_context(record_function("decoder"))

        def after(module: nn.Module, given: tuple[Any, ...], hidden: Any) -> None:
            open_ranges.close()
            if self._passes:
                self._wait()
                self.step(given[0].numel(), 0.0)

        self._hooks = [self._model.register_forward_pre_hook(before), self._model.register_forward_hook(after)]
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else it prints when it starts and stops
        self._wait()
        on_gpu = [ProfilerActivity.CUDA] if self._device.type == "cuda" else []
        self._recording = profile(activities=[ProfilerActivity.CPU, *on_gpu])
        self._recording.start()
        self._began = time.perf_counter()

    def _finish(self) -> None:
        """Stop, and write what was recorded if it holds a whole step."""
        recording, self._recording = self._recording, None
        self._enabled = False
        if recording is None:
            return
        self._wait()
        recording.stop()
        for hook in self._hooks:
            hook.remove()
        if not self._tokens:
            return
        events = recording.events()  # type: ignore[no-untyped-call]
        summary = summarise(list(events or ()), self._device.type)
        lines = [self._head(summary), *table(summary.by_category, len(self._tokens))]
        try:
            self._path.mkdir(exist_ok=True)
            recording.export_chrome_trace(str(self._path / "trace.json.gz"))
            write_whole(self._path / "summary.txt", "\n".join([*lines, "", *operations(summary), ""]).encode())
        except OSError as error:
            self._progress.say(f"{self._path} could not be written ({error.strerror}); the run goes on")
            return
        if not self._progress.quiet:
            self._progress.say("\n".join([*lines, f"{self._path} has the trace and the slowest operations"]))

    def _head(self, summary: Summary) -> str:
        unit, many = ("pass", "passes") if self._passes else ("step", "steps")
        seconds, count = summary.seconds, len(self._tokens)
        mfu = sum(self._peak_seconds) / seconds
        return (
            f"where the time of {count} {unit if count == 1 else many} went: {seconds / count:.3g} s a {unit} while "
            f"profiled, {sum(self._tokens) / seconds:,.0f} tokens/s" + (f", MFU {mfu:.1%}" if mfu else "")
        )


def summarise(events: Sequence[FunctionEvent], device: str) -> Summary:
    """Where the time of the whole steps among ``events`` went; of all of them, where no step is marked."""
    events = [event for event in events if event.device_type.name == "CPU"]
    thread = next(event.thread for event in events if event.name == "decoder")
    if device == "cpu":  # the thread that waits for the others; a GPU's backward pass has one of its own
        events = [event for event in events if event.thread == thread]
    starts = sorted(event.time_range.start for event in events if event.name == "data")
    ends = sorted(event.time_range.end for event in events if event.name == "optimizer")
    steps = list(zip(starts, ends, strict=False))  # a step that was stopped has no end
    if not steps:
        steps = [(min(event.time_range.start for event in events), max(event.time_range.end for event in events))]
    times = dict.fromkeys(CATEGORIES, 0.0)
    own: dict[str, float] = defaultdict(float)
    calls = Counter[str]()
    of_head: set[int] = set()  # numbers that a forward operation and its backward one share

    def walk(event: FunctionEvent, category: str, whole: bool, of_decoder: bool) -> None:
        name = event.name
        of_decoder = of_decoder or name in RANGES[1:] or name.startswith("autograd::")
        if not whole:
            found = _match(WHOLE, name)
            whole = found is not None
            category = found or _match(OWN, name) or category
        if category == PRODUCTS and (not of_decoder or event.sequence_nr in of_head):
            category, whole = HEAD, True  # the tied head is applied outside the decoder
        if category == HEAD and not of_decoder and event.sequence_nr >= 0:
            of_head.add(event.sequence_nr)
        seconds = event.self_cpu_time_total / 1e6
        if device == "cuda" and name == DATA:
            seconds = event.cpu_time_total / 1e6  # the device waits for it
        elif device == "cuda":
            seconds = 0.0 if category == DATA else event.self_device_time_total / 1e6
        if name not in RANGES:
            times[category] += seconds
            own[name] += seconds
            calls[name] += 1
        for child in event.cpu_children:
            walk(child, category, whole, of_decoder)

    for root in sorted((event for event in events if event.cpu_parent is None), key=lambda e: e.time_range.start):
        if any(start <= root.time_range.start < end for start, end in steps):
            walk(root, ELSE, False, False)
    counted = sum(times.values())
    seconds = max(counted, sum(end - start for start, end in steps) / 1e6)  # kernels of two streams may overlap
    times[BETWEEN] = seconds - counted
    slowest = [(name, calls[name], own[name]) for name in sorted(own, key=own.__getitem__, reverse=True)[:TOP]]
    return Summary(seconds, times, slowest)


def _match(patterns: dict[str, re.Pattern[str]], name: str) -> str | None:
    return next((category for category, pattern in patterns.items() if pattern.search(name)), None)


def table(by_category: dict[str, float], steps: int) -> list[str]:
    """A line a category: its share of the time, and seconds a step."""
    shares = _tenths(list(by_category.values()))
    return [
        f"  {name:<32}{tenths / 10:5.1f} %{seconds / steps:10.4f} s"
        for (name, seconds), tenths in zip(by_category.items(), shares, strict=True)
    ]


def _tenths(values: Sequence[float]) -> list[int]:
    """Tenths of a per cent that add up to 1000: the largest remainders are rounded up."""
    exact = [1000 * value / sum(values) for value in values]
    rounded = [math.floor(value) for value in exact]
    order = sorted(range(len(values)), key=lambda i: rounded[i] - exact[i])
    for i in order[: 1000 - sum(rounded)]:
        rounded[i] += 1
    return rounded


def operations(summary: Summary) -> list[str]:
    """The operations with the most time of their own."""
    return [
        f"the {TOP} operations with the most time of their own: share, seconds in all, calls",
        *(
            f"  {name[:64]:<64}{seconds / summary.seconds:7.1%}{seconds:10.4f} s{count:8}"
            for name, count, seconds in summary.by_operation
        ),
    ]
