"""``python -m tests.benchmarks.compare`` with a tiny model: same work on both sides, its files, a missing peer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.benchmarks.compare import __main__ as compare
from tests.benchmarks.compare import overhead
from tests.benchmarks.compare.setting import Options, Setting

TINY = (
    "--model tiny --vocab-size 1500 --tokenizer byte --steps 1 --repeats 1 --sequence-length 32 --rows 8 --compile off "
    "--batch-size 2 --new-tokens 3 --threads 1 --device cpu --precision fp32"
)


def measured(root: Path, words: str, code: int = 0) -> dict[str, Any]:
    """The JSON of a comparison with these words."""
    out = root / "found.json"
    assert compare.main([*TINY.split(), *words.split(), "--out", str(out)]) == code
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_training_is_compared_on_the_same_rows_and_weights(tmp_path: Path) -> None:
    """First losses equal in float32: of pretraining rows, and of packed against padded finetuning rows with pauses."""
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    found = measured(tmp_path, "--work pretrain finetune --peers eager trainer")
    assert [line["work"] for line in found["lines"]] == ["pretrain", "finetune"]
    for line in found["lines"]:
        assert line["same_loss"] is True and line["loss_ours"] == pytest.approx(line["loss_theirs"], rel=1e-4)
        assert line["ratio"] == pytest.approx(line["ours"] / line["theirs"])
        assert line["mfu_ours"] == pytest.approx(line["mfu_theirs"] * line["ratio"])
    assert found["lines"][0]["loss_ours"] != pytest.approx(found["lines"][1]["loss_ours"], rel=1e-3)
    table = (tmp_path / "found.md").read_text()
    assert table.count("\n| pretrain |") == table.count("\n| finetune |") == 1


def test_decoding_gives_the_same_tokens_on_both_sides(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    found = measured(tmp_path, "--work decode")
    assert [line["what"].split(",")[0] for line in found["lines"]] == ["gsm8k", "squad"]
    assert all(line["same_tokens"] == 1.0 for line in found["lines"])


def test_all_m_together_score_as_one_by_one(tmp_path: Path) -> None:
    [line] = measured(tmp_path, "--work sweep")["lines"]
    assert line["same_likelihoods"] is True and line["peer"] == "one by one"


def test_memory_is_that_of_a_process_of_its_own(tmp_path: Path) -> None:
    """At least the weights, gradients and moments in float32: 16 bytes a parameter."""
    pytest.importorskip("transformers")
    [line] = measured(tmp_path, "--work memory")["lines"]
    parameters = 1_500 * 128 + 512 * 128 + 4 * 12 * 128 * 128
    for side in ("ours", "theirs"):
        assert 16 * parameters / 2**30 < line[side] < 1


def test_overhead_trains_the_same_steps_on_both_sides(tmp_path: Path) -> None:
    setting = Setting(Options(steps=1, repeats=1), torch.device("cpu"), tmp_path)
    [line] = overhead.run(setting, steps_each=3)
    assert line.peer == "bare torch loop" and min(*line.ours, *line.theirs) > 0
    assert setting.notes == []


def test_a_peer_that_is_not_installed_is_a_line_that_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = measured(tmp_path, "--work pretrain finetune decode memory --peers eager trainer")
    assert found["lines"] == []
    assert len(found["notes"]) == 4
    assert all("pip install 'pausebench[bench]'" in note for note in found["notes"])


def test_what_is_done_is_kept_when_it_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(setting: Setting) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setitem(compare.WORKLOADS, "sweep", interrupted)
    found = measured(tmp_path, "--work pauses sweep overhead", code=130)
    assert [line["work"] for line in found["lines"]] == ["pauses"]
    assert "stopped in sweep: 1 comparisons are in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--work speed", "invalid choice: 'speed'"),
        ("--steps 0", "0: must be at least 1"),
        ("--work pretrain --sequence-length 600", "model=tiny has 512 positions"),
    ],
)
def test_a_bad_option_ends_with_exit_code_2(
    words: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        compare.main([*TINY.replace("--sequence-length 32", "").split(), *words.split(), "--out", str(tmp_path / "a")])
    assert said in capsys.readouterr().err
