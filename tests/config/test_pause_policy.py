"""The options of a finetuning's pauses as one policy: what it is called, what it forgets, K drawn for every row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pausebench import cli
from pausebench.config.groups import PauseVisibility, Placement
from pausebench.config.pauses import PausePolicy
from pausebench.errors import BadInput
from pausebench.pauses import Role, draw_counts, finetuning_rows

DRAWN = PausePolicy(k=3, k_range=[0, 3])
PAUSE, PAD = 98, 99


def test_a_policy_without_pauses_forgets_what_only_pauses_can_use() -> None:
    policy = PausePolicy(k=0, pause_visibility=PauseVisibility.self, filler=".", placement=Placement.prepend)
    assert policy.settled() == PausePolicy(k=0, placement=Placement.prepend)
    with_pauses = PausePolicy(k=2, filler=".")
    assert with_pauses.settled() == with_pauses


def test_at_inference_every_row_has_m_pauses() -> None:
    assert DRAWN.at(5) == PausePolicy(k=5)
    assert (DRAWN.label, DRAWN.longest, DRAWN.at(2).label) == ("0to3", 3, "2")


@pytest.mark.parametrize("k_range", [[3], [3, 3], [4, 2], [-1, 2], [0, 1, 2]])
def test_a_range_is_two_numbers_the_smaller_first(k_range: list[int]) -> None:
    with pytest.raises(BadInput, match=r"two numbers of pauses, the smaller first"):
        PausePolicy(k_range=k_range)


def test_a_number_beside_a_range_is_refused() -> None:
    with pytest.raises(BadInput, match=r"k_range=\[0,3\] k=2: k is drawn"):
        PausePolicy(k=2, k_range=[0, 3])


def test_a_row_draws_its_k_by_seed_and_number_alone() -> None:
    numbers = torch.arange(400)
    counts = draw_counts(DRAWN, 7, numbers)
    shuffled = numbers[torch.randperm(400, generator=torch.Generator().manual_seed(0))]
    assert torch.equal(draw_counts(DRAWN, 7, shuffled), counts[shuffled])
    assert not torch.equal(draw_counts(DRAWN, 8, numbers), counts)
    shares = counts.bincount(minlength=4) / 400
    assert counts.min() == 0 and counts.max() == 3 and shares.min() > 0.17, "a quarter each"


@pytest.mark.parametrize("placement", Placement)
def test_rows_with_pauses_of_their_own_are_those_of_one_number_each(placement: Placement) -> None:
    """Row by row: what a batch with drawn K holds is what a batch of that K holds."""
    prefix, prefix_lengths = torch.tensor([[1, 2, 3], [4, 5, 0], [6, 0, 0]]), torch.tensor([3, 2, 1])
    target, target_lengths = torch.tensor([[7, 8], [9, 0], [7, 9]]), torch.tensor([2, 1, 2])
    given = (prefix, prefix_lengths, target, target_lengths, torch.tensor([50]))
    counts = torch.tensor([3, 0, 2])
    policy = PausePolicy(k=3, k_range=[0, 3], placement=placement)
    drawn = finetuning_rows(*given, policy, counts, pause_id=PAUSE, pad_id=PAD)
    assert ((drawn.roles == Role.PAUSE.value).sum(1) == counts).all()
    for row, k in enumerate(counts.tolist()):
        alone = finetuning_rows(*given, PausePolicy(k=k, placement=placement), pause_id=PAUSE, pad_id=PAD)
        real = int(alone.lengths[row])
        assert drawn.lengths[row] == real and drawn.readout[row] == alone.readout[row]
        for name in ("input_ids", "labels", "roles"):
            assert torch.equal(getattr(drawn, name)[row, :real], getattr(alone, name)[row, :real])


def test_a_finetuning_with_a_range_is_named_for_it_resumes_and_is_scored_at_any_m(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["task=parity", "init=random", "k_range=[0,4]", "train.steps=4", "train.batch_size=8", "tracking=off"]
    assert cli.run(["finetune", *words, "train.checkpoint_every=2", f"runs={tmp_path}"]) == 0
    (run,) = (tmp_path / "finetune").iterdir()
    assert "NoPT_PauseFT-k0to4-s0" in run.name
    assert cli.run(["finetune", *words, "train.checkpoint_every=2", f"runs={tmp_path}"]) == 0
    assert cli.run(["evaluate", f"run={run}", "mt=[0,2]", "limit=8", "tracking=off", f"runs={tmp_path}"]) == 0
    results = [json.loads(path.read_text()) for path in sorted((tmp_path / "evaluate").glob("*/result.json"))]
    assert sorted(result["mt"] for result in results) == [0, 2]
    assert all(result["k_range"] == [0, 4] and result["k"] == 4 for result in results)
    assert cli.run(["finetune", *words, "k=2", f"runs={tmp_path}"]) == 2
    assert "k is drawn from k_range" in capsys.readouterr().err
