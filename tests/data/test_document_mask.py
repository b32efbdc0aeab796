"""``corpus.document_mask``: a document in a row learns what it would learn alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from byte_texts import BYTE, CARRY, PLAIN, Texts, batches, prepared

from pausebench.config.groups import PauseConfig, PauseVisibility
from pausebench.data.batch import Batch
from pausebench.model.decoder import Decoder
from pausebench.pauses import IGNORE_INDEX

CPU = torch.device("cpu")
SHORT = [text for number in range(60) for text in ("ab", "", f"document {number}", "x" * (number % 9))]


def apart(batch: Batch) -> Iterator[Batch]:
    """Every document of every row in a batch of its own, at its positions in the row."""
    for row in range(len(batch.input_ids)):
        ends = (batch.input_ids[row] == BYTE.end_id).nonzero()[:, 0].tolist()
        edges = [0, *(end + 1 for end in ends), batch.input_ids.shape[1]]
        for first, last in itertools.pairwise(edges):
            if first < last:
                mask = replace(
                    batch.mask._each(lambda tensor, row=row, a=first, b=last: tensor[row : row + 1, a:b]),
                    documents=None,
                )
                ids, labels = (part[row : row + 1, first:last] for part in (batch.input_ids, batch.labels))
                yield Batch(ids, labels, mask, last - first, torch.arange(first, last)[None])


@pytest.mark.parametrize("visibility", list(PauseVisibility), ids=lambda visibility: visibility.value)
@pytest.mark.parametrize("pause", [PLAIN, PauseConfig(), CARRY], ids=["no pauses", "drop", "carry"])
def test_loss_and_gradients_of_masked_rows_are_those_of_their_documents_one_by_one(
    pause: PauseConfig, visibility: PauseVisibility, make_decoder: Callable[..., Decoder]
) -> None:
    options = {"pause": pause, "pause_visibility": visibility, "pause_fraction": 0.2}
    batch = batches(Texts(SHORT), document_mask=True, **options).batch(2)
    model = make_decoder(BYTE.vocab_size)
    together = model.summed_loss(batch)
    together.backward()
    wanted = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    documents = list(apart(batch))
    assert len(documents) > 12
    alone = torch.stack([model.summed_loss(document) for document in documents]).sum()
    alone.backward()
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-5)
    for parameter, gradient in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-5)


def test_without_the_mask_a_document_sees_the_one_before_it(make_decoder: Callable[..., Decoder]) -> None:
    batch = batches(Texts(SHORT), pause=PLAIN).batch(2)
    masked = batches(Texts(SHORT), pause=PLAIN, document_mask=True).batch(2)
    model = make_decoder(BYTE.vocab_size)
    assert torch.equal(batch.input_ids, masked.input_ids) and batch.mask.documents is None
    same_labels = masked._replace(labels=batch.labels)
    # The tolerance of the test above, so that it is known to be narrow enough.
    assert not torch.allclose(model.summed_loss(batch), model.summed_loss(same_labels), rtol=1e-5)


def test_the_first_token_of_a_document_is_no_target_and_every_other_is() -> None:
    for step in range(1, 8):
        plain = batches(Texts(SHORT), document_mask=False).batch(step)
        masked = batches(Texts(SHORT), document_mask=True).batch(step)
        for row, labels, there in zip(masked.input_ids, masked.labels, plain.labels, strict=True):
            ended = False
            for place in range(len(row) - 1):
                ended = (ended and row[place] == BYTE.pause_id) or bool(row[place] == BYTE.end_id)
                assert labels[place] == (IGNORE_INDEX if ended else there[place])


def test_an_end_token_belongs_to_what_it_ends_and_a_pause_to_where_it_stands() -> None:
    batch = batches(Texts(SHORT), document_mask=True, pause_fraction=0.5).batch(1)
    documents = batch.mask.documents
    assert documents is not None
    for row, numbers in zip(batch.input_ids, documents, strict=True):
        border = torch.cat([torch.tensor([False]), row[:-1] == BYTE.end_id])
        assert torch.equal(numbers - numbers[0], border.cumsum(0))
    assert (batch.input_ids == BYTE.pause_id).any()


def test_documents_of_different_rows_have_different_numbers() -> None:
    documents = batches(Texts(SHORT), document_mask=True).batch(1).mask.documents
    assert documents is not None
    rows = [set(row.tolist()) for row in documents]
    assert len(set.union(*rows)) == sum(map(len, rows))


def test_prepared_rows_are_masked_alike(tmp_path: Path) -> None:
    batch = batches(prepared(tmp_path, SHORT), document_mask=True).batch(1)
    assert batch.mask.documents is not None
    assert batch.attention_length < batch.input_ids.shape[1] / 2
