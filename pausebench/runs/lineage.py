"""Parents of finetunings: finding one, checking it, and the command that would make a missing one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pausebench.config.groups import (
    CorpusConfig,
    DataConfig,
    PauseVisibility,
    Pretraining,
    TokenizerConfig,
    TokenizerKind,
)
from pausebench.config.help import choices
from pausebench.config.options import plain
from pausebench.config.source import ParentChoice, TextSource
from pausebench.errors import BadInput
from pausebench.runs.folder import read_json


@dataclass(frozen=True)
class Parent:
    """What a finetuning starts from: a finished pretrain run, or random weights.

    name: the run's name, or "random". pretraining: std, pause or none. seed: the pretraining seed. length: tokens in
    a pretraining row (None: not pretrained). pause_visibility: who saw its pauses.
    """

    name: str
    pretraining: str
    seed: int | None
    length: int | None
    checkpoint: Path | None
    model: dict[str, Any] | None
    tokenizer: str | None
    pause_visibility: str = PauseVisibility.all.value


RANDOM = Parent("random", "none", None, None, None, None, None)


def find_parent(choice: ParentChoice, runs: str, tokenizer: str) -> Parent:
    """The pretrain run in ``runs`` that ``choice`` describes; its tokenizer must have the fingerprint ``tokenizer``.

    Raises ``BadInput`` if there is none (with the command that makes it), if several fit (with the ``init=`` that
    chooses one), or if the run has another model or tokenizer.
    """
    if choice.init == "random":
        return RANDOM
    if choice.init is not None:
        return _checked(parent_of(existing_run(runs, "pretrain", choice.init)), choice, tokenizer)
    # No training options here: a user may pretrain longer than the recipe and still have one parent. Runs with hidden
    # pauses are controls, so only init= finds them.
    wanted = {
        "model": plain(choice.model),
        "tokenizer": tokenizer,
        "pretraining": choice.pretraining.value,
        "corpus": choice.text.name,
        "seed": choice.seed,
        "pause_visibility": PauseVisibility.all.value,
    }
    found = [
        path.parent
        for path in sorted(Path(runs, "pretrain").glob("*/manifest.json"))
        if (manifest := _manifest(path.parent)) and {name: manifest.get(name) for name in wanted} == wanted
    ]
    done = [run for run in found if (run / "result.json").exists()]
    if len(done) > 1:
        # Runs of two machines in one folder: precision=auto may have chosen differently on each.
        alike = [run for run in done if _manifest(run).get("precision") == choice.precision.value]
        done = alike if len(alike) == 1 else done
    if len(done) == 1:
        return _checked(parent_of(done[0]), choice, tokenizer)
    if done:
        listed = "\n".join(f"  init={run}" for run in done)
        raise BadInput(
            f"{len(done)} runs in {runs}/pretrain fit pretraining={choice.pretraining.value} "
            f"pretraining_seed={choice.seed} model={choice.model.name}. Choose one:\n{listed}"
        )
    pause = "on" if choice.pretraining is Pretraining.pause else "off"
    words = [*data_overrides(choice.text, choice.model.name), f"pause={pause}", f"seed={choice.seed}"]
    command = " ".join(["pausebench pretrain", *words, *runs_override(runs)])
    state = "is not finished" if found else "does not exist"
    raise BadInput(
        f"the {choice.pretraining.value} parent of model={choice.model.name} on {choice.text.name} with "
        f"pretraining_seed={choice.seed} {state} in {runs}/pretrain. Make it with\n  {command}\n"
        "or start from init=random."
    )


def data_overrides(text: TextSource, model: str) -> list[str]:
    """The overrides that choose the same model, text and tokenizer in another command."""
    # A toy world sets its tokenizer and the default data=embedded suits it: two words are enough to type.
    if text.tokenizer.kind is TokenizerKind.words:
        return [f"world={text.world.name}", f"model={model}"]
    corpus = [] if text.embedded else corpus_overrides(text.corpus)
    return [f"model={model}", *source_overrides(text.data), *corpus, *tokenizer_overrides(text.tokenizer)]


def runs_override(runs: str) -> list[str]:
    """The override that names the runs folder, if it is not the default."""
    return [] if runs == "runs" else [override("runs", runs)]


def source_overrides(data: DataConfig) -> list[str]:
    root = [] if data.root is None else [override("data.root", data.root)]
    return [f"data={data.source.value}", *root]


def corpus_overrides(corpus: CorpusConfig) -> list[str]:
    files = [] if corpus.files is None else [f"corpus.files={corpus.files}"]
    if corpus.name in choices("corpus"):
        return [f"corpus={corpus.name}", *files]
    fields = ("name", "field", "hub_id", "subset", "revision")
    given = [(name, value) for name in fields if (value := getattr(corpus, name)) is not None]
    as_bytes = ["corpus.bytes=true"] if corpus.bytes else []
    # Not one of conf/corpus: the user described it field by field, on top of the generic corpus=text.
    return ["corpus=text", *(override(f"corpus.{name}", value) for name, value in given), *files, *as_bytes]


def tokenizer_overrides(tokenizer: TokenizerConfig) -> list[str]:
    words = [f"tokenizer={tokenizer.kind.value}"]
    if tokenizer.kind is TokenizerKind.bpe and tokenizer.vocab_size is not None:
        words.append(f"tokenizer.vocab_size={tokenizer.vocab_size}")
    if tokenizer.path is not None:
        words.append(override("tokenizer.path", tokenizer.path))
    return words


def override(key: str, value: str) -> str:
    """``key=value`` in Hydra's grammar, quoted if necessary."""
    if re.fullmatch(r"[\w./+-]+", value):
        return f"{key}={value}"
    # In Hydra's grammar a backslash escapes only before a quote, so only those are doubled: C:\new stays as it is.
    escaped = re.sub(r"(\\+)(?='|$)", r"\1\1", value).replace("'", "\\'")
    return f"{key}='{escaped}'"


def existing_run(runs: str, command: str, given: str) -> Path:
    """The folder of a finished run given by path or name. Raises ``BadInput`` if it is unknown or unfinished."""
    for path in (Path(given), Path(runs, command, given)):
        if (path / "manifest.json").exists():
            manifest = read_json(path / "manifest.json")
            if manifest.get("command") != command:
                raise BadInput(f"{path} is a {manifest.get('command')} run; a {command} run is needed here.")
            if not (path / "result.json").exists():
                raise BadInput(f"{path} is not finished. Type its {command} command again to go on, then this one.")
            return path
    # The list stops at 8: a study leaves hundreds of runs, and the message should fit a screen.
    known = sorted(run.parent.name for run in Path(runs, command).glob("*/result.json"))
    listed = "".join(f"\n  {name}" for name in known[:8]) + (f"\n  and {len(known) - 8} more" if known[8:] else "")
    raise BadInput(
        f"{given} is no {command} run (looked for {given}/manifest.json and {runs}/{command}/{given}). "
        + (
            f"Finished {command} runs:{listed}"
            if known
            else f"{runs}/{command} holds none yet: pausebench {command} --help"
        )
    )


def parent_of(run: Path) -> Parent:
    """A finished pretrain run as a ``Parent``."""
    manifest, result = _manifest(run), read_json(run / "result.json")
    return Parent(
        run.name,
        manifest["pretraining"],
        manifest["seed"],
        manifest["sequence_length"],
        run / result["checkpoint"],
        manifest["model"],
        manifest["tokenizer"],
        manifest["pause_visibility"],
    )


def _manifest(run: Path) -> dict[str, Any]:
    """The manifest of a pretrain run. One that does not name a pause visibility has the paper's."""
    path = run / "manifest.json"
    # Cached by what changes when the file does: a manifest is replaced, never edited, so a new one has a new inode.
    try:
        stat = path.stat()
    except OSError:
        return {"pause_visibility": PauseVisibility.all.value}
    return _read_manifest(path, stat.st_ino, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4096)  # each of a sweep's finetunings searches all pretrain runs: quadratic in files read
def _read_manifest(path: Path, inode: int, modified: int, size: int) -> dict[str, Any]:
    manifest: dict[str, Any] = read_json(path) or {}
    return {"pause_visibility": PauseVisibility.all.value} | manifest


def _checked(parent: Parent, choice: ParentChoice, tokenizer: str) -> Parent:
    if parent.model != plain(choice.model):
        # Only the fields that differ: a 130m model beside a 1b one would otherwise print two dozen numbers.
        here, there = plain(choice.model), parent.model or {}
        changed = [
            f"{name} {there.get(name)} there, {here[name]} here" for name in here if there.get(name) != here[name]
        ]
        raise BadInput(
            f"{parent.name} has another model than model={choice.model.name}: {', '.join(changed)}. "
            "Give its model=, or another init=."
        )
    if parent.tokenizer != tokenizer:
        raise BadInput(
            f"{parent.name} was trained with tokenizer {parent.tokenizer}; "
            f"tokenizer={choice.text.tokenizer.kind.value} on {choice.text.name} is {tokenizer}. "
            "Give the tokenizer and corpus it was trained with, or another init=."
        )
    return parent
