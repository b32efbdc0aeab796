"""Gradients of three seeds of the demo's `mini` model: one model after the other, and all as one batched model.

    python tests/benchmarks/batched_seeds.py

The batched one is torch.func's: stacked weights, vmap over the seeds. Prints whether both give the same bits, how far
they are apart, and milliseconds for the three, one thread.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad, stack_module_state, vmap

from pausebench.config.groups import ModelConfig
from pausebench.model import build

SEEDS, ROWS, LENGTH, VOCABULARY, REPEATS = 3, 64, 37, 40, 60
MINI = ModelConfig("mini", 2, 1, 16, 64, 64, activation="relu", embedding_std=0.5, linear_gain=0.8)


def milliseconds(work: Callable[[], object]) -> float:
    spent = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()
        spent.append(time.perf_counter() - began)
    return 1e3 * statistics.median(spent)


def main() -> None:
    torch.set_num_threads(1)
    models = [build(MINI, VOCABULARY) for _ in range(SEEDS)]
    for seed, model in enumerate(models):
        model.initialize(seed)
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(0, VOCABULARY, (SEEDS, ROWS, LENGTH), generator=generator)
    labels = torch.randint(0, VOCABULARY, (SEEDS, ROWS), generator=generator)
    base, stacked = copy.deepcopy(models[0]), stack_module_state(models)[0]

    def loss(weights: dict[str, Tensor], input_ids: Tensor, labels: Tensor) -> Tensor:
        hidden = functional_call(base, weights, (input_ids,), {"last": 1})[:, 0]
        return F.cross_entropy(hidden @ weights["token_embedding.weight"].T, labels)

    def batched() -> dict[str, Tensor]:
        return vmap(grad(loss))(stacked, input_ids, labels)

    def one_by_one() -> list[dict[str, Tensor]]:
        found = []
        for seed, model in enumerate(models):
            weights = dict(model.named_parameters())
            value = loss(weights, input_ids[seed], labels[seed])
            found.append(dict(zip(weights, torch.autograd.grad(value, list(weights.values())), strict=True)))
        return found

    together, alone = batched(), one_by_one()
    pairs = [(together[name][seed], alone[seed][name]) for seed in range(SEEDS) for name in together]
    same = all(torch.equal(one, other) for one, other in pairs)
    apart = max(float((one - other).detach().norm() / other.norm()) for one, other in pairs if other.norm() > 1e-6)
    print(f"the same bits: {same}; apart by up to {apart:.1e} of a gradient's norm")
    print(f"one by one {milliseconds(one_by_one):.1f} ms, batched {milliseconds(batched):.1f} ms")


if __name__ == "__main__":
    main()
