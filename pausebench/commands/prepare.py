"""``pausebench prepare``: a corpus becomes shards of tokens on disk, by several processes, and survives kill -9.

Whatever is killed, the same command goes on behind the last recorded shard of each part (file) of the source, and the
bytes are those of an uninterrupted run with any number of workers.
"""

from __future__ import annotations

import hashlib
import platform
from typing import Any

from omegaconf import OmegaConf

from pausebench import __version__
from pausebench.commands import prepared_text
from pausebench.commands.prepare_progress import PrepareProgress
from pausebench.commands.prepare_workers import Work, write_parts
from pausebench.config import PrepareConfig
from pausebench.data import corpus
from pausebench.data.shard_writer import read_part
from pausebench.data.shards import INDEX, index_content, index_fingerprint, token_type
from pausebench.data.tokenizer import Tokenizer
from pausebench.data.vocabulary import open_tokenizer
from pausebench.errors import BadInput
from pausebench.options import plain
from pausebench.results.run_folder import RunFolder, write_atomically, write_json
from pausebench.training import stop

SHARD_TOKENS = 2**26  # 128 MiB of uint16: what a killed worker has to do again, and 3,000 shards for 200 billion tokens


def run(config: PrepareConfig) -> dict[str, Any]:
    """Write what is missing of the shards, then the index that makes the folder whole."""
    tokenizer = open_tokenizer(config)
    text = corpus.open_corpus(config)
    folder = prepared_text.folder_of(config, tokenizer)
    dtype = token_type(tokenizer.vocab_size)
    parts = {split: text.parts(split) for split in text.splits}
    # Validation and test are short: while they are written last, most workers would have nothing to do.
    splits = sorted(parts, key=lambda split: split == corpus.TRAIN)
    works = [Work(split, number) for split in splits for number in range(len(parts[split]))]
    source = _fingerprint(text, tokenizer, parts)
    with folder.locked(), stop.watched():
        shard_tokens = _shard_tokens(folder, config, source)
        _write_manifest(folder, config, tokenizer, source, shard_tokens)
        recorded = [read_part(folder.path, work.split, work.number, dtype) for work in works]
        with PrepareProgress(folder, len(parts[corpus.TRAIN]), config.quiet) as progress:
            write_parts(config.workers or 1, folder.path, text, tokenizer, shard_tokens, works, recorded, progress)
        shards = {
            split: [
                shard
                for number in range(len(parts[split]))
                for shard in read_part(folder.path, split, number, dtype).shards
            ]
            for split in parts
        }
        for split, found in shards.items():
            if not found:
                raise BadInput(f"the split {split} of corpus={config.corpus.name} has no documents.")
        index = index_content(tokenizer.fingerprint, dtype, shards)
        write_atomically(folder.path / INDEX, index)
        result = {
            "fingerprint": index_fingerprint(index),
            "documents": {split: sum(shard.documents for shard in found) for split, found in shards.items()},
            "tokens": {split: sum(shard.tokens for shard in found) for split, found in shards.items()},
            "shards": sum(map(len, shards.values())),
        }
        write_json(folder.path / "result.json", result)
    progress.done(result)
    return {"names": [folder.name]}


def _fingerprint(text: corpus.Corpus, tokenizer: Tokenizer, parts: dict[str, list[str]]) -> str:
    """Hex digest of what is prepared: the first documents, the names and sizes of all files."""
    listed = [f"{split} {name}" for split in parts for name in parts[split]]
    said = "\n".join([corpus.fingerprint(text, tokenizer.fingerprint), *listed])
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def _shard_tokens(folder: RunFolder, config: PrepareConfig, source: str) -> int:
    """The size of this folder's shards. Raises ``BadInput`` when it was begun with another, or from other text."""
    manifest = folder.manifest
    if manifest is None:
        return SHARD_TOKENS if config.shard_tokens is None else config.shard_tokens
    if manifest["source_fingerprint"] != source:
        raise BadInput(
            f"{folder.path} was begun from other files: their fingerprint was {manifest['source_fingerprint']} and is "
            f"{source} now. Restore them, give runs=DIR for a new folder, or delete {folder.path}."
        )
    begun = int(manifest["shard_tokens"])
    if config.shard_tokens not in (None, begun):
        raise BadInput(
            f"shard_tokens={config.shard_tokens}: {folder.path} was begun with {begun}. Leave shard_tokens out, or "
            f"delete {folder.path}."
        )
    return begun


def _write_manifest(
    folder: RunFolder, config: PrepareConfig, tokenizer: Tokenizer, source: str, shard_tokens: int
) -> None:
    folder.create()
    write_atomically(folder.path / "config.yaml", OmegaConf.to_yaml(plain(config)))
    write_json(
        folder.path / "manifest.json",
        {
            "command": "prepare",
            "name": folder.name,
            "corpus": config.corpus.name,
            "tokenizer": tokenizer.fingerprint,
            "source_fingerprint": source,
            "shard_tokens": shard_tokens,
            "versions": {"pausebench": __version__, "python": platform.python_version()},
        },
    )
