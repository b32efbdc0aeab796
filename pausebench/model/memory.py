"""Bytes of device memory that a training step needs, from the decoder's shape alone: nothing here imports torch.

What is counted is what the trainer holds: weights, gradients and AdamW's moments in float32, the tensors that autograd
keeps, and what lives for a moment around them. Rows are causal and go through fused attention, which keeps no T x T
scores.

Not counted: the CUDA context, NCCL's buffers, cuBLAS's workspaces, what the caching allocator loses to fragmentation,
the batches, and, where some positions have no loss, the copy of the hidden states that have one.

Symbols: d width, m width of the MLP, L layers, V vocabulary, P positions, N tokens of a micro-batch on one device.
"""

from __future__ import annotations

from dataclasses import dataclass

from pausebench.config.groups import ModelConfig, Parallel, Precision
from pausebench.model.flops import parameters
from pausebench.model.tuning import TUNING

FLOAT32 = 4


@dataclass(frozen=True)
class StepMemory:
    """Bytes on one device at the fullest moment of a step.

    weights, gradients, optimizer: held from step to step. compute_weights: held beside them from forward to backward,
    bf16 copies (ddp) or the gathered embeddings and norms (fsdp). activations: kept for the backward pass. working: all
    else at that moment: logits, gradients on their way, blocks that are gathered or recomputed. Where the fullest
    moment is the last one, of the embeddings' gradient, what it holds in the place of activations counts as those.
    """

    weights: float
    gradients: float
    optimizer: float
    compute_weights: float
    activations: float
    working: float

    @property
    def states(self) -> float:
        """What no choice of micro-batch or activation checkpointing changes."""
        return self.weights + self.gradients + self.optimizer

    @property
    def total(self) -> float:
        return self.states + self.compute_weights + self.activations + self.working


def step_memory(
    model: ModelConfig,
    vocab_size: int,
    sequence_length: int,
    micro_batch_size: int,
    *,
    precision: Precision = Precision.bf16,
    devices: int = 1,
    parallel: Parallel = Parallel.ddp,
    activation_checkpointing: bool = False,
) -> StepMemory:
    """Of the second and later micro-batches of a step, when the first has left its gradients.

    micro_batch_size: rows on one device. ddp: everything whole on each device, gradients being views of the buckets.
    fsdp: a share of weights, gradients and moments; blocks are gathered in the arithmetic of the forward pass, one
    ahead of its use, embeddings and norms in float32 from forward to backward; gradients are reduced in float32
    after each micro-batch. activation_checkpointing: of a block only its input is kept.
    """
    d, m, V, L = model.d_model, model.d_mlp, vocab_size, model.n_layers
    N = sequence_length * micro_batch_size
    bf16 = precision is Precision.bf16
    element = 2 if bf16 else FLOAT32
    sharded = parallel is Parallel.fsdp and devices > 1
    share = FLOAT32 * parameters(model, V) / (devices if sharded else 1)

    block_weights = 4 * d * d + 2 * d * m + 9 * d + m
    head = V * d
    compute_weights = element * (L * (block_weights - 4 * d) + head) if bf16 else 0  # norms stay float32
    if sharded:
        compute_weights = FLOAT32 * (V + model.max_positions + 2 + 4 * L) * d

    stream = N * FLOAT32 * d  # float32 [N, d], as blocks hand it on
    lean = N * d >= TUNING.least_numbers and not activation_checkpointing
    block = N * block_activations(model, precision, lean)
    activations = L * (stream if activation_checkpointing else block) + stream  # and the input of the final norm

    states = N * element * d  # hidden states in the arithmetic of the products, or their gradient
    if TUNING.chunk_logits // 2 >= N * V:
        loss = max(
            states + 3 * FLOAT32 * N * V,
            2 * states + element * (N * V + head),
            states + (element + FLOAT32) * head if bf16 else 0,
        )
    else:
        chunk = _chunk(N, V)
        normalised = (2 if bf16 else 1) * FLOAT32 * min(chunk, TUNING.gpu_logits // V) * V
        loss = 2 * states + FLOAT32 * head + element * chunk * V + normalised
    if sharded and bf16:
        loss += element * head
    # The stream's gradient has the place of the last block's output, and the head's waits for that of the embeddings.
    block_backward = FLOAT32 * head + (states if bf16 else 0) + element * (N * m + d * m)
    if activation_checkpointing:
        block_backward += block - stream
    if sharded:
        block_backward += (2 * element + FLOAT32) * block_weights
    embeddings = 3 * FLOAT32 * head + (FLOAT32 * (model.max_positions * d + block_weights) if sharded else 0)
    working = max(loss, block_backward, embeddings - activations)
    return StepMemory(share, share, 2 * share, compute_weights, activations, working)


def _chunk(N: int, V: int) -> int:
    """Positions whose logits the loss holds at once."""
    return -(-N // -(-N // max(1, TUNING.chunk_logits // V)))


def block_activations(model: ModelConfig, precision: Precision = Precision.bf16, lean: bool = True) -> int:
    """Bytes a token that autograd keeps of one block: 16 d + 2 m + 4 heads in bf16.

    The input of each norm in float32; in the arithmetic of ``precision`` queries, keys, values, what attention gives,
    and the MLP's hidden layer before the activation; a log-sum-exp for each head. Not lean (small micro-batches): what
    each norm gives with its mean and deviation, and the hidden layer behind the activation too, 4 d + 2 m + 16 more.
    """
    d, m, element = model.d_model, model.d_mlp, 2 if precision is Precision.bf16 else FLOAT32
    kept = 2 * FLOAT32 * d + 4 * element * d + FLOAT32 * model.n_heads + element * m
    return kept if lean else kept + 2 * (2 * FLOAT32 + element * d) + element * m
