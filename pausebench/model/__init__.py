"""Language models: what trains, scores and decodes. ``build`` makes the one that a config names.

May import config, pauses and what is below them; nothing here knows batches, tasks or runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pausebench.config.groups import ModelConfig

if TYPE_CHECKING:
    from pausebench.model.fast import FastDecoder


def build(config: ModelConfig, vocab_size: int) -> FastDecoder:
    """The model of a config with weights that are still to be drawn or loaded. Here alone an architecture is named."""
    from pausebench.model import fast
    from pausebench.model.decoder import Decoder

    return fast.use(Decoder(config, vocab_size))
