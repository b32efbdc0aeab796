"""What the models answered: which rows are embedded, how many, and that they stay text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import synthetic

from pausebench.report.comparisons import primary_family
from pausebench.report.page import ROWS_A_PAIR, Pair, embedded, primary_pairs
from pausebench.report.scores import load_studies

TASKS = ("gsm8k", "piqa")
SEEDS = (0, 1)


def pairs_of(runs: Path, rows: int = 300, **changes: Any) -> list[Pair]:
    synthetic.write_study(
        runs, synthetic.paper_panels("table1", TASKS, SEEDS), synthetic.paper_score, result="table1", seeds=SEEDS,
        primary=synthetic.FAMILY,
    )  # fmt: skip
    for path in runs.glob("evaluate/*/predictions.jsonl"):
        lines = [
            {
                "prefix": f"question {i}",
                "target": f"answer {i}",
                "prediction": f"{path.parent.name} {i}",
                "correct": i % 2,
            }
            | changes
            for i in range(rows)
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    study = load_studies(runs)[0]
    return primary_pairs(study, primary_family(study))


def test_every_primary_comparison_has_its_seeds_with_the_first_rows(tmp_path: Path) -> None:
    pairs = pairs_of(tmp_path)
    assert [(pair.group, pair.seed) for pair in pairs] == [
        (f"{task} · hub · K={k}", seed) for task in TASKS for k in (10, 50) for seed in SEEDS
    ]
    assert all(pair.control == "StdPT_StdFT" for pair in pairs)
    assert all(len(pair.answers) == ROWS_A_PAIR and pair.total == 2000 for pair in pairs)
    assert pairs[0].texts[7] == ("question 7", "answer 7")
    assert [answer.rpartition(" ")[2] for answer in pairs[0].answers[7][:2]] == ["7", "7"]


def test_texts_that_runs_share_are_embedded_once(tmp_path: Path) -> None:
    data = json.loads(embedded(pairs_of(tmp_path)))
    assert len(data["texts"]) == 1
    assert len(data["pairs"]) == 8
    assert len(data["texts"][0]) == len(data["pairs"][0]["answers"]) == ROWS_A_PAIR


def test_embedded_rows_keep_within_the_bytes_given(tmp_path: Path) -> None:
    pairs = pairs_of(tmp_path)
    for most in (5_000, 20_000, 100_000):
        text = embedded(pairs, most)
        kept = {len(pair["answers"]) for pair in json.loads(text)["pairs"]}
        assert len(text) <= most
        assert len(kept) == 1
        assert 1 <= kept.pop() < ROWS_A_PAIR


def test_a_long_text_is_cut_and_says_by_how_much(tmp_path: Path) -> None:
    (question, _), *_ = pairs_of(tmp_path, 1, prefix="x" * 5_000)[0].texts
    assert question.endswith("… (1,000 more)")


def test_no_text_can_end_the_script_element(tmp_path: Path) -> None:
    attack = "</script><script>alert(1)</script><!-- & \u2028 \ud800"
    pairs = pairs_of(tmp_path, 2, prefix=attack, target=attack, prediction=attack)
    text = embedded(pairs)
    assert not set(text) & set("<>&\u2028\ud800")
    assert json.loads(text)["pairs"][0]["answers"][0][0] == attack.replace("\ud800", "?")


def test_rows_that_do_not_belong_together_are_not_shown_side_by_side(tmp_path: Path) -> None:
    pairs = pairs_of(tmp_path, 3)
    path = next(tmp_path.glob("evaluate/gsm8k*std*-0-0-*/predictions.jsonl"))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[1]["prefix"] = "another question"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    study = load_studies(tmp_path)[0]
    after = primary_pairs(study, primary_family(study))
    assert sorted(len(pair.answers) for pair in pairs) == [3] * 8
    assert sorted(len(pair.answers) for pair in after) == [2, 2] + [3] * 6


def test_torn_and_missing_files_give_fewer_rows_not_a_crash(tmp_path: Path) -> None:
    pairs_of(tmp_path, 3)
    for path in tmp_path.glob("evaluate/*/predictions.jsonl"):
        path.write_text('{"prefix": "a", "target"') if "gsm8k" in path.parent.name else path.unlink()
    study = load_studies(tmp_path)[0]
    assert primary_pairs(study, primary_family(study)) == []
