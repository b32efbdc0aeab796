"""``pausebench pretrain``: StdPT (pause=off) or PausePT (pause=on) from random weights (section 3.1, Algorithm 1)."""

from __future__ import annotations

from typing import Any

from pausebench.commands import prepared_text, runs
from pausebench.data import corpus
from pausebench.data.batch import Batches, Share
from pausebench.data.batches import document_batches, text_batches
from pausebench.data.embedded import build_world, corpus_fingerprint
from pausebench.data.tokenizer import Tokenizer
from pausebench.data.vocabulary import open_tokenizer
from pausebench.stages import PretrainConfig
from pausebench.training import stop
from pausebench.training.device import choose_device, cpu_threads
from pausebench.training.parallel import local_device, started
from pausebench.training.progress import Progress


def run(config: PretrainConfig) -> dict[str, Any]:
    """Train to the last step, or return the result that is already there."""
    device = local_device(choose_device(config.device))
    with started(config.parallel, device, config.train.hang_seconds) as ranks:
        tokenizer = open_tokenizer(config)
        fingerprint, batches = open_text(config, tokenizer, ranks.share)
        folder = runs.pretrain_folder(config)
        folder.check_fingerprint(fingerprint, config.data.allow_changed, "data.allow_changed=true")
        progress = Progress(folder.name, config.train.steps, config.quiet or not ranks.is_first)
        if folder.result is not None:
            return progress.already_done(folder)
        with ranks.on_first(folder.locked()), stop.watched(), cpu_threads(config.threads):
            model = runs.build_model(config, tokenizer, device, ranks)
            runs.write_manifest(
                folder,
                config,
                model,
                device,
                ranks,
                variant=config.variant,
                pretraining="pause" if config.pause.enabled else "std",
                parent=None,
                corpus=config.corpus_name,
                sequence_length=config.sequence_length,
                tokenizer=tokenizer.fingerprint,
                data_fingerprint=fingerprint,
                tokens_per_step=config.train.batch_size * (config.sequence_length or 0),
            )
            result = runs.train(folder, config, model, batches, device, progress, ranks, group=config.corpus_name)
        return progress.done(folder, result)


def open_text(config: PretrainConfig, tokenizer: Tokenizer, share: Share) -> tuple[str, Batches]:
    """The text's fingerprint and its batches, from a generated world, from prepared shards or from a corpus."""
    if config.embedded and config.world.kind != "english":
        world = build_world(config.world)
        return corpus_fingerprint(world, config.seed), document_batches(config, world, share)
    if config.corpus.prepared:
        prepared = prepared_text.find(config, tokenizer)
        return prepared.fingerprint, text_batches(config, prepared, tokenizer, share)
    text = corpus.open_corpus(config)
    return corpus.fingerprint(text, tokenizer.fingerprint), text_batches(config, text, tokenizer, share)
