"""The tokenizer of a source, built once a process.

Invariant: ``tokenizer=bpe`` is a function of its corpus' first documents, so that pretraining and finetuning, here and
on another machine, get the same one without passing files around.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from contextlib import suppress
from functools import lru_cache
from itertools import islice
from pathlib import Path

from pausebench.config.groups import Source, TokenizerKind
from pausebench.config.source import TextSource
from pausebench.data import corpus, hub
from pausebench.data.tokenizer import BpeTokenizer, ByteTokenizer, Tokenizer, train_bpe
from pausebench.worlds.counting import build_world

GPT2_HUB_ID = "openai-community/gpt2"
# Pinned: a tokenizer that differs in one merge changes every score.
GPT2_REVISION = "607a30d783dfa663caf39e06633721c8d4cfcd7e"
GPT2_FOLDER = "gpt2-tokenizer"  # under data.root
FILES = ("vocab.json", "merges.txt")


def open_tokenizer(source: TextSource, runs: str) -> Tokenizer:
    """The tokenizer of a source; one that has to be trained is kept in ``runs``.

    Raises ``BadInput`` for files that are missing or disagree.
    """
    kind = source.tokenizer.kind
    if kind is TokenizerKind.words:
        return build_world(source.world).tokenizer
    if kind is TokenizerKind.byte:
        return ByteTokenizer()
    if kind is TokenizerKind.gpt2 and source.tokenizer.path is None and source.data.source is Source.hub:
        return _bpe(*hub.download(GPT2_HUB_ID, GPT2_REVISION, *FILES))
    if kind is TokenizerKind.gpt2:
        given = source.tokenizer.path
        folder = Path(given) if given is not None else Path(source.data.root or ".") / GPT2_FOLDER
    else:
        folder = _trained(source, runs)
    return _bpe(*(folder.expanduser() / name for name in FILES))


@lru_cache(maxsize=4)
def _bpe(vocab_file: Path, merges_file: Path) -> Tokenizer:
    # A sweep opens the same few files for every cell; checking GPT-2's takes a third of a second.
    return BpeTokenizer(vocab_file, merges_file)


def _trained(source: TextSource, runs: str) -> Path:
    """The folder of a tokenizer that is trained on first use; it stays in ``runs`` for the next command."""
    settings = source.tokenizer
    assert settings.vocab_size is not None  # resolved
    documents = corpus.open_corpus(source)
    # The name changes with whatever the files depend on, so a stale tokenizer is never found.
    identity = f"{settings.vocab_size} {settings.train_documents} {corpus.fingerprint(documents, '')}"
    digest = hashlib.sha256(identity.encode()).hexdigest()[:8]
    folder = Path(runs, "tokenizers", f"bpe-{source.name}-{settings.vocab_size}-{digest}")
    # Two processes may train at once. Each writes a folder of its own, the first rename wins, and the bytes are equal.
    if not folder.is_dir():
        unfinished = folder.with_name(f".{folder.name}.{os.getpid()}")
        shutil.rmtree(unfinished, ignore_errors=True)
        sample = islice(documents.documents(corpus.TRAIN, 0), settings.train_documents)
        train_bpe(sample, settings.vocab_size, unfinished)
        with suppress(OSError):  # another process was faster with the same files
            unfinished.rename(folder)
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder
