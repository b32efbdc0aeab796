"""Floating-point operations of the decoder, from its shape alone: nothing here imports torch.

Convention: a multiply and an add are two operations, and only matrix products count (not norms, activations, softmax,
biases and look-ups). Attention of finetuning and inference counts the pairs that the mask lets see each other; a kernel
that computes the whole square and hides a part of it spends more.

Lengths may be means over rows, and then a count is that of a row of mean length: a little under the mean count, since
attention grows with the square.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from pausebench.config.groups import AttentionKind, ModelConfig

BIDIRECTIONAL = AttentionKind.bidirectional


def parameters(model: ModelConfig, vocab_size: int) -> int:
    """All weights of a decoder: matrices, embeddings, biases and norms (1,345,085,440 for 1b, paper, Table 5)."""
    # 3 d of qkv's bias, d of attention's output, m and d of the MLP's, and 2 d for each of two norms.
    vectors = 9 * model.d_model + model.d_mlp  # a block's biases and norms
    positions = model.max_positions * model.d_model
    return matrix_weights(model, vocab_size) + positions + model.n_layers * vectors + 2 * model.d_model


def matrix_weights(model: ModelConfig, vocab_size: int) -> int:
    """Weights that a token is multiplied with: the blocks' matrices and the tied head, once."""
    return model.n_layers * _block_weights(model) + vocab_size * model.d_model


def training_flops_per_token(model: ModelConfig, vocab_size: int, sequence_length: float) -> float:
    """Forward and backward for one token of pretraining (Chowdhery et al. 2022, appendix B).

    6 for each weight of a matrix product (the tied head counts once, the embedding look-ups not at all) and
    12 x layers x width x length for attention scores and values, causal or not: the convention of published MFU.
    """
    return 6.0 * matrix_weights(model, vocab_size) + 12.0 * model.n_layers * model.d_model * sequence_length


def attended_pairs(prefix: float, following: float, kind: AttentionKind = BIDIRECTIONAL) -> float:
    """Pairs of a query and a key it sees, itself among them, in one row.

    prefix: positions that see each other whole, or causally unless ``kind`` is bidirectional; pauses count like the
    others. following: positions behind them (cue, answer), each of which sees all before it. ``bottleneck`` hides
    the prefix from the answer; it is counted as causal, which is too much.
    """
    # A causal triangle has its diagonal: everybody sees itself.
    own = prefix * prefix if kind is BIDIRECTIONAL else prefix * (prefix + 1) / 2
    return own + following * prefix + following * (following + 1) / 2


def finetuning_flops(
    model: ModelConfig,
    vocab_size: int,
    prefix: float,
    answer: float,
    kind: AttentionKind = BIDIRECTIONAL,
    cue: float = 0,
) -> float:
    """Forward and backward for one row: prefix (pauses included), cue, and an answer of which each token is predicted.

    The last token is a label only. Head and last block's MLP are computed where there is a loss; backward costs twice
    the forward.
    """
    unread, d = prefix + cue - 1, model.d_model
    # Two operations a weight: the output matrix of attention and both of the MLP.
    spared = 2 * (d * d + 2 * d * model.d_mlp) * unread  # of the last block: what follows attention
    return 3 * (inference_flops(model, vocab_size, prefix, answer, kind, cue) - spared)


def inference_flops(
    model: ModelConfig,
    vocab_size: int,
    prefix: float,
    new_tokens: float,
    kind: AttentionKind = BIDIRECTIONAL,
    cue: float = 0,
) -> float:
    """One decoded answer: a parallel pass over the prefix (pauses included) and the cue, then a cached step a token.

    new_tokens: tokens predicted, an end token among them; the head is applied for each. The last one is fed to nobody.
    With a cache, each position goes through the blocks once, so that decoding costs what one pass over the whole row
    does.
    """
    following = cue + new_tokens - 1
    blocks = 2 * _block_weights(model) * (prefix + following)
    attention = 4 * model.d_model * attended_pairs(prefix, following, kind)
    return model.n_layers * (blocks + attention) + _head(model, vocab_size, new_tokens)


def scoring_flops(
    model: ModelConfig,
    vocab_size: int,
    prefix: float,
    candidates: Sequence[float],
    kind: AttentionKind = BIDIRECTIONAL,
    cue: float = 0,
) -> float:
    """The log-likelihoods of candidates of these lengths: one pass over prefix and cue, and one over each behind it."""
    shared = inference_flops(model, 0, prefix, 1, kind, cue)
    whole = sum(inference_flops(model, vocab_size, prefix, candidate, kind, cue) for candidate in candidates)
    return whole - (len(candidates) - 1) * shared


def equal_flops_layers(
    model: ModelConfig, vocab_size: int, prefix: float, pauses: int, answer: float, kind: AttentionKind = BIDIRECTIONAL
) -> int:
    """Layers of a model without pauses whose answer costs about what this model's costs with ``pauses``.

    The control at equal inference FLOPs: the paper names more layers as the plain way to a longer computation. The
    count is the nearest whole one, and at least one more than the model has.
    """
    wanted = inference_flops(model, vocab_size, prefix + pauses, answer, kind)
    head = _head(model, vocab_size, answer)
    # Cost is linear in the layers once the head is taken off, so that one layer gives the slope.
    one = inference_flops(dataclasses.replace(model, n_layers=1), vocab_size, prefix, answer, kind) - head
    # With few pauses the nearest count could be the model's own, and the control would be the model itself.
    return max(model.n_layers + 1, round((wanted - head) / one))


def equal_flops_steps(
    model: ModelConfig,
    vocab_size: int,
    prefix: float,
    pauses: int,
    answer: float,
    steps: int,
    kind: AttentionKind = BIDIRECTIONAL,
) -> int:
    """Finetuning steps without pauses that cost what ``steps`` cost with ``pauses``, the batch being the same."""
    paused = finetuning_flops(model, vocab_size, prefix + pauses, answer, kind)
    return round(steps * paused / finetuning_flops(model, vocab_size, prefix, answer, kind))


def _block_weights(model: ModelConfig) -> int:
    """Matrices of one block: queries, keys, values and output, and the two of the MLP."""
    return 4 * model.d_model**2 + 2 * model.d_model * model.d_mlp


def _head(model: ModelConfig, vocab_size: int, predicted: float) -> float:
    return 2.0 * vocab_size * model.d_model * predicted
