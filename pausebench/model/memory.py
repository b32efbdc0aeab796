"""Bytes of device memory that a training step needs, from the decoder's shape alone: nothing here imports torch.

What is counted is what the trainer holds: weights, gradients and AdamW's moments in float32, the tensors that autograd
keeps, and what lives for a moment around them. Rows are causal and go through fused attention, which
keeps no T x T scores.

Not counted: the CUDA context, NCCL's buffers, cuBLAS's workspaces, what the caching allocator loses to fragmentation,
the batches, and, where some positions have no loss, the copy of the hidden states that have one.

Symbols: d width, m width of the MLP, L layers, V vocabulary, P positions, N tokens of a micro-batch on one device.
"""

from __future__ import annotations

from dataclasses import dataclass

from pausebench.groups import ModelConfig, Parallel, Precision
from pausebench.model.flops import parameters

FLOAT32 = 4
CHUNK_LOGITS, FLOAT32_LOGITS = 1 << 26, 1 << 24  # those of ``training.loss``, which imports torch


@dataclass(frozen=True)
class StepMemory:
    """Bytes on one device at the fullest moment of a step.

    weights, gradients, optimizer: held from step to step. compute_weights: held beside them from forward to backward,
    bf16 copies (ddp) or the gathered embeddings (fsdp). activations: kept for the backward pass. working: all else at
    that moment: logits, gradients on their way, blocks that are gathered or recomputed.
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
    ahead of its use, embeddings and final norm in float32 from forward to backward; gradients are reduced in float32
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
    copies = element * (block_weights - 4 * d) if bf16 and not sharded else 0  # of one block, whose norms stay float32
    gathered = FLOAT32 * (V + model.max_positions + 2) * d if sharded else 0
    compute_weights = gathered if sharded else L * copies + (element * head if bf16 else 0)

    stream = N * FLOAT32 * d  # float32 [N, d], as blocks hand it on
    block = N * block_activations(model, precision)
    activations = L * (stream if activation_checkpointing else block) + 2 * stream
    kept = compute_weights + activations

    last_block = N * (5 * element * d + 2 * element * m + 2 * FLOAT32 * d) if activation_checkpointing else 0
    low = N * element * d if bf16 else 0  # states in the arithmetic of the products
    loss = (element if sharded and bf16 else 0) * head + low
    if N * V <= CHUNK_LOGITS // 2:
        loss += (element + 2 * FLOAT32 if bf16 else 2 * FLOAT32) * N * V
    else:
        chunk = _chunk(N, V) * V
        loss += element * chunk + FLOAT32 * head + N * element * d + 2 * FLOAT32 * min(chunk, FLOAT32_LOGITS // V * V)
    block_backward = kept + N * element * m + low - stream + FLOAT32 * head
    if activation_checkpointing:
        block_backward += block - stream
    if sharded:
        block_backward += (2 * element + FLOAT32) * block_weights
    fullest = max(
        kept + last_block - 2 * stream,
        kept + loss,
        block_backward,
        compute_weights + FLOAT32 * ((3 * V + model.max_positions) * d + (block_weights if sharded else 0)) + stream,
    )
    return StepMemory(share, share, 2 * share, compute_weights, activations, fullest - kept)


def _chunk(N: int, V: int) -> int:
    """Positions whose logits the loss holds at once."""
    return -(-N // -(-N // max(1, CHUNK_LOGITS // V)))


def block_activations(model: ModelConfig, precision: Precision = Precision.bf16) -> int:
    """Bytes a token that autograd keeps of one block: 20 d + 4 m + 4 heads + 16 in bf16.

    The input of each norm in float32 with its mean and deviation; in the arithmetic of ``precision`` what the norm
    gives, queries, keys, values, what attention gives, and the MLP's hidden layer before and after the activation; a
    log-sum-exp for each head.
    """
    d, element = model.d_model, 2 if precision is Precision.bf16 else FLOAT32
    norm = FLOAT32 * d + 2 * FLOAT32 + element * d
    return 2 * norm + 4 * element * d + FLOAT32 * model.n_heads + 2 * element * model.d_mlp
