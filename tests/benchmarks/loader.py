"""How fast rows come from prepared shards, at the paper's length: 2048 tokens, GPT-2's vocabulary, one core.

    python tests/benchmarks/loader.py [repeats]

Writes 32 million random tokens as shards to a temporary folder (they stay in the page cache: the disk is not measured)
and times batches of 32 rows as the trainer asks for them: shuffled, checked, without pauses (StdPT), with pauses cut
back (PausePT), with trim=carry, and with a document mask. Prints the median tokens per second of each, pauses included.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

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
)
from pausebench.config.training import PretrainConfig
from pausebench.data.batch import ALL
from pausebench.data.shards import (
    INDEX,
    PreparedText,
    index_content,
    index_fingerprint,
    read_part,
    token_type,
    write_part,
)
from pausebench.data.tokenizer import Tokenizer

VOCABULARY, LENGTH, ROWS, STEPS = 50258, 2048, 32, 32
DOCUMENT_TOKENS, DOCUMENTS = 500, 64_000


class RandomTokens(Tokenizer):
    """Every text is ``DOCUMENT_TOKENS`` random ids."""

    def __init__(self) -> None:
        super().__init__(VOCABULARY, "random")
        self.generator = torch.Generator().manual_seed(0)

    def encode_lists(self, texts: Sequence[str]) -> list[list[int]]:
        drawn: list[list[int]] = torch.randint(
            0, VOCABULARY - 2, (len(texts), DOCUMENT_TOKENS - 1), generator=self.generator
        ).tolist()
        return drawn

    def decode(self, ids: Sequence[int]) -> str:
        raise AssertionError


def config(pause: PauseConfig, document_mask: bool) -> PretrainConfig:
    return PretrainConfig(
        model=ModelConfig("none", 1, 1, 8, 8, LENGTH),
        data=DataConfig(Source.files, "unused"),
        corpus=CorpusConfig("random", prepared=True, document_mask=document_mask),
        world=None,
        tokenizer=TokenizerConfig(TokenizerKind.gpt2),
        pause=pause,
        sequence_length=LENGTH,
        train=TrainConfig(batch_size=ROWS),
        tracking=TrackingConfig(False),
    )


def prepare(folder: Path, tokenizer: Tokenizer) -> PreparedText:
    def documents() -> Iterator[str]:
        yield from [""] * DOCUMENTS

    splits = {}
    for split in ("train", "validation"):
        write_part(
            folder,
            split,
            0,
            documents(),
            tokenizer,
            has_ends=True,
            shard_tokens=2**24,
            advance=lambda documents, tokens: None,
        )
        splits[split] = read_part(folder, split, 0, token_type(VOCABULARY)).shards
    index = index_content(tokenizer.fingerprint, token_type(VOCABULARY), splits)
    (folder / INDEX).write_bytes(index)
    return PreparedText(folder, index_fingerprint(index), "")


def main() -> None:
    torch.set_num_threads(1)
    tokenizer = RandomTokens()
    with tempfile.TemporaryDirectory() as folder:
        text = prepare(Path(folder), tokenizer)
        kinds = {
            "without pauses": (PauseConfig(enabled=False), False),
            "with pauses": (PauseConfig(), False),
            "with pauses, carry": (PauseConfig(trim=Trim.carry), False),
            "with pauses, document mask": (PauseConfig(), True),
        }
        rates: dict[str, list[float]] = {kind: [] for kind in kinds}
        for repeat in range(int(sys.argv[1]) if len(sys.argv) > 1 else 5):
            for kind, (pause, document_mask) in kinds.items():
                batches = open_batches(config(pause, document_mask), text, tokenizer, ALL)
                began = time.perf_counter()
                tokens = sum(batches.batch(repeat * STEPS + step).tokens for step in range(1, STEPS + 1))
                rates[kind].append(tokens / (time.perf_counter() - began))
    for kind, measured in rates.items():
        print(f"{kind:<28}{statistics.median(measured) / 1e6:6.1f} million tokens/s (median of {len(measured)})")


if __name__ == "__main__":
    main()
