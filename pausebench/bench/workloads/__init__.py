"""What is measured, a file each: ``run(setting)`` gives the lines of its comparisons."""

from __future__ import annotations

from collections.abc import Callable

from pausebench.bench.contest import Line
from pausebench.bench.setting import Setting
from pausebench.bench.workloads import decode, finetune, memory, overhead, pauses, pretrain, sweep

WORKLOADS: dict[str, Callable[[Setting], list[Line]]] = {
    "pretrain": pretrain.run,
    "pauses": pauses.run,
    "finetune": finetune.run,
    "decode": decode.run,
    "sweep": sweep.run,
    "memory": memory.run,
    "overhead": overhead.run,
}
