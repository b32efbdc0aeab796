"""Where prepared text stands in the run root, and how a pretraining finds it: by corpus, source and tokenizer."""

from __future__ import annotations

from pausebench.commands import runs
from pausebench.data.shards import PreparedText
from pausebench.data.tokenizer import Tokenizer
from pausebench.errors import BadInput
from pausebench.options import identity_fields
from pausebench.results.run_folder import RunFolder, run_name
from pausebench.stages import TextConfig


def folder_of(config: TextConfig, tokenizer: Tokenizer) -> RunFolder:
    """runs/prepare/CORPUS-TOKENIZER-HASH: the same for every command with this corpus, source and tokenizer."""
    corpus = identity_fields(config.corpus)
    for name in ("prepared", "document_mask"):  # how a training reads it
        corpus.pop(name, None)
    identity = {"corpus": corpus, "source": config.data.source.value, "tokenizer": tokenizer.fingerprint}
    name = run_name(f"{config.corpus.name}-{config.tokenizer.kind.value}", identity)
    return RunFolder(config.runs, "prepare", name)


def command(config: TextConfig) -> str:
    """What to type to prepare this text."""
    words = [
        *runs.source_overrides(config.data),
        *runs.corpus_overrides(config.corpus),
        *runs.tokenizer_overrides(config.tokenizer),
    ]
    if config.runs != "runs":
        words.append(runs.override("runs", config.runs))
    return " ".join(["pausebench prepare", *words])


def find(config: TextConfig, tokenizer: Tokenizer) -> PreparedText:
    """The prepared text of a config. Raises ``BadInput`` where it is absent, unfinished or damaged."""
    folder = folder_of(config, tokenizer)
    result = folder.result
    if result is None:
        state = "is not finished" if folder.path.exists() else "does not exist"
        raise BadInput(
            f"corpus.prepared=true: {folder.path} {state}. Make it with\n  {command(config)}\n"
            "or leave corpus.prepared out: the text is then read and tokenised while training."
        )
    return PreparedText(folder.path, result["fingerprint"], command(config))
