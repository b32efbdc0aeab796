"""Counted by formula, by torch's own counter on real decoders, and on the masks themselves."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pausebench.config.groups import AttentionKind, ModelConfig, PauseVisibility
from pausebench.config.pauses import PausePolicy
from pausebench.data.batch import Batch
from pausebench.data.batches import EncodedExamples, RowLayout
from pausebench.data.examples import Tokens
from pausebench.data.tokenizer import WordTokenizer
from pausebench.evaluation import evaluator
from pausebench.evaluation.generate import Answer, decode, generate, target_log_likelihoods
from pausebench.model.attention import AttentionMask
from pausebench.model.decoder import Decoder
from pausebench.model.fast import FastDecoder
from pausebench.model.flops import (
    attended_pairs,
    equal_flops_layers,
    equal_flops_steps,
    finetuning_flops,
    inference_flops,
    matrix_weights,
    parameters,
    scoring_flops,
    training_flops_per_token,
)
from pausebench.model.prefill import Prefill
from pausebench.pauses import IGNORE_INDEX
from pausebench.tasks import TASKS, Example

Models = Callable[..., Decoder]
V, END, PAUSE = 16, 14, 15
KINDS = [AttentionKind.causal, AttentionKind.bidirectional]
ONE_B = ModelConfig("1b", n_layers=24, n_heads=32, d_model=2048, d_mlp=8192, max_positions=16384)
SHAPES: list[dict[str, Any]] = [{}, {"n_layers": 3, "n_heads": 1, "d_model": 24, "d_mlp": 80}]


def counted(work: Callable[[], Any]) -> int:
    """What torch's counter sees of matrix products."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def layout_of(kind: AttentionKind, k: int, cue: int) -> RowLayout:
    return RowLayout(PausePolicy(k=k), kind, torch.full((cue,), 5), PAUSE, END)


def example(prefix: int, target: int) -> EncodedExamples:
    return EncodedExamples.of([[1 + i % 9 for i in range(prefix)]], [[2 + i % 9 for i in range(target)]], END)


def hidden_attention(model: ModelConfig, layers: int, positions: int, pairs: float) -> float:
    """What a kernel that computes the whole square spends on pairs that the mask then hides."""
    return layers * 4 * model.d_model * (positions**2 - pairs)


def test_the_models_of_the_paper_have_the_published_number_of_parameters() -> None:
    small = ModelConfig("130m", n_layers=12, n_heads=12, d_model=768, d_mlp=3072, max_positions=16384)
    assert (parameters(small, 50258), parameters(ONE_B, 50258)) == (136_237_056, 1_345_085_440)


@pytest.mark.parametrize("shape", SHAPES)
def test_parameters_and_matrix_weights_are_those_of_the_decoder(make_decoder: Models, shape: dict[str, Any]) -> None:
    model = make_decoder(**shape)
    assert parameters(model.config, model.vocab_size) == model.parameter_count()
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and name != "position_embedding.weight"]
    assert matrix_weights(model.config, model.vocab_size) == sum(p.numel() for p in matrices)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("length", [1, 7, 40])
def test_a_pretraining_step_costs_what_torch_counts(make_decoder: Models, shape: dict[str, Any], length: int) -> None:
    model, rows = make_decoder(**shape), 3

    def step() -> None:
        input_ids = torch.ones(rows, length, dtype=torch.int64)
        model.logits(model(input_ids, AttentionMask(AttentionKind.causal))).sum().backward()

    expected = rows * length * training_flops_per_token(model.config, model.vocab_size, length)
    assert counted(step) == expected == rows * length * model.flops_per_token(length)


def test_where_nothing_is_predicted_the_step_is_cheaper_by_the_head_alone(make_decoder: Models) -> None:
    """Pause-pretraining has no loss in front of a pause; the formula of published MFU counts the head there too."""
    model, rows, length = make_decoder(V), 4, 30
    labels = torch.ones(rows, length, dtype=torch.int64)
    labels[:, ::10] = IGNORE_INDEX
    batch = Batch(torch.ones(rows, length, dtype=torch.int64), labels, AttentionMask(AttentionKind.causal), length)
    spent = counted(lambda: model.summed_loss(batch).backward())
    formula = rows * length * training_flops_per_token(model.config, V, length)
    assert formula - spent == 6 * V * model.config.d_model * int((labels == IGNORE_INDEX).sum())


def test_a_row_of_mean_length_costs_what_rows_cost_on_average_to_a_hundredth() -> None:
    """Published contexts spread as widely as 50 to 750 tokens; attention is a small part of 1b."""
    lengths = range(50, 751, 50)
    average = sum(inference_flops(ONE_B, 50258, length, 5) for length in lengths) / len(lengths)
    at_mean = inference_flops(ONE_B, 50258, sum(lengths) / len(lengths), 5)
    assert 0.99 < at_mean / average < 1


def test_pretraining_of_the_paper_costs_six_times_weights_plus_attention() -> None:
    """Chowdhery et al., appendix B, worked out by hand for 1b at 2048 tokens."""
    weights = 24 * 12 * 2048**2 + 50258 * 2048
    assert training_flops_per_token(ONE_B, 50258, 2048) == 6 * weights + 12 * 24 * 2048 * 2048


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("k", "cue"), [(0, 0), (4, 0), (3, 2)])
def test_attended_pairs_are_those_of_the_mask(kind: AttentionKind, k: int, cue: int) -> None:
    rows = layout_of(kind, k, cue).finetuning_rows(example(6, 5))
    length = rows.input_ids.shape[1]
    allowed = AttentionMask(kind, rows.roles).dense()
    seen = torch.ones(length, length).tril().bool() if allowed is None else allowed
    assert attended_pairs(6 + k, cue + 5 - 1, kind) == int(seen.sum())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("prefix", "m", "cue", "new"), [(1, 0, 0, 1), (9, 0, 0, 4), (9, 5, 0, 4), (9, 5, 2, 7)])
def test_an_answer_costs_what_torch_counts(
    make_decoder: Models, kind: AttentionKind, prefix: int, m: int, cue: int, new: int
) -> None:
    """Prefill and decoding. The square of the prefill is computed whole: only its hidden half differs."""
    model = make_decoder(V).double()
    rows = layout_of(kind, m, cue).inference_rows(example(prefix, 1))

    def answer() -> None:
        options: dict[str, Any] = {"max_new_tokens": new, "end_id": V, "pause_id": PAUSE}  # never the end
        [decoded] = generate(model, rows, kind, **options)
        assert len(decoded.tokens) == new

    given = prefix + m + cue
    extra = hidden_attention(model.config, model.config.n_layers, given, attended_pairs(prefix + m, cue, kind))
    assert counted(answer) - extra == inference_flops(model.config, V, prefix + m, new, kind, cue)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("k", "cue"), [(0, 0), (5, 0), (5, 2)])
def test_a_finetuning_row_costs_what_torch_counts(make_decoder: Models, kind: AttentionKind, k: int, cue: int) -> None:
    """A packed row of one document; the square is computed whole, forward and backward."""
    model = make_decoder(V)
    batch: Batch = layout_of(kind, k, cue).packed_batch(example(11, 4))

    def step() -> None:
        model.summed_loss(batch).backward()

    length = 11 + k + cue + 4 - 1
    pairs = attended_pairs(11 + k, cue + 3, kind)
    extra = 3 * hidden_attention(model.config, model.config.n_layers, length, pairs)
    assert counted(step) - extra == finetuning_flops(model.config, V, 11 + k, 4, kind, cue)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("m", "cue", "candidates"), [(0, 0, [1]), (6, 0, [5]), (6, 2, [5, 1, 3])])
def test_candidates_cost_one_pass_over_their_prefix_and_one_over_each(
    make_decoder: Models, kind: AttentionKind, m: int, cue: int, candidates: list[int]
) -> None:
    """Whole squares are computed: that of the prefix, and of each candidate its own."""
    model = make_decoder(V, n_layers=3)
    rows, given = layout_of(kind, m, cue).inference_rows(example(8, 1)), 8 + m + cue

    def scored() -> None:
        read = model.prefill(rows, kind, PauseVisibility.all, given + 5)
        for candidate in candidates:
            target_log_likelihoods(read, [[1] * candidate])

    extra = hidden_attention(model.config, 3, given, attended_pairs(8 + m, cue, kind))
    extra += sum(within_answer(model.config, candidate - 1) for candidate in candidates)
    assert counted(scored) - extra == scoring_flops(model.config, V, 8 + m, candidates, kind, cue)


def within_answer(model: ModelConfig, tokens: int) -> float:
    """What hidden pairs cost among tokens of an answer that are read in one pass."""
    return model.n_layers * 4 * model.d_model * tokens * (tokens - 1) / 2


def test_equal_flops_layers_come_nearer_than_their_neighbours() -> None:
    wanted = inference_flops(ONE_B, 50258, 200 + 50, 5)

    def missed(layers: int) -> float:
        return abs(inference_flops(dataclasses.replace(ONE_B, n_layers=layers), 50258, 200, 5) - wanted)

    found = equal_flops_layers(ONE_B, 50258, 200, 50, 5)
    assert found == 30, "a quarter more positions, so a quarter more layers"
    assert missed(found) < min(missed(found - 1), missed(found + 1))


def test_equal_flops_layers_are_always_more_than_the_model_has() -> None:
    assert equal_flops_layers(ONE_B, 50258, 200, 1, 5) == 25


def test_equal_flops_steps_cost_what_the_steps_with_pauses_cost() -> None:
    steps = equal_flops_steps(ONE_B, 50258, 60, 10, 70, 20_000)
    assert 20_000 < steps < 20_000 * 70 / 60
    with_pauses = 20_000 * finetuning_flops(ONE_B, 50258, 70, 70)
    without = finetuning_flops(ONE_B, 50258, 60, 70)
    assert steps * without == pytest.approx(with_pauses, abs=without)


def test_no_pauses_cost_no_steps() -> None:
    assert equal_flops_steps(ONE_B, 50258, 60, 0, 70, 20_000) == 20_000


def test_the_formulas_import_no_torch() -> None:
    code = "import sys, pausebench.model.flops; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


TOKENIZER = WordTokenizer([f"w{number}" for number in range(14)])


def test_a_decoded_result_says_what_its_windows_and_answers_cost(
    make_decoder: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Contexts of one and of several windows, answers that end and answers that are cut off; row by row."""
    spent: list[int] = []
    lengths = []

    prefill = FastDecoder.prefill

    def reading(*given: Any) -> Prefill:
        found = []
        spent.append(counted(lambda: found.append(prefill(*given))))
        return found[0]

    def decoding(read: Prefill, **options: Any) -> list[Answer]:
        answers: list[Answer] = []
        spent[-1] += counted(lambda: answers.extend(decode(read, **options)))
        lengths.extend(len(answer.tokens) for answer in answers)
        return answers

    monkeypatch.setattr(FastDecoder, "prefill", reading)
    monkeypatch.setattr(evaluator, "decode", decoding)
    model = make_decoder(V, seed=4, embedding_std=0.2, linear_gain=3.0)
    examples = [Example("w1 w2", "w3", ("w3",), context="w4 w5 w6 " * size) for size in range(1, 25)]
    options: dict[str, Any] = {"batch_size": 1, "max_length": 40, "max_new_tokens": 7}
    scorer = evaluator.Evaluator(model, TASKS["squad"], examples, TOKENIZER, **options)
    result, _ = scorer.evaluate(layout_of(AttentionKind.bidirectional, 0, 0), 3)
    assert len(spent) > len(examples) and {6, 7} < set(lengths)
    assert result["inference_flops"] == sum(spent) / len(examples)


def test_a_scored_result_says_what_its_candidates_cost(make_decoder: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    spent: list[float] = []

    prefill = FastDecoder.prefill

    def reading(*given: Any) -> Prefill:
        found = []
        spent.append(counted(lambda: found.append(prefill(*given))))
        return found[0]

    def scoring(read: Prefill, targets: Sequence[Tokens]) -> list[float]:
        found: list[float] = []
        spent[-1] += counted(lambda: found.extend(target_log_likelihoods(read, targets)))
        spent[-1] -= within_answer(read.model.config, len(targets[0]) - 1)
        return found

    monkeypatch.setattr(FastDecoder, "prefill", reading)
    monkeypatch.setattr(evaluator, "target_log_likelihoods", scoring)
    options = ("w1", "w2 w3 w4", "w5 w6")
    examples = [Example("w7 " * size, options[size % 3], ("w1",), options) for size in range(1, 9)]
    scorer = evaluator.Evaluator(make_decoder(V), TASKS["piqa"], examples, TOKENIZER, batch_size=1, max_length=40)
    result, _ = scorer.evaluate(layout_of(AttentionKind.bidirectional, 0, 0), 4)
    assert len(spent) == len(examples)
    assert result["inference_flops"] == sum(spent) / len(examples)
