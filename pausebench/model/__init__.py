"""Language models: what trains, scores and decodes. ``build`` makes the one that a config names.

May import config, pauses and what is below them; nothing here knows batches, tasks or runs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from pausebench.config.groups import ModelConfig
from pausebench.errors import BadInput

if TYPE_CHECKING:
    from pausebench.model.base import Model

# model.architecture -> the module whose ``build(config, vocab_size)`` makes it. It is imported when needed: importing
# torch takes a second, and many commands do without.
ARCHITECTURES = {"gpt2": "pausebench.model.fast"}


def build(config: ModelConfig, vocab_size: int) -> Model:
    """The model of a config, its weights still to be drawn or loaded. Raises ``BadInput`` where nobody makes it."""
    if config.architecture not in ARCHITECTURES:
        allowed = ", ".join(ARCHITECTURES)
        raise BadInput(f"model.architecture={config.architecture} is unknown; allowed are {allowed}.")
    model: Model = importlib.import_module(ARCHITECTURES[config.architecture]).build(config, vocab_size)
    return model
