"""``pausebench bench`` on the embedded world with a tiny model: its files, and what it does without peers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pausebench import cli
from pausebench.bench.peers import gpt2
from pausebench.bench.setting import Setting
from pausebench.bench.workloads import WORKLOADS
from pausebench.config.commands import BENCH_WORK

TINY = [
    "model=tiny",
    "vocab_size=1500",
    "tokenizer=byte",
    "steps=1",
    "repeats=1",
    "sequence_length=32",
    "rows=8",
    "compile=off",
]


def bench(root: Path, *words: str, code: int = 0) -> dict[str, Any]:
    """The JSON of a bench with these words."""
    out = root / "bench.json"
    given = [*TINY, "batch_size=2", "new_tokens=3", "threads=1", "device=cpu", "precision=fp32", f"runs={root}"]
    assert cli.run(["bench", *given, *words, f"out={out}", "quiet=true"]) == code
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_every_workload_that_may_be_typed_exists() -> None:
    assert tuple(WORKLOADS) == BENCH_WORK


def test_training_is_compared_on_the_same_rows_and_weights(tmp_path: Path) -> None:
    """First losses equal in float32: of pretraining rows, and of packed against padded finetuning rows with pauses."""
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    found = bench(tmp_path, "work=[pretrain,finetune]", "peers=[eager,trainer]")
    assert [line["work"] for line in found["lines"]] == ["pretrain", "finetune"]
    for line in found["lines"]:
        assert line["same_loss"] is True and line["loss_ours"] == pytest.approx(line["loss_theirs"], rel=1e-4)
        assert line["ratio"] == pytest.approx(line["ours"] / line["theirs"])
        assert line["mfu_ours"] == pytest.approx(line["mfu_theirs"] * line["ratio"])
    assert found["lines"][0]["loss_ours"] != pytest.approx(found["lines"][1]["loss_ours"], rel=1e-3)
    table = (tmp_path / "bench.md").read_text()
    assert table.count("\n| pretrain |") == table.count("\n| finetune |") == 1


def test_decoding_gives_the_same_tokens_on_both_sides(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    found = bench(tmp_path, "work=decode")
    assert [line["what"].split(",")[0] for line in found["lines"]] == ["gsm8k", "squad"]
    assert all(line["same_tokens"] == 1.0 for line in found["lines"])


def test_all_m_together_score_as_one_by_one(tmp_path: Path) -> None:
    [line] = bench(tmp_path, "work=sweep")["lines"]
    assert line["same_likelihoods"] is True and line["peer"] == "one by one"


def test_memory_is_that_of_a_process_of_its_own(tmp_path: Path) -> None:
    """At least the weights, gradients and moments in float32: 16 bytes a parameter."""
    pytest.importorskip("transformers")
    [line] = bench(tmp_path, "work=memory")["lines"]
    parameters = 1_500 * 128 + 512 * 128 + 4 * 12 * 128 * 128
    for side in ("ours", "theirs"):
        assert 16 * parameters / 2**30 < line[side] < 1


def test_pauses_and_overhead_need_no_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pausebench.bench.workloads.overhead.STEPS_EACH", 3)
    monkeypatch.setattr(gpt2, "missing", lambda *modules: "transformers is not installed: pip install it")
    found = bench(tmp_path, "work=[pauses,overhead]")
    assert [line["peer"] for line in found["lines"]] == ["pause=off", "bare torch loop"]
    assert found["notes"] == []


def test_a_peer_that_is_not_installed_is_a_line_that_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = bench(tmp_path, "work=[pretrain,finetune,decode,memory]", "peers=[eager,trainer]")
    assert found["lines"] == []
    assert len(found["notes"]) == 4
    assert all("pip install 'pausebench[bench]'" in note for note in found["notes"])
    assert "transformers, accelerate is not installed" in capsys.readouterr().err


def test_what_is_done_is_kept_when_a_bench_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(setting: Setting) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setitem(WORKLOADS, "sweep", interrupted)
    found = bench(tmp_path, "work=[pauses,sweep,overhead]", code=130)
    assert [line["work"] for line in found["lines"]] == ["pauses"]
    assert "stopped in sweep: 1 comparisons are in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("work=speed", "allowed are pretrain, pauses"),
        ("peers=[eager,jax]", "peers=jax: allowed are eager, compiled"),
        ("steps=0", "steps=0: must be at least 1"),
        ("sequence_length=600", "must be 2 to 512"),
    ],
)
def test_a_bad_option_is_refused(word: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["bench", "model=tiny", word]) == 2
    assert said in capsys.readouterr().err
