"""Short documents read as bytes, streamed or prepared: what the tests of pretraining batches share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pausebench.commands.pretrain import open_batches
from pausebench.config.groups import (
    CorpusConfig,
    DataConfig,
    ModelConfig,
    PauseConfig,
    Source,
    TokenizerConfig,
    TokenizerKind,
    TrackingConfig,
    TrainConfig,
    Trim,
    WorldConfig,
)
from pausebench.config.training import PretrainConfig
from pausebench.data.batch import ALL, Batches, Share
from pausebench.data.corpus import TRAIN, VALIDATION
from pausebench.data.shards import INDEX, PreparedText, index_content, index_fingerprint, read_part, write_part
from pausebench.data.tokenizer import ByteTokenizer

BYTE = ByteTokenizer()
DOCUMENTS = [f"document {number} " + "word " * (number * 7 % 11) for number in range(90)]
PLAIN, CARRY = PauseConfig(enabled=False), PauseConfig(trim=Trim.carry)


class Texts:
    """A corpus in memory, the same in both splits."""

    splits = (TRAIN, VALIDATION)

    def __init__(self, documents: Sequence[str] = DOCUMENTS, has_ends: bool = True) -> None:
        self.held, self.has_ends = list(documents), has_ends

    def documents(self, split: str, epoch: int) -> Iterator[str]:
        yield from self.held

    def identity(self) -> list[str]:
        return []


def prepared(folder: Path, documents: Sequence[str] = DOCUMENTS) -> PreparedText:
    """The same corpus as shards."""
    shards = {}
    for split in (TRAIN, VALIDATION):
        write_part(
            folder, split, 0, iter(documents), BYTE, has_ends=True, shard_tokens=500, advance=lambda read, tokens: None
        )
        shards[split] = read_part(folder, split, 0, "<u2").shards
    content = index_content(BYTE.fingerprint, "<u2", shards)
    (folder / INDEX).write_bytes(content)
    return PreparedText(folder, index_fingerprint(content), "pausebench prepare")


def config(length: int = 40, batch_size: int = 6, document_mask: bool = False, **options: Any) -> PretrainConfig:
    return PretrainConfig(
        model=ModelConfig("test", 2, 2, 16, 32, 160),
        world=WorldConfig("english", "english", 160),
        data=DataConfig(Source.files, "nowhere"),
        corpus=CorpusConfig("mine", document_mask=document_mask),
        tokenizer=TokenizerConfig(TokenizerKind.byte),
        sequence_length=length,
        train=TrainConfig(batch_size=batch_size),
        tracking=TrackingConfig(False),
        **options,
    ).resolved()


def batches(text: Any, share: Share = ALL, **options: Any) -> Batches:
    return open_batches(config(**options), text, BYTE, share)
