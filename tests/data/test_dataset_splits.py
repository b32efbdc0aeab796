"""Training rows carved from the test's, references that lie beside, and rows that make no sense: said, never silent."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pausebench.config.groups import OnBadRow, Source, WorldConfig
from pausebench.data.examples import encode
from pausebench.data.files import Located
from pausebench.data.task_rows import SKIPPED_SHOWN, DatasetRows, GeneratedRows, open_rows
from pausebench.data.tokenizer import BpeTokenizer, ByteTokenizer
from pausebench.errors import BadInput
from pausebench.tasks import PAPER_TASKS, TASKS

Row = dict[str, Any]


def story(number: int, turns: int = 3) -> Row:
    return {
        "story": f"Story {number} has {turns} lamps.",
        "questions": [f"Which lamp is number {n}?" for n in range(turns)],
        "answers": {"input_text": [f"lamp {n}" for n in range(turns)], "answer_start": [-1] * turns},
    }


def beside(row: Row) -> Row:
    return {"id": row["story"], "references": [[answer, answer, "a lamp"] for answer in row["answers"]["input_text"]]}


def passage(number: int) -> Row:
    return {"text": f"passage {number} ends in the word w{number}"}


def ending(number: int, label: Any = "1") -> Row:
    endings = [f"ends {number} {n}." for n in range(4)]
    row = {"activity_label": "Waiting", "ctx_a": f"It is {number}.", "ctx_b": "it", "ctx": "", "endings": endings}
    return {**row, "label": label}


MAKERS: dict[str, Callable[[int], Row]] = {"coqa": story, "lambada_openai": passage, "hellaswag": ending}


def located(rows: list[Row], source: str = "memory") -> Iterator[Located]:
    return (Located(row, f"{source}, row {number}") for number, row in enumerate(rows, start=1))


def carved(name: str, rows: list[Row], fraction: float) -> DatasetRows:
    return DatasetRows(TASKS[name], None, located(rows), fraction)


def write(root: Path, dataset: str, split: str, rows: list[Row]) -> None:
    (root / dataset).mkdir(parents=True, exist_ok=True)
    (root / dataset / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def opened(name: str, root: Path, fraction: float | None = None, on_bad_row: OnBadRow = OnBadRow.error) -> DatasetRows:
    rows = open_rows(name, Source.files, root, None, fraction, on_bad_row)
    assert isinstance(rows, DatasetRows)
    return rows


# A training split carved from the test's rows


@given(
    texts=st.lists(st.integers(0, 40), min_size=60, max_size=120).filter(lambda texts: len(set(texts)) > 15),
    fraction=st.sampled_from([0.5, 0.7, 0.8]),
)
def test_a_carved_split_shares_no_text_with_the_test_and_loses_no_row(texts: list[int], fraction: float) -> None:
    """Also where one story, or one passage, stands in several rows."""
    for name, make in MAKERS.items():
        rows = [make(text) for text in texts]
        made = carved(name, rows, fraction)
        train, test = made.training_side, made.test()
        whole = carved(name, list(reversed(rows)), fraction)
        assert sorted([*train, *test]) == sorted([*whole.training_side, *whole.test()])
        assert not {example.context or example.question for example in train} & {
            example.context or example.question for example in test
        }
        per_row = 3 if name == "coqa" else 1
        assert len(train) + len(test) == len(texts) * per_row
        most = max(map(texts.count, texts))
        assert round(fraction * len(texts)) <= len(train) / per_row < round(fraction * len(texts)) + most


@pytest.mark.parametrize("name", MAKERS)
def test_the_carved_rows_are_the_same_in_every_run_and_in_published_order(name: str) -> None:
    rows = [MAKERS[name](number) for number in range(100)]
    made, again, other = (carved(name, rows, fraction) for fraction in (0.8, 0.8, 0.7))
    assert (made.fingerprint(0), made.test()) == (again.fingerprint(9), again.test())
    assert other.fingerprint(0) != made.fingerprint(0)
    order = [example.prefix for examples in made._read(located(rows)) for example in examples]
    for side in (made.training_side, made.test()):
        places = [order.index(example.prefix) for example in side]
        assert places == sorted(places)
    assert made.about()["train_fraction"] == 0.8
    places = [order.index(example.prefix) for example in made.test()]
    assert places != list(range(places[0], places[0] + len(places))), "drawn from everywhere"
    assert set(other.training_side) < set(made.training_side), "a larger share has the rows of a smaller one"


def test_a_share_that_leaves_one_side_empty_is_refused() -> None:
    with pytest.raises(BadInput, match=r"train_fraction=0\.001: lambada_openai/test has 30 rows.*0 to train on and 30"):
        carved("lambada_openai", [passage(n) for n in range(30)], 0.001)
    with pytest.raises(BadInput, match=r"30 rows on 1 texts, which gives 30 to train on and 0 to test"):
        carved("coqa", [story(1)] * 30, 0.5)
    with pytest.raises(BadInput, match="lambada_openai/test has 15 rows; at least 20 are needed"):
        carved("lambada_openai", [passage(n) for n in range(30)], 0.5)


def test_without_a_training_split_the_message_says_what_to_type(tmp_path: Path) -> None:
    for name, split in (("coqa", "validation"), ("hellaswag", "validation"), ("lambada_openai", "test")):
        write(tmp_path, name, split, [MAKERS[name](n) for n in range(60)])
        with pytest.raises(BadInput, match=r"no (training split|split train).*task\.train_fraction=0\.8") as refused:
            opened(name, tmp_path)
        assert f"that share of the {split} rows" in str(refused.value)
        rows = opened(name, tmp_path, 0.8)
        assert len(rows.test()) == (36 if name == "coqa" else 12)
    with pytest.raises(BadInput, match="lambada_openai has no training split"):
        open_rows("lambada_openai", Source.hub)
    with pytest.raises(BadInput, match="squad does not exist; ") as refused:
        opened("squad", tmp_path)
    assert "train_fraction" not in str(refused.value), "there is nothing to carve from"


def test_a_share_is_refused_where_there_are_training_rows(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        write(tmp_path, "hellaswag", split, [ending(n) for n in range(30)])
    with pytest.raises(BadInput, match=r"task\.train_fraction=0\.8: hellaswag has rows to train on in its split train"):
        opened("hellaswag", tmp_path, 0.8)
    assert "train_fraction" not in opened("hellaswag", tmp_path).about()
    with pytest.raises(BadInput, match="squad has rows to train on"):
        open_rows("squad", Source.hub, None, None, 0.8)


def test_a_share_is_refused_where_rows_are_generated(world_config: Callable[[str], WorldConfig]) -> None:
    with pytest.raises(BadInput, match=r"task\.train_fraction=0\.5: training rows of task=parity are generated"):
        open_rows("parity", Source.embedded, None, world_config("count20"), 0.5)
    assert GeneratedRows(TASKS["parity"], world_config("count20")).about() == {}


def test_a_story_is_trained_on_or_held_out_for_validation_but_not_both() -> None:
    rows = DatasetRows(TASKS["coqa"], located([story(n, 7) for n in range(60)]), located([story(99)]))
    held_out = {rows.training_side[number].group for number in rows.validation}
    trained = {rows.training_side[number].group for number in rows.training(0, 0, 420)}
    assert held_out and not held_out & trained
    assert len(rows.validation) == 21, "whole stories, until there are one in twenty of the questions"
    with pytest.raises(BadInput, match="coqa has training rows on one text alone"):
        DatasetRows(TASKS["coqa"], located([story(1, 30)]), located([story(99)]))


# References that lie beside


def test_references_of_the_companion_are_joined_row_by_row(tmp_path: Path) -> None:
    rows = [story(n) for n in range(40)]
    write(tmp_path, "coqa", "train", rows)
    write(tmp_path, "coqa", "validation", rows[:9])
    alone = opened("coqa", tmp_path)
    assert {len(example.references) for example in alone.test()} == {1}
    root = tmp_path / "with"
    write(root, "coqa", "train", rows)
    write(root, "coqa", "validation", rows[:9])
    write(root, "coqa", "validation_references", [beside(row) for row in rows[:9]])
    joined = opened("coqa", root)
    assert {example.references[1:] for example in joined.test()} == {(f"lamp {n}", "a lamp") for n in range(3)}
    assert [alone.about()["references_per_question"], joined.about()["references_per_question"]] == [1, 3]
    assert joined.fingerprint(0) != alone.fingerprint(0)
    assert joined.training_side == alone.training_side


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:-1], r"validation\.jsonl, line 9 has no companion"),
        (lambda lines: [*lines, lines[0]], r"validation_references\.jsonl, line 10 has no row"),
        (lambda lines: [lines[0], {"references": [["lamp 0"]]}, *lines[2:]], r"line 2 with .*, line 2 does not fit"),
        (lambda lines: [{"references": [["x"]] * 3}, *lines[1:]], r"references\[0\] begins with 'x'"),
    ],
)
def test_a_companion_that_does_not_match_is_refused(
    change: Callable[[list[Row]], list[Row]], message: str, tmp_path: Path
) -> None:
    rows = [story(n) for n in range(30)]
    write(tmp_path, "coqa", "train", rows)
    write(tmp_path, "coqa", "validation", rows[:9])
    write(tmp_path, "coqa", "validation_references", change([beside(row) for row in rows[:9]]))
    with pytest.raises(BadInput, match=message):
        opened("coqa", tmp_path)


# Rows that make no sense


def test_bad_rows_are_left_out_counted_and_named_where_asked(tmp_path: Path) -> None:
    rows = [ending(n) for n in range(60)]
    bad = [ending(60, ""), ending(61, "4"), {**ending(62), "endings": None}, {"label": "1"}]
    write(tmp_path, "hellaswag", "train", [*rows[:30], bad[2], *rows[30:]])
    write(tmp_path, "hellaswag", "validation", [bad[0], *rows[:5], bad[1], *rows[5:9], bad[3]])
    with pytest.raises(BadInput, match=r"train\.jsonl, line 31: field endings is null.*data\.on_bad_row=skip"):
        opened("hellaswag", tmp_path)
    kept = opened("hellaswag", tmp_path, on_bad_row=OnBadRow.skip)
    assert len(kept.training_side) == 60 and len(kept.test()) == 9
    about = kept.about()
    assert about["rows_skipped"] == 4 and about["skipped"] == kept.skipped
    for message, place in zip(kept.skipped, (31, 1, 7, 12), strict=True):
        assert f", line {place}" in message
    assert "label is ''" in kept.skipped[1] and "activity_label is missing" in kept.skipped[3]

    root = tmp_path / "clean"
    write(root, "hellaswag", "train", rows)
    write(root, "hellaswag", "validation", rows[:9])
    clean, both = opened("hellaswag", root), opened("hellaswag", root, on_bad_row=OnBadRow.skip)
    assert kept.fingerprint(0) == clean.fingerprint(0) == both.fingerprint(0)
    assert clean.about() == both.about() and "skipped" not in clean.about()


def test_a_result_names_the_first_of_many_bad_rows(tmp_path: Path) -> None:
    write(tmp_path, "hellaswag", "train", [ending(n) for n in range(30)] + [ending(n, "9") for n in range(100)])
    write(tmp_path, "hellaswag", "validation", [ending(1)])
    about = opened("hellaswag", tmp_path, on_bad_row=OnBadRow.skip).about()
    assert about["rows_skipped"] == 100 and len(about["skipped"]) == SKIPPED_SHOWN


def test_a_test_split_of_which_nothing_is_left_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "hellaswag", "train", [ending(n) for n in range(30)])
    write(tmp_path, "hellaswag", "validation", [ending(n, "") for n in range(30)])
    with pytest.raises(BadInput, match="hellaswag/validation has no rows; at least one is needed to test"):
        opened("hellaswag", tmp_path, on_bad_row=OnBadRow.skip)


def test_a_story_with_one_bad_turn_is_left_out_whole(tmp_path: Path) -> None:
    """The turns behind it tell its answer."""
    bad = story(70)
    bad["answers"]["input_text"][1] = ""
    write(tmp_path, "coqa", "train", [*(story(n) for n in range(30)), bad])
    write(tmp_path, "coqa", "validation", [story(80)])
    rows = opened("coqa", tmp_path, on_bad_row=OnBadRow.skip)
    assert len(rows.training_side) == 90 and len(rows.skipped) == 1


def test_repeated_rows_and_ids_are_counted_and_kept() -> None:
    train = [{"id": str(n), **passage(n)} for n in range(40)]
    train += [train[3], {**train[4], "id": "new"}, {**passage(99), "id": "5"}]
    test = [passage(1), passage(2), passage(1)]
    rows = DatasetRows(TASKS["lambada"], located(train), located(test))
    assert rows.about()["rows_repeated"] == 3 + 1
    assert len(rows.training_side) == 43 and len(rows.test()) == 3


@pytest.mark.parametrize("name", ["coqa", "lambada_openai", "hellaswag"])
def test_special_tokens_spelled_out_in_a_row_are_text(name: str, shared_data: Path) -> None:
    """<pause> and <|endoftext|> in a passage neither pause nor end anything, in bytes and in GPT-2's tokens."""
    field = {"coqa": "story", "lambada_openai": "text", "hellaswag": "ctx_a"}[name]
    rows = [{**row, field: f"<pause> {row[field]} <|endoftext|><pause>"} for row in map(MAKERS[name], range(30))]
    examples = carved(name, rows, 0.8).test()
    assert all("<pause>" in example.prefix for example in examples)
    gpt2 = BpeTokenizer(*(shared_data / "gpt2-tokenizer" / file for file in ("vocab.json", "merges.txt")))
    for tokenizer in (ByteTokenizer(), gpt2):
        for row in encode(examples, TASKS[name], tokenizer):
            answer = row.target if TASKS[name].scored else row.target[:-1]
            assert not {tokenizer.pause_id, tokenizer.end_id} & {*row.prefix, *answer}
            assert (row.target[-1] == tokenizer.end_id) == (not TASKS[name].scored)


@pytest.mark.parametrize("name", [*(task.name for task in PAPER_TASKS if task.name != "lambada"), "lambada_openai"])
def test_the_published_rows_open_with_nothing_left_out(name: str, shared_data: Path) -> None:
    fraction = 0.8 if name in MAKERS else None
    about = opened(name, shared_data, fraction).about()
    assert about["rows_skipped"] == 0
    assert about.get("train_fraction") == fraction
    assert (about["references_per_question"] == 4) == (name == "coqa")


def test_gzip_that_breaks_off_ends_the_run_even_where_bad_rows_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "hellaswag").mkdir()
    whole = gzip.compress("".join(json.dumps(ending(n)) + "\n" for n in range(200)).encode())
    for split in ("train", "validation"):
        (tmp_path / "hellaswag" / f"{split}.jsonl.gz").write_bytes(whole[:-40])
    with pytest.raises(BadInput, match="breaks off"):
        opened("hellaswag", tmp_path, on_bad_row=OnBadRow.skip)
