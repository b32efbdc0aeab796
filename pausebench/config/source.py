"""What a run starts from: the source of its text and rows, and the pretrained parent of a finetuning.

Commands take these values out of their config once. Data, runs and training depend on them, not on a command's config.
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
    """Where text and rows come from, and how they become tokens."""

    # ``data`` decides which of corpus and world is read; the other one is only the group's default.

    data: DataConfig
    corpus: CorpusConfig
    world: WorldConfig
    tokenizer: TokenizerConfig

    @property
    def embedded(self) -> bool:
        return self.data.source is Source.embedded

    @property
    def name(self) -> str:
        """The name of the pretraining text: the world's, or the corpus's."""
        return self.world.name if self.embedded else self.corpus.name


@dataclass(frozen=True)
class ParentChoice:
    """Which pretrained run a finetuning starts from: the one that ``init`` names, or the one that the rest describe."""

    # precision only breaks a tie between parents that were trained on different devices.

    init: str | None
    pretraining: Pretraining
    seed: int
    model: ModelConfig
    text: TextSource
    precision: Precision
