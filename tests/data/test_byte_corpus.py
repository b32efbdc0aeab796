"""enwik8 and its like: a file's own bytes, 90 % to train on, 5 % to validate, 5 % to test."""

from __future__ import annotations

import dataclasses
import gzip
import random
import zipfile
from pathlib import Path

import pytest
import torch
from byte_texts import BYTE, PLAIN, batches, config
from omegaconf import OmegaConf

from pausebench import cli
from pausebench.config.groups import CorpusConfig, DataConfig, Source, TokenizerConfig, TokenizerKind
from pausebench.config.help import conf_dir
from pausebench.data.corpus import ByteCorpus, fingerprint, open_corpus
from pausebench.data.shards import PreparedText
from pausebench.errors import BadInput
from pausebench.runs.folder import read_json

CONTENT = random.Random(0).randbytes(200_001)  # hardly any of it is UTF-8


def put(root: Path, packing: str = "") -> Path:
    folder = root / "enwik8"
    folder.mkdir(parents=True)
    if packing == ".zip":
        with zipfile.ZipFile(folder / "enwik8.zip", "w") as archive:
            archive.writestr("enwik8", CONTENT)
    else:
        (folder / f"enwik8{packing}").write_bytes(gzip.compress(CONTENT) if packing else CONTENT)
    return root


def read(corpus: ByteCorpus, split: str) -> bytes:
    return bytes(token for text in corpus.documents(split, 0) for token in BYTE.encode(text))


@pytest.mark.parametrize("packing", ["", ".zip", ".gz"])
def test_the_splits_are_the_first_90_the_next_5_and_the_last_5_percent(packing: str, tmp_path: Path) -> None:
    corpus = ByteCorpus(put(tmp_path, packing), "enwik8")
    assert read(corpus, "train") == CONTENT[:180_000]
    assert read(corpus, "validation") == CONTENT[180_000:190_000]
    assert read(corpus, "test") == CONTENT[190_000:]


def test_of_100_million_bytes_these_are_the_usual_numbers(tmp_path: Path) -> None:
    (tmp_path / "enwik8").mkdir()
    with (tmp_path / "enwik8" / "enwik8").open("wb") as file:
        file.truncate(100_000_000)
    corpus = ByteCorpus(tmp_path, "enwik8")
    parts = [corpus.parts(split) for split in corpus.splits]
    wanted = ["0 to 90000000", "90000000 to 95000000", "95000000 to 100000000"]
    assert parts == [[f"enwik8 bytes {places}"] for places in wanted]


def test_the_same_bytes_have_the_same_fingerprint_however_they_are_packed(tmp_path: Path) -> None:
    found = {fingerprint(ByteCorpus(put(tmp_path / name, name), "enwik8"), "") for name in ("", ".zip", ".gz")}
    assert len(found) == 1


def test_streamed_rows_are_bytes_of_the_file_without_end_tokens(tmp_path: Path) -> None:
    batch = batches(ByteCorpus(put(tmp_path), "enwik8"), pause=PLAIN, length=160, batch_size=512).batch(1)
    assert not (batch.input_ids >= BYTE.end_id).any()
    split = [bytes(row) not in CONTENT[:180_000] for row in batch.input_ids.tolist()]
    assert sum(split) <= 2, "only where two pieces of 65,536 bytes meet"


def test_prepared_rows_are_the_files_own_bytes_in_blocks(tmp_path: Path) -> None:
    put(tmp_path / "data")
    words = f"prepare data=files data.root={tmp_path}/data corpus=enwik8 tokenizer=byte runs={tmp_path} workers=1"
    assert cli.run([*words.split(), "quiet=true"]) == 0
    (folder,) = (tmp_path / "prepare").iterdir()
    result = read_json(folder / "result.json")
    assert result["tokens"] == {"train": 180_000, "validation": 10_000, "test": 10_001}
    text = PreparedText(folder, result["fingerprint"], "")
    rows = text.rows("train", 0, 1000).rows(0, 180)
    expected = torch.frombuffer(bytearray(CONTENT[:180_000]), dtype=torch.uint8).view(180, 1000)
    assert sorted(rows.tolist()) == sorted(expected.tolist())


def test_it_is_read_with_the_byte_tokenizer_from_files_alone(tmp_path: Path) -> None:
    options = OmegaConf.to_container(OmegaConf.load(conf_dir() / "corpus" / "enwik8.yaml"))
    right = dataclasses.replace(
        config(), corpus=CorpusConfig(**options), data=DataConfig(Source.files, str(put(tmp_path)))
    )
    assert isinstance(open_corpus(right.text), ByteCorpus)
    with pytest.raises(BadInput, match="type tokenizer=byte"):
        open_corpus(dataclasses.replace(right.text, tokenizer=TokenizerConfig(TokenizerKind.gpt2)))
    with pytest.raises(BadInput, match=r"no place on the hub.*data=files"):
        open_corpus(dataclasses.replace(right.text, data=DataConfig(Source.hub)))


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"enwik8/enwik8 does not exist, nor with \.zip or \.gz"):
        ByteCorpus(tmp_path, "enwik8")
    path = put(tmp_path, ".gz") / "enwik8" / "enwik8.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(BadInput, match=r"enwik8\.gz cannot be read"):
        read(ByteCorpus(tmp_path, "enwik8"), "train")
