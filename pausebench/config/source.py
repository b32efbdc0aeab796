"""What a run starts from: the source of its text and rows, and the pretrained parent of a finetuning.

Values that the commands take out of their config once. Data, runs and training know these and no command's config.
"""

from __future__ import annotations

from dataclasses import dataclass

from pausebench.config.groups import (
    CorpusConfig,
    DataConfig,
    ModelConfig,
    Precision,
    Pretraining,
    Source,
    TokenizerConfig,
    WorldConfig,
)


@dataclass(frozen=True)
class TextSource:
    """Where text and rows come from, and how they become tokens.

    ``data`` says which of the other two is read: ``world`` for generated text, ``corpus`` for the hub and for files.
    """

    data: DataConfig
    corpus: CorpusConfig
    world: WorldConfig
    tokenizer: TokenizerConfig

    @property
    def embedded(self) -> bool:
        return self.data.source is Source.embedded

    @property
    def name(self) -> str:
        """What the pretraining text is called: the world, or the corpus of files and hub."""
        return self.world.name if self.embedded else self.corpus.name


@dataclass(frozen=True)
class ParentChoice:
    """Which pretrained run a finetuning starts from: the one that ``init`` names, or that the others describe."""

    init: str | None
    pretraining: Pretraining
    seed: int
    model: ModelConfig
    text: TextSource
    precision: Precision
