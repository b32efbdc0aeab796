"""What pause injection costs beside a training step, at the paper's row length: 2048 tokens x 32 rows.

    python tests/benchmarks/injection.py [repeats]

Draws the places and injects them, and takes one forward and backward pass of `tiny` (2048 positions, GPT-2's
vocabulary) over one of the rows, alternating in one run. A step's time is 32 times that of a row. Prints the median
share of the step's time.
"""

import statistics
import sys
import time

import torch

from pausebench import pauses
from pausebench.config.groups import AttentionKind, ModelConfig
from pausebench.data.batch import Batch
from pausebench.model import build
from pausebench.model.attention import AttentionMask

LENGTH, ROWS, VOCABULARY = 2048, 32, 50258


def main() -> None:
    model = build(ModelConfig("tiny", 4, 4, 128, 512, LENGTH), VOCABULARY)
    model.initialize(0)
    tokens = torch.randint(0, VOCABULARY - 1, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    supervised = torch.ones_like(tokens, dtype=torch.bool)
    count = pauses.pause_count(LENGTH, 0.1)
    shares = []
    for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 3):
        began = time.perf_counter()
        places = pauses.draw_places(0, torch.arange(ROWS), LENGTH, count)
        input_ids, labels = pauses.inject(tokens, supervised, places, VOCABULARY - 1)
        injecting = time.perf_counter() - began
        batch = Batch(input_ids, labels, AttentionMask(AttentionKind.causal), LENGTH)
        began = time.perf_counter()
        with model.lowered(torch.bfloat16):
            model.summed_loss(batch.rows(0, 1)).backward()
        stepping = ROWS * (time.perf_counter() - began)
        model.zero_grad()
        shares.append(injecting / stepping)
        print(f"injection {1e3 * injecting:.1f} ms   step {stepping:.1f} s")
    print(f"median: injection is {100 * statistics.median(shares):.3f} % of the step")


if __name__ == "__main__":
    main()
