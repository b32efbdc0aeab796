"""Pretraining from prepared text: found by corpus and tokenizer, resumed exactly, refused where it is not the same."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pausebench import cli
from pausebench.data.shards import PreparedText
from pausebench.training import checkpoint
from pausebench.training.trainer import Trainer
from tests.training.test_resume import in_child

STEPS = 12
TRAINING = (
    f"model=tiny pause=on sequence_length=64 train.steps={STEPS} train.batch_size=4 train.log_every=2 precision=fp32 "
    "train.validate_every=5 train.checkpoint_every=4 train.validation_rows=6 tracking=off quiet=true"
)
KINDS = ["", "pause.trim=carry", "corpus.document_mask=true"]


def source(root: Path) -> str:
    return f"data=files data.root={root}/data corpus=text corpus.name=mine tokenizer=byte runs={root}/runs"


def prepare(root: Path) -> int:
    return cli.run(f"prepare {source(root)} workers=1 shard_tokens=3000 quiet=true".split())


def pretrain(root: Path, *words: str) -> int:
    return cli.run([*f"pretrain {source(root)} corpus.prepared=true {TRAINING}".split(), *words])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the corpus ``mine`` and, in runs/, its prepared text."""
    root = tmp_path_factory.mktemp("root")
    (root / "data" / "mine").mkdir(parents=True)
    for split, documents in (("train", 300), ("validation", 60)):
        rows = (json.dumps({"text": f"{split} {n} " + "word " * (n % 13)}) + "\n" for n in range(documents))
        (root / "data" / "mine" / f"{split}.jsonl").write_text("".join(rows))
    assert prepare(root) == 0
    return root


@pytest.fixture
def own_root(root: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(root, tmp_path / "root", ignore=shutil.ignore_patterns("pretrain")))


def prepared_folder(root: Path) -> Path:
    (found,) = (root / "runs" / "prepare").iterdir()
    return found


def end(root: Path) -> tuple[Any, dict[str, torch.Tensor], list[Any]]:
    (run,) = (root / "runs" / "pretrain").iterdir()
    result = json.loads((run / "result.json").read_text())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [(row["step"], row["tokens"], row["loss"], row.get("validation_loss")) for row in rows]
    return result, load_file(checkpoint.path_of(run, STEPS)), losses


@pytest.mark.parametrize("kind", KINDS)
def test_killed_and_started_again_it_ends_as_one_that_was_not(kind: str, own_root: Path, tmp_path: Path) -> None:
    words = [kind] if kind else []
    whole = Path(shutil.copytree(own_root, tmp_path / "whole"))
    (whole / "data").rename(whole / "gone")  # the text itself is not needed any more
    assert pretrain(whole, *words) == 0
    step = Trainer.optimize
    for fatal in (3, 9):

        def train_until_killed(fatal: int = fatal) -> int:
            def fragile(self: Trainer, number: int, *given: Any) -> None:
                step(self, number, *given)
                if number == fatal:
                    os.kill(os.getpid(), signal.SIGKILL)

            Trainer.optimize = fragile  # type: ignore[method-assign]
            return pretrain(own_root, *words)

        assert in_child(train_until_killed) == -signal.SIGKILL
    assert pretrain(own_root, *words) == 0
    result, weights, losses = end(own_root)
    expected_result, expected_weights, expected_losses = end(whole)
    assert result == expected_result and losses == expected_losses
    assert all(torch.equal(weights[name], expected_weights[name]) for name in expected_weights)


def test_absent_and_unfinished_text_name_the_command_that_makes_it(
    own_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (prepared_folder(own_root) / "result.json").unlink()
    assert pretrain(own_root) == 2
    said = capsys.readouterr().err
    command = (
        f"pausebench prepare data=files data.root={own_root}/data corpus=text corpus.name=mine corpus.field=text "
        f"tokenizer=byte runs={own_root}/runs"
    )
    assert f"{prepared_folder(own_root)} is not finished. Make it with\n  {command}\n" in said
    shutil.rmtree(own_root / "runs")
    assert pretrain(own_root) == 2
    said = capsys.readouterr().err
    assert "does not exist. Make it with" in said and command in said
    assert cli.run([*command.split()[1:], "workers=1", "quiet=true"]) == 0
    assert pretrain(own_root, "train.steps=1") == 0


def test_another_tokenizer_is_not_mistaken_for_this_one(own_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tokenizers")
    assert pretrain(own_root, "tokenizer=bpe", "tokenizer.vocab_size=300") == 2
    assert "tokenizer=bpe tokenizer.vocab_size=300" in capsys.readouterr().err


def test_going_on_with_text_that_was_prepared_from_another_source_is_refused(
    own_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pretrain(own_root) == 0
    shutil.rmtree(own_root / "runs" / "prepare")
    with (own_root / "data" / "mine" / "train.jsonl").open("a") as file:
        file.write('{"text": "one document more"}\n')
    assert prepare(own_root) == 0
    assert pretrain(own_root) == 2
    said = capsys.readouterr().err
    assert "was made from data with fingerprint" in said and "data.allow_changed=true" in said


def test_a_shard_that_is_altered_later_ends_the_run_with_its_name(
    own_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = prepared_folder(own_root) / "train" / "00000-00001.bin"
    content = bytearray(shard.read_bytes())
    content[1234] ^= 4
    shard.write_bytes(content)
    assert pretrain(own_root) == 1
    said = capsys.readouterr().err
    assert f"{shard} is not what was prepared" in said and "pausebench prepare data=files" in said
    shard.unlink()
    assert prepare(own_root) == 0
    assert pretrain(own_root) == 0


def test_the_fingerprint_of_a_run_is_that_of_its_shards(root: Path) -> None:
    assert pretrain(root, "train.steps=2") == 0
    (run,) = (root / "runs" / "pretrain").iterdir()
    fingerprint = json.loads((run / "manifest.json").read_text())["data_fingerprint"]
    assert PreparedText(prepared_folder(root), fingerprint, "").fingerprint == fingerprint
