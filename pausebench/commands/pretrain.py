"""``pausebench pretrain``: StdPT (pause=off) or PausePT (pause=on) from random weights (section 3.1, Algorithm 1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pausebench import stop
from pausebench.config.training import PretrainConfig
from pausebench.data import corpus, shards
from pausebench.data.corpus import Corpus
from pausebench.data.shards import PreparedText
from pausebench.data.vocabulary import open_tokenizer
from pausebench.runs import lineage
from pausebench.runs.folder import RunFolder
from pausebench.training import start
from pausebench.worlds.counting import World, build_world, corpus_fingerprint

if TYPE_CHECKING:
    from pausebench.data.batch import Batches, Share
    from pausebench.data.tokenizer import Tokenizer


def run(config: PretrainConfig) -> dict[str, Any]:
    """Train to the last step, or return the result that is already there."""
    folder = lineage.pretrain_folder(config)
    if folder.result is not None:
        fingerprint, _ = open_text(config, open_tokenizer(config))
        folder.check_fingerprint(fingerprint, config.data.allow_changed, "data.allow_changed=true")
        return start.progress(folder, config).already_done(folder, config.profile)
    return _train(folder, config)


def _train(folder: RunFolder, config: PretrainConfig) -> dict[str, Any]:
    from pausebench.training.device import choose_device, cpu_threads
    from pausebench.training.parallel import local_device, started

    device = local_device(choose_device(config.device))
    with started(config.parallel, device, config.train.hang_seconds) as ranks:
        tokenizer = open_tokenizer(config)
        fingerprint, text = open_text(config, tokenizer)
        batches = open_batches(config, text, tokenizer, ranks.share)
        folder.check_fingerprint(fingerprint, config.data.allow_changed, "data.allow_changed=true")
        progress = start.progress(folder, config)
        with ranks.on_first(folder.locked()), stop.watched(), cpu_threads(config.threads):
            model = start.build_model(config, tokenizer, device, ranks)
            start.write_manifest(
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
            result = start.train(folder, config, model, batches, device, progress, ranks, group=config.corpus_name)
        return progress.done(folder, result)


def open_text(config: PretrainConfig, tokenizer: Tokenizer) -> tuple[str, World | PreparedText | Corpus]:
    """The text with its fingerprint: a generated world, prepared shards or a corpus."""
    if config.embedded and config.world.kind != "english":
        world = build_world(config.world)
        return corpus_fingerprint(world, config.seed), world
    if config.corpus.prepared:
        prepared = shards.find(config, tokenizer)
        return prepared.fingerprint, prepared
    text = corpus.open_corpus(config)
    return corpus.fingerprint(text, tokenizer.fingerprint), text


def open_batches(
    config: PretrainConfig, text: World | PreparedText | Corpus, tokenizer: Tokenizer, share: Share
) -> Batches:
    """Its batches."""
    from pausebench.data.batches import document_batches, text_batches

    if isinstance(text, World):
        return document_batches(config, text, share)
    return text_batches(config, text, tokenizer, share)
