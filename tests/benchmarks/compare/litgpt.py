"""litgpt's GPT of the same shape, trained as its own pretraining script does: tied head, compiled, its chunked loss.

Its positions are rotary, so that weights cannot be the same and it has no position table to train.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pausebench.config.groups import ModelConfig
from tests.benchmarks.compare.contest import reason

INSTALL = "see docs/benchmarks.md: pip install --no-deps litgpt lightning, into a folder on PYTHONPATH"


def missing() -> str | None:
    """Why litgpt cannot be imported beside the other libraries, else None."""
    try:
        import litgpt.config
        import litgpt.model
        import litgpt.utils  # noqa: F401
    except ImportError as error:
        return f"litgpt cannot be imported ({reason(error)}): {INSTALL}"
    return None


def build(config: ModelConfig, vocab_size: int, length: int) -> Any:
    """litgpt's GPT with as many layers, heads and the same widths; random weights."""
    from litgpt.config import Config
    from litgpt.model import GPT

    model = GPT(
        Config(
            name=config.name,
            block_size=length,
            n_layer=config.n_layers,
            n_head=config.n_heads,
            n_embd=config.d_model,
            intermediate_size=config.d_mlp,
            padded_vocab_size=vocab_size,
            vocab_size=vocab_size,
            parallel_residual=False,
            attn_bias=True,
            bias=True,
            rotary_percentage=1.0,
            gelu_approximate="tanh" if config.activation == "gelu" else "none",
        )
    )
    model.lm_head.weight = model.transformer.wte.weight
    return model


def loss_of(model: Any, input_ids: Tensor, labels: Tensor) -> Tensor:
    from litgpt.utils import chunked_cross_entropy

    loss: Tensor = chunked_cross_entropy(model(input_ids), labels, ignore_index=-100)
    return loss
