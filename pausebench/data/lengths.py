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
        if not self.context and not self.history:
            return self.question
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
    texts = [(e.context, *e.history, e.question, e.target, *e.candidates) for e in examples]
    ids = iter(tokenizer.encode_lists([text for parts in texts for text in parts if text]))
    end = [] if task.scored or task.answer_tokens is not None else [tokenizer.end_id]
    encoded = []
    for number, parts in enumerate(texts):
        context, *rest = (array("i", next(ids)) if text else array("i") for text in parts)
        turns = len(examples[number].history)
        history, question, target, candidates = rest[:turns], rest[turns], rest[turns + 1], rest[turns + 2 :]
        if not (question and target and all(candidates)):
            name = "candidate" if question and target else "target" if question else "question"
            raise BadInput(f"task={task.name}: row {number} has an empty {name}.")
        target.extend(end)
        encoded.append(EncodedExample(context, history, question, target, candidates))
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
