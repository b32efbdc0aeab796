"""Packed examples train as they would in rows of their own, see nothing of each other, and leave little padding."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pausebench.config.groups import AttentionKind, PauseVisibility, Placement, Source
from pausebench.config.pauses import PausePolicy
from pausebench.data.batch import Batch
from pausebench.data.batches import DatasetBatches, EncodedExamples, RowLayout
from pausebench.data.packing import pack, partition
from pausebench.data.task_rows import DatasetRows, open_rows
from pausebench.data.tokenizer import BpeTokenizer
from pausebench.model.attention import AttentionMask
from pausebench.model.decoder import Decoder
from pausebench.model.fast_attention import attend, attend_documents, take_apart
from pausebench.model.tuning import TUNING, Tuning
from pausebench.pauses import IGNORE_INDEX, Role
from pausebench.tasks import PAPER_TASKS

CPU = torch.device("cpu")
END, PAUSE, CUE, VOCABULARY = 14, 15, 13, 16
# Prefixes and targets of very different lengths, the shortest and the longest beside each other.
SIZES = [(1, 1), (40, 1), (3, 9), (17, 4), (1, 12), (25, 2), (8, 8), (2, 1), (31, 6), (12, 3), (5, 1)] * 3
MOST_PADDING = 0.02
Models = Callable[..., Decoder]


def ragged(sizes: list[tuple[int, int]] = SIZES, seed: int = 0) -> EncodedExamples:
    draw = random.Random(seed)
    texts = [[[draw.randrange(CUE) for _ in range(length)] for length in pair] for pair in sizes]
    return EncodedExamples.of([text[0] for text in texts], [text[1] for text in texts], END)


def row_of(examples: EncodedExamples, number: int) -> EncodedExamples:
    """One example without the padding that the others give it."""
    prefix, prefix_length, target, target_length = (part[number : number + 1] for part in examples)
    return EncodedExamples(
        prefix[:, : int(prefix_length)], prefix_length, target[:, : int(target_length)], target_length
    )


def layout_of(
    kind: AttentionKind,
    placement: Placement = Placement.append,
    k: int = 7,
    cue: int = 1,
    visibility: PauseVisibility = PauseVisibility.all,
    shift: int = 0,
) -> RowLayout:
    return RowLayout(
        PausePolicy(k=k, placement=placement, pause_visibility=visibility, shift=shift),
        kind,
        torch.full((cue,), CUE),
        PAUSE,
        END,
    )


def loss_and_gradients(model: Decoder, batches: list[Batch]) -> tuple[Tensor, dict[str, Tensor]]:
    """Summed over batches."""
    model.zero_grad()
    losses = [model.summed_loss(batch) for batch in batches]
    loss = torch.stack(losses).sum()
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(
    found: tuple[Tensor, dict[str, Tensor]], expected: tuple[Tensor, dict[str, Tensor]], tolerance: float
) -> None:
    """Equal up to rounding, relative to the size of the loss and of each parameter's gradient."""
    assert abs(float(found[0] - expected[0])) <= tolerance * float(expected[0])
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert float(gradient.norm()) > 0
        assert float((found[1][name] - gradient).norm()) <= tolerance * float(gradient.norm()), name


@pytest.fixture(params=[TUNING, Tuning(small_scores=0)], ids=["plain products", "fused kernel"])
def tuning(request: pytest.FixtureRequest) -> Tuning:
    """Both ways to compute attention of small rows."""
    made: Tuning = request.param
    return made


@pytest.fixture
def losses_in_double(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss rounds logits to float32 whatever the model's type: here it must not."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)


# Examples by row


def width_of(rows: list[list[int]], lengths: list[int]) -> int:
    return max(sum(lengths[number] for number in row) for row in rows)


def fits(count: int, lengths: list[int]) -> bool:
    """Whether so many rows, filled longest first, waste no more than they may."""
    loads = [0] * count
    for length in sorted(lengths, reverse=True):
        loads[loads.index(min(loads))] += length
    return count * max(loads) * (1 - MOST_PADDING) <= sum(lengths)


@given(st.lists(st.integers(1, 400), min_size=1, max_size=70))
def test_every_example_has_one_place_in_rows_of_nearly_one_length(lengths: list[int]) -> None:
    rows = partition(list(lengths))
    assert sorted(chain.from_iterable(rows)) == list(range(len(lengths)))
    loads = [sum(lengths[number] for number in row) for row in rows]
    assert min(loads) > 0
    assert 1 - sum(loads) / (len(rows) * max(loads)) <= MOST_PADDING
    assert max(loads) - min(loads) <= max(lengths)
    assert rows == partition(list(lengths)), "a function of the lengths"


@given(st.lists(st.integers(1, 400) | st.integers(95, 100), min_size=1, max_size=40))
def test_no_larger_number_of_rows_would_do(lengths: list[int]) -> None:
    count = len(partition(lengths))
    assert fits(count, lengths)
    assert not any(fits(more, lengths) for more in range(count + 1, len(lengths) + 1))


@pytest.mark.parametrize("lengths", [[7], [5] * 64, [98] * 50 + [100] * 50, [1, 1000], [1] * 9 + [1000]])
def test_partitions_that_are_plain_to_see(lengths: list[int]) -> None:
    rows = partition(lengths)
    assert len(rows) == (len(lengths) if max(lengths) - min(lengths) <= 2 else 1)


@pytest.mark.parametrize("placement", Placement)
@pytest.mark.parametrize("k", [0, 7])
def test_every_example_stands_whole_in_its_place(placement: Placement, k: int) -> None:
    rows = layout_of(AttentionKind.causal, placement, k).finetuning_rows(ragged())
    packed = pack(rows, END)
    assert len({part.shape for part in packed}) == 1
    assert 1 < len(packed.input_ids) < len(SIZES)
    for number, length in enumerate(rows.lengths.tolist()):
        row, places = (packed.documents == number).nonzero(as_tuple=True)
        assert len(row) == length
        assert (row == row[0]).all() and torch.equal(places, torch.arange(length) + places[0]), "in one piece"
        here = (row, places)
        assert torch.equal(packed.input_ids[here], rows.input_ids[number, :length])
        assert torch.equal(packed.labels[here], rows.labels[number, :length])
        assert torch.equal(packed.roles[here], rows.roles[number, :length])
        assert torch.equal(packed.positions[here], torch.arange(length)), "positions begin anew"
    padding = packed.documents == -1
    assert int((~padding).sum()) == int(rows.lengths.sum())
    assert (packed.input_ids[padding] == END).all()
    assert (packed.labels[padding] == IGNORE_INDEX).all()
    assert (packed.roles[padding] == Role.PADDING.value).all()
    assert (packed.positions[padding] == 0).all()
    assert padding.any(), "there is some"
    assert not ((packed.roles == Role.PADDING.value) & ~padding).any()


def test_a_packed_batch_has_the_types_of_one_example_a_row() -> None:
    layout = layout_of(AttentionKind.bidirectional)
    packed, alone = layout.packed_batch(ragged()), layout.training_batch(ragged())
    assert packed.last == packed.input_ids.shape[1]
    assert (packed.input_ids.dtype, packed.labels.dtype) == (alone.input_ids.dtype, alone.labels.dtype)
    assert packed.mask.roles is not None and packed.mask.roles.dtype is torch.int8
    assert packed.mask.kind is AttentionKind.bidirectional


# Packed training equals one example a row


@pytest.mark.parametrize("double", [False, True], ids=["fp32", "fp64"])
@pytest.mark.parametrize("k", [0, 1, 7])
@pytest.mark.parametrize("placement", Placement)
@pytest.mark.parametrize("kind", AttentionKind)
def test_loss_and_every_gradient_are_those_of_one_example_a_row(
    make_decoder: Models,
    kind: AttentionKind,
    placement: Placement,
    k: int,
    double: bool,
    request: pytest.FixtureRequest,
) -> None:
    model, tolerance = make_decoder(VOCABULARY), 1e-5
    if double:
        request.getfixturevalue("losses_in_double")
        model, tolerance = model.double(), 1e-10
    layout, examples = layout_of(kind, placement, k), ragged()
    packed = layout.packed_batch(examples)
    assert 1 < len(packed.input_ids) < len(SIZES)
    alone = [layout.training_batch(row_of(examples, number)) for number in range(len(SIZES))]
    expected = loss_and_gradients(model, alone)
    assert_same(loss_and_gradients(model, [packed]), expected, tolerance)
    assert_same(loss_and_gradients(model, [layout.training_batch(examples)]), expected, tolerance)


@pytest.mark.parametrize("cue", [0, 1, 3])
def test_a_cue_changes_nothing_about_that(make_decoder: Models, cue: int) -> None:
    model = make_decoder(VOCABULARY)
    layout, examples = layout_of(AttentionKind.bidirectional, k=2, cue=cue), ragged()
    alone = [layout.training_batch(row_of(examples, number)) for number in range(len(SIZES))]
    assert_same(
        loss_and_gradients(model, [layout.packed_batch(examples)]), loss_and_gradients(model, alone), tolerance=1e-5
    )


CONTROLS = [(PauseVisibility.readout, 3, 0), (PauseVisibility.self, 3, 0), (PauseVisibility.all, 0, 5)]


@pytest.mark.parametrize(("visibility", "k", "shift"), [*CONTROLS, (PauseVisibility.readout, 3, 5)])
@pytest.mark.parametrize("cue", [0, 1])
@pytest.mark.parametrize("placement", Placement)
@pytest.mark.parametrize("kind", AttentionKind)
def test_with_the_controls_packed_examples_train_as_one_a_row(
    make_decoder: Models,
    kind: AttentionKind,
    placement: Placement,
    cue: int,
    visibility: PauseVisibility,
    k: int,
    shift: int,
) -> None:
    model, examples = make_decoder(VOCABULARY), ragged(SIZES[:11] * 2)
    layout = layout_of(kind, placement, k, cue, visibility, shift)
    alone = [layout.training_batch(row_of(examples, number)) for number in range(22)]
    expected = loss_and_gradients(model, alone)
    assert_same(loss_and_gradients(model, [layout.packed_batch(examples)]), expected, tolerance=1e-5)
    assert_same(loss_and_gradients(model, [layout.training_batch(examples)]), expected, tolerance=1e-5)
    plain = layout_of(kind, placement, k, cue).packed_batch(examples)
    if (kind, placement) != (AttentionKind.bottleneck, Placement.prepend):
        assert abs(float(expected[0] - loss_and_gradients(model, [plain])[0])) > 1e-3, "the control does something"


@pytest.mark.parametrize("placement", Placement)
def test_a_shift_is_standard_finetuning_with_the_position_embeddings_rolled(
    make_decoder: Models, placement: Placement
) -> None:
    """All prefixes of one length, so that the jump is at one place."""
    examples = ragged([(6, 1), (6, 4), (6, 3)])
    shifted, rolled = make_decoder(VOCABULARY), make_decoder(VOCABULARY)
    start = 6 if placement is Placement.append else 0
    with torch.no_grad():
        rolled.position_embedding.weight[start:-9] = shifted.position_embedding.weight[start + 9 :].clone()
    layout = layout_of(AttentionKind.bidirectional, placement, k=0, shift=9)
    found = loss_and_gradients(shifted, [layout.training_batch(examples)])
    expected = loss_and_gradients(
        rolled, [layout_of(AttentionKind.bidirectional, placement, k=0).training_batch(examples)]
    )
    table = expected[1].pop("position_embedding.weight")
    moved = found[1].pop("position_embedding.weight")
    assert_same(found, expected, tolerance=1e-5)
    torch.testing.assert_close(moved[start + 9 :], table[start:-9], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(moved[:start], table[:start], rtol=1e-4, atol=1e-6)
    assert not moved[start : start + 9].any(), "positions that are left out are not trained"


def test_the_comparison_would_see_one_example_read_at_another_position(make_decoder: Models) -> None:
    model, layout = make_decoder(VOCABULARY), layout_of(AttentionKind.bidirectional)
    packed = layout.packed_batch(ragged())
    assert packed.positions is not None
    shifted = packed._replace(positions=packed.positions + (packed.mask.documents == 7))
    with pytest.raises(AssertionError):
        assert_same(loss_and_gradients(model, [shifted]), loss_and_gradients(model, [packed]), tolerance=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("kind", AttentionKind)
def test_the_loss_does_not_depend_on_the_rows_of_a_micro_batch(
    make_decoder: Models, kind: AttentionKind, rows: int, losses_in_double: None
) -> None:
    model = make_decoder(VOCABULARY).double()
    packed = layout_of(kind).packed_batch(ragged(SIZES * 3))
    count = len(packed.input_ids)
    assert count > 4
    parts = [packed.rows(start, min(rows, count - start)) for start in range(0, count, rows)]
    assert len({int((part.labels != IGNORE_INDEX).sum()) for part in parts}) > 1
    assert_same(loss_and_gradients(model, parts), loss_and_gradients(model, [packed]), tolerance=1e-10)


# Nobody sees another example


@pytest.mark.parametrize("placement", Placement)
@pytest.mark.parametrize("kind", AttentionKind)
def test_changing_every_token_of_an_example_moves_no_other(
    make_decoder: Models, kind: AttentionKind, placement: Placement
) -> None:
    model = make_decoder(VOCABULARY)
    packed = layout_of(kind, placement).packed_batch(ragged())
    documents = packed.mask.documents
    assert documents is not None
    with torch.no_grad():
        before = model(packed.input_ids, packed.mask, packed.positions)
        for number in range(len(SIZES)):
            own = documents == number
            after = model(
                torch.where(own, (packed.input_ids + 1) % VOCABULARY, packed.input_ids), packed.mask, packed.positions
            )
            others = ~own & (documents >= 0)
            torch.testing.assert_close(after[others], before[others], rtol=0, atol=1e-6)
            assert ((after[own] - before[own]).abs().amax(dim=1) > 1e-3).all(), "its own states move"
            logits = model.logits(after[others]) - model.logits(before[others])
            assert float(logits.abs().max()) <= 1e-5


@pytest.mark.parametrize("kind", AttentionKind)
def test_an_examples_loss_has_no_gradient_at_another_examples_tokens(make_decoder: Models, kind: AttentionKind) -> None:
    model = make_decoder(VOCABULARY)
    packed = layout_of(kind).packed_batch(ragged())
    documents = packed.mask.documents
    assert documents is not None
    embedded: list[Tensor] = []
    model.token_embedding.register_forward_hook(lambda module, given, made: embedded.append(made))
    for number in range(len(SIZES)):
        own = documents == number
        loss = model.summed_loss(packed._replace(labels=packed.labels.where(own, IGNORE_INDEX)))
        (gradient,) = torch.autograd.grad(loss, embedded.pop())
        size = gradient.abs().amax(dim=2)
        assert (size[~own] == 0).all()
        supervised = own & (packed.labels != IGNORE_INDEX)
        assert (size[supervised] > 0).all()
        if kind is not AttentionKind.bottleneck:
            assert (size[own] > 0).all(), "everything before the last answer token is read"


# Attention over the documents taken apart


def layouts(seed: int) -> dict[str, Tensor]:
    """Document numbers [B, T] of five kinds, -1 for padding."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*sizes: int) -> Tensor:
        return torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))

    def padded(row: Tensor) -> Tensor:
        return torch.cat([row, torch.full((90 - len(row),), -1)])

    contiguous = torch.stack([padded(drawn(1, 60, 2, 17)), padded(drawn(30, 29, 31)) + 4, padded(drawn(1, 1, 1)) + 7])
    contiguous[contiguous == 3] = -1  # the numbers behind the padding of rows two and three are moved along with it
    contiguous[1:][contiguous[1:] < 4] = -1
    return {
        "very different lengths and padding": contiguous,
        "the same numbers in every row": torch.stack([padded(drawn(5, 40, 40)), padded(drawn(45, 3, 1))]),
        "padding in front and between": torch.stack([drawn(10, 50, 30) - 1, torch.tensor([2, -1, 0]).repeat(30)]),
        "one document": torch.zeros(2, 90, dtype=torch.int64),
        "tokens of documents mixed": torch.randint(-1, 5, (3, 90), generator=generator),
    }


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", layouts(0))
@pytest.mark.parametrize("kind", AttentionKind)
def test_taken_apart_attention_and_its_gradient_are_those_of_the_dense_mask(
    kind: AttentionKind, name: str, seed: int, tuning: Tuning
) -> None:
    """A document may stand in pieces: it is read in the order of its positions, as the dense mask reads it."""
    documents = layouts(seed)[name]
    generator = torch.Generator().manual_seed(seed)
    roles = torch.randint(0, 3, documents.shape, generator=generator, dtype=torch.int8)
    mask = AttentionMask(kind, roles.masked_fill(documents < 0, Role.PADDING.value), documents)
    q, k, v = (
        torch.randn(*documents.shape, 12, generator=generator, dtype=torch.float64, requires_grad=True)
        for _ in range(3)
    )
    real = documents >= 0
    found, expected = (
        attend_documents(q, k, v, 3, take_apart(mask), tuning),
        attend(q, k, v, 3, mask.dense(), tuning),
    )
    torch.testing.assert_close(found[real], expected[real], rtol=1e-10, atol=1e-12)
    upstream = torch.randn(*documents.shape, 12, generator=generator, dtype=torch.float64) * real[:, :, None]
    for ours, dense in zip(
        torch.autograd.grad(found, (q, k, v), upstream), torch.autograd.grad(expected, (q, k, v), upstream), strict=True
    ):
        torch.testing.assert_close(ours, dense, rtol=1e-10, atol=1e-12)
        assert not ours[~real].any()


def test_causal_documents_need_no_roles() -> None:
    documents = layouts(0)["very different lengths and padding"]
    q, k, v = (torch.randn(*documents.shape, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    mask = AttentionMask(AttentionKind.causal, documents=documents)
    real = documents >= 0
    found = attend_documents(q, k, v, 2, take_apart(mask))
    torch.testing.assert_close(found[real], attend(q, k, v, 2, mask.dense())[real], rtol=1e-5, atol=1e-6)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=30), st.integers(0, 9))
def test_documents_taken_apart_stand_once_each_beside_others_of_like_length(sizes: list[int], padding: int) -> None:
    documents = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    documents = torch.cat([documents, torch.full((padding,), -1)]).repeat(2, 1)  # each row has its own document 0
    taken = take_apart(AttentionMask(AttentionKind.causal, documents=documents))
    real = (documents >= 0).flatten().nonzero()[:, 0]
    lengths = [group.real.sum(dim=1) for group in taken.groups]
    assert all(float(group.min()) >= TUNING.like_length * float(group.max()) for group in lengths)
    assert sorted(torch.cat(lengths).tolist()) == sorted(sizes * 2)
    places = torch.cat([group.places.flatten() for group in taken.groups])
    stands = torch.cat([group.real.flatten() for group in taken.groups])
    assert sorted(places[stands].tolist()) == real.tolist()
    assert stands[taken.inverse[real]].all()
    assert torch.equal(places[taken.inverse[real]], real), "and go back to where they stood"
    whose = torch.stack([documents, torch.arange(2)[:, None].expand_as(documents)], dim=2).flatten(0, 1)
    for group in taken.groups:
        assert (whose[group.places] == whose[group.places[:, :1]]).all()


# Published rows

FRACTIONS = {"coqa": 0.8, "hellaswag": 0.8, "lambada_openai": 0.8}  # no training split beside the tests
PUBLISHED = sorted({task.name for task in PAPER_TASKS} - {"lambada"} | {"lambada_openai"})


def published_batches(name: str, folder: Path) -> tuple[RowLayout, DatasetBatches]:
    """Ten pauses, GPT-2's tokens, rows of at most 2048, as in the paper."""
    rows = open_rows(name, Source.files, folder, None, FRACTIONS.get(name))
    assert isinstance(rows, DatasetRows)
    gpt2 = folder / "gpt2-tokenizer"
    tokenizer = BpeTokenizer(gpt2 / "vocab.json", gpt2 / "merges.txt")
    none = torch.zeros(0, dtype=torch.int64)
    layout = RowLayout(PausePolicy(k=10), AttentionKind.bidirectional, none, tokenizer.pause_id, tokenizer.end_id)
    return layout, DatasetBatches(rows, layout, tokenizer, limit=2048)


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_hardly_a_position_of_published_rows_is_padding(name: str, shared_data: Path) -> None:
    """The first hundred batches of 16 and of 64."""
    _, opened = published_batches(name, shared_data)
    assert opened.left_out == opened.truncated == 0, "nothing real needs cutting"
    for batch_size in (16, 64):
        batches = opened.batches(0, batch_size)
        positions = padding = in_own_rows = 0
        for step in range(1, 101):
            batch = batches.batch(step)
            documents = batch.mask.documents
            assert documents is not None and batch.positions is not None
            positions += documents.numel()
            padding += int((documents < 0).sum())
            in_own_rows += batch_size * (int(batch.positions.max()) + 1)
            assert len(documents[documents >= 0].unique()) == batch_size
        assert padding / positions < 0.03
        assert padding / positions < 0.5 * (1 - (positions - padding) / in_own_rows), "one example a row has far more"
        print(f"{name}, batches of {batch_size}: {padding / positions:.2%} padding")


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_packed_published_rows_have_the_loss_and_gradients_of_one_a_row(
    name: str, shared_data: Path, make_decoder: Models
) -> None:
    layout, opened = published_batches(name, shared_data)
    pairs = [pair for pair in opened.fitting[:400] if pair is not None and len(pair[0]) < 500][:16]
    prefixes, targets = zip(*pairs, strict=True)
    examples = EncodedExamples.of(prefixes, targets, layout.pad_id)
    model = make_decoder(layout.pause_id + 1, max_positions=600)
    alone = [layout.training_batch(row_of(examples, number)) for number in range(len(pairs))]
    packed = layout.packed_batch(examples)
    assert len(packed.input_ids) < len(pairs)
    assert_same(loss_and_gradients(model, [packed]), loss_and_gradients(model, alone), tolerance=1e-5)


def test_the_attention_of_a_packed_batch_is_counted_by_document() -> None:
    """For mfu: a row of many short examples costs less attention than one long example."""
    batch = layout_of(AttentionKind.causal).packed_batch(ragged(SIZES))
    assert batch.positions is not None and batch.mask.documents is not None
    lengths = batch.mask.documents[batch.mask.documents >= 0].bincount().double()
    expected = float((lengths**2).sum() / lengths.sum())
    assert abs(batch.attention_length - expected) <= MOST_PADDING * expected + 1
    assert layout_of(AttentionKind.causal).training_batch(ragged(SIZES)).attention_length == 40 + 7 + 1
    shifted = layout_of(AttentionKind.causal, k=0, shift=50)
    assert shifted.training_batch(ragged(SIZES)).attention_length == 40 + 1, "a jump is no token"
