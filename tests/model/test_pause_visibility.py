"""Hidden pauses: the mask against its definition in a double loop, and what no gradient may reach."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise, product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pausebench.config.groups import AttentionKind, PauseVisibility, Placement
from pausebench.config.pauses import PausePolicy
from pausebench.data.batch import Batch
from pausebench.data.batches import EncodedExamples, RowLayout
from pausebench.model.attention import AttentionMask, decoding_mask
from pausebench.model.decoder import Decoder
from pausebench.model.fast_attention import take_apart
from pausebench.pauses import IGNORE_INDEX, Role, inference_rows

CPU = torch.device("cpu")
END, PAUSE, CUE, VOCABULARY, K = 14, 15, 13, 16, 3
PREFIX_SIDE = (Role.PREFIX.value, Role.PAUSE.value)
Models = Callable[..., Decoder]
every_kind = pytest.mark.parametrize("kind", AttentionKind)
every_placement = pytest.mark.parametrize("placement", Placement)
hidden_ways = pytest.mark.parametrize("visibility", [PauseVisibility.readout, PauseVisibility.self])


def may_see(
    kind: AttentionKind,
    visibility: PauseVisibility,
    roles: list[int],
    readouts: list[bool],
    documents: list[int],
    query: int,
    key: int,
) -> bool:
    """The definition, for one query and one key of one row."""
    if documents[query] != documents[key]:
        return False
    in_prefix = kind is AttentionKind.bidirectional and roles[query] in PREFIX_SIDE and roles[key] in PREFIX_SIDE
    if key > query and not in_prefix:
        return False
    if kind is AttentionKind.bottleneck and (roles[query], roles[key]) == (Role.TARGET.value, Role.PREFIX.value):
        return False
    if roles[key] != Role.PAUSE.value or visibility is PauseVisibility.all or query == key:
        return True
    if visibility is PauseVisibility.self:
        return False
    after = range(key, len(roles))
    return query == next((t for t in after if readouts[t] and documents[t] == documents[key]), None)


def by_definition(mask: AttentionMask, length: int) -> Tensor:
    """bool [B, T, T], pair by pair."""
    assert mask.roles is not None and mask.readouts is not None
    rows = []
    for row in range(len(mask.roles)):
        parts = (mask.roles[row].tolist(), mask.readouts[row].tolist())
        documents = [0] * length if mask.documents is None else mask.documents[row].tolist()
        rows.append(
            [
                [may_see(mask.kind, mask.visibility, *parts, documents, query, key) for key in range(length)]
                for query in range(length)
            ]
        )
    return torch.tensor(rows)


@st.composite
def masks(draw: st.DrawFn) -> AttentionMask:
    """Any roles, any read-outs; documents in one piece, in several pieces, or none."""
    batch, length = draw(st.integers(1, 3)), draw(st.integers(1, 12))

    def drawn(value: st.SearchStrategy[int] | st.SearchStrategy[bool]) -> Tensor:
        row = st.lists(value, min_size=length, max_size=length)
        return torch.tensor(draw(st.lists(row, min_size=batch, max_size=batch)))

    documents = draw(st.sampled_from(["none", "pieces", "whole"]))
    numbers = None if documents == "none" else drawn(st.integers(0, 2))
    return AttentionMask(
        draw(st.sampled_from(AttentionKind)),
        drawn(st.sampled_from([role.value for role in Role] + [Role.PAUSE.value] * 3)).to(torch.int8),
        numbers.sort(dim=1).values if documents == "whole" and numbers is not None else numbers,
        draw(st.sampled_from(PauseVisibility)),
        drawn(st.booleans()),
    )


@given(masks())
def test_the_dense_mask_is_its_definition_pair_by_pair(mask: AttentionMask) -> None:
    assert mask.roles is not None
    length = mask.roles.shape[1]
    dense = mask.dense()
    if dense is None:
        assert mask.kind is AttentionKind.causal and mask.visibility is PauseVisibility.all
        dense = torch.ones(len(mask.roles), 1, length, length, dtype=torch.bool).tril()
    assert torch.equal(dense.expand(len(mask.roles), 1, -1, -1)[:, 0], by_definition(mask, length))
    assert bool(dense.diagonal(dim1=2, dim2=3).all()), "a position sees itself"


@every_kind
@pytest.mark.parametrize("visibility", PauseVisibility)
def test_a_document_in_pieces_has_the_read_outs_of_its_own(kind: AttentionKind, visibility: PauseVisibility) -> None:
    generator = torch.Generator().manual_seed(0)
    roles, documents = (torch.randint(0, 3, (12, 20), generator=generator) for _ in range(2))
    readouts = torch.rand(12, 20, generator=generator) < 0.3
    mask = AttentionMask(kind, roles.to(torch.int8), documents, visibility, readouts)
    dense = mask.dense()
    assert dense is not None and torch.equal(dense[:, 0], by_definition(mask, 20))


@given(masks(), st.integers(0, 2))
def test_a_slice_of_a_mask_keeps_who_sees_its_pauses(mask: AttentionMask, start: int) -> None:
    assert mask.roles is not None
    length, start = mask.roles.shape[1], min(start, len(mask.roles) - 1)
    part = mask.narrow(start, len(mask.roles) - start).to(CPU)
    assert torch.equal(by_definition(part, length), by_definition(mask, length)[start:])
    assert part.visibility is mask.visibility


@given(masks())
def test_documents_taken_apart_keep_who_sees_their_pauses(mask: AttentionMask) -> None:
    if mask.documents is None:
        return
    whole = by_definition(mask, mask.documents.shape[1])
    for group in take_apart(mask).groups:
        for row, (places, real) in enumerate(zip(group.places, group.real, strict=True)):
            batch_row, inside = int(places[0]) // mask.documents.shape[1], places[real] % mask.documents.shape[1]
            allowed = torch.ones(len(real), len(real), dtype=torch.bool).tril()
            if group.allowed is not None:
                allowed = group.allowed.expand(len(group.places), -1, -1, -1)[row, 0]
            found = allowed[: len(inside), : len(inside)]
            assert torch.equal(found, whole[batch_row][inside][:, inside])


# Rows of a finetuning


def layout_of(kind: AttentionKind, visibility: PauseVisibility, placement: Placement, cue: int) -> RowLayout:
    return RowLayout(
        PausePolicy(k=K, placement=placement, pause_visibility=visibility), kind, torch.full((cue,), CUE), PAUSE, END
    )


def examples() -> EncodedExamples:
    generator = torch.Generator().manual_seed(0)
    prefixes, targets = (
        [torch.randint(0, 13, (length,), generator=generator).tolist() for length in lengths]
        for lengths in ((5, 1, 3, 8), (3, 4, 2, 5))
    )
    return EncodedExamples.of(prefixes, targets, END)


def row_of(examples: EncodedExamples, number: int) -> EncodedExamples:
    """One example without the padding that the others give it."""
    prefix, prefix_length, target, target_length = (part[number : number + 1] for part in examples)
    return EncodedExamples(
        prefix[:, : int(prefix_length)], prefix_length, target[:, : int(target_length)], target_length
    )


@every_kind
@every_placement
@pytest.mark.parametrize("cue", [0, 2])
def test_a_readout_pause_is_seen_by_itself_and_by_what_predicts_the_first_target_token(
    kind: AttentionKind, placement: Placement, cue: int
) -> None:
    """Columns of the pauses, from the parts of the row alone; a packed row holds the same."""
    layout, given_rows = layout_of(kind, PauseVisibility.readout, placement, cue), examples()
    for number, (prefix, target) in enumerate(zip((5, 1, 3, 8), (3, 4, 2, 5), strict=True)):
        batch = layout.training_batch(row_of(given_rows, number))
        dense = batch.mask.dense()
        assert dense is not None and dense.shape[2] == prefix + K + cue + target - 1
        readout = prefix + K + cue - 1
        assert batch.labels[0, readout] == given_rows.target[number, 0]
        first = prefix if placement is Placement.append else 0
        for pause in range(first, first + K):
            assert dense[0, 0, :, pause].nonzero()[:, 0].tolist() == sorted({pause, readout})


def gradient_at_inputs(model: Decoder, batch: Batch, labels: Tensor) -> Tensor:
    """[B, T]: the largest gradient of the loss of ``labels`` at each position's token embedding."""
    embedded: list[Tensor] = []
    handle = model.token_embedding.register_forward_hook(lambda module, given, made: embedded.append(made))
    loss = model.summed_loss(batch._replace(labels=labels))
    handle.remove()
    (gradient,) = torch.autograd.grad(loss, embedded[0])
    return gradient.abs().amax(dim=2)


def later_labels(batch: Batch) -> Tensor:
    """Without each row's first target token."""
    later = batch.labels.clone()
    first = (later != IGNORE_INDEX).int().argmax(dim=1)
    later[torch.arange(len(later)), first] = IGNORE_INDEX
    return later


@every_kind
@every_placement
@pytest.mark.parametrize("cue", [0, 1])
def test_nothing_flows_from_a_pause_that_only_itself_sees(
    make_decoder: Models, kind: AttentionKind, placement: Placement, cue: int
) -> None:
    """Exactly nothing: from every pause that is not itself the read-out, through any number of layers."""
    model = make_decoder(VOCABULARY, n_layers=3)
    batch = layout_of(kind, PauseVisibility.self, placement, cue).training_batch(examples())
    size = gradient_at_inputs(model, batch, batch.labels)
    assert batch.mask.roles is not None and batch.mask.readouts is not None
    hidden = (batch.mask.roles == Role.PAUSE.value) & ~batch.mask.readouts
    assert hidden.any() and not size[hidden].any()
    assert (size[batch.mask.readouts] > 0).all(), "the read-out's own input counts"
    open_to_all = layout_of(kind, PauseVisibility.all, placement, cue).training_batch(examples())
    if (kind, placement) != (AttentionKind.bottleneck, Placement.prepend):  # there nobody asked sees pause or prefix
        assert (gradient_at_inputs(model, open_to_all, open_to_all.labels)[hidden] > 0).all()


@every_kind
def test_a_readout_pause_reaches_the_first_target_token_and_no_later_one(
    make_decoder: Models, kind: AttentionKind
) -> None:
    model = make_decoder(VOCABULARY, n_layers=3)
    batch = layout_of(kind, PauseVisibility.readout, Placement.append, 0).training_batch(examples())
    assert batch.mask.roles is not None
    pauses = batch.mask.roles == Role.PAUSE.value
    assert (gradient_at_inputs(model, batch, batch.labels)[pauses] > 0).all()
    assert not gradient_at_inputs(model, batch, later_labels(batch))[pauses].any()


@every_kind
@hidden_ways
def test_what_a_hidden_pause_is_changes_no_state_but_its_own_and_the_readouts(
    make_decoder: Models, kind: AttentionKind, visibility: PauseVisibility
) -> None:
    model = make_decoder(VOCABULARY, n_layers=3)
    layout = layout_of(kind, visibility, Placement.append, 0)
    batch = layout.training_batch(examples())
    before = model(batch.input_ids, batch.mask)
    first = batch.mask.roles == Role.PAUSE.value if batch.mask.roles is not None else None
    assert first is not None
    first &= first.cumsum(dim=1) == 1
    after = model(batch.input_ids.masked_fill(first, 0), batch.mask)
    moved = (before - after).abs().amax(dim=2) > 0
    expected = first if visibility is PauseVisibility.self else first | batch.mask.readouts
    assert torch.equal(moved, expected)


@every_kind
@hidden_ways
@every_placement
def test_a_decoded_token_sees_what_the_mask_of_the_whole_row_lets_it_see(
    kind: AttentionKind, visibility: PauseVisibility, placement: Placement
) -> None:
    prefix, lengths = torch.zeros(2, 5, dtype=torch.int64), torch.tensor([5, 2])
    rows = inference_rows(
        prefix, lengths, torch.tensor([CUE]), PausePolicy(k=K, placement=placement), pause_id=PAUSE, pad_id=END
    )
    for row, length in enumerate(rows.lengths.tolist()):
        roles = torch.cat([rows.roles[row, :length], torch.full((3,), Role.TARGET.value)]).to(torch.int8)[None]
        whole = AttentionMask(kind, roles, None, visibility, torch.arange(length + 3)[None] == length - 1)
        for slot in range(length, length + 3):
            seen = decoding_mask(kind, roles, torch.tensor([slot]), visibility)
            assert torch.equal(seen[0, 0, 0], by_definition(whole, length + 3)[0, slot])


def test_the_visibilities_differ_and_each_takes_away_from_the_one_before() -> None:
    for kind, placement in product(AttentionKind, Placement):
        counts = []
        for visibility in PauseVisibility:
            mask = layout_of(kind, visibility, placement, 1).training_batch(examples()).mask
            assert mask.roles is not None
            counts.append(int(by_definition(mask, mask.roles.shape[1]).sum()))
        assert all(more > less for more, less in pairwise(counts))
