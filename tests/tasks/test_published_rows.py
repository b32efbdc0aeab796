"""Published rows become examples as their publishers meant them, the odd ones among them too."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from golden import GOLDEN, SCORED, TEXT_TASKS
from hypothesis import example as try_also
from hypothesis import given
from hypothesis import strategies as st

from pausebench.evaluation.metrics import METRICS
from pausebench.tasks import TASKS, Row
from pausebench.tasks.coqa import turns

UNPINNED = {"lambada"}  # its hub revision is the branch's name
NO_ANSWER_LINE = ("lambada", "lambada_openai", "hellaswag")  # their prompts are text that goes on
MISSING_HERE = {("coqa", "train"), ("hellaswag", "train")}


def published(folder: Path, name: str, split: str) -> Iterator[dict[str, Any]]:
    with gzip.open(folder / name / f"{split}.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def declared(row: Row, fields: tuple[str, ...]) -> dict[str, Any]:
    """A published row with the fields alone that its task says it reads."""
    kept: dict[str, Any] = {}
    for field in fields:
        outer, _, inner = field.partition(".")
        if inner:
            kept.setdefault(outer, {})[inner] = row[outer][inner]
        else:
            kept[outer] = row[outer]
    return kept


@pytest.mark.parametrize("name", [name for name in TEXT_TASKS if name != "lambada"])
def test_every_published_row_makes_an_example(name: str, shared_data: Path) -> None:
    """Prompts end where the answer begins, a row needs its declared fields only, and its own answer is right."""
    task = TASKS[name]
    assert task.dataset is not None
    unfold = task.dataset.unfold or (lambda row: [row])
    golden_row, golden_found = GOLDEN[name][0], False
    for split in filter(None, (task.dataset.train, task.dataset.test)):
        if (name, split) in MISSING_HERE:
            continue
        count = 0
        for published_row in published(shared_data, task.dataset.name, split):
            rows = list(unfold(published_row))
            needed = [task.to_example(row) for row in unfold(declared(published_row, task.dataset.fields))]
            assert needed == [task.to_example(row) for row in rows]
            for row, example in zip(rows, needed, strict=True):
                if name not in NO_ANSWER_LINE:
                    assert example.prefix.endswith("\nAnswer:")
                assert name == "lambada_openai" or example.prefix == example.prefix.strip()
                assert example.target == f" {example.references[0]}"
                assert len(set(example.references)) == len(example.references)
                assert len(example.candidates) == SCORED.get(name, 0)
                if name in SCORED:
                    assert example.target in example.candidates
                else:
                    assert METRICS[task.metrics[0]](example.target, example.references) == 1.0
                golden_found |= all(row.get(field) == value for field, value in golden_row.items())
                count += 1
        assert count > 500
    assert golden_found


def test_every_revision_is_a_commit_but_the_ones_that_say_so() -> None:
    for name in TEXT_TASKS:
        dataset = TASKS[name].dataset
        assert dataset is not None
        assert (name in UNPINNED) != bool(re.fullmatch("[0-9a-f]{40}", dataset.revision))


def test_the_answers_of_published_rows_are_the_publishers(shared_data: Path) -> None:
    for row in published(shared_data, "squad", "validation"):
        example = TASKS["squad"].to_example(row)
        assert set(example.references) == set(row["answers"]["text"])
        assert example.prefix.startswith(row["context"].strip())
    for row in published(shared_data, "gsm8k", "test"):
        example = TASKS["gsm8k"].to_example(row)
        assert example.target.split("####")[1] == row["answer"].split("####")[1]
        assert "<<" not in example.target and ">>" not in example.target
        pieces = [piece.partition(">>")[2] or piece for piece in row["answer"].split("<<")]
        assert example.target == " " + "".join(pieces)
    for row in published(shared_data, "commonsense_qa", "validation"):
        example = TASKS["commonsense_qa"].to_example(row)
        assert example.target.strip() == row["choices"]["text"]["ABCDE".index(row["answerKey"])]
        assert [line[2:] for line in example.prefix.splitlines()[2:-1]] == row["choices"]["text"]
    for row in published(shared_data, "lambada_openai", "test"):
        example = TASKS["lambada_openai"].to_example(row)
        assert example.prefix + example.target == row["text"]
        assert example.target.count(" ") == 1 and example.target.startswith(" ")
    for row in published(shared_data, "web_questions", "test"):
        assert list(TASKS["web_questions"].to_example(row).references) == row["answers"]
    for row in published(shared_data, "nq_open", "validation"):
        assert list(TASKS["natural_questions"].to_example(row).references) == row["answer"]
    for row in published(shared_data, "piqa", "validation"):
        assert TASKS["piqa"].to_example(row).target.strip() == [row["sol1"], row["sol2"]][row["label"]].strip()
    for row in published(shared_data, "hellaswag", "validation"):
        example = TASKS["hellaswag"].to_example(row)
        assert example.candidates.index(example.target) == int(row["label"])
        if "[" not in row["ctx"] and "  " not in row["ctx"]:
            assert example.prefix.lower() == f"{row['activity_label']}: {row['ctx']}".lower()


def test_a_conversation_is_asked_question_by_question_with_the_published_answers(shared_data: Path) -> None:
    stories = published(shared_data, "coqa", "validation")
    for row, beside in zip(stories, published(shared_data, "coqa", "validation_references"), strict=True):
        questions, answers = row["questions"], row["answers"]["input_text"]
        examples = [TASKS["coqa"].to_example(turn) for turn in turns({**row, **beside})]
        assert len(examples) == len(questions)
        for number, example in enumerate(examples):
            told = [f"Question: {questions[n]}\nAnswer: {answers[n]}\n" for n in range(number)]
            assert example.prefix == f"{row['story'].strip()}\n{''.join(told)}Question: {questions[number]}\nAnswer:"
            assert (example.history, example.group) == (tuple(told), row["story"].strip())
            assert list(example.references) == [answer.strip() for answer in beside["references"][number]]
            assert len(example.references) == 4, "equal answers stay: the official score leaves one out at a time"


def test_the_answers_of_another_story_are_refused() -> None:
    story = {"story": "x", "questions": ["a?", "b?"], "answers": {"input_text": ["one", "two"]}}
    assert [row["references"] for row in turns(story)] == [["one"], ["two"]]
    for references, message in (
        ([["one", "1"]], r"references is \[\['one', '1'\]\], which is not a list of 2"),
        ([["one"], ["zwei", "two"]], r"references\[1\] begins with 'zwei', but the row's answer is 'two'"),
        ([["one"], []], r"references\[1\] is \[\]"),
        ([["one"], ["two", ""]], r"references\[1\] has ''"),
    ):
        with pytest.raises(ValueError, match=message):
            list(turns({**story, "references": references}))


def harness_preprocess(text: str) -> str:
    """preprocess of lm-evaluation-harness's task hellaswag, to the letter."""
    text = text.strip()
    text = text.replace(" [title]", ". ")
    text = re.sub("\\[.*?\\]", "", text)
    return text.replace("  ", " ")


def test_published_hellaswag_rows_are_the_harnesses(shared_data: Path) -> None:
    for row in published(shared_data, "hellaswag", "validation"):
        example = TASKS["hellaswag"].to_example(row)
        context = row["ctx_a"] + " " + row["ctx_b"].capitalize()
        assert example.prefix == harness_preprocess(row["activity_label"] + ": " + context)
        assert example.candidates == tuple(f" {harness_preprocess(ending)}" for ending in row["endings"])


marked = st.lists(
    st.sampled_from(
        ["cut", "the", " ", "  ", "\n", "[", "]", " [title]", "[title]", "[header] ", " [step] ", "[a [b] c]"]
    )
).map("".join)


@given(marked)
@try_also("[header] How to cut [title] Take it.   [step] Cut. [substeps]")
@try_also("one [a [b] c] two")
@try_also("a [broken\nmark] and an [open one")
def test_texts_with_wikihows_marks_are_cut_as_the_harness_cuts_them(raw: str) -> None:
    row = {**GOLDEN["hellaswag"][0], "ctx_a": raw, "ctx_b": "", "endings": [f"{raw} x"] * 4}
    example = TASKS["hellaswag"].to_example(row)
    assert example.prefix == harness_preprocess(f"Roof shingle removal: {raw} ").rstrip()
    assert set(example.candidates) == {f" {harness_preprocess(f'{raw} x')}"}


def test_lambadas_word_is_what_follows_the_last_space() -> None:
    def asked(text: str) -> tuple[str, str]:
        example = TASKS["lambada"].to_example({"text": text})
        assert example.references == (example.target.removeprefix(" "),)
        return example.prefix, example.target

    assert asked("some kind of\n\nPower") == ("some kind", " of\n\nPower")
    assert asked('she said "Nadia') == ("she said", ' "Nadia')
    assert asked("  two  spaces  stay here \n") == ("  two  spaces  stay", " here")


def test_an_offset_that_misses_its_answer_changes_nothing() -> None:
    """The official script reads the text alone; published copies have offsets of -1, and of first occurrences."""
    row, example = GOLDEN["squad"]
    for offsets in ([-1, -1, -1], [0, 999999, 3], [], None):
        assert TASKS["squad"].to_example({**row, "answers": {**row["answers"], "answer_start": offsets}}) == example


@pytest.mark.parametrize("answer", ["---", "the", "A+", "(", "...", "答え", "a\tb\x00c", "<pause>", "<|endoftext|>"])
def test_answers_that_normalise_to_nothing_or_look_odd_are_text(answer: str) -> None:
    changes: dict[str, dict[str, Any]] = {
        "squad": {"answers": {"text": [answer]}},
        "commonsense_qa": {"choices": {"label": ["A", "B"], "text": [answer, "x"]}},
        "lambada": {"text": f"{answer} or {answer}"},
        "web_questions": {"answers": [answer]},
        "natural_questions": {"answer": [answer]},
        "coqa": {"answers": {"input_text": ["x", "y", answer]}, "references": [answer]},
        "piqa": {"sol2": answer},
        "hellaswag": {"endings": ["x", "y", "z", answer]},
    }
    for name, change in changes.items():
        example = TASKS[name].to_example({**GOLDEN[name][0], **change})
        assert (example.target, example.references) == (f" {answer}", (answer,))


def test_a_context_of_100000_characters_is_kept_whole() -> None:
    """What is too long for a model is cut where tokens are counted, not here."""
    passage = "word " * 20_000 + "end"
    assert TASKS["squad"].to_example({**GOLDEN["squad"][0], "context": passage}).context == f"{passage}\n"
    assert TASKS["coqa"].to_example({**GOLDEN["coqa"][0], "story": passage}).context == f"{passage}\n"
    assert TASKS["lambada"].to_example({"text": passage}).prefix == passage.removesuffix(" end")


def test_two_calculator_marks_in_one_line_leave_the_text_between_them() -> None:
    row = {"question": "How many?", "answer": "2+1=<<2+1=3>>3 and 3+4=<<3+4=7>>7\n#### 7"}
    assert TASKS["gsm8k"].to_example(row).target == " 2+1=3 and 3+4=7\n#### 7"
