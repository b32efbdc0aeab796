"""torch.compile where it pays; what of a model is compiled, the model knows (``use_compiled_code``).

Row lengths that change become symbols with the second one seen. Compiled code is kept on disk by torch
(TORCHINDUCTOR_CACHE_DIR).

torch compiles a function for a few shapes only (``torch._dynamo.config.recompile_limit``) and runs others as they are.
Each run begins with none, so that the runs of a process take no shapes from each other.

Invariants: a compiled run rounds differently from one that is not, and in nothing else; what it compiles does not
depend on the runs before it in its process.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from pausebench.config.groups import Compile
from pausebench.model.base import Backend, Model

# FLOPs of training from which ``compile=auto`` compiles. On a CPU compiling took ten seconds and saved a twentieth of a
# 130m step, so that it pays after some minutes at 400 GFLOP/s; that of a GPU is an estimate, a minute at 300 TFLOP/s.
PAYS = {"cpu": 4e14, "cuda": 2e16}


def compile_model(
    model: Model,
    device: torch.device,
    choice: Compile,
    flops: Callable[[], float],
    say: Callable[[str], None],
    backend: Backend = "inductor",
) -> bool:
    """Put compiled code into a model, if ``choice`` says so for a run of ``flops()`` in all.

    Where torch cannot compile here (no C++ compiler, no Triton), one line says why, and training goes on without. One
    line also says when a function has been compiled for as many shapes as torch allows. Code that a model of this
    process was given before is compiled again if it is used.
    """
    if choice is Compile.off or (choice is Compile.auto and flops() < PAYS.get(device.type, float("inf"))):
        return False
    torch.compiler.reset()
    LIMIT.say = say
    try:
        # Something small, so that a failure is seen before the run's own graphs are made.
        torch.compile(torch.nn.functional.gelu, backend=backend)(torch.ones(16, device=device))
    except Exception as error:  # whatever Dynamo, Inductor and a compiler raise
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        say(f"torch.compile does not work here ({reason}); training goes on without it")
        return False
    model.use_compiled_code(say, backend)
    return True


class Limit(logging.Filter):
    """Says Dynamo's warning about too many shapes in a line, once a run, instead of the five that torch logs."""

    say: Callable[[str], None] | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether torch logs the record, too."""
        if "hit config.%s" not in str(record.msg) or not isinstance(record.args, tuple):
            return True
        say, self.say = self.say, None
        if say is not None:
            _, limit, function, *_ = record.args
            name = str(function).split()[0]
            say(f"torch.compile has compiled {name} {limit} times, its limit; other shapes run without it")
        return False


LIMIT = Limit()
logging.getLogger("torch._dynamo.convert_frame").addFilter(LIMIT)
