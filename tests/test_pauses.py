"""The paper's three operations against plain Python, and its loss against a loop over its index set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from pausebench.config.groups import AttentionKind, Placement
from pausebench.config.pauses import PausePolicy
from pausebench.data.batch import Batch
from pausebench.model.attention import AttentionMask
from pausebench.model.decoder import Decoder
from pausebench.pauses import (
    IGNORE_INDEX,
    Role,
    draw_places,
    finetuning_rows,
    inference_rows,
    inject,
    injected_roles,
    pause_count,
)

PAUSE, PAD = 15, 14
TOKEN = st.integers(0, PAD)  # padding is an ordinary token elsewhere
CPU = torch.device("cpu")


# Pretraining: inject


def inject_one_row(tokens: list[int], supervised: list[bool], places: list[int]) -> tuple[list[int], list[int]]:
    """Insert, then cut: a pause goes in front of the token whose number is its place."""
    row: list[tuple[int, bool]] = []
    for index, entry in enumerate(zip(tokens, supervised, strict=True)):
        row += [(PAUSE, False)] * places.count(index)
        row.append(entry)
    row = (row + [(PAUSE, False)] * places.count(len(tokens)))[: len(tokens)]
    labels = [token if is_target else IGNORE_INDEX for token, is_target in row[1:]] + [IGNORE_INDEX]
    return [token for token, _ in row], labels


@st.composite
def rows_with_places(draw: st.DrawFn) -> tuple[list[list[int]], list[list[bool]], list[list[int]]]:
    batch, length, count = draw(st.integers(1, 4)), draw(st.integers(1, 12)), draw(st.integers(0, 14))

    def rows(value: st.SearchStrategy[Any], width: int) -> list[list[Any]]:
        return draw(st.lists(st.lists(value, min_size=width, max_size=width), min_size=batch, max_size=batch))

    places = [sorted(row) for row in rows(st.integers(0, length), count)]
    return rows(TOKEN, length), rows(st.booleans(), length), places


def as_places(places: list[list[int]]) -> Tensor:
    return torch.tensor(places, dtype=torch.int64).view(len(places), -1)


@given(rows_with_places())
def test_injection_is_insertion_followed_by_a_cut(
    rows: tuple[list[list[int]], list[list[bool]], list[list[int]]],
) -> None:
    tokens, supervised, places = rows
    input_ids, labels = inject(torch.tensor(tokens), torch.tensor(supervised), as_places(places), PAUSE)
    expected = [inject_one_row(*row) for row in zip(tokens, supervised, places, strict=True)]
    assert input_ids.tolist() == [row for row, _ in expected]
    assert labels.tolist() == [row for _, row in expected]


@given(rows_with_places())
def test_injection_keeps_length_and_order_and_never_asks_for_a_pause(
    rows: tuple[list[list[int]], list[list[bool]], list[list[int]]],
) -> None:
    tokens, supervised, places = rows
    input_ids, labels = inject(torch.tensor(tokens), torch.tensor(supervised), as_places(places), PAUSE)
    assert input_ids.shape == labels.shape == torch.tensor(tokens).shape
    assert not (labels == PAUSE).any()
    for row, injected in zip(tokens, input_ids.tolist(), strict=True):
        survivors = [token for token in injected if token != PAUSE]
        assert survivors == row[: len(survivors)]


def test_a_pause_before_a_real_token_predicts_it_and_a_position_before_a_pause_predicts_nothing() -> None:
    places = torch.tensor([[1, 1, 3]])
    input_ids, labels = inject(torch.tensor([[5, 6, 7, 8, 9, 10]]), torch.ones(1, 6, dtype=torch.bool), places, PAUSE)
    assert input_ids.tolist() == [[5, PAUSE, PAUSE, 6, 7, PAUSE]]
    assert labels.tolist() == [[IGNORE_INDEX, IGNORE_INDEX, 6, 7, IGNORE_INDEX, IGNORE_INDEX]]


def test_no_places_is_standard_pretraining() -> None:
    tokens = torch.randint(0, 14, (3, 9), generator=torch.Generator().manual_seed(0))
    input_ids, labels = inject(tokens, torch.ones_like(tokens, dtype=torch.bool), as_places([[], [], []]), PAUSE)
    assert torch.equal(input_ids, tokens)
    assert torch.equal(labels[:, :-1], tokens[:, 1:])
    assert (labels[:, -1] == IGNORE_INDEX).all()


def test_the_papers_row_gets_205_pauses() -> None:
    assert pause_count(2048, 0.1) == 205


def test_about_186_of_205_pauses_survive_the_cut_of_the_papers_row() -> None:
    rows = 400
    tokens = torch.zeros(rows, 2048, dtype=torch.int64)
    places = draw_places(0, torch.arange(rows), 2048, 205)
    input_ids, _ = inject(tokens, torch.ones_like(tokens, dtype=torch.bool), places, PAUSE)
    surviving = (input_ids == PAUSE).sum(dim=1).double()
    # 205 * 2048 / 2253 = 186.35; one row deviates by about 3.7, the mean of 400 by .19
    assert abs(float(surviving.mean()) - 186.35) < 0.75
    assert 3.0 < float(surviving.std()) < 4.5


@given(tokens=st.integers(1, 12), count=st.integers(0, 12), seed=st.integers(0, 99))
def test_a_row_that_is_longer_by_its_pauses_keeps_all_of_them_and_every_token(
    tokens: int, count: int, seed: int
) -> None:
    real = torch.arange(3 * tokens).view(3, tokens) + PAUSE + 1
    places = draw_places(seed, torch.arange(3), tokens, count)
    supervised = torch.ones_like(real, dtype=torch.bool)
    input_ids, labels = inject(real, supervised, places, PAUSE, tokens + count)
    assert input_ids.shape == labels.shape == (3, tokens + count)
    assert torch.equal(input_ids[input_ids != PAUSE].view(3, tokens), real)
    assert torch.equal(inject(real, supervised, places, PAUSE)[0], input_ids[:, :tokens])


def test_places_are_uniform_over_all_gaps_of_the_row() -> None:
    places = draw_places(0, torch.arange(2000), 99, 50)
    assert bool((places.diff(dim=1) >= 0).all())
    counts = places.flatten().bincount(minlength=100)
    assert len(counts) == 100, "in front of every token, and after the last"
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_pauses_are_spread_evenly_over_the_injected_row() -> None:
    rows = 1000
    tokens = torch.zeros(rows, 256, dtype=torch.int64)
    places = draw_places(1, torch.arange(rows), 256, pause_count(256, 0.1))
    input_ids, _ = inject(tokens, torch.ones_like(tokens, dtype=torch.bool), places, PAUSE)
    by_part = (input_ids == PAUSE).sum(dim=0).view(16, 16).sum(dim=1)
    assert stats.chisquare(by_part.numpy()).pvalue > 1e-3


def test_places_are_a_function_of_seed_and_row_alone() -> None:
    together = draw_places(7, torch.arange(20), 64, 6)
    shuffled = torch.tensor([13, 2, 19, 0])
    assert torch.equal(draw_places(7, shuffled, 64, 6), together[shuffled])
    assert torch.equal(draw_places(7, torch.tensor([5]), 64, 6)[0], together[5])
    assert not torch.equal(draw_places(8, torch.arange(20), 64, 6), together)
    assert len({tuple(row) for row in together.tolist()}) == 20, "no two rows alike"


def test_the_loss_is_the_papers_sum_over_positions_whose_next_token_is_no_pause(
    make_decoder: Callable[..., Decoder],
) -> None:
    model = make_decoder(16)
    tokens = torch.randint(0, 15, (5, 40), generator=torch.Generator().manual_seed(1))
    places = draw_places(0, torch.arange(5), 40, 12)
    input_ids, labels = inject(tokens, torch.ones_like(tokens, dtype=torch.bool), places, PAUSE)
    batch = Batch(input_ids, labels, AttentionMask(AttentionKind.causal), 40)
    loss = model.summed_loss(batch) / (labels != IGNORE_INDEX).sum()

    total, positions = torch.zeros(()), 0
    for row in input_ids:
        for k in range(39):
            if row[k + 1] != PAUSE:  # otherwise k is in S_ignore, Algorithm 1
                logits = model.logits(model(row[None, : k + 1]))[0, -1]
                total = total - logits.log_softmax(dim=0)[row[k + 1]]
                positions += 1
    assert 0 < positions < 5 * 39
    assert any(row[k] == PAUSE and row[k + 1] != PAUSE for row in input_ids for k in range(39)), "pauses that predict"
    torch.testing.assert_close(loss, total / positions, rtol=1e-5, atol=0)


@given(rows_with_places())
def test_the_read_out_of_injected_pauses_is_the_last_of_each_run(
    rows: tuple[list[list[int]], list[list[bool]], list[list[int]]],
) -> None:
    tokens, supervised, places = rows
    input_ids, labels = inject(torch.tensor(tokens), torch.tensor(supervised), as_places(places), PAUSE)
    roles, readouts = injected_roles(input_ids, PAUSE)
    for ids, row_roles, row_readouts in zip(input_ids.tolist(), roles.tolist(), readouts.tolist(), strict=True):
        pauses = [token == PAUSE for token in ids]
        assert [role == Role.PAUSE.value for role in row_roles] == pauses
        ends = [*(not following for following in pauses[1:]), True]
        assert row_readouts == [pause and end for pause, end in zip(pauses, ends, strict=True)]
    assert not ((labels != IGNORE_INDEX) & (input_ids == PAUSE) & ~readouts).any(), "no other pause predicts"


# Finetuning and inference: append and prepend


def finetuning_row(
    prefix: list[int], target: list[int], cue: list[int], k: int, placement: Placement
) -> tuple[list[int], list[int], list[int]]:
    """Ids, labels and roles of one row without padding."""
    pauses = [(PAUSE, Role.PAUSE)] * k
    question = [(token, Role.PREFIX) for token in prefix]
    given_part = [*question, *pauses] if placement is Placement.append else [*pauses, *question]
    given_part += [(token, Role.TARGET) for token in cue]
    row = given_part + [(token, Role.TARGET) for token in target]
    labels = [row[t + 1][0] if t + 1 >= len(given_part) else IGNORE_INDEX for t in range(len(row) - 1)]
    return [token for token, _ in row[:-1]], labels, [role.value for _, role in row[:-1]]


def padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    return torch.tensor([row + [PAD] * (width - len(row)) for row in rows]), torch.tensor([len(row) for row in rows])


TEXTS = st.lists(
    st.tuples(st.lists(TOKEN, min_size=1, max_size=6), st.lists(TOKEN, min_size=1, max_size=4)), min_size=1, max_size=5
)
CUE = st.lists(TOKEN, max_size=2)
PLACEMENTS = st.sampled_from(Placement)


def build(texts: list[tuple[list[int], list[int]]], cue: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    prefix, target = padded([row for row, _ in texts]), padded([row for _, row in texts])
    return *prefix, *target, torch.tensor(cue, dtype=torch.int64)


@given(TEXTS, CUE, st.integers(0, 5), PLACEMENTS)
def test_finetuning_rows_are_prefix_pauses_cue_target_with_loss_on_the_target_alone(
    texts: list[tuple[list[int], list[int]]], cue: list[int], k: int, placement: Placement
) -> None:
    rows = finetuning_rows(*build(texts, cue), PausePolicy(k=k, placement=placement), pause_id=PAUSE, pad_id=PAD)
    expected = [finetuning_row(prefix, target, cue, k, placement) for prefix, target in texts]
    assert rows.lengths.tolist() == [len(ids) for ids, _, _ in expected]
    assert rows.input_ids.shape == rows.labels.shape == rows.roles.shape == (len(texts), int(rows.lengths.max()))
    for index, (ids, labels, roles) in enumerate(expected):
        assert rows.input_ids[index, : len(ids)].tolist() == ids
        assert rows.labels[index, : len(ids)].tolist() == labels
        assert rows.roles[index, : len(ids)].tolist() == roles
        assert (rows.labels[index, len(ids) :] == IGNORE_INDEX).all(), "nothing is asked of padding"
    assert not (rows.labels == PAUSE).any()


@given(TEXTS, CUE, st.integers(0, 5), PLACEMENTS)
def test_inference_rows_are_the_finetuning_rows_before_the_target(
    texts: list[tuple[list[int], list[int]]], cue: list[int], m: int, placement: Placement
) -> None:
    prefix, prefix_lengths, target, target_lengths, cue_ids = build(texts, cue)
    policy, options = PausePolicy(k=m, placement=placement), {"pause_id": PAUSE, "pad_id": PAD}
    trained = finetuning_rows(prefix, prefix_lengths, target, target_lengths, cue_ids, policy, **options)
    rows = inference_rows(prefix, prefix_lengths, cue_ids, policy, **options)
    assert torch.equal(rows.lengths, prefix_lengths + m + len(cue))
    assert (rows.labels == IGNORE_INDEX).all()
    for index, length in enumerate(rows.lengths.tolist()):
        assert torch.equal(rows.input_ids[index, :length], trained.input_ids[index, :length])
        assert torch.equal(rows.roles[index, :length], trained.roles[index, :length])
        assert trained.labels[index, length - 1] == target[index, 0], "decoding starts where training predicts it"


@given(TEXTS, CUE, st.integers(0, 3), PLACEMENTS, st.integers(0, 5))
def test_the_read_out_predicts_the_first_target_token_and_a_shift_moves_positions_alone(
    texts: list[tuple[list[int], list[int]]], cue: list[int], k: int, placement: Placement, shift: int
) -> None:
    inputs, options = build(texts, cue), {"pause_id": PAUSE, "pad_id": PAD}
    plain, rows = (
        finetuning_rows(*inputs, PausePolicy(k=k, placement=placement, shift=jump), **options) for jump in (0, shift)
    )
    for name in ("input_ids", "labels", "roles", "lengths", "readout"):
        assert torch.equal(getattr(plain, name), getattr(rows, name))
    for index, (prefix, target) in enumerate(texts):
        assert rows.readouts[index].nonzero()[:, 0].tolist() == [len(prefix) + k + len(cue) - 1]
        assert rows.labels[index, rows.readout[index]] == target[0]
    if shift <= k:
        assert rows.positions is None and rows.jump == 0
        return
    assert rows.positions is not None and rows.jump == shift - k
    for index, (prefix, target) in enumerate(texts):
        behind = len(cue) + len(target) - 1
        if placement is Placement.append:
            expected = [*range(len(prefix) + k), *(len(prefix) + shift + t for t in range(behind))]
        else:
            expected = [*range(k), *(shift + t for t in range(len(prefix) + behind))]
        assert rows.positions[index].tolist() == expected + [0] * (rows.positions.shape[1] - len(expected))


def test_a_shift_of_k_has_the_positions_of_k_pauses_without_them() -> None:
    inputs, options = build([([1, 2, 3], [7, 8]), ([4], [9])], [13]), {"pause_id": PAUSE, "pad_id": PAD}
    for placement in Placement:
        shifted = finetuning_rows(*inputs, PausePolicy(k=0, shift=4, placement=placement), **options)
        paused = finetuning_rows(*inputs, PausePolicy(k=4, placement=placement), **options)
        assert shifted.positions is not None
        for row in range(2):
            stood = (paused.roles[row] == Role.PREFIX.value) | (paused.roles[row] == Role.TARGET.value)
            real = int(shifted.lengths[row])
            assert shifted.positions[row, :real].tolist() == stood.nonzero()[:, 0].tolist()


@pytest.mark.parametrize(("placement", "predictor"), [(Placement.append, PAUSE), (Placement.prepend, 3)])
def test_the_last_pause_or_with_prepended_pauses_the_last_prefix_token_predicts_the_first_target_token(
    placement: Placement, predictor: int
) -> None:
    inputs = build([([1, 2, 3], [7, 8])], [])
    rows = finetuning_rows(*inputs, PausePolicy(k=4, placement=placement), pause_id=PAUSE, pad_id=PAD)
    first = rows.labels[0].tolist().index(7)
    assert rows.input_ids[0, first] == predictor
    assert (rows.labels[0, :first] == IGNORE_INDEX).all()


def test_without_pauses_the_last_prefix_token_predicts_and_placement_makes_no_difference() -> None:
    inputs = build([([1, 2, 3], [7, 8]), ([4], [9])], [])
    append, prepend = (
        finetuning_rows(*inputs, PausePolicy(k=0, placement=placement), pause_id=PAUSE, pad_id=PAD)
        for placement in Placement
    )
    assert append.input_ids[0].tolist() == [1, 2, 3, 7]
    assert append.labels[0].tolist() == [IGNORE_INDEX, IGNORE_INDEX, 7, 8]
    names = ("input_ids", "labels", "roles", "lengths", "readout")
    assert all(torch.equal(getattr(append, name), getattr(prepend, name)) for name in names)
    assert append.positions is prepend.positions is None


def test_a_filler_stands_where_the_pauses_would() -> None:
    prefix, lengths, *_ = build([([1, 2, 3], [7]), ([4], [9])], [])
    cue = torch.tensor([], dtype=torch.int64)
    pauses = inference_rows(prefix, lengths, cue, PausePolicy(k=3), pause_id=PAUSE, pad_id=PAD)
    dots = inference_rows(prefix, lengths, cue, PausePolicy(k=3), pause_id=5, pad_id=PAD)
    assert torch.equal(pauses.input_ids.masked_fill(pauses.input_ids == PAUSE, 5), dots.input_ids)
    assert torch.equal(pauses.roles, dots.roles)
