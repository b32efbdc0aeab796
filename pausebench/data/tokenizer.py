"""Tokenizers. Invariant: the last two ids are the end token and ``<pause>``, and neither ever comes out of text.

The special tokens have ids and no spelling: the characters "<pause>" or "<|endoftext|>" in a text are characters like
any others.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pausebench.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor


class Tokenizer(ABC):
    """Text to ids and back.

    vocab_size counts the special tokens. fingerprint: hex digest; two tokenizers with the same one give the same ids.
    """

    END, PAUSE = "<end>", "<pause>"

    def __init__(self, vocab_size: int, fingerprint: str) -> None:
        self.vocab_size = vocab_size
        # The two special tokens come last, so that a vocabulary grows by them and no id of a word moves.
        self.end_id = vocab_size - 2
        self.pause_id = vocab_size - 1
        self.fingerprint = fingerprint

    @abstractmethod
    def encode_lists(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of every text, without special tokens."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids that are not special tokens."""

    def encode(self, text: str) -> list[int]:
        """Ids of one text, without special tokens."""
        return self.encode_lists([text])[0]

    def spelling(self, index: int) -> str:
        """How a single id is shown to people."""
        special = {self.end_id: self.END, self.pause_id: self.PAUSE}
        return special[index] if index in special else self.decode([index])


def pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """(int64 [R, longest] right-padded with ``pad_id``, lengths int64 [R]) of R lists of ids."""
    import torch

    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
    padded = torch.full((len(rows), int(lengths.max()) if len(rows) else 0), pad_id)
    # One scatter of all ids at once: a tensor a row would take most of the time of making a batch.
    flat = array("q", chain.from_iterable(rows))
    if flat:
        inside = torch.arange(padded.shape[1]) < lengths[:, None]
        padded.masked_scatter_(inside, torch.frombuffer(flat, dtype=torch.int64))
    return padded, lengths


class WordTokenizer(Tokenizer):
    """One id a word, words separated by white space: the vocabulary of a generated world."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)
        self._ids = {word: index for index, word in enumerate(words)}
        listed = "\n".join([*words, self.END, self.PAUSE])
        super().__init__(len(words) + 2, _digest(listed))

    def encode_lists(self, texts: Sequence[str]) -> list[list[int]]:
        """Raises ``BadInput`` for a word outside the vocabulary."""
        try:
            return [list(map(self._ids.__getitem__, text.split())) for text in texts]
        except KeyError as unknown:
            raise BadInput(
                f"{unknown} is not a word of this vocabulary; allowed are {' '.join(self.words[:12])} ... "
                f"({len(self.words)} words in all)."
            ) from None

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(self.words[index] if index < len(self.words) else self.spelling(index) for index in ids)


class ByteTokenizer(Tokenizer):
    """One id a byte of UTF-8."""

    def __init__(self) -> None:
        # 256 bytes, the end token and <pause>.
        super().__init__(258, _digest("bytes"))

    def encode_lists(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(text.encode(errors="surrogateescape")) for text in texts]  # a corpus of bytes need not be UTF-8

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(list(ids)).decode(errors="replace")


class BpeTokenizer(Tokenizer):
    """Byte-level BPE in GPT-2's form, from ``vocab.json`` and ``merges.txt``, by the library ``tokenizers``.

    GPT-2's own end token is the last entry of its vocabulary and keeps its id; a vocabulary without it gets an end
    token behind its entries.
    """

    GPT2_END = "<|endoftext|>"
    BYTES = frozenset(map(chr, (*range(33, 127), *range(161, 173), *range(174, 324))))  # a character for every byte

    def __init__(self, vocab_file: Path, merges_file: Path) -> None:
        """Raises ``BadInput`` for files that are missing, broken or do not belong together."""
        vocab = _read_vocab(vocab_file)
        # A wrong pair of files does not fail, it encodes to other ids without a word: so every merge is checked here,
        # which takes a third of a second for GPT-2's 50,000.
        entries = len(vocab) - (vocab.get(self.GPT2_END) == len(vocab) - 1)
        lines = [line for line in _read_text(merges_file).splitlines() if line and not line.startswith("#version")]
        if wrong := self._mismatch(vocab, entries, lines, vocab_file, merges_file):
            raise BadInput(f"{wrong} Both files have to come from one tokenizer.")
        self._tokenizer = _byte_level(vocab, [(left, right) for left, right in (line.split(" ") for line in lines)])
        super().__init__(entries + 2, _digest("\n".join([*sorted(vocab, key=vocab.__getitem__)[:entries], *lines])))

    def _mismatch(self, vocab: dict[str, int], entries: int, lines: list[str], in_vocab: Path, in_merges: Path) -> str:
        """What shows that two files do not belong together; empty where nothing does."""
        for number, line in enumerate(lines, start=1):
            parts = line.split(" ")
            unknown = [token for token in [*parts, "".join(parts)] if token not in vocab]
            if len(parts) != 2 or unknown:
                lacks = f"does not fit {in_vocab}, which has no entry {unknown[0] if unknown else line!r}."
                return f"{in_merges}: merge {number} ({line!r}) {lacks}"
        # Each merge makes one entry, and the 256 bytes are there without a merge.
        if len(lines) != entries - 256:
            needed = f"{in_vocab} has {entries} entries, which takes {entries - 256}."
            return f"{in_merges} has {len(lines)} merges, but {needed}"
        # An entry that nothing makes is never encoded to, but would count in the vocabulary and in the fingerprint.
        made = self.BYTES.union(line.replace(" ", "") for line in lines)
        stray = [token for token, index in vocab.items() if token not in made and index < entries]
        lacks = f"which is no byte and which no merge of {in_merges} makes."
        return f"{in_vocab} has the entry {stray[0]!r}, {lacks}" if stray else ""

    def encode_lists(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return text


def train_bpe(documents: Iterable[str], vocab_size: int, folder: Path) -> None:
    """Train a byte-level BPE of at most ``vocab_size`` ids (special tokens included) into ``folder``.

    The same documents give the same files on every machine: ties are broken by the pair, not by the order of counting.
    """
    from tokenizers import pre_tokenizers, trainers

    tokenizer = _byte_level({}, [])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2,
        # All 256 bytes, seen in training or not: any text can then be encoded.
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        special_tokens=[],
    )
    tokenizer.train_from_iterator(documents, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.model.save(str(folder))


def _byte_level(vocab: dict[str, int], merges: list[tuple[str, str]]) -> Any:
    """The library's tokenizer with GPT-2's splitting; nothing in a text is special to it."""
    try:
        from tokenizers import Tokenizer as Pipeline
        from tokenizers import decoders, models, pre_tokenizers
    except ImportError:
        raise BadInput("the library tokenizers is not installed. Type: pip install 'pausebench[text]'") from None
    pipeline = Pipeline(models.BPE(vocab=vocab, merges=merges))
    # No space is put in front of a text: prefix and target are tokenised apart, and the space is theirs to begin with.
    pipeline.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pipeline.decoder = decoders.ByteLevel()
    return pipeline


def _read_vocab(path: Path) -> dict[str, int]:
    fix = "a tokenizer's vocab.json maps every token to its id."
    try:
        vocab = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise BadInput(f"{path} is not JSON ({error}); {fix}") from None
    if not isinstance(vocab, dict):
        raise BadInput(f"{path} is a JSON {type(vocab).__name__}; {fix}")
    # Each once: an id that is missing would be a row of the embedding that nothing trains.
    if not all(type(index) is int for index in vocab.values()) or sorted(vocab.values()) != list(range(len(vocab))):
        raise BadInput(f"{path}: ids must be 0 to {len(vocab) - 1}, each once. Download the file again.")
    return vocab


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BadInput(
            f"{path} does not exist; tokenizer=gpt2 reads vocab.json and merges.txt from tokenizer.path=DIR, from "
            "data.root/gpt2-tokenizer, or from the hub (data=hub). tokenizer=bpe and tokenizer=byte need no files."
        ) from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not UTF-8 (byte {error.start}). Download the file again.") from None
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror or error}).") from None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
