"""The fast decoder against the plain one: the same weights under the same names, the same states and gradients."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor

from pausebench.config.groups import AttentionKind, ModelConfig, PauseVisibility
from pausebench.config.pauses import PausePolicy
from pausebench.data.batch import Batch
from pausebench.data.batches import EncodedExamples, RowLayout
from pausebench.model import fast
from pausebench.model.attention import AttentionMask
from pausebench.model.decoder import Decoder
from pausebench.model.tuning import Tuning

V = 48
CONFIG = ModelConfig("test", n_layers=3, n_heads=4, d_model=32, d_mlp=80, max_positions=96, linear_gain=1.0)
# Each way to compute that a CPU has, on tensors as small as these.
TUNINGS = {
    "as it is": Tuning(),
    "fused attention": Tuning(small_scores=0),
    "activations computed again": Tuning(least_numbers=0),
    "the loss in chunks": Tuning(chunk_logits=7 * V, cpu_logits=2 * V, head_slice=5),
}


def rows_of(kind: AttentionKind, visibility: PauseVisibility, packed: bool) -> Batch:
    generator = torch.Generator().manual_seed(2)
    examples = EncodedExamples(
        torch.randint(0, V - 3, (6, 30), generator=generator),
        torch.randint(5, 31, (6,), generator=generator),
        torch.randint(0, V - 3, (6, 6), generator=generator),
        torch.randint(1, 7, (6,), generator=generator),
    )
    policy = PausePolicy(k=3, pause_visibility=visibility)
    layout = RowLayout(policy, kind, torch.tensor([V - 3]), V - 1, V - 2)
    return layout.packed_batch(examples) if packed else layout.training_batch(examples)


def pretraining_rows() -> Batch:
    ids = torch.randint(0, V, (3, 50), generator=torch.Generator().manual_seed(1))
    return Batch(ids, ids.roll(-1, 1), AttentionMask(AttentionKind.causal), 50)


BATCHES = {"causal rows": pretraining_rows()} | {
    f"{'packed' if packed else 'padded'}, {kind.value}, {visibility.value}": rows_of(kind, visibility, packed)
    for packed in (False, True)
    for kind in AttentionKind
    for visibility in PauseVisibility
}


def both(tuning: Tuning, config: ModelConfig = CONFIG) -> tuple[Decoder, fast.FastDecoder]:
    plain = Decoder(config, V)
    plain.initialize(3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():  # biases of 0 and norms of 1 would hide one that is left out
        for parameter in plain.parameters():
            if parameter.ndim == 1:
                parameter += torch.empty(parameter.shape).normal_(0.0, 0.3, generator=generator)
    return plain, fast.use(copy.deepcopy(plain), tuning)


def gradients(model: Decoder, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    loss = model.summed_loss(batch)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("tuning", TUNINGS.values(), ids=TUNINGS)
@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_states_loss_and_gradients_are_those_of_the_plain_decoder(batch: Batch, tuning: Tuning) -> None:
    plain, quick = both(tuning)
    states = plain(batch.input_ids, batch.mask, batch.positions)
    real = torch.ones_like(batch.input_ids, dtype=torch.bool)
    if batch.mask.documents is not None:
        real = batch.mask.documents >= 0  # what padding of packed rows holds is nobody's business
    torch.testing.assert_close(
        quick(batch.input_ids, batch.mask, batch.positions)[real], states[real], rtol=1e-4, atol=1e-5
    )
    (loss, found), (expected_loss, expected) = gradients(quick, batch), gradients(plain, batch)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=0)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert float((found[name] - gradient).norm()) < 1e-4 * float(gradient.norm()), name


@pytest.mark.parametrize("activation", ["gelu", "gelu_erf", "relu"])
def test_every_activation_is_the_plain_decoders(activation: str) -> None:
    plain, quick = both(Tuning(), dataclasses.replace(CONFIG, activation=activation))
    ids = torch.arange(12)[None]
    torch.testing.assert_close(quick(ids), plain(ids), rtol=1e-4, atol=1e-5)


def test_weights_have_the_same_names_and_are_drawn_alike() -> None:
    plain, quick = both(Tuning())
    assert list(plain.state_dict()) == list(quick.state_dict())
    for model in (plain, quick):
        model.initialize(9)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, quick.state_dict()[name]), name
