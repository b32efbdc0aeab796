"""``pausebench pretrain``: StdPT (pause=off) or PausePT (pause=on) from random weights (section 3.1, Algorithm 1)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pausebench import stop
from pausebench.config.options import plain
from pausebench.config.training import PretrainConfig
from pausebench.console import Progress
from pausebench.data import corpus, shards
from pausebench.data.corpus import Corpus
from pausebench.data.shards import PreparedText
from pausebench.data.vocabulary import open_tokenizer
from pausebench.runs.folder import RunFolder
from pausebench.training import start
from pausebench.worlds.counting import World, build_world, corpus_fingerprint

if TYPE_CHECKING:
    from pausebench.data.batch import Batches, Share
    from pausebench.data.tokenizer import Tokenizer


def run(config: PretrainConfig) -> dict[str, Any]:
    """Train to the last step, or return the result that is already there."""
    folder = folder_of(config)
    progress = start.progress(folder.name, config.train.steps, config.quiet)
    if folder.result is not None:
        fingerprint, _ = open_text(config, open_tokenizer(config.text, config.runs))
        folder.check_fingerprint(fingerprint, config.data.allow_changed, "data.allow_changed=true")
        # Data may have changed under a finished run, and its name does not show it; hence the check above.
        return progress.already_done(folder, config.profile)
    return _train(folder, config, progress)


def _train(folder: RunFolder, config: PretrainConfig, progress: Progress) -> dict[str, Any]:
    # torch takes seconds to import, and a run that is done does not need it.
    from pausebench.training.device import choose_device, cpu_threads
    from pausebench.training.parallel import local_device, started

    device = local_device(choose_device(config.device))
    with started(config.parallel, device, config.train.hang_seconds) as ranks:
        tokenizer = open_tokenizer(config.text, config.runs)
        fingerprint, text = open_text(config, tokenizer)
        batches = open_batches(config, text, tokenizer, ranks.share)
        folder.check_fingerprint(fingerprint, config.data.allow_changed, "data.allow_changed=true")
        with ranks.on_first(folder.locked()), stop.watched(), cpu_threads(config.threads):
            model = start.build_model(
                config.model,
                tokenizer.vocab_size,
                config.seed,
                device,
                ranks,
                precision=config.precision,
                recompute=config.train.activation_checkpointing,
            )
            # Before the first step, so that a run which is killed still says what it was.
            start.write_manifest(
                folder,
                plain(config),
                model,
                device,
                ranks,
                variant=config.variant,
                pretraining="pause" if config.pause.enabled else "std",
                # The same keys as of a finetuning: whoever reads manifests need not ask which it is.
                parent=None,
                corpus=config.text.name,
                sequence_length=config.sequence_length,
                tokenizer=tokenizer.fingerprint,
                data_fingerprint=fingerprint,
                tokens_per_step=config.train.batch_size * (config.sequence_length or 0),
            )
            # Asked here, where the config is: the same run in the other precision has another name.
            twin = folder_of(replace(config, precision=config.precision.other))
            start.say_precision(progress, config.precision, config.model, config.device, twin)
            result = start.train(
                folder,
                model,
                batches,
                config.train,
                resolved=plain(config),
                precision=config.precision,
                device=device,
                tracking=config.tracking,
                group=config.text.name,
                progress=progress,
                ranks=ranks,
                profile=config.profile,
            )
        return progress.done(folder, result)


def folder_of(config: PretrainConfig) -> RunFolder:
    """The folder of a resolved config."""
    return RunFolder.of(config.runs, "pretrain", config.slug, config.identity())


def open_text(config: PretrainConfig, tokenizer: Tokenizer) -> tuple[str, World | PreparedText | Corpus]:
    """The text with its fingerprint: a generated world, prepared shards or a corpus."""
    # The counting worlds are drawn row by row. The English world is text, and tokenised like any corpus.
    if config.text.embedded and config.world.kind != "english":
        world = build_world(config.world)
        return corpus_fingerprint(world, config.seed), world
    if config.corpus.prepared:
        # Looked for before the corpus: prepared text needs neither the network nor the original files.
        prepared = shards.find(config.text, config.runs, tokenizer)
        return prepared.fingerprint, prepared
    text = corpus.open_corpus(config.text)
    return corpus.fingerprint(text, tokenizer.fingerprint), text


def open_batches(
    config: PretrainConfig, text: World | PreparedText | Corpus, tokenizer: Tokenizer, share: Share
) -> Batches:
    """Its batches."""
    from pausebench.data.batches import document_batches, text_batches

    length, seed, batch_size = config.sequence_length, config.seed, config.train.batch_size
    assert length is not None, "a resolved config's"
    if isinstance(text, World):
        return document_batches(text, config.injection, length=length, seed=seed, batch_size=batch_size, share=share)
    return text_batches(
        text,
        tokenizer,
        config.injection,
        length=length,
        seed=seed,
        batch_size=batch_size,
        document_mask=config.corpus.document_mask,
        share=share,
    )
