"""Tokenizers: GPT-2's own ids, text that comes back whole, special tokens that no text can spell, files that fit."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pausebench.data.tokenizer import BpeTokenizer, ByteTokenizer, Tokenizer, WordTokenizer, pad, train_bpe
from pausebench.errors import BadInput

pytest.importorskip("tokenizers")

FILES = ("vocab.json", "merges.txt")
TEXTS = [
    "The pause comes before the answer, and the answer comes after the pause.\n",
    "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n#### 72",
    "  Two  spaces, a\ttab — and a dash; ünïcödé, 漢字, 🙂.",
    "the the the then there these those thesis",
]
SPELLINGS = ["<pause>", "<|endoftext|>", "<end>", "a<|endoftext|>b", "<pause><pause>", " <end>", "<|pause|>", "</s>"]
GOLDEN_FILES = {"vocab.json": "e02ea7996c741c08", "merges.txt": "a7d58ec293ef2de0"}  # of TEXTS, 330 ids
GOLDEN_FINGERPRINT = "5a2a8a94e1de8690"
# Any text, and text in which the spellings of special tokens are likely.
ANY_TEXT = st.one_of(
    st.text(), st.lists(st.one_of(st.sampled_from([*SPELLINGS, " ", "\n"]), st.text(max_size=4))).map("".join)
)


def bpe(folder: Path) -> BpeTokenizer:
    return BpeTokenizer(*(folder / name for name in FILES))


opened = lru_cache(maxsize=None)(bpe)  # reading GPT-2's files takes most of a second
# A tokenizer holds no state that an example could change.
FIXTURE_SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def trained_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bpe")
    train_bpe(TEXTS * 3, 330, folder)
    return folder


@pytest.fixture
def files(trained_folder: Path, tmp_path: Path) -> Path:
    """A copy of a small tokenizer's files that a test may spoil."""
    for name in FILES:
        (tmp_path / name).write_bytes((trained_folder / name).read_bytes())
    return tmp_path


@pytest.fixture(params=["gpt2", "bpe", "byte"])
def tokenizer(request: pytest.FixtureRequest, trained_folder: Path) -> Tokenizer:
    if request.param == "byte":
        return ByteTokenizer()
    if request.param == "bpe":
        return opened(trained_folder)
    return opened(request.getfixturevalue("shared_data") / "gpt2-tokenizer")


def published(shared_data: Path, name: str) -> Iterator[dict[str, Any]]:
    with gzip.open(shared_data / name / "train.jsonl.gz", "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


@pytest.fixture
def published_texts(shared_data: Path) -> list[str]:
    """2,000 texts of the kinds that are tokenized: contexts, problems and solutions, questions and choices, pages."""
    texts = [row["context"] for row in islice(published(shared_data, "squad"), 0, 4000, 8)]
    texts += [row["question"] + row["answer"] for row in islice(published(shared_data, "gsm8k"), 500)]
    choices = islice(published(shared_data, "commonsense_qa"), 500)
    texts += [f"{row['question']}\n{' '.join(row['choices']['text'])}" for row in choices]
    return texts + [row["text"][:2000] for row in islice(published(shared_data, "corpus_standin"), 500)]


def reference_gpt2(folder: Path) -> Callable[[str], list[int]]:
    """GPT-2's encoding written down once more, after the published encoder.py: split, bytes, merges by rank."""
    regex = pytest.importorskip("regex")
    split = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [code for code in range(256) if code not in printable]
    letter = {code: chr(code) for code in printable} | {code: chr(256 + n) for n, code in enumerate(others)}
    vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    merges = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")[1:]
    rank = {tuple(line.split()): number for number, line in enumerate(merges) if line}
    known: dict[str, list[int]] = {}

    def ids(word: str) -> list[int]:
        parts = [letter[code] for code in word.encode()]
        while pairs := [pair for pair in pairwise(parts) if pair in rank]:
            best, merged = min(pairs, key=rank.__getitem__), []
            while parts:
                size = 2 if tuple(parts[:2]) == best else 1
                merged.append("".join(parts[:size]))
                parts = parts[size:]
            parts = merged
        return [vocab[part] for part in parts]

    def encode(text: str) -> list[int]:
        found = []
        for word in split.findall(text):
            if word not in known:
                known[word] = ids(word)
            found += known[word]
        return found

    return encode


# GPT-2


def test_gpt2_gives_the_ids_of_transformers_on_2000_published_texts(
    shared_data: Path, published_texts: list[str]
) -> None:
    transformers = pytest.importorskip("transformers")
    folder = shared_data / "gpt2-tokenizer"
    theirs = transformers.GPT2TokenizerFast.from_pretrained(str(folder))
    assert len(published_texts) == 2000
    texts = [*published_texts, *SPELLINGS, *TEXTS, ""]
    expected = theirs(texts, split_special_tokens=True, add_special_tokens=False)["input_ids"]
    assert opened(folder).encode_lists(texts) == expected


def test_gpt2_gives_the_ids_of_the_published_algorithm(shared_data: Path, published_texts: list[str]) -> None:
    folder = shared_data / "gpt2-tokenizer"
    reference = reference_gpt2(folder)
    texts = [*published_texts[::8], *SPELLINGS, *TEXTS]
    assert opened(folder).encode_lists(texts) == [reference(text) for text in texts]


def test_gpt2_keeps_its_50257_entries_and_end_token_and_pause_comes_behind(shared_data: Path) -> None:
    tokenizer = opened(shared_data / "gpt2-tokenizer")
    assert (tokenizer.vocab_size, tokenizer.end_id, tokenizer.pause_id) == (50258, 50256, 50257)
    assert tokenizer.encode("Hello world") == [15496, 995]
    assert tokenizer.fingerprint == "f43edfac33636658", "runs made before would no longer match their data"
    assert [tokenizer.spelling(index) for index in (15496, 995, 50256, 50257)] == [
        "Hello",
        " world",
        "<end>",
        "<pause>",
    ]


# Every tokenizer of text


@settings(FIXTURE_SHARED, max_examples=300)
@given(text=ANY_TEXT)
def test_any_text_comes_back_and_none_spells_a_special_token(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= index < tokenizer.end_id < tokenizer.pause_id < tokenizer.vocab_size for index in ids)


def test_published_texts_come_back(tokenizer: Tokenizer, published_texts: list[str]) -> None:
    texts = published_texts[::4]
    for text, ids in zip(texts, tokenizer.encode_lists(texts), strict=True):
        assert tokenizer.decode(ids) == text
        assert max(ids) < tokenizer.end_id


def test_the_spelling_of_a_special_token_in_a_text_is_characters(tokenizer: Tokenizer) -> None:
    for spelling in SPELLINGS:
        ids = tokenizer.encode(spelling)
        assert len(ids) > 1
        assert not {tokenizer.end_id, tokenizer.pause_id} & set(ids)
        assert tokenizer.decode(ids) == spelling


def test_the_end_token_and_pause_are_the_last_two_ids_and_are_shown_by_name(tokenizer: Tokenizer) -> None:
    assert [tokenizer.end_id, tokenizer.pause_id] == [tokenizer.vocab_size - 2, tokenizer.vocab_size - 1]
    assert [tokenizer.spelling(index) for index in (tokenizer.end_id, tokenizer.pause_id)] == ["<end>", "<pause>"]
    (letter,) = tokenizer.encode("a")
    assert tokenizer.spelling(letter) == "a"


@settings(FIXTURE_SHARED, max_examples=50)
@given(texts=st.lists(ANY_TEXT, min_size=1, max_size=6))
def test_texts_encoded_together_equal_texts_encoded_alone(tokenizer: Tokenizer, texts: list[str]) -> None:
    padded, lengths = pad(tokenizer.encode_lists(texts), tokenizer.end_id)
    assert padded.dtype == lengths.dtype == torch.int64
    assert padded.shape == (len(texts), int(lengths.max()))
    for row, length, text in zip(padded.tolist(), lengths.tolist(), texts, strict=True):
        assert row[:length] == tokenizer.encode(text)
        assert set(row[length:]) <= {tokenizer.end_id}


@given(st.lists(st.lists(st.integers(0, 2**40), max_size=6), max_size=6))
def test_pad_puts_every_id_in_its_place(rows: list[list[int]]) -> None:
    padded, lengths = pad(rows, -7)
    longest = max(map(len, rows), default=0)
    assert padded.tolist() == [row + [-7] * (longest - len(row)) for row in rows]
    assert lengths.tolist() == list(map(len, rows))


@given(st.text())
def test_a_byte_token_is_a_byte(text: str) -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.encode(text) == list(text.encode())
    assert (tokenizer.vocab_size, tokenizer.end_id, tokenizer.pause_id) == (258, 256, 257)


def test_bytes_cut_inside_a_character_are_shown_rather_than_refused(tokenizer: Tokenizer) -> None:
    """Generated ids may end anywhere."""
    ids = tokenizer.encode("é🙂")
    assert tokenizer.decode(ids[:-1]).startswith("é")


# Training


def test_a_trained_bpe_is_these_files(trained_folder: Path) -> None:
    """Runs name their tokenizer by its files: another library version or machine must not change them."""
    digests = {name: hashlib.sha256((trained_folder / name).read_bytes()).hexdigest()[:16] for name in FILES}
    assert digests == GOLDEN_FILES
    assert bpe(trained_folder).fingerprint == GOLDEN_FINGERPRINT


def test_training_gives_the_same_files_in_any_process(tmp_path: Path) -> None:
    """However many threads count pairs, and in whatever order Python's sets are."""
    script = (
        "import sys; from pathlib import Path; from pausebench.data.tokenizer import train_bpe\n"
        "word = lambda i, j: ''.join(chr(97 + i * j * k % 26) for k in range(1, 6))\n"
        "texts = [' '.join(word(i, j) for j in range(1, 30)) for i in range(200)]\n"
        "train_bpe(texts, 450, Path(sys.argv[1]))"
    )
    children = []
    for threads, parallel, hash_seed in [("1", "false", "0"), ("4", "true", "12345")]:
        variables = {"RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": parallel, "PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-c", script, str(tmp_path / threads)]
        children.append(subprocess.Popen(command, env=os.environ | variables))
    assert [child.wait(timeout=120) for child in children] == [0, 0]
    for name in FILES:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "4" / name).read_bytes()
    assert bpe(tmp_path / "1").vocab_size > 350


def test_the_order_of_documents_does_not_change_the_trained_files(trained_folder: Path, tmp_path: Path) -> None:
    train_bpe(reversed(TEXTS * 3), 330, tmp_path)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (trained_folder / name).read_bytes()


@pytest.mark.parametrize("vocab_size", [300, 310, 330])
def test_the_vocabulary_has_as_many_ids_as_asked(vocab_size: int, tmp_path: Path) -> None:
    train_bpe(TEXTS, vocab_size, tmp_path)
    tokenizer = bpe(tmp_path)
    assert tokenizer.vocab_size == vocab_size
    assert len(tokenizer.encode(TEXTS[0])) < len(TEXTS[0].encode())


@pytest.mark.parametrize(("texts", "vocab_size"), [([], 258), ([""], 258), (["ab"], 259), (["abc abc"], 261)])
def test_a_small_text_gives_fewer_ids_than_asked_and_any_text_still_comes_back(
    texts: list[str], vocab_size: int, tmp_path: Path
) -> None:
    train_bpe(texts, 4096, tmp_path)
    tokenizer = bpe(tmp_path)
    assert tokenizer.vocab_size == vocab_size
    assert tokenizer.decode(tokenizer.encode("Söde 漢字 🙂")) == "Söde 漢字 🙂"


# Files


def test_equal_files_have_one_fingerprint_and_a_swapped_merge_another(files: Path, trained_folder: Path) -> None:
    assert bpe(files).fingerprint == bpe(trained_folder).fingerprint
    merges = (files / "merges.txt").read_text(encoding="utf-8").splitlines()
    merges[1], merges[2] = merges[2], merges[1]
    (files / "merges.txt").write_text("\n".join(merges) + "\n", encoding="utf-8")
    assert bpe(files).fingerprint != bpe(trained_folder).fingerprint


def test_a_vocabulary_with_two_ids_swapped_has_another_fingerprint(files: Path, trained_folder: Path) -> None:
    vocab = json.loads((files / "vocab.json").read_text(encoding="utf-8"))
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (files / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    assert bpe(files).fingerprint != bpe(trained_folder).fingerprint


def test_tokenizers_of_different_kinds_have_different_fingerprints(trained_folder: Path) -> None:
    tokenizers = [ByteTokenizer(), bpe(trained_folder), WordTokenizer(["a", "b"]), WordTokenizer(["b", "a"])]
    assert len({tokenizer.fingerprint for tokenizer in tokenizers}) == 4


def test_the_way_a_file_is_laid_out_changes_nothing(files: Path, trained_folder: Path) -> None:
    """Line ends of Windows, no version line, indented JSON: the same tokenizer."""
    merges = (files / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    (files / "merges.txt").write_bytes("\r\n".join(merges).encode())
    vocab = json.loads((files / "vocab.json").read_text(encoding="utf-8"))
    (files / "vocab.json").write_text(json.dumps(vocab, indent=1), encoding="utf-8")
    assert bpe(files).fingerprint == bpe(trained_folder).fingerprint
    assert bpe(files).encode_lists(TEXTS) == bpe(trained_folder).encode_lists(TEXTS)


def _json(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    def spoiled(content: bytes) -> bytes:
        vocab = json.loads(content)
        changed = change(vocab)
        return json.dumps(vocab if changed is None else changed).encode()

    return spoiled


@pytest.mark.parametrize(
    ("name", "spoil", "says"),
    [
        ("merges.txt", lambda b: b.replace(b"\n", b"\nq q\n", 1), "merge 1 ('q q') does not fit"),
        ("merges.txt", lambda b: b.replace(b"\n", b"\nt\n", 1), "merge 1 ('t') does not fit"),
        ("merges.txt", lambda b: b.replace(b"\n", b"\nt h e\n", 1), "merge 1 ('t h e') does not fit"),
        ("merges.txt", lambda b: b[: len(b) // 2].rpartition(b"\n")[0], "merges, but"),
        ("merges.txt", lambda b: b"", "has 0 merges, but"),
        ("merges.txt", lambda b: b + b.splitlines()[1] + b"\n", "has 73 merges, but"),
        ("merges.txt", lambda b: b"\n".join([*b.splitlines()[:-1], b.splitlines()[1]]), "no merge of"),
        ("merges.txt", lambda b: b.replace(b"\n", b"\n\xff\n", 1), "is not UTF-8 (byte 14)"),
        ("vocab.json", _json(lambda vocab: vocab.update(a=vocab["b"])), "ids must be 0 to 327, each once"),
        ("vocab.json", _json(lambda vocab: vocab.update(a=328)), "ids must be 0 to 327, each once"),
        ("vocab.json", _json(lambda vocab: vocab.update(a=-1)), "ids must be 0 to 327, each once"),
        ("vocab.json", _json(lambda vocab: {token: str(index) for token, index in vocab.items()}), "ids must be 0"),
        ("vocab.json", _json(lambda vocab: {token: float(index) for token, index in vocab.items()}), "ids must be 0"),
        ("vocab.json", _json(lambda vocab: vocab.update(a=None)), "ids must be 0"),
        ("vocab.json", _json(lambda vocab: {"model": vocab, "version": "1.0"}), "ids must be 0"),
        ("vocab.json", _json(lambda vocab: vocab.update(new=len(vocab))), "has 329 entries, which takes 73"),
        ("vocab.json", _json(lambda vocab: vocab.update({"€": vocab.pop("Q")})), "has the entry '€', which is no byte"),
        ("vocab.json", _json(lambda vocab: vocab.update({"\ud800": vocab.pop("Q")})), "which is no byte"),
        ("vocab.json", _json(lambda vocab: {}), "has no entry 'h'"),
        ("vocab.json", lambda b: b"[]", "is a JSON list"),
        ("vocab.json", lambda b: b"5", "is a JSON int"),
        ("vocab.json", lambda b: b"null", "is a JSON NoneType"),
        ("vocab.json", lambda b: b[:2000], "is not JSON"),
        ("vocab.json", lambda b: b"", "is not JSON"),
        ("vocab.json", lambda b: b"\xff" + b, "is not UTF-8 (byte 0)"),
    ],
)
def test_files_that_are_broken_or_disagree_are_refused_by_name(
    name: str, spoil: Callable[[bytes], bytes], says: str, files: Path
) -> None:
    path = files / name
    content = path.read_bytes()
    path.write_bytes(spoil(content))
    assert path.read_bytes() != content
    with pytest.raises(BadInput) as refusal:
        bpe(files)
    assert refusal.value.exit_code == 2
    assert str(path) in str(refusal.value)
    assert says in str(refusal.value)


def test_gpt2s_merges_do_not_fit_another_vocabulary(shared_data: Path, trained_folder: Path) -> None:
    gpt2 = shared_data / "gpt2-tokenizer"
    with pytest.raises(BadInput, match=r"Both files have to come from one tokenizer") as refusal:
        BpeTokenizer(trained_folder / "vocab.json", gpt2 / "merges.txt")
    assert str(gpt2 / "merges.txt") in str(refusal.value)
    with pytest.raises(BadInput, match=r"Both files have to come from one tokenizer") as refusal:
        BpeTokenizer(gpt2 / "vocab.json", trained_folder / "merges.txt")
    assert str(trained_folder / "merges.txt") in str(refusal.value)


def test_gpt2s_merges_cut_short_are_noticed(shared_data: Path, tmp_path: Path) -> None:
    """A download that broke off at the end of a line: every merge that is left fits."""
    gpt2 = shared_data / "gpt2-tokenizer"
    lines = (gpt2 / "merges.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "merges.txt").write_text("".join(lines[:-1]), encoding="utf-8")
    with pytest.raises(BadInput, match=r"has 49999 merges, but .* which takes 50000"):
        BpeTokenizer(gpt2 / "vocab.json", tmp_path / "merges.txt")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named_with_what_to_type(name: str, files: Path) -> None:
    (files / name).unlink()
    with pytest.raises(BadInput, match=r"tokenizer.path=DIR") as refusal:
        bpe(files)
    assert str(files / name) in str(refusal.value)


@pytest.mark.parametrize("name", FILES)
def test_a_folder_in_place_of_a_file_is_named(name: str, files: Path) -> None:
    (files / name).unlink()
    (files / name).mkdir()
    with pytest.raises(BadInput, match="cannot be read") as refusal:
        bpe(files)
    assert str(files / name) in str(refusal.value)


def test_without_tokenizers_the_message_says_what_to_type(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(BadInput, match=r"pip install 'pausebench\[text\]'"):
        bpe(files)


# Words


def test_a_word_outside_the_vocabulary_is_named_with_the_words_there_are() -> None:
    tokenizer = WordTokenizer(["MAJ", "more", "less"])
    with pytest.raises(BadInput, match=r"'maybe' is not a word of this vocabulary; allowed are MAJ more .*3 words"):
        tokenizer.encode_lists(["MAJ more", "MAJ maybe"])


@pytest.mark.parametrize("text", ["<pause>", "a <end>", "<|endoftext|>"])
def test_a_world_has_no_word_for_a_special_token(text: str) -> None:
    with pytest.raises(BadInput, match="is not a word"):
        WordTokenizer(["a", "b"]).encode(text)


def test_words_are_padded_with_the_end_token_and_shown_by_name() -> None:
    tokenizer = WordTokenizer(["a", "b"])
    padded, lengths = pad(tokenizer.encode_lists(["a b a", "", "b"]), tokenizer.end_id)
    assert padded.tolist() == [[0, 1, 0], [2, 2, 2], [1, 2, 2]]
    assert lengths.tolist() == [3, 0, 1]
    assert (tokenizer.vocab_size, tokenizer.end_id, tokenizer.pause_id) == (4, 2, 3)
    assert [tokenizer.spelling(index) for index in range(4)] == ["a", "b", "<end>", "<pause>"]
    assert tokenizer.decode([0, 1, 3, 2]) == "a b <pause> <end>"
