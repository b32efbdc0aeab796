"""Examples as tokens, and what of them is read where a row is too long.

The question, the pauses and the answer stay. The oldest turns of a conversation go first; then the context is read
through windows that overlap by half. What goes never depends on the answer.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

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
        # Most tasks have a question alone: no copy of it then.
        if not self.context and not self.history:
            return self.question
        return array("i", chain(self.context, *self.history, self.question))


class Windows(Sequence[Tokens]):
    """Windows of ``size`` tokens of a context, each half a window after the one before, with the rest behind it."""

    def __init__(self, context: Tokens, rest: array[int], size: int) -> None:
        self._context, self._rest, self._size = context, rest, size
        # Made when it is asked for: training reads one window of a row that may have fifty.
        # Half a window of overlap: an answer shorter than that is whole in at least one window.
        self._last, self._step = len(context) - size, max(1, size // 2)

    def __len__(self) -> int:
        # The last window ends with the context, so it may overlap more than half with the one before.
        return -(-self._last // self._step) + 1

    def __getitem__(self, index: Any) -> Any:  # int to tokens: nobody takes a slice
        start = min(range(len(self))[index] * self._step, self._last)
        return array("i", self._context[start : start + self._size]) + self._rest


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
    # Many questions are asked about one text, and each turn of a conversation repeats those before it.
    distinct = list(dict.fromkeys(text for parts in texts for text in parts if text))
    # array("i") takes 4 bytes an id, a list of Python numbers about 36.
    ids = {text: array("i", found) for text, found in zip(distinct, tokenizer.encode_lists(distinct), strict=True)}
    ids[""] = array("i")
    # A candidate gets no end token, or its likelihood would be that of stopping there as well.
    end = array("i", [] if task.scored or task.answer_tokens is not None else [tokenizer.end_id])
    encoded = []
    for number, parts in enumerate(texts):
        context, *rest = (ids[text] for text in parts)
        turns = len(examples[number].history)
        history, question, target, candidates = rest[:turns], rest[turns], rest[turns + 1], rest[turns + 2 :]
        if not (question and target and all(candidates)):
            name = "candidate" if question and target else "target" if question else "question"
            raise BadInput(f"task={task.name}: row {number} has an empty {name}.")
        encoded.append(EncodedExample(context, history, question, target + end, candidates))
    return encoded


def fit(example: EncodedExample, room: int) -> Fitted:
    """The example in ``room`` tokens of prefix, at least one: whole, or through ``Windows`` of its context.

    A question that does not fit by itself loses its beginning.
    """
    question, history, context = example.question, list(example.history), example.context
    cut = []
    if len(question) > room:
        cut.append("question")
        question = question[-max(1, room) :]
    # Oldest turn first: a question is mostly about the turns just before it.
    size = len(question) + sum(map(len, history))
    while history and (size > room or size + len(context) > room):
        size -= len(history.pop(0))
    if len(history) < len(example.history):
        cut.insert(0, "history")
    rest = array("i", chain(*history, question))
    left = room - len(rest)
    if len(context) <= left:
        return Fitted([array("i", context) + rest], tuple(cut))
    # Question and history alone fill the room: nothing of the context can be read.
    if left <= 0:
        return Fitted([rest], ("context", *cut))
    return Fitted(Windows(context, rest, left), ("context", *cut))
