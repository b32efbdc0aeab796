"""docs/adding-a-model.md, done: an architecture that gives the least goes through every command."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pausebench import cli, model
from pausebench.config.groups import AttentionKind, ModelConfig, PauseVisibility, Placement
from pausebench.config.pauses import PausePolicy
from pausebench.data.batches import EncodedExamples, RowLayout
from pausebench.errors import BadInput
from pausebench.evaluation.generate import decode, target_log_likelihoods
from pausebench.model.fast import FastDecoder
from pausebench.model.prefill import RereadPrefill
from tests.model import alibi

DOCS = Path(__file__).parents[2] / "docs" / "adding-a-model.md"


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(model.ARCHITECTURES, "alibi", alibi.__name__)


def test_one_line_in_the_registry_brings_an_architecture_through_every_command(tmp_path: Path) -> None:
    options = ["model=mini", "world=count16", f"runs={tmp_path}", "quiet=true", "tracking=off"]
    new = ["model.architecture=alibi", "model.name=alibi"]
    train = ["train.steps=20", "train.batch_size=8"]
    assert cli.run(["pretrain", *options, *new, *train, "pause=on"]) == 0
    assert cli.run(["finetune", "task=parity", *options, *new, *train, "k=3"]) == 0
    tuned = next((tmp_path / "finetune").iterdir()).name
    assert cli.run(["evaluate", f"run={tuned}", "mt=[0,3]", f"runs={tmp_path}", "quiet=true", "limit=20"]) == 0
    results = [json.loads(path.read_text()) for path in (tmp_path / "evaluate").glob("*/result.json")]
    assert {result["mt"] for result in results} == {0, 3}
    assert all(math.isfinite(result["target_nll"]) for result in results)


def test_the_page_shows_the_file_that_is_tested_here() -> None:
    [shown] = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert shown == Path(alibi.__file__).read_text()


def test_what_nobody_makes_is_refused() -> None:
    config = ModelConfig("x", 1, 1, 8, 8, 64, architecture="mamba")
    with pytest.raises(BadInput, match=r"model.architecture=mamba.*allowed are gpt2"):
        model.build(config, 16)


LAYOUTS = [
    RowLayout(
        PausePolicy(k=3, placement=placement, pause_visibility=visibility, shift=shift),
        kind,
        torch.tensor(cue, dtype=torch.int64),
        15,
        14,
    )
    for kind in AttentionKind
    for visibility in PauseVisibility
    for placement in Placement
    for cue in ([], [13, 2])
    for shift in (0, 5)
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_read_again_say_what_cached_rows_say(make_decoder: Callable[..., FastDecoder], layout: RowLayout) -> None:
    """Decoding and scoring, by nothing but forward passes over whole rows."""
    decoder = make_decoder(16, seed=10, embedding_std=0.2, linear_gain=3.0).double()
    prefixes = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3], [5, 8]]
    rows = layout.inference_rows(EncodedExamples.of(prefixes, [[]] * 4, 14))
    policy, capacity = layout.policy, rows.input_ids.shape[1] + 8
    given = rows, layout.attention, policy.pause_visibility, capacity
    cached, reread = decoder.prefill(*given), RereadPrefill.of(decoder, *given)
    targets = [[1, 2, 3, 4, 5], [6, 7, 8], [9, 10], [11]]
    assert target_log_likelihoods(reread, targets) == pytest.approx(target_log_likelihoods(cached, targets), abs=1e-9)
    options: dict[str, Any] = {"max_new_tokens": 7, "end_id": 14, "pause_id": 15, "limit": 100}
    answers, expected = decode(reread, **options), decode(cached, **options)
    assert [answer.tokens for answer in answers] == [answer.tokens for answer in expected]
    for answer, other in zip(answers, expected, strict=True):
        assert answer.mean_log_probability == pytest.approx(other.mean_log_probability, abs=1e-9)
