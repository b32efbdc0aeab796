"""Pretraining text: rows are full and lose nothing, orders are drawn once a pass, a step's batch is always the same."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pausebench.commands.pretrain import open_batches
from pausebench.config.groups import (
    CorpusConfig,
    DataConfig,
    ModelConfig,
    PauseConfig,
    Source,
    TokenizerConfig,
    TokenizerKind,
    TrainConfig,
    WorldConfig,
)
from pausebench.config.training import PretrainConfig
from pausebench.data import corpus, vocabulary
from pausebench.data.batch import ALL, Batch, Batches
from pausebench.data.corpus import TRAIN, VALIDATION, FileCorpus, PackedRows, fingerprint, open_corpus, shuffled
from pausebench.data.tokenizer import ByteTokenizer, Tokenizer
from pausebench.errors import BadInput
from pausebench.pauses import IGNORE_INDEX, draw_places, inject
from pausebench.worlds.counting import VALIDATION_SEED

BYTE = ByteTokenizer()
MODEL = ModelConfig(name="x", n_layers=1, n_heads=1, d_model=8, d_mlp=8, max_positions=64)
WORLD = WorldConfig(name="english", kind="english", sequence_length=64)
LENGTH = 24
# Long and short, empty, some with the spelling of the end token; none twice.
DOCUMENTS = ["", *(f"{[100 * number + word for word in range(number * 7 % 23)]} <end>{number}" for number in range(40))]


class ListCorpus:
    """A corpus in memory. ``read`` counts the documents taken from it."""

    splits: tuple[str, ...] = (TRAIN, VALIDATION)
    has_ends = True

    def __init__(self, documents: Sequence[str] = DOCUMENTS) -> None:
        self.held = list(documents)
        self.read = 0

    def documents(self, split: str, epoch: int) -> Iterator[str]:
        for document in self.held:
            self.read += 1
            yield f"{split} {document}" if split != TRAIN else document

    def identity(self) -> list[str]:
        return []


def put(root: Path, documents: Sequence[Any], split: str = TRAIN, name: str = "mine") -> None:
    (root / name).mkdir(parents=True, exist_ok=True)
    rows = "".join(json.dumps({"text": document}) + "\n" for document in documents)
    (root / name / f"{split}.jsonl").write_text(rows, encoding="utf-8")


def config(root: Path, kind: TokenizerKind = TokenizerKind.byte, **options: Any) -> PretrainConfig:
    tokenizer = {key: options.pop(key) for key in ("path", "vocab_size", "train_documents") if key in options}
    options = {"corpus": CorpusConfig(name="mine"), "sequence_length": LENGTH, "runs": str(root / "runs")} | options
    return PretrainConfig(
        model=MODEL,
        world=WORLD,
        data=options.pop("data", DataConfig(Source.files, str(root))),
        tokenizer=TokenizerConfig(kind, **tokenizer),
        **options,
    ).resolved()


def open_tokenizer(config: PretrainConfig) -> Tokenizer:
    return vocabulary.open_tokenizer(config.text, config.runs)


# Packed rows


def stream(documents: Sequence[str]) -> Callable[[], Iterator[str]]:
    """The documents again and again."""

    def endless() -> Iterator[str]:
        while True:
            yield from documents

    return endless


def tokens_of(documents: Sequence[str], tokenizer: Tokenizer, count: int) -> list[int]:
    """The first tokens of the documents again and again, an end token behind each."""
    once = list(chain.from_iterable([*tokenizer.encode(document), tokenizer.end_id] for document in documents))
    return list(islice(chain.from_iterable(iter(lambda: once, None)), count))


@settings(max_examples=100)
@given(
    documents=st.lists(st.text(alphabet="ab ", max_size=9), min_size=1, max_size=9),
    length=st.integers(1, 17),
    requests=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 9)), max_size=6),
)
def test_rows_are_the_documents_tokens_with_an_end_behind_each_however_they_are_asked_for(
    documents: list[str], length: int, requests: list[tuple[int, int]]
) -> None:
    """No token is lost or doubled; a row asked for late, early, twice or alone is the same row."""
    packed = PackedRows(stream(documents), BYTE, length)
    expected = torch.tensor(tokens_of(documents, BYTE, 50 * length)).view(50, length)
    for start, count in requests:
        rows = packed.rows(start, count)
        assert rows.dtype == torch.int64
        assert torch.equal(rows, expected[start : start + count])
    assert torch.equal(packed.rows(0, 50), expected)


@pytest.mark.parametrize("length", [1, 7, 64, 5000])
def test_more_documents_than_are_encoded_together_lose_nothing(length: int) -> None:
    documents = [f"{number} " * (number % 5) for number in range(3 * corpus.ENCODED_TOGETHER + 1)]
    rows = 4000 // length + 2
    packed = PackedRows(stream(documents), BYTE, length).rows(0, rows)
    assert packed.flatten().tolist() == tokens_of(documents, BYTE, rows * length)


def test_a_run_that_starts_far_into_the_stream_reads_the_same_rows() -> None:
    """Skipping takes 256 rows at a time."""
    expected = torch.tensor(tokens_of(DOCUMENTS, BYTE, 1200 * 8)).view(1200, 8)
    for start in (255, 256, 257, 513, 1000):
        assert torch.equal(PackedRows(stream(DOCUMENTS), BYTE, 8).rows(start, 100), expected[start : start + 100])


# Orders of documents


@pytest.mark.parametrize("buffer", [1, 2, 7, 40, 41, 42, 1000])
def test_a_pass_has_each_document_once_with_a_buffer_of_any_size(buffer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "SHUFFLE_DOCUMENTS", buffer)
    documents = shuffled(ListCorpus(), TRAIN, 0)
    for _ in range(3):
        assert Counter(islice(documents, len(DOCUMENTS))) == Counter(DOCUMENTS)


@pytest.mark.parametrize("buffer", [7, 1000])
def test_the_order_is_another_for_another_seed_pass_and_split_and_else_the_same(
    buffer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "SHUFFLE_DOCUMENTS", buffer)

    def passes(split: str, seed: int) -> list[tuple[str, ...]]:
        documents = shuffled(ListCorpus(), split, seed)
        return [
            tuple(document.removeprefix(f"{split} ") for document in islice(documents, len(DOCUMENTS)))
            for _ in range(3)
        ]

    orders = [*passes(TRAIN, 0), *passes(TRAIN, 1), *passes(TRAIN, 2), *passes(VALIDATION, 0), tuple(DOCUMENTS)]
    assert len(set(orders)) == 13
    assert passes(TRAIN, 1) == orders[3:6]


def test_every_document_can_come_first() -> None:
    """The order is drawn, not merely changed: with all documents held, each is first equally often."""
    few = DOCUMENTS[:5]
    first = Counter(next(shuffled(ListCorpus(few), TRAIN, seed)) for seed in range(1000))
    assert set(first) == set(few)
    assert min(first.values()) > 150


def test_no_more_documents_are_held_than_the_buffer_has_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "SHUFFLE_DOCUMENTS", 7)
    source = ListCorpus()
    documents = shuffled(source, TRAIN, 0)
    for taken in range(1, len(DOCUMENTS)):
        next(documents)
        assert source.read - taken <= 7


# Sources


def test_a_corpus_of_files_gives_its_documents_in_their_order(tmp_path: Path) -> None:
    put(tmp_path, DOCUMENTS)
    put(tmp_path, ["held out"], VALIDATION)
    source = open_corpus(config(tmp_path).text)
    for epoch in (0, 1):
        assert list(source.documents(TRAIN, epoch)) == DOCUMENTS
        assert list(source.documents(VALIDATION, epoch)) == ["held out"]


def test_the_standin_corpus_gives_its_first_documents(shared_data: Path) -> None:
    source = FileCorpus(shared_data, "corpus_standin", "text")
    for split in (TRAIN, VALIDATION):
        documents = list(islice(source.documents(split, 0), 50))
        assert all(len(document) > 20 for document in documents)
        assert len(set(documents)) == 50
    assert source.identity() == [f"train.jsonl.gz {(shared_data / 'corpus_standin/train.jsonl.gz').stat().st_size}"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (5, "field text is a int; it has to be text"),
        (["a"], "field text is a list; it has to be text"),
        (None, "field text is null"),
    ],
)
def test_a_text_that_is_no_text_is_named_with_file_and_line(text: Any, says: str, tmp_path: Path) -> None:
    put(tmp_path, ["a", text])
    with pytest.raises(BadInput) as caught:
        list(FileCorpus(tmp_path, "mine", "text").documents(TRAIN, 0))
    assert caught.value.exit_code == 2
    assert f"{tmp_path}/mine/train.jsonl, line 2: {says}" in str(caught.value)


def test_the_field_of_the_text_may_be_another(tmp_path: Path) -> None:
    put(tmp_path, ["a"])
    with pytest.raises(BadInput, match="line 1: field content is missing; the row has text"):
        next(FileCorpus(tmp_path, "mine", "content").documents(TRAIN, 0))


def test_a_split_without_documents_is_refused_and_not_read_forever(tmp_path: Path) -> None:
    put(tmp_path, [])
    with pytest.raises(BadInput, match="the split train of the corpus has no documents"):
        next(FileCorpus(tmp_path, "mine", "text").documents(TRAIN, 0))


def test_a_corpus_that_is_not_on_the_hub_says_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"corpus=mine has no place on the hub.*data=files data\.root=DIR"):
        open_corpus(config(tmp_path, data=DataConfig(Source.hub)).text)


def test_the_home_folder_may_be_written_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    put(tmp_path / "data", ["a"])
    source = open_corpus(config(tmp_path, data=DataConfig(Source.files, "~/data")).text)
    assert list(source.documents(TRAIN, 0)) == ["a"]


# Identity


def test_a_fingerprint_is_another_for_another_text_size_or_tokenizer(tmp_path: Path) -> None:
    documents = [f"document {number}" for number in range(corpus.SAMPLE_DOCUMENTS + 10)]
    late, early = documents[:], documents[:]
    late[-1] += "!"  # beyond the sample: the file's size tells
    early[0] = "Document 0"  # of the same size: the sample tells
    for name, changed in [("a", documents), ("b", documents), ("late", late), ("early", early)]:
        put(tmp_path / name, changed)
    corpora = {name: FileCorpus(tmp_path / name, "mine", "text") for name in ("a", "b", "late", "early")}
    prints = {name: fingerprint(source, "tokenizer") for name, source in corpora.items()}
    assert prints["a"] == prints["b"], "the folder's place does not matter"
    other = fingerprint(corpora["a"], "other tokenizer")
    assert len({*prints.values(), other}) == 4


# The tokenizer of a config


def test_the_bpe_is_trained_once_and_then_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tokenizers")
    put(tmp_path, DOCUMENTS)
    settings = config(tmp_path, TokenizerKind.bpe, vocab_size=300)
    first = open_tokenizer(settings)
    assert 258 < first.vocab_size <= 300
    (folder,) = (tmp_path / "runs" / "tokenizers").iterdir()
    assert folder.name.startswith("bpe-mine-300-")
    assert sorted(path.name for path in folder.iterdir()) == ["merges.txt", "vocab.json"]

    def trained_again(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(vocabulary, "train_bpe", trained_again)
    moved = shutil.copytree(tmp_path / "runs", tmp_path / "moved")  # by another name: files opened before are kept
    assert vocabulary.open_tokenizer(settings.text, str(moved)).fingerprint == first.fingerprint
    for changed in ({"vocab_size": 301}, {"vocab_size": 300, "train_documents": 3}):
        with pytest.raises(AssertionError, match="trained again"):
            open_tokenizer(config(tmp_path, TokenizerKind.bpe, **changed))
    put(tmp_path, [*DOCUMENTS, "more"])
    with pytest.raises(AssertionError, match="trained again"):
        open_tokenizer(settings)


def test_the_bpe_is_trained_on_the_first_documents_alone(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    put(tmp_path / "a", ["abc abc abc", "xyz xyz xyz"])
    put(tmp_path / "b", ["abc abc abc", "uvw uvw uvw"])
    options = {"vocab_size": 300, "train_documents": 1}
    a, b = (open_tokenizer(config(tmp_path / name, TokenizerKind.bpe, **options)) for name in "ab")
    assert a.fingerprint == b.fingerprint
    assert len(a.encode(" abc")) == 1
    assert len(a.encode(" xyz")) == 4


def test_a_process_that_is_overtaken_while_it_trains_reads_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tokenizers")
    put(tmp_path, DOCUMENTS)
    settings = config(tmp_path, TokenizerKind.bpe, vocab_size=300)
    train, own = vocabulary.train_bpe, os.getpid()
    overtaker: list[Tokenizer] = []

    def overtaken(documents: Iterator[str], vocab_size: int, folder: Path) -> None:
        train(documents, vocab_size, folder)
        monkeypatch.setattr(vocabulary, "train_bpe", train)
        monkeypatch.setattr(os, "getpid", lambda: own + 1)
        overtaker.append(open_tokenizer(settings))
        monkeypatch.setattr(os, "getpid", lambda: own)

    monkeypatch.setattr(vocabulary, "train_bpe", overtaken)
    tokenizer = open_tokenizer(settings)
    assert [other.fingerprint for other in overtaker] == [tokenizer.fingerprint]
    assert len(list((tmp_path / "runs" / "tokenizers").iterdir())) == 1, "nothing unfinished is left"


def test_processes_that_train_at_once_get_one_tokenizer(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    put(tmp_path, [" ".join(f"{word}{number}" for word in DOCUMENTS) for number in range(20)])
    script = (
        "import os, sys, time; sys.path[:0] = [sys.argv[2]]; from pathlib import Path; import test_corpus as tests\n"
        "settings = tests.config(Path(sys.argv[1]), tests.TokenizerKind.bpe, vocab_size=600)\n"
        "start, children = time.time() + 0.2, []\n"
        "for number in range(4):\n"
        "    if (child := os.fork()) == 0:\n"
        "        time.sleep(max(0, start - time.time()))\n"
        "        Path(sys.argv[1], f'{number}.print').write_text(tests.open_tokenizer(settings).fingerprint)\n"
        "        os._exit(0)\n"
        "    children.append(child)\n"
        "sys.exit(max(os.waitpid(child, 0)[1] for child in children))"
    )
    command = [sys.executable, "-c", script, str(tmp_path), str(Path(__file__).parent)]
    subprocess.run(command, check=True, timeout=120)
    assert len({path.read_text() for path in tmp_path.glob("*.print")}) == 1
    assert len(list(tmp_path.glob("*.print"))) == 4
    assert len(list((tmp_path / "runs" / "tokenizers").iterdir())) == 1


def test_gpt2s_files_are_found_under_the_root_or_in_a_folder_of_their_own(shared_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    found = open_tokenizer(config(shared_data, TokenizerKind.gpt2))
    assert found.vocab_size == 50258
    elsewhere = config(tmp_path, TokenizerKind.gpt2, path=str(shared_data / "gpt2-tokenizer"))
    assert open_tokenizer(elsewhere).fingerprint == found.fingerprint


@pytest.mark.parametrize("path", [None, "nowhere"])
def test_absent_gpt2_files_are_named_with_what_to_type(path: str | None, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"tokenizer\.path=DIR.*tokenizer=byte need no files") as caught:
        open_tokenizer(config(tmp_path, TokenizerKind.gpt2, path=path))
    assert caught.value.exit_code == 2
    folder = Path(path) if path else tmp_path / "gpt2-tokenizer"
    assert str(caught.value).startswith(f"{folder / 'vocab.json'} does not exist")


def test_bytes_need_no_files(tmp_path: Path) -> None:
    assert open_tokenizer(config(tmp_path)).fingerprint == BYTE.fingerprint


# Batches


def batches(source: ListCorpus | None = None, **options: Any) -> Batches:
    options = {"train": TrainConfig(batch_size=4)} | options
    return open_batches(config(Path("nowhere"), **options), source or ListCorpus(), BYTE, ALL)


PLAIN = PauseConfig(enabled=False)


def same(a: Batch, b: Batch) -> bool:
    return torch.equal(a.input_ids, b.input_ids) and torch.equal(a.labels, b.labels)


def test_rows_of_pretraining_are_full_and_labels_are_the_next_tokens() -> None:
    made = batches(pause=PLAIN)
    rows = torch.cat([made.batch(step).input_ids for step in range(1, 21)])
    documents = islice(shuffled(ListCorpus(), TRAIN, 0), 3 * len(DOCUMENTS))
    assert rows.flatten().tolist() == tokens_of(list(documents), BYTE, 80 * LENGTH)
    for step in (1, 20):
        batch = made.batch(step)
        assert batch.input_ids.shape == batch.labels.shape == (4, LENGTH)
        assert torch.equal(batch.labels[:, :-1], batch.input_ids[:, 1:])
        assert (batch.labels[:, -1] == IGNORE_INDEX).all()
        assert batch.positions is None
        assert batch.last == LENGTH


def test_pauses_stand_between_the_same_tokens_and_only_when_enabled() -> None:
    plain, paused = batches(pause=PLAIN), batches(pause_fraction=0.25)
    for step in (1, 2, 9):
        real, batch = plain.batch(step).input_ids, paused.batch(step)
        assert not (real == BYTE.pause_id).any()
        places = draw_places(0, torch.arange(4 * (step - 1), 4 * step), LENGTH, 6)
        ids, labels = inject(real, torch.ones_like(real, dtype=torch.bool), places, BYTE.pause_id)
        assert torch.equal(batch.input_ids, ids)
        assert torch.equal(batch.labels, labels)
        assert (ids == BYTE.pause_id).sum() > 4
        assert not (labels == BYTE.pause_id).any()


@pytest.mark.parametrize("options", [{}, {"pause": PLAIN}])
def test_the_batch_of_a_step_is_the_same_in_order_after_a_restart_and_going_back(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps beyond the first block of rows and the first passes over the corpus, too."""
    monkeypatch.setattr("pausebench.data.batches.BLOCK_TOKENS", 12 * LENGTH)
    monkeypatch.setattr(corpus, "SHUFFLE_DOCUMENTS", 7)
    whole = batches(**options)
    in_order = {step: whole.batch(step) for step in range(1, 90)}
    for step in (89, 1, 2, 3, 4, 31, 60):
        assert same(batches(**options).batch(step), in_order[step]), "a resumed run"
        assert same(whole.batch(step), in_order[step]), "going back"
    resumed = batches(**options)
    assert all(same(resumed.batch(step), in_order[step]) for step in range(50, 90))
    assert len({tuple(batch.input_ids.flatten().tolist()) for batch in in_order.values()}) == 89


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_order_of_rows_does_not_depend_on_the_batch_size_or_on_rows_made_together(
    batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = batches()
    rows = torch.cat([reference.batch(step).input_ids for step in range(1, 17)])
    monkeypatch.setattr("pausebench.data.batches.BLOCK_TOKENS", 5 * LENGTH)
    other = batches(train=TrainConfig(batch_size=batch_size))
    steps = -(-len(rows) // batch_size)
    assert torch.equal(torch.cat([other.batch(step).input_ids for step in range(1, steps + 1)])[: len(rows)], rows)


def test_another_seed_reads_the_documents_in_another_order() -> None:
    assert not torch.equal(batches(pause=PLAIN).batch(1).input_ids, batches(pause=PLAIN, seed=1).batch(1).input_ids)


def test_validation_reads_the_validation_split_and_disturbs_no_step() -> None:
    made, undisturbed = batches(), batches()
    made.batch(1)
    validation = made.validation(10)
    assert same(made.batch(300), undisturbed.batch(300))
    assert same(made.validation(10), validation)
    real = batches(pause=PLAIN).validation(10)
    assert "validation " in BYTE.decode([index for index in real.input_ids.flatten().tolist() if index < BYTE.end_id])
    places = draw_places(VALIDATION_SEED, torch.arange(10), LENGTH, 2)
    ids, labels = inject(real.input_ids, torch.ones_like(real.input_ids, dtype=torch.bool), places, BYTE.pause_id)
    assert torch.equal(validation.input_ids, ids)
    assert torch.equal(validation.labels, labels)


def test_a_corpus_of_files_is_trained_on_through_the_same_rows(tmp_path: Path) -> None:
    put(tmp_path, DOCUMENTS)
    settings = config(tmp_path, pause=PLAIN, train=TrainConfig(batch_size=4))
    made = open_batches(settings, open_corpus(settings.text), open_tokenizer(settings), ALL)
    assert same(made.batch(7), batches(pause=PLAIN).batch(7))


@pytest.mark.parametrize("count", [1, 2])
def test_of_a_corpus_of_files_the_first_so_many_are_read_and_validation_whole(count: int, tmp_path: Path) -> None:
    for number in range(3):
        put(tmp_path, [f"train {number}"], f"{TRAIN}-{number}")
        put(tmp_path, [f"validation {number}"], f"{VALIDATION}-{number}")
    text = open_corpus(config(tmp_path, corpus=CorpusConfig("mine", files=count)).text)
    assert list(text.documents(TRAIN, 0)) == [f"train {number}" for number in range(count)]
    assert len(text.parts(TRAIN)) == count
    assert len(list(text.documents(VALIDATION, 0))) == len(text.parts(VALIDATION)) == 3


def test_a_missing_validation_split_is_named(tmp_path: Path) -> None:
    put(tmp_path, DOCUMENTS)
    settings = config(tmp_path)
    made = open_batches(settings, open_corpus(settings.text), BYTE, ALL)
    with pytest.raises(BadInput, match="has no split validation"):
        made.validation(4)
