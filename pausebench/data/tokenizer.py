"""Tokenizers. Invariant: ``<pause>`` is the last id and never comes out of text."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from pausebench.errors import BadInput


class WordTokenizer:
    """One id a word, words separated by white space; then ``<end>``, then ``<pause>``.

    The two special tokens have ids and no spelling: the characters "<pause>" in a text are an unknown word like any
    other.
    """

    END, PAUSE = "<end>", "<pause>"

    def __init__(self, words: Sequence[str]) -> None:
        self.words = [*words, self.END, self.PAUSE]
        self.ids = {word: index for index, word in enumerate(words)}
        self.vocab_size = len(self.words)
        self.end_id = self.vocab_size - 2
        self.pause_id = self.vocab_size - 1

    @property
    def fingerprint(self) -> str:
        """Hex digest of the vocabulary in order: two tokenizers with the same one give the same ids."""
        return hashlib.sha256("\n".join(self.words).encode()).hexdigest()[:16]

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special tokens. Raises ``BadInput`` for a word outside the vocabulary."""
        return self.encode_batch([text])[0][0].tolist()

    def encode_batch(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(ids int64 [R, longest] padded with ``end_id``, lengths int64 [R]) of R texts, all looked up in one go."""
        words = [text.split() for text in texts]
        try:
            flat = array("q", map(self.ids.__getitem__, chain.from_iterable(words)))
        except KeyError as unknown:
            raise BadInput(
                f"{unknown} is not a word of this vocabulary; allowed are {' '.join(self.words[:12])} ... "
                f"({len(self.ids)} words in all)."
            ) from None
        lengths = torch.tensor(list(map(len, words)))
        padded = torch.full((len(texts), int(lengths.max())), self.end_id)
        if flat:
            inside = torch.arange(padded.shape[1]) < lengths[:, None]
            padded.masked_scatter_(inside, torch.frombuffer(flat, dtype=torch.int64))
        return padded, lengths

    def decode(self, ids: Sequence[int]) -> str:
        """The words of ids, special tokens in their angle brackets."""
        return " ".join(self.words[index] for index in ids)
