"""What pauses cost in pretraining: our trainer with pause=on beside itself with pause=off, the same rows of text.

Making the batches counts, for it is there that pauses are injected.
"""

from __future__ import annotations

from pausebench.data.batches import BLOCK_TOKENS
from tests.benchmarks.compare.contest import OURS, Line, alternate
from tests.benchmarks.compare.pretrain import ROWS
from tests.benchmarks.compare.setting import OurTraining, Setting

TARGET = 0.99


def run(setting: Setting) -> list[Line]:
    given = setting.options
    rows, length = given.batch_size or ROWS, given.sequence_length or 512
    contenders = []
    for name, pauses in ((OURS, True), ("pause=off", False)):
        config = setting.pretraining(length, rows, pauses)
        batches = setting.text(config)
        model = setting.build(config)
        together = max(1, BLOCK_TOKENS // length // rows)
        contenders.append(OurTraining(setting, config, model, batches, 1, together).contender(name, warm_up=2))
    rates = alternate(contenders, given.repeats, setting.note)
    what = f"step of {rows} x {length} tokens with pauses"
    flops = model.flops_per_token(length) * rows * length
    return [Line("pauses", what, "pause=off", "steps/s", rates[OURS], rates["pause=off"], TARGET, flops=flops)]
