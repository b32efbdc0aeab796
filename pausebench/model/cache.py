"""Keys and values of what a decoder has read, attention of new tokens to them, and decoding by them.

Shapes: L layers, B rows, H heads, S slots, C width of a head, T new tokens, D width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pausebench.config.groups import AttentionKind, ModelConfig, PauseVisibility
from pausebench.model.attention import AttentionMask, decoding_mask, merge_heads, split_heads
from pausebench.model.prefill import Prefill
from pausebench.pauses import Role, Rows

if TYPE_CHECKING:
    from pausebench.model.fast import FastDecoder


def slot_bytes(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> int:
    """Bytes of one position of a row in a cache."""
    return 2 * config.n_layers * config.d_model * _kept_as(dtype, device).itemsize


def _kept_as(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    return torch.float32 if dtype is torch.bfloat16 and device.type == "cpu" else dtype


class KeyValueCache:
    """Keys [L, B, H, S, C] and values [L, B, H, C, S] of every layer, written in each row's own slots.

    Rows may have prefixes of different lengths: a prefill writes right-padded rows, later tokens overwrite the
    padding, and the caller's mask hides what is not yet written. Nothing is copied from step to step.

    Products with one new token read each key and each value's channel in one piece, which is what the layout is for.
    On a CPU bfloat16 is kept as float32: there products of single rows are no faster in bfloat16, and less exact.
    """

    def __init__(self, config: ModelConfig, batch: int, slots: int, dtype: torch.dtype, device: torch.device) -> None:
        dtype = _kept_as(dtype, device)
        self._config = config
        heads, width = (config.n_layers, batch, config.n_heads), config.d_model // config.n_heads
        # Zeros, not what the memory held: a hidden value counts 0 times, and 0 times nan is nan.
        self.keys = torch.zeros(*heads, slots, width, dtype=dtype, device=device)
        self.values = torch.zeros(*heads, width, slots, dtype=dtype, device=device)
        self._filled: Tensor | slice = slice(None)  # the rows that a prefill fills

    @property
    def rows(self) -> int:
        return self.keys.shape[1]

    def fill(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Store the [B, T, D] of a prefill in the first T slots."""
        T, H = keys.shape[1], self._config.n_heads
        self.keys[layer][self._filled, :, :T] = split_heads(keys, H).to(self.keys.dtype)
        self.values[layer][self._filled, :, :, :T] = split_heads(values, H).transpose(2, 3).to(self.values.dtype)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, slots: Tensor, allowed: Tensor) -> Tensor:
        """Store the [B, T, D] of new tokens in ``slots`` [B, T], and attend to the first S slots: [B, T, D].

        ``allowed`` is bool [B, 1, T, S]; every query sees at least one key.
        """
        H, rows = self._config.n_heads, torch.arange(len(slots), device=slots.device)[:, None]
        keys, values = self.keys[layer], self.values[layer]
        keys[rows, :, slots] = split_heads(k, H).transpose(1, 2).to(keys.dtype)
        values[rows, :, :, slots] = split_heads(v, H).transpose(1, 2).to(values.dtype)
        S = allowed.shape[3]
        query = split_heads(q, H).to(keys.dtype) / math.sqrt(keys.shape[3])
        # Keys first: with one query this is a matrix times a vector, which reads the keys in the order they lie.
        scores = torch.matmul(keys[:, :, :S], query.transpose(2, 3)).transpose(2, 3)
        shares = scores.masked_fill(~allowed, -math.inf).softmax(dim=3)
        attended = torch.matmul(values[:, :, :, :S], shares.transpose(2, 3)).transpose(2, 3)
        return merge_heads(attended).to(q.dtype)

    def first_rows(self, count: int) -> KeyValueCache:
        """The same memory, of the first rows alone."""
        if count == self.rows:
            return self
        part = copy(self)
        part.keys, part.values = self.keys[:, :count], self.values[:, :count]
        return part

    def filling(self, rows: Tensor) -> KeyValueCache:
        """The same memory for a prefill of these rows (int64)."""
        part = copy(self)
        part._filled = rows
        return part

    def copy(self, read: int) -> KeyValueCache:
        """A cache of its own with as many slots, the first ``read`` of them as here."""
        other = KeyValueCache(self._config, self.rows, self.keys.shape[3], self.keys.dtype, self.keys.device)
        other.keys[:, :, :, :read] = self.keys[:, :, :, :read]
        other.values[:, :, :, :, :read] = self.values[:, :, :, :, :read]
        return other

    def keep_rows(self, rows: Tensor) -> None:
        """Row i becomes what row ``rows[i]`` was (int64), and no others are left; rows that stay in place cost nothing.

        The memory is the same: a view of it taken before sees the rows move.
        """
        places = torch.arange(len(rows), device=rows.device)
        moved = places[rows != places]
        if len(moved):
            self.keys[:, moved] = self.keys[:, rows[moved]]
            self.values[:, moved] = self.values[:, rows[moved]]
        self.keys, self.values = self.keys[:, : len(rows)], self.values[:, : len(rows)]


@dataclass(frozen=True)
class CachedPrefill(Prefill):
    """Rows whose keys and values are kept, so that each token goes through the model once."""

    model: FastDecoder
    cache: KeyValueCache

    @classmethod
    @torch.no_grad()
    def of(
        cls, model: FastDecoder, rows: Rows, kind: AttentionKind, visibility: PauseVisibility, capacity: int
    ) -> CachedPrefill:
        """Rows read in parallel, like lengths in one pass."""
        device, (batch, length) = model.device, rows.input_ids.shape
        cache = KeyValueCache(model.config, batch, capacity, model.dtype, device)
        states = torch.empty(batch, length, model.config.d_model, dtype=model.dtype, device=device)
        # Evaluating SQuAD went from 1.39 to 1.61 times transformers' speed by this (docs/LOG.md).
        for some in of_like_length(rows.lengths, model.tuning.like_prefixes):
            width = int(rows.lengths[some].max())
            cut = [None if part is None else part[some, :width] for part in (rows.roles, rows.readouts, rows.positions)]
            roles, readouts, positions = (None if part is None else part.to(device) for part in cut)
            mask = AttentionMask(kind, roles, visibility=visibility, readouts=readouts)
            # The cache and the states are whole; each pass fills the rows that it reads.
            places = some.to(device)
            read = model(rows.input_ids[some, :width].to(device), mask, positions, cache.filling(places))
            states[places, :width] = read
        # Slots that are not read yet count as the target's, which is what will be written there.
        roles = torch.full((batch, capacity), Role.TARGET.value, dtype=torch.int8, device=device)
        roles[:, :length] = rows.roles.to(device)
        return cls(model, kind, visibility, roles, rows.lengths.to(device), states, 0, rows.jump, cache)

    @torch.no_grad()
    def read(self, tokens: Tensor, offset: int = 0) -> Tensor:
        count = len(tokens)
        slots, positions = self.places(tokens, offset)
        # Cut at the furthest slot: attention costs what is read so far, not the capacity.
        seen = decoding_mask(self.kind, self.roles[:count, : int(slots.max()) + 1], slots, self.visibility)
        states: Tensor = self.model(tokens, None, positions, self.cache.first_rows(count), seen, slots)
        return states

    def copy(self) -> CachedPrefill:
        return replace(self, cache=self.cache.copy(int(self.slots.max())))

    def keep_rows(self, rows: Tensor) -> CachedPrefill:
        # The cache moves its rows in place; a new one would need the memory twice.
        self.cache.keep_rows(rows)
        first = self.first if isinstance(self.first, int) else self.first[rows]
        return replace(self, roles=self.roles[rows], slots=self.slots[rows], states=self.states[rows], first=first)


def of_like_length(lengths: Tensor, share: float) -> Iterator[Tensor]:
    """Numbers of the rows of each pass, int64: all have at least ``share`` of the longest one's positions.

    Padding is read like text and costs as much.
    """
    order = lengths.argsort(descending=True, stable=True)
    listed = lengths[order].tolist()
    begin = 0
    while begin < len(listed):
        count = sum(size >= share * listed[begin] for size in listed[begin:])
        yield order[begin : begin + count].sort().values
        begin += count
