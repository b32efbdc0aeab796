"""Examples as tokens, and what of them is read where a row is too long.

The question, the pauses and the answer stay. The oldest turns of a conversation go first; then the context is read
through windows that overlap by half. What goes never depends on the answer.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

from pausebench.data.tokenizer import Tokenizer
from pausebench.errors import BadInput
from pausebench.tasks import Example, Task

Tokens = Sequence[int]


class EncodedExample(NamedTuple):
    """The parts of an example, tokenised apart, as training and inference both read them."""

    context: Tokens
    history: Sequence[Tokens]
    question: Tokens
    target: Tokens
    candidates: Sequence[Tokens]

    @property
    def prefix(self) -> Tokens:
        return array("i", chain(self.context, *self.history, self.question))


class Fitted(NamedTuple):
    """What is read of an example: a prefix, or one for each window of its context.

    cut: which part lost something first to last, of "history", "context" and "question".
    """

    prefixes: Sequence[Tokens]
    cut: tuple[str, ...]


def encode(examples: Sequence[Example], task: Task, tokenizer: Tokenizer) -> list[EncodedExample]:
    """Tokenise examples. A decoded answer of text gets an end token; one that is scored, or fixed in length, gets none.

    Raises ``BadInput`` for an empty prefix or answer.
    """
    texts = [
        (example.context, *example.history, example.question, example.target, *example.candidates)
        for example in examples
    ]
    ids = iter([array("i", ids) for ids in tokenizer.encode_lists(list(chain(*texts)))])
    end = array("i", [] if task.scored or task.answer_tokens is not None else [tokenizer.end_id])
    encoded = []
    for number, example in enumerate(examples):
        context, *rest = (next(ids) for _ in texts[number])
        turns, choices = len(example.history), len(example.candidates)
        question, target = rest[turns : turns + 2]
        encoded.append(
            EncodedExample(
                context, rest[:turns], question, target + end, rest[len(rest) - choices :] if choices else []
            )
        )
        for name, tokens in (
            ("question", question),
            ("target", target),
            *(("candidate", c) for c in encoded[-1].candidates),
        ):
            if not tokens:
                raise BadInput(f"task={task.name}: row {number} has an empty {name}.")
    return encoded


def fit(example: EncodedExample, room: int) -> Fitted:
    """The example in ``room`` tokens of prefix, at least one.

    Windows of a context start at its beginning, each half a window after the one before; the last ends where it ends.
    A question that does not fit by itself loses its beginning.
    """
    question, history, context = example.question, list(example.history), example.context
    cut = []
    if len(question) > room:
        cut.append("question")
        question = question[-max(1, room) :]
    size = len(question) + sum(map(len, history))
    while history and (size > room or size + len(context) > room):
        size -= len(history.pop(0))
    if len(history) < len(example.history):
        cut.insert(0, "history")
    rest = array("i", chain(*history, question))
    left = room - len(rest)
    if len(context) <= left:
        return Fitted([array("i", chain(context, rest))], tuple(cut))
    if left <= 0:
        return Fitted([rest], ("context", *cut))
    step = max(1, left // 2)
    starts = [*range(0, len(context) - left, step), len(context) - left]
    return Fitted([array("i", chain(context[start : start + left], rest)) for start in starts], ("context", *cut))
