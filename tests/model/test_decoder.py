"""The decoder against the published sizes, transformers' GPT-2 and the documented initialisation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from pausebench.config.groups import AttentionKind, ModelConfig
from pausebench.config.pauses import PausePolicy
from pausebench.data.batches import RowLayout
from pausebench.data.tokenizer import ByteTokenizer
from pausebench.evaluation.evaluator import Evaluator
from pausebench.evaluation.generate import generate
from pausebench.model.attention import AttentionMask
from pausebench.model.decoder import Decoder
from pausebench.model.tuning import TUNING
from pausebench.pauses import Role, inference_rows
from pausebench.tasks import TASKS, Example

CONF = Path(__file__).parents[2] / "conf" / "model"
GPT2_VOCABULARY = 50257 + 1  # GPT-2's tokens and <pause>


def published(name: str) -> ModelConfig:
    loaded = OmegaConf.load(CONF / f"{name}.yaml")
    return ModelConfig(**loaded.get("model", loaded))  # tiny also chooses its data


def parameters(name: str, vocab_size: int) -> int:
    with torch.device("meta"):
        return Decoder(published(name), vocab_size).parameter_count()


@pytest.mark.parametrize(("name", "count"), [("130m", 136_237_056), ("1b", 1_345_085_440)])
def test_parameter_counts_are_the_papers(name: str, count: int) -> None:
    assert parameters(name, GPT2_VOCABULARY) == count


@pytest.mark.parametrize(
    ("name", "vocab_size", "smallest", "largest"),
    [("mini", 64, 7e3, 9e3), ("tiny", 64, 0.8e6, 1.2e6), ("small", GPT2_VOCABULARY, 10e6, 15e6)],
)
def test_the_small_models_have_the_size_they_are_made_for(
    name: str, vocab_size: int, smallest: float, largest: float
) -> None:
    assert smallest <= parameters(name, vocab_size) <= largest


# transformers' GPT-2


def gpt2_like(model: Decoder) -> Any:
    """transformers' GPT2LMHeadModel with the weights of ``model``. Its Conv1D keeps matrices transposed."""
    transformers = pytest.importorskip("transformers")
    config = model.config
    reference = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=model.vocab_size,
            n_positions=config.max_positions,
            n_embd=config.d_model,
            n_layer=config.n_layers,
            n_head=config.n_heads,
            n_inner=config.d_mlp,
            activation_function="gelu_new",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=None,
        )
    ).eval()
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            parameter.copy_(ours(model, name))
    return reference


def ours(model: Decoder, gpt2_name: str, gradient: bool = False) -> Tensor:
    """Our weight (or its gradient) under GPT-2's name, in GPT-2's layout."""
    renamed = gpt2_name.removeprefix("transformer.").replace("h.", "blocks.")
    for theirs, here in {
        "wte": "token_embedding",
        "wpe": "position_embedding",
        "ln_f": "norm_out",
        "ln_1": "norm_attention",
        "ln_2": "norm_mlp",
        "attn.c_attn": "qkv",
        "attn.c_proj": "attention_out",
        "mlp.c_fc": "mlp_in",
        "mlp.c_proj": "mlp_out",
    }.items():
        renamed = renamed.replace(theirs, here)
    parameter = model.get_parameter(renamed)
    tensor = parameter.grad if gradient else parameter
    assert tensor is not None
    return tensor.T if ".c_" in gpt2_name and tensor.ndim == 2 else tensor


def with_random_biases_and_norms(model: Decoder) -> Decoder:
    """Zeros and ones of the initialisation would hide a bias or a norm that is left out."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.empty(parameter.shape).normal_(0.0, 0.3, generator=generator))
    return model


@pytest.mark.parametrize("length", [24, 100])
def test_logits_and_gradients_equal_transformers_gpt2(make_decoder: Callable[..., Decoder], length: int) -> None:
    assert (length**2 > TUNING.small_scores) is (length == 100), "one length for each way to compute attention"
    model = with_random_biases_and_norms(make_decoder(23, n_layers=3, d_model=32, n_heads=4))
    reference = gpt2_like(model)
    input_ids = torch.randint(0, 23, (3, length), generator=torch.Generator().manual_seed(1))
    logits, expected = model.logits(model(input_ids)), reference(input_ids).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    for outputs in (logits, expected):
        losses = torch.nn.functional.cross_entropy(outputs[:, :-1].flatten(0, 1), input_ids[:, 1:].flatten())
        losses.backward()
    compared = 0
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(ours(model, name, gradient=True), parameter.grad, rtol=1e-4, atol=1e-4)
        compared += parameter.numel()
    assert compared == model.parameter_count(), "every weight of ours was compared"


def greedily(model: Decoder, prefixes: list[list[int]], max_new_tokens: int, end_id: int) -> list[list[int]]:
    """Our greedy decoding without pauses (M = 0)."""
    width = max(map(len, prefixes))
    rows = inference_rows(
        torch.tensor([prefix + [end_id] * (width - len(prefix)) for prefix in prefixes]),
        torch.tensor([len(prefix) for prefix in prefixes]),
        torch.tensor([], dtype=torch.int64),
        PausePolicy(k=0),
        pause_id=model.vocab_size - 1,
        pad_id=end_id,
    )
    answers = generate(
        model,
        rows,
        AttentionKind.causal,
        max_new_tokens=max_new_tokens,
        end_id=end_id,
        pause_id=model.vocab_size - 1,
    )
    return [answer.tokens for answer in answers]


@pytest.mark.parametrize("lengths", [[9] * 12, [1, 7, 12, 3, 70, 2, 66, 5, 9, 31, 4, 18]], ids=["even", "ragged"])
def test_greedy_decoding_is_token_identical_to_transformers_generate(
    make_decoder: Callable[..., Decoder], lengths: list[int]
) -> None:
    model = with_random_biases_and_norms(make_decoder(12, seed=6, d_model=32, embedding_std=0.2, linear_gain=3.0))
    reference, end_id, pause_id = gpt2_like(model).double(), 10, 11
    model.double()
    generator = torch.Generator().manual_seed(2)
    prefixes = [torch.randint(0, 10, (length,), generator=generator).tolist() for length in lengths]
    expected = []
    for prefix in prefixes:
        output = reference.generate(
            torch.tensor([prefix]),
            attention_mask=torch.ones(1, len(prefix), dtype=torch.int64),
            do_sample=False,
            max_new_tokens=20,
            eos_token_id=end_id,
            pad_token_id=end_id,
            suppress_tokens=[pause_id],
        )
        answer = output[0, len(prefix) :].tolist()
        expected.append(answer[: answer.index(end_id)] if end_id in answer else answer)
    assert len({len(answer) for answer in expected}) > 4, "some answers end early, some late"
    assert greedily(model, prefixes, 20, end_id) == expected


# Hidden states of the last positions alone


def mask_of(kind: AttentionKind, length: int) -> AttentionMask:
    """Two rows with prefix, pauses and target of different lengths."""
    counts = [(length - 8, 3, 5), (length - 15, 6, 9)]
    roles = [
        [Role.PREFIX.value] * prefix + [Role.PAUSE.value] * pauses + [Role.TARGET.value] * target
        for prefix, pauses, target in counts
    ]
    return AttentionMask(kind, torch.tensor(roles, dtype=torch.int8))


@pytest.mark.parametrize("length", [30, 90])
@pytest.mark.parametrize("last", [1, 7, 29])
@pytest.mark.parametrize("kind", [None, *AttentionKind])
def test_asking_for_the_last_positions_gives_the_end_of_the_full_forward(
    make_decoder: Callable[..., Decoder], kind: AttentionKind | None, last: int, length: int
) -> None:
    model = make_decoder(16)
    input_ids = torch.randint(0, 16, (2, length), generator=torch.Generator().manual_seed(4))
    mask = None if kind is None else mask_of(kind, length)
    hidden = model(input_ids, mask, last=last)
    assert hidden.shape == (2, last, 16)
    torch.testing.assert_close(hidden, model(input_ids, mask)[:, -last:], rtol=1e-4, atol=1e-5)


# Initialisation


def deviations(model: Decoder) -> dict[str, float]:
    return {name: parameter.std().item() for name, parameter in model.named_parameters() if parameter.ndim == 2}


@pytest.mark.parametrize("gain", [None, 0.8])
def test_weights_have_the_documented_scales(gain: float | None) -> None:
    config = ModelConfig(
        name="x",
        n_layers=3,
        n_heads=2,
        d_model=64,
        d_mlp=256,
        max_positions=512,
        embedding_std=0.5,
        linear_std=0.03,
        linear_gain=gain,
    )
    model = Decoder(config, 300)
    model.initialize(0)
    for name, deviation in deviations(model).items():
        expected = 0.5
        if "embedding" not in name:
            fan_in = 256 if "mlp_out" in name else 64
            expected = 0.03 if gain is None else gain / math.sqrt(fan_in)
            if name.endswith(("attention_out.weight", "mlp_out.weight")):
                expected /= math.sqrt(2 * 3)
        assert deviation == pytest.approx(expected, rel=0.05), name
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            value = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            assert (parameter == value).all(), name


def test_the_published_models_start_with_gpt2s_scales() -> None:
    for name in ("130m", "1b"):
        config = published(name)
        assert (config.embedding_std, config.linear_std, config.linear_gain) == (0.02, 0.02, None)
        assert config.activation == "gelu"


def test_the_miniatures_initialisation_is_the_one_that_shows_the_effect() -> None:
    config = published("mini")
    assert (config.embedding_std, config.linear_gain) == (0.5, 0.8)
    assert (config.n_layers, config.n_heads, config.d_model, config.d_mlp, config.max_positions) == (2, 1, 16, 64, 64)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(make_decoder: Callable[..., Decoder]) -> None:
    first, again, other = (make_decoder(16, seed=seed).state_dict() for seed in (4, 4, 5))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in deviations(make_decoder(16)))


def test_initialising_again_forgets_everything_before_it(make_decoder: Callable[..., Decoder]) -> None:
    model = make_decoder(16, seed=4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    model.initialize(4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_relu_is_used_where_the_config_asks_for_it(make_decoder: Callable[..., Decoder]) -> None:
    model = make_decoder(16, activation="relu")
    same_weights = make_decoder(16, activation="gelu")
    input_ids = torch.arange(10)[None]
    assert not torch.allclose(model(input_ids), same_weights(input_ids))
    assert (model.blocks[0].activation(torch.tensor([-1.0, 2.0])) == torch.tensor([0.0, 2.0])).all()


def test_a_row_is_read_the_same_whatever_stands_right_of_it(make_decoder: Callable[..., Decoder]) -> None:
    model = make_decoder(16)
    row = torch.arange(12)[None] % 16
    padded = torch.cat([row, torch.full((1, 9), 14)], dim=1)
    torch.testing.assert_close(model(padded)[:, :12], model(row), rtol=1e-5, atol=1e-6)


def test_scores_of_candidates_are_log_likelihoods_of_transformers_gpt2(make_decoder: Callable[..., Decoder]) -> None:
    """Prompt and candidates of published rows in GPT-2's layout: one row at a time there, batches of seven here."""
    tokenizer = ByteTokenizer()
    model = with_random_biases_and_norms(make_decoder(tokenizer.vocab_size, seed=7, embedding_std=0.2))
    reference = gpt2_like(model)
    rows = [
        ("Goal: dry wet hands\nAnswer:", (" rub them on a towel", " rub them on a wet sponge")),
        ("Goal: open a jar\nAnswer:", (" twist the lid", " hit the lid with a spoon until the glass gives in")),
        ("Goal: ice\nAnswer:", (" freeze water", " boil water")),
    ]
    examples = [Example(prefix, options[1], (options[1],), options) for prefix, options in rows] * 3
    task = dataclasses.replace(TASKS["squad"], metrics=("accuracy", "macro_f1"), scored=True)
    layout = RowLayout(
        PausePolicy(k=0), AttentionKind.causal, torch.zeros(0, dtype=torch.int64), tokenizer.pause_id, 256
    )
    evaluator = Evaluator(model, task, examples, tokenizer, batch_size=7, max_length=160)
    _, predictions = evaluator.evaluate(layout, 0)
    for example, row in zip(examples, predictions, strict=True):
        for candidate, total in zip(example.candidates, row["log_likelihoods"], strict=True):
            prefix, answer = tokenizer.encode(example.prefix), tokenizer.encode(candidate)
            with torch.no_grad():
                logits = reference(torch.tensor([prefix + answer])).logits[0].log_softmax(dim=1)
            expected = logits[len(prefix) - 1 : -1].gather(1, torch.tensor(answer)[:, None]).sum()
            assert total == pytest.approx(float(expected), abs=1e-4)
        assert row["prediction"] == max(zip(row["log_likelihoods"], example.candidates, strict=True))[1]
