"""Where the time of three optimizer steps of `130m` goes, in this tree and in another one of the past.

    git worktree add ../before 9b469f5
    python tests/benchmarks/profile_step.py ../before .

4 rows of 512 random tokens, no pauses, bf16 on two threads. Each tree steps in a process of its own, with its own
model, loss and optimizer; the same profiler looks at both. A tree is a folder that holds `pausebench/`.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import types
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

ROWS, LENGTH, VOCABULARY, THREADS, WARM_UP, STEPS = 4, 512, 50_258, 2, 2, 3


def todays_profiler() -> Any:
    """``pausebench.training.profiler`` of this tree, beside whatever ``pausebench`` is imported."""
    missing: Any = types.ModuleType("pausebench.runs.folder")  # older trees have none; no file is written here
    missing.write_whole = None
    sys.modules.setdefault("pausebench.runs.folder", missing)
    path = Path(__file__).parents[2] / "pausebench" / "training" / "profiler.py"
    spec = importlib.util.spec_from_file_location("todays_profiler", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def one_tree() -> None:
    import pausebench.training.device as tuning
    from pausebench.config.groups import AttentionKind, ModelConfig, TrainConfig
    from pausebench.data.batch import Batch
    from pausebench.model import build
    from pausebench.model.attention import AttentionMask
    from pausebench.training.loss import Objective, build_optimizer

    torch.set_num_threads(THREADS)
    for name in ("keep_few_kernels", "keep_freed_memory"):
        getattr(tuning, name, lambda: None)()
    model = build(ModelConfig("130m", 12, 12, 768, 3072, 2048), VOCABULARY)
    model.initialize(0)
    ids = torch.randint(0, VOCABULARY - 1, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    batch = Batch(ids, ids.roll(-1, 1), AttentionMask(AttentionKind.causal), LENGTH)
    objective = Objective(model)
    optimizer = build_optimizer(model, TrainConfig(steps=100, batch_size=ROWS, lr=1e-4))

    def step(part: Any) -> None:
        with part("data"):
            pass
        with model.lowered(torch.bfloat16) if hasattr(model, "lowered") else torch.autocast("cpu", torch.bfloat16):
            with part("forward"):
                loss = objective(batch) / ids.numel()
            with part("backward"):
                loss.backward()
        with part("clipping"):
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        with part("optimizer"):
            optimizer.step()
            optimizer.zero_grad()

    for _ in range(WARM_UP):
        step(lambda name: nullcontext())
    inside = ExitStack()
    model.register_forward_pre_hook(lambda module, given: inside.enter_context(record_function("decoder")) and None)
    model.register_forward_hook(lambda module, given, hidden: inside.close())
    with profile(activities=[ProfilerActivity.CPU]) as recording:
        for _ in range(STEPS):
            step(record_function)
    profiler = todays_profiler()
    summary = profiler.summarise(list(recording.events() or ()), "cpu")
    print(f"{summary.seconds / STEPS:.2f} s a step")
    print("\n".join(profiler.table(summary.by_category, STEPS)))


def main() -> None:
    if not sys.argv[1:]:
        one_tree()
    for tree in sys.argv[1:]:
        print(Path(tree).resolve().name, flush=True)
        environment = {"PYTHONPATH": str(Path(tree).resolve()), "KINETO_LOG_LEVEL": "6"}
        subprocess.run([sys.executable, __file__], env=os.environ | environment, check=True)


if __name__ == "__main__":
    main()
