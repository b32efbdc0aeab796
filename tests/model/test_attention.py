"""Who sees whom, tried by changing one token and looking which states move."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pausebench.config.groups import AttentionKind, Placement
from pausebench.config.pauses import PausePolicy
from pausebench.model.attention import AttentionMask, decoding_mask
from pausebench.model.cache import KeyValueCache
from pausebench.model.fast import FastDecoder as Decoder
from pausebench.model.fast_attention import attend
from pausebench.model.tuning import TUNING, Tuning
from pausebench.pauses import Role, Rows, finetuning_rows, inference_rows

VOCABULARY, END, PAUSE = 16, 14, 15
PREFIX, PAUSES, CUE, TARGET = 6, 3, 1, 4
LENGTH = PREFIX + PAUSES + CUE + TARGET
PREFIX_POSITIONS = set(range(PREFIX))
PAUSE_POSITIONS = set(range(PREFIX, PREFIX + PAUSES))
TARGET_POSITIONS = set(range(PREFIX + PAUSES, LENGTH))
ROLES = [Role.PREFIX] * PREFIX + [Role.PAUSE] * PAUSES + [Role.TARGET] * (CUE + TARGET)


def mask_of(kind: AttentionKind, roles: list[Role] = ROLES) -> AttentionMask:
    return AttentionMask(kind, torch.tensor([[role.value for role in roles]], dtype=torch.int8))


def row(seed: int = 0, length: int = LENGTH) -> Tensor:
    return torch.randint(0, 14, (1, length), generator=torch.Generator().manual_seed(seed))


def moved(model: Decoder, mask: AttentionMask | None, position: int, length: int = LENGTH) -> set[int]:
    """Positions whose state changes with the token at ``position``."""
    before = row(length=length)
    after = before.clone()
    after[0, position] = (after[0, position] + 1) % 14
    difference = (model(before, mask) - model(after, mask)).abs().amax(dim=2)[0]
    return set(difference.nonzero()[:, 0].tolist())


@pytest.fixture(params=[TUNING, Tuning(small_scores=0)], ids=["plain products", "fused kernel"])
def tuning(request: pytest.FixtureRequest) -> Tuning:
    """Both ways to compute attention of small rows."""
    made: Tuning = request.param
    return made


# The formula


def attention_written_out(q: Tensor, k: Tensor, v: Tensor, n_heads: int, allowed: Tensor) -> Tensor:
    """softmax(q k / sqrt(width)) v, one head, one query at a time; allowed bool [B, H, T, S]."""
    out = torch.zeros_like(q)
    width = q.shape[2] // n_heads
    for b in range(len(q)):
        for head in range(n_heads):
            part = slice(head * width, (head + 1) * width)
            for t in range(q.shape[1]):
                seen = allowed[b, head, t]
                weights = (k[b, seen, part] @ q[b, t, part] / math.sqrt(width)).softmax(dim=0)
                out[b, t, part] = weights @ v[b, seen, part]
    return out


@pytest.mark.parametrize("n_heads", [1, 3])
@pytest.mark.parametrize(("queries", "keys"), [(9, 9), (4, 9), (1, 9), (70, 70), (2, 70)])
@pytest.mark.parametrize("masked", [False, True], ids=["causal", "masked"])
def test_attention_and_its_gradient_are_the_formula(
    masked: bool, queries: int, keys: int, n_heads: int, tuning: Tuning
) -> None:
    generator = torch.Generator().manual_seed(7)
    q, k, v = (torch.randn(2, size, 12, generator=generator, requires_grad=True) for size in (queries, keys, keys))
    last_of_keys = torch.ones(keys, keys, dtype=torch.bool).tril()[-queries:]
    seen = last_of_keys.expand(2, 1, -1, -1)
    if masked:
        seen = seen & (torch.rand(2, 1, queries, keys, generator=generator) < 0.5)
        seen = seen | torch.eye(keys, dtype=torch.bool)[-queries:]  # a position always sees itself
    result = attend(q, k, v, n_heads, seen if masked else None, tuning)
    expected = attention_written_out(q, k, v, n_heads, seen.expand(2, n_heads, -1, -1))
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    upstream = torch.randn(result.shape, generator=generator)
    for found, wanted in zip(
        torch.autograd.grad(result, (q, k, v), upstream),
        torch.autograd.grad(expected, (q, k, v), upstream),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


# Causal


@pytest.mark.parametrize("mask", [None, mask_of(AttentionKind.causal)], ids=["no mask", "roles ignored"])
def test_a_causal_position_sees_itself_and_what_is_before_it(
    make_decoder: Callable[..., Decoder], mask: AttentionMask | None
) -> None:
    model = make_decoder(VOCABULARY)
    for position in range(LENGTH):
        assert moved(model, mask, position) == set(range(position, LENGTH))


# Prefix-LM


def test_perturbing_a_later_prefix_token_changes_every_prefix_and_pause_state(
    make_decoder: Callable[..., Decoder],
) -> None:
    model = make_decoder(VOCABULARY)
    for position in PREFIX_POSITIONS | PAUSE_POSITIONS:
        assert moved(model, mask_of(AttentionKind.bidirectional), position) == set(range(LENGTH))


def test_perturbing_a_target_token_changes_nothing_before_it(make_decoder: Callable[..., Decoder]) -> None:
    model = make_decoder(VOCABULARY)
    for kind in AttentionKind:
        for position in TARGET_POSITIONS:
            assert moved(model, mask_of(kind), position) == set(range(position, LENGTH))


@pytest.mark.parametrize("kind", AttentionKind)
def test_a_row_without_prefix_equals_the_causal_path(make_decoder: Callable[..., Decoder], kind: AttentionKind) -> None:
    model = make_decoder(VOCABULARY)
    hidden = model(row(), mask_of(kind, [Role.TARGET] * LENGTH))
    torch.testing.assert_close(hidden, model(row()), rtol=1e-5, atol=1e-6)


def test_prepended_pauses_are_seen_by_the_whole_prefix_and_see_it(make_decoder: Callable[..., Decoder]) -> None:
    model = make_decoder(VOCABULARY)
    roles = [Role.PAUSE] * PAUSES + [Role.PREFIX] * PREFIX + [Role.TARGET] * (CUE + TARGET)
    for position in (0, PAUSES + PREFIX - 1):
        assert moved(model, mask_of(AttentionKind.bidirectional, roles), position) == set(range(LENGTH))


@pytest.mark.parametrize("kind", AttentionKind)
def test_padding_is_seen_by_nobody_else(make_decoder: Callable[..., Decoder], kind: AttentionKind) -> None:
    model = make_decoder(VOCABULARY)
    roles = [*ROLES[:-2], Role.PADDING, Role.PADDING]
    for position in (LENGTH - 2, LENGTH - 1):
        assert moved(model, mask_of(kind, roles), position) <= {LENGTH - 2, LENGTH - 1}


# The read-out bottleneck


def test_with_the_bottleneck_the_prefix_reaches_the_target_through_the_pauses_alone(
    make_decoder: Callable[..., Decoder],
) -> None:
    two_layers, one_layer = make_decoder(VOCABULARY), make_decoder(VOCABULARY, n_layers=1)
    mask = mask_of(AttentionKind.bottleneck)
    for position in PREFIX_POSITIONS:
        # Layer 1 carries the token to the pauses, layer 2 from there to the target.
        assert moved(two_layers, mask, position) == set(range(position, LENGTH))
        assert moved(one_layer, mask, position) == set(range(position, PREFIX + PAUSES))
    for position in PAUSE_POSITIONS:
        assert moved(one_layer, mask, position) == set(range(position, LENGTH))


def test_with_the_bottleneck_and_no_pauses_cue_and_target_never_see_the_prefix(
    make_decoder: Callable[..., Decoder],
) -> None:
    model = make_decoder(VOCABULARY, n_layers=4)
    mask = mask_of(AttentionKind.bottleneck, [Role.PREFIX] * PREFIX + [Role.TARGET] * (CUE + TARGET))
    questions = torch.randint(0, 14, (20, PREFIX), generator=torch.Generator().manual_seed(1))
    answer = row(length=CUE + TARGET)
    states = [model(torch.cat([question[None], answer], dim=1), mask)[0, PREFIX:] for question in questions]
    assert all(torch.equal(state, states[0]) for state in states)


# Packed documents


def test_documents_of_a_packed_row_do_not_see_each_other(make_decoder: Callable[..., Decoder]) -> None:
    model = make_decoder(VOCABULARY)
    mask = AttentionMask(AttentionKind.causal, documents=torch.tensor([[0] * 5 + [1] * 3 + [2] * 6]))
    for position in range(14):
        end = 5 if position < 5 else 8 if position < 8 else 14
        assert moved(model, mask, position, 14) == set(range(position, end))


def test_a_packed_row_equals_its_documents_read_alone(make_decoder: Callable[..., Decoder]) -> None:
    model = make_decoder(VOCABULARY)
    documents = [row(seed, length) for seed, length in enumerate((5, 3, 6))]
    numbers = torch.cat([torch.full((1, part.shape[1]), index) for index, part in enumerate(documents)], dim=1)
    positions = torch.cat([torch.arange(part.shape[1])[None] for part in documents], dim=1)
    packed = model(
        torch.cat(documents, dim=1), AttentionMask(AttentionKind.causal, documents=numbers), positions_BT=positions
    )
    alone = torch.cat([model(part) for part in documents], dim=1)
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [AttentionKind.bidirectional, AttentionKind.bottleneck])
def test_packed_rows_with_prefixes_equal_the_rows_read_alone(
    make_decoder: Callable[..., Decoder], kind: AttentionKind
) -> None:
    model = make_decoder(VOCABULARY)
    first, second = row(1), row(2)
    roles = torch.tensor([[role.value for role in ROLES] * 2], dtype=torch.int8)
    documents = torch.tensor([[0] * LENGTH + [1] * LENGTH])
    positions = torch.arange(LENGTH).repeat(2)[None]
    packed = model(torch.cat([first, second], dim=1), AttentionMask(kind, roles, documents), positions_BT=positions)
    alone = torch.cat([model(part, mask_of(kind)) for part in (first, second)], dim=1)
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-6)


def test_a_slice_of_a_mask_belongs_to_the_same_slice_of_the_rows(make_decoder: Callable[..., Decoder]) -> None:
    model = make_decoder(VOCABULARY)
    input_ids = torch.cat([row(1), row(2), row(3)])
    shorter = [Role.PREFIX] * 2 + [Role.PAUSE] * 5 + [Role.TARGET] * (LENGTH - 7)
    roles = torch.tensor([[role.value for role in roles] for roles in (ROLES, shorter, ROLES)], dtype=torch.int8)
    documents = torch.tensor([[0] * LENGTH, [0] * 9 + [1] * (LENGTH - 9), [0] * 4 + [1] * (LENGTH - 4)])
    mask = AttentionMask(AttentionKind.bidirectional, roles, documents)
    part = model(input_ids[1:], mask.narrow(1, 2))
    torch.testing.assert_close(part, model(input_ids, mask)[1:], rtol=1e-5, atol=1e-6)


# The cache


@pytest.mark.parametrize("kind", AttentionKind)
@pytest.mark.parametrize("placement", Placement)
@pytest.mark.parametrize("k", [0, 3])
def test_decoding_with_the_cache_equals_the_full_forward_for_ragged_rows(
    make_decoder: Callable[..., Decoder], kind: AttentionKind, placement: Placement, k: int
) -> None:
    model = make_decoder(VOCABULARY)
    generator = torch.Generator().manual_seed(3)
    prefix_lengths, target_lengths = torch.tensor([7, 1, 4]), torch.tensor([TARGET] * 3)
    prefix = torch.randint(0, 14, (3, 7), generator=generator)
    target = torch.randint(0, 14, (3, TARGET), generator=generator)
    cue = torch.tensor([13])
    trained = finetuning_rows(
        prefix,
        prefix_lengths,
        target,
        target_lengths,
        cue,
        PausePolicy(k=k, placement=placement),
        pause_id=PAUSE,
        pad_id=END,
    )
    expected = model(trained.input_ids, AttentionMask(kind, trained.roles))

    rows = inference_rows(
        prefix, prefix_lengths, cue, PausePolicy(k=k, placement=placement), pause_id=PAUSE, pad_id=END
    )
    for step, hidden in enumerate(decode(model, rows, kind, target)):
        at = rows.lengths - 1 + step
        torch.testing.assert_close(hidden, expected[torch.arange(3), at], rtol=1e-4, atol=1e-5)


def decode(model: Decoder, rows: Rows, kind: AttentionKind, target: Tensor) -> list[Tensor]:
    """States [B, D] that predict each target token, one forward of one token at a time after the first."""
    batch, length = rows.input_ids.shape
    slots = length + target.shape[1]
    cache = KeyValueCache(model.config, batch, slots, torch.float32, torch.device("cpu"))
    states = [model(rows.input_ids, AttentionMask(kind, rows.roles), cache=cache)[range(batch), rows.lengths - 1]]
    key_roles = torch.full((batch, slots), Role.TARGET.value, dtype=torch.int8)
    key_roles[:, :length] = rows.roles
    for step in range(target.shape[1] - 1):
        positions = rows.lengths + step
        seen = decoding_mask(kind, key_roles, positions)
        tokens = target[:, step : step + 1]
        states.append(model(tokens, positions_BT=positions[:, None], cache=cache, decoding=seen)[:, 0])
    return states


def test_rows_that_leave_the_cache_take_nothing_from_the_others(make_decoder: Callable[..., Decoder]) -> None:
    model = make_decoder(VOCABULARY)
    input_ids = torch.cat([row(1), row(2), row(3)])
    cache = KeyValueCache(model.config, 3, LENGTH + 1, torch.float32, torch.device("cpu"))
    model(input_ids, cache=cache)
    kept = torch.tensor([0, 2])
    cache.keep_rows(kept)
    tokens, positions = torch.tensor([[5], [6]]), torch.full((2, 1), LENGTH)
    seen = decoding_mask(AttentionKind.causal, torch.zeros(2, LENGTH + 1, dtype=torch.int8), positions[:, 0])
    hidden = model(tokens, positions_BT=positions, cache=cache, decoding=seen)
    expected = model(torch.cat([input_ids[kept], tokens], dim=1))[:, -1:]
    torch.testing.assert_close(hidden, expected, rtol=1e-4, atol=1e-5)
