"""What is read of an example that is too long: the question always, and nothing by a look at the answer."""

from __future__ import annotations

from itertools import chain, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pausebench.data.examples import EncodedExample, encode, fit
from pausebench.data.tokenizer import ByteTokenizer
from pausebench.tasks import TASKS, Example

TOKENIZER = ByteTokenizer()
SIZES = st.integers(0, 30)


def example_of(context: int, turns: list[int], question: int, target: int = 2) -> EncodedExample:
    """Every token is another number, so that a prefix says where it is from."""
    numbers = iter(range(10_000))
    context_ids, *history = ([next(numbers) for _ in range(size)] for size in (context, *turns))
    return EncodedExample(context_ids, history, [next(numbers) for _ in range(question)], [1] * target, [])


@given(
    context=SIZES, turns=st.lists(st.integers(1, 9), max_size=4), question=st.integers(1, 12), room=st.integers(1, 60)
)
def test_a_prefix_fits_and_keeps_the_question_the_latest_turns_and_the_order(
    context: int, turns: list[int], question: int, room: int
) -> None:
    example = example_of(context, turns, question)
    prefixes, cut = fit(example, room)
    assert all(1 <= len(prefix) <= room and list(prefix) == sorted(prefix) for prefix in prefixes)
    assert all(list(prefix[-min(question, room) :]) == example.question[-room:] for prefix in prefixes)
    whole = context + sum(turns) + question
    assert (not cut) == (whole <= room)
    if whole <= room:
        assert [list(prefix) for prefix in prefixes] == [list(example.prefix)]
    kept = [[token for token in prefix if token >= context] for prefix in prefixes]
    assert all(tokens == kept[0] for tokens in kept), "windows differ in the context alone"
    ends = [list(chain(*example.history[start:], example.question)) for start in range(len(turns) + 1)]
    assert kept[0] in ends or question > room, "turns go whole, the oldest first"


@given(context=st.integers(1, 200), question=st.integers(1, 10), left=st.integers(1, 40))
def test_windows_cover_the_context_and_overlap_by_half(context: int, question: int, left: int) -> None:
    prefixes, cut = fit(example_of(context, [], question), question + left)
    windows = [[token for token in prefix if token < context] for prefix in prefixes]
    assert set(chain(*windows)) == set(range(context))
    assert len(windows) == 1 or cut == ("context",)
    for earlier, later in pairwise(windows):
        assert len(earlier) == len(later) == left
        assert 1 <= later[0] - earlier[0] <= max(1, left // 2)


def test_turns_go_before_the_context() -> None:
    example = example_of(20, [5, 5, 5], 4)
    assert fit(example, 39) == ([example.prefix], ())
    assert fit(example, 38).cut == ("history",)
    assert [len(prefix) for prefix in fit(example, 34).prefixes] == [34]
    assert [len(prefix) for prefix in fit(example, 24).prefixes] == [24], "all turns are gone, the context is whole"
    assert fit(example, 24).cut == ("history",)
    assert fit(example, 23).cut == ("context", "history") and len(fit(example, 23).prefixes) > 1
    assert [list(prefix) for prefix in fit(example, 4).prefixes] == [example.question]
    assert [list(prefix) for prefix in fit(example, 3).prefixes] == [example.question[1:]]


@given(context=SIZES, question=st.integers(1, 12), room=st.integers(1, 40), target=st.integers(1, 30))
def test_what_is_read_does_not_depend_on_the_answer(context: int, question: int, room: int, target: int) -> None:
    longer, plain = (fit(example_of(context, [3], question, size), room) for size in (target, 2))
    assert longer.cut == plain.cut and list(longer.prefixes) == list(plain.prefixes)


@pytest.mark.parametrize("name", ["squad", "gsm8k"])
def test_the_parts_are_tokenised_apart_and_text_ends_in_an_end_token(name: str) -> None:
    example = Example("Q?", " yes", (" yes",), (" yes", " no"), "Once.\n", ("A? b\n", "C? d\n"))
    [encoded] = encode([example], TASKS[name], TOKENIZER)
    assert TOKENIZER.decode(list(encoded.prefix)) == example.prefix == "Once.\nA? b\nC? d\nQ?"
    assert [TOKENIZER.decode(list(turn)) for turn in encoded.history] == list(example.history)
    assert [TOKENIZER.decode(list(choice)) for choice in encoded.candidates] == [" yes", " no"]
    assert list(encoded.target) == [*TOKENIZER.encode(" yes"), TOKENIZER.end_id]


def test_a_text_that_many_examples_share_is_tokenised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []
    real = ByteTokenizer.encode_lists
    monkeypatch.setattr(ByteTokenizer, "encode_lists", lambda self, texts: given.extend(texts) or real(self, texts))
    examples = [Example(f"Q{number}?", " yes", (" yes",), context="Once.\n") for number in range(3)]
    encoded = encode(examples, TASKS["squad"], TOKENIZER)
    assert sorted(given) == [" yes", "Once.\n", "Q0?", "Q1?", "Q2?"]
    assert [TOKENIZER.decode(list(each.prefix)) for each in encoded] == [example.prefix for example in examples]
    assert [len(each.target) for each in encoded] == [5, 5, 5], "one end token each"
