"""One training step of the paper's larger model on a CPU in bf16: one row of 128 tokens.

    python tests/benchmarks/one_step_1b.py [--model 1b] [--sequence-length 128] [--limit-gib 14]

A step as the trainer does it holds weights, gradients and two moments in float32: 16 bytes a parameter, 21.5 GB for 1b.
Where that passes the limit, AdamW goes through the parameters one by one and drops the moments of each: they start at
zero, so that a first step needs nobody else's, and forgets them, so that there is no second. Forward, backward, global
gradient clipping and the weights after the step are those of the trainer up to rounding; a small decoder shows it.

Prints parameters, what the formulas expect, seconds, loss, gradient norm and peak resident memory. The limit is also
set as RLIMIT_DATA, so that the process fails before the machine does.
"""

import argparse
import resource
import sys
import time

import torch

from pausebench.config.groups import AttentionKind, ModelConfig, TrainConfig
from pausebench.data.batch import Batch
from pausebench.model import build
from pausebench.model.attention import AttentionMask
from pausebench.model.fast import FastDecoder
from pausebench.model.flops import parameters
from pausebench.study import cost
from pausebench.training.loss import build_optimizer, learning_rate

SHAPES = {
    "small": ModelConfig("small", 2, 2, 64, 256, 256),
    "130m": ModelConfig("130m", 12, 12, 768, 3072, 16384),
    "1b": ModelConfig("1b", 24, 32, 2048, 8192, 16384),
}
TRAIN = TrainConfig(steps=381_470, warmup_steps=2000, lr=2e-4)  # 1b in conf/recipes.yaml


def row(vocab_size: int, sequence_length: int) -> Batch:
    """One row of random tokens; each predicts the next."""
    tokens = torch.randint(vocab_size - 1, (1, sequence_length + 1), generator=torch.Generator().manual_seed(0))
    return Batch(tokens[:, :-1], tokens[:, 1:], AttentionMask(AttentionKind.causal), sequence_length)


def one_step(model: FastDecoder, batch: Batch, piecewise: bool) -> tuple[float, float, float]:
    """(loss, gradient norm, seconds) of the trainer's first step."""
    optimizer = build_optimizer(model, TRAIN)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(1, TRAIN)
    began = time.perf_counter()
    with model.lowered(torch.bfloat16):
        loss = model.summed_loss(batch) / batch.supervised
        loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), TRAIN.clip)
    if piecewise:
        gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
        optimizer.zero_grad()
        while gradients:
            parameter, parameter.grad = gradients.pop()
            optimizer.step()
            optimizer.zero_grad()
            del optimizer.state[parameter]
    else:
        optimizer.step()
        optimizer.zero_grad()
    return float(loss.detach()), float(norm), time.perf_counter() - began


def same_on_a_small_decoder() -> bool:
    """Whether a step by pieces leaves the same bits in every weight as a whole one."""
    weights = []
    for piecewise in (False, True):
        model = build(SHAPES["small"], 500)
        model.initialize(seed=0)
        one_step(model, row(500, 64), piecewise)
        weights.append(model.state_dict())
    return all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=SHAPES, default="1b")
    parser.add_argument("--sequence-length", type=int, default=128)
    parser.add_argument("--limit-gib", type=float, default=14)
    options = parser.parse_args()
    limit = int(options.limit_gib * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    print(f"small decoder, by pieces and whole: {'equal to the bit' if same_on_a_small_decoder() else 'DIFFERENT'}")
    shape, vocab_size = SHAPES[options.model], 50_258
    states = cost.TRAINING_BYTES * parameters(shape, vocab_size)
    expected = cost.step_bytes(shape, vocab_size, options.sequence_length, 1)
    piecewise = expected > 0.9 * limit
    print(f"formula: {states / 1e9:.2f} GB of states, about {expected / 1e9:.1f} GB at most in a whole step")
    print(
        f"limit: {limit / 1e9:.2f} GB, so AdamW works {'a parameter at a time' if piecewise else 'as in the trainer'}"
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    model = build(shape, vocab_size)
    model.initialize(seed=0)
    print(f"parameters: {model.parameter_count():,}")
    held = model.blocks[0].mlp_in.weight[:4, :4].detach().clone()
    loss, norm, seconds = one_step(model, row(vocab_size, options.sequence_length), piecewise)
    moved = float((model.blocks[0].mlp_in.weight[:4, :4].detach() - held).abs().max())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"loss {loss:.4f}, gradient norm {norm:.3f}")
    print(f"largest change of 16 weights: {moved:.2e} at learning rate {learning_rate(1, TRAIN):.1e}")
    print(f"seconds: {seconds:.1f} with {torch.get_num_threads()} threads")
    print(f"peak resident memory: {peak / 1e9:.2f} GB ({(peak - before) / 1e9:.2f} above what the process had before)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
