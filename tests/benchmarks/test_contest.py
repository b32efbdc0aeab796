"""Turns, ratios and verdicts of a comparison, and the peers' own promises."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from pausebench.data.tokenizer import ByteTokenizer
from pausebench.model.decoder import Decoder
from tests.benchmarks.compare import table
from tests.benchmarks.compare.contest import OURS, Contender, Line, alternate
from tests.benchmarks.compare.setting import Widened

LINE = Line("pretrain", "a step", "peer", "tokens/s", [2.0, 9.0, 4.0], [1.0, 3.0, 4.0], 1.5)


def contender(name: str, log: list[str], fails: bool = False) -> Contender:
    def warm_up() -> None:
        log.append(f"warm {name}")
        if fails:
            raise RuntimeError("no compiler\nsecond line")

    def timed() -> float:
        log.append(name)
        return 1.0

    return Contender(name, warm_up, timed, lambda: log.append(f"close {name}"))


def test_sides_take_turns_and_the_order_turns_round() -> None:
    log: list[str] = []
    rates = alternate([contender(OURS, log), contender("a", log)], 3, print)
    assert log == [f"warm {OURS}", "warm a", OURS, "a", "a", OURS, OURS, "a", f"close {OURS}", "close a"]
    assert rates == {OURS: [1.0] * 3, "a": [1.0] * 3}


def test_a_peer_that_fails_is_left_out_and_said_and_ours_is_not_forgiven() -> None:
    said: list[str] = []
    rates = alternate([contender(OURS, []), contender("a", [], fails=True)], 1, said.append)
    assert list(rates) == [OURS]
    assert said == ["a: left out, it failed (RuntimeError: no compiler)"]
    log: list[str] = []
    with pytest.raises(RuntimeError, match="no compiler"):
        alternate([contender(OURS, log, fails=True), contender("a", log)], 1, said.append)
    assert "close a" in log


def test_the_ratio_is_the_median_of_ratios_within_a_round() -> None:
    assert LINE.ratios == [2.0, 3.0, 1.0]
    assert LINE.ratio == 2.0, "not 4 / 3, the ratio of the medians"


@pytest.mark.parametrize(("target", "lower", "met"), [(2.0, False, True), (2.1, False, False), (1.9, True, False)])
def test_a_target_is_reached_from_the_better_side(target: float, lower: bool, met: bool) -> None:
    assert dataclasses.replace(LINE, target=target, lower=lower).met is met


def test_the_json_has_every_round_and_the_share_of_the_peak() -> None:
    found = dataclasses.replace(LINE, flops=10.0, checks={"same_loss": True}).as_json(peak=80.0)
    assert (found["ours"], found["theirs"], found["ratio_low"], found["ratio_high"]) == (4.0, 3.0, 1.0, 3.0)
    assert found["rounds"]["ours"] == [2.0, 9.0, 4.0]
    assert (found["mfu_ours"], found["mfu_theirs"]) == (0.5, 0.375)
    assert found["same_loss"] is True


def test_a_table_says_where_the_first_losses_differ() -> None:
    found = dataclasses.replace(LINE, checks={"same_loss": False}).as_json(1.0)
    assert "first losses differ" in " ".join(table.cells(found))
    assert "first losses differ" not in " ".join(table.cells(LINE.as_json(1.0)))


def test_a_widened_vocabulary_has_the_same_text_and_its_own_last_ids() -> None:
    inner = ByteTokenizer()
    wide = Widened(inner, 1000)
    assert (wide.end_id, wide.pause_id) == (998, 999)
    ids = wide.encode("text")
    assert ids == inner.encode("text")
    assert wide.decode([*ids, 700, wide.end_id]) == "text"


def test_gpt2_with_our_weights_has_our_logits(make_decoder: Callable[..., Decoder]) -> None:
    pytest.importorskip("transformers")
    from tests.benchmarks.compare.gpt2 import gpt2_of

    model, generator = make_decoder(16), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # zeros and ones of the initialisation would hide a bias or norm in another's place
                parameter.add_(torch.randn(parameter.shape, generator=generator))
    input_ids = torch.arange(12)[None]
    with torch.no_grad():
        torch.testing.assert_close(
            gpt2_of(model)(input_ids).logits, model.logits(model(input_ids)), rtol=1e-4, atol=1e-4
        )


def test_a_padded_batch_has_no_labels_on_padding_and_shows_it_to_nobody() -> None:
    from tests.benchmarks.compare.hf_trainer import padded

    rows = [{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}, {"input_ids": [4], "labels": [4]}]
    batch = padded(rows, pad_id=9)
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch["labels"].tolist() == [[-100, 2, 3], [4, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_the_stepped_trainer_takes_as_many_steps_as_asked_and_ends(
    make_decoder: Callable[..., Decoder], tmp_path: Path
) -> None:
    pytest.importorskip("accelerate")
    pytest.importorskip("transformers")
    from tests.benchmarks.compare.gpt2 import gpt2_of
    from tests.benchmarks.compare.hf_trainer import SteppedTrainer

    model = gpt2_of(make_decoder(16))
    rows = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}] * 12
    trainer = SteppedTrainer(
        model, rows, pad_id=0, batch_size=2, bf16=False, compiled=False, cpu=True, scratch=tmp_path
    )
    weight = model.transformer.h[0].mlp.c_fc.weight
    values = [weight.detach().clone()]
    for count in (1, 2):
        trainer.steps(count)
        values.append(weight.detach().clone())
    assert trainer._trainer.state.global_step == 3
    assert not any(torch.equal(a, b) for a, b in pairwise(values)), "each step changes weights"
    trainer.close()
    assert trainer._thread is not None and not trainer._thread.is_alive()
    assert not list(tmp_path.iterdir()), "no checkpoint, no log"


def test_a_trainer_that_breaks_tells_who_asked(make_decoder: Callable[..., Decoder], tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    pytest.importorskip("transformers")
    from tests.benchmarks.compare.gpt2 import gpt2_of
    from tests.benchmarks.compare.hf_trainer import SteppedTrainer

    rows = [{"input_ids": [1, 99], "labels": [1, 99]}] * 4  # 99 is no token
    trainer = SteppedTrainer(
        gpt2_of(make_decoder(16)),
        rows,
        pad_id=0,
        batch_size=2,
        bf16=False,
        compiled=False,
        cpu=True,
        scratch=tmp_path,
    )
    with pytest.raises(IndexError):
        trainer.steps(1)
    trainer.close()
