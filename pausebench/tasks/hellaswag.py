"""HellaSwag: which of four endings continues the text? Scored: the answer is the one with the highest log-likelihood.

    Roof shingle removal: A man is sitting on a roof. He starts pulling up roofing on a roof.

The other candidates end "is using wrap to wrap a pair of skis.", "is ripping level tiles off." and "is holding a
rubik's cube." The question is the field's usual one: the activity, the finished sentences, and the unfinished one with
a capital. Texts from WikiHow contain marks in brackets ("[header]", "[title]", "[step]", "[substeps]"), which are
removed exactly as lm-evaluation-harness removes them, so that scores are comparable to the ones it gives.

The target is the right ending.
"""

import re

from pausebench.tasks.base import Dataset, Example, Row, Task
from pausebench.tasks.fields import all_spoken, right_option, text

BRACKETS = re.compile(r"\[.*?\]")  # of nested ones the inner pair closes first: "[a [b] c]" leaves " c]"


def to_example(row: Row) -> Example:
    """The activity with the unfinished text, and the four endings.

    Raises ValueError where a field is not text, an ending blank, or ``label`` not one of 0 to 3 (in the hub's test
    split it is empty: those labels were never published).
    """
    finished, unfinished = text(row, "ctx_a"), text(row, "ctx_b")
    question = cleaned(f"{text(row, 'activity_label')}: {finished} {unfinished[:1].upper()}{unfinished[1:]}").rstrip()
    endings = tuple(map(cleaned, all_spoken(row["endings"], "endings", 4)))
    if not all(map(str.strip, endings)):
        raise ValueError(f"endings is {row['endings']!r}: one of them is nothing but marks in brackets.")
    right = endings[right_option(row, 4)]
    # The space is the candidate's: it is tokenised apart from the question, as in a text it would begin a word.
    return Example(question, f" {right}", (right,), candidates=tuple(f" {ending}" for ending in endings))


def cleaned(text: str) -> str:
    """The text without WikiHow's marks, by the rule of lm-evaluation-harness."""
    text = text.strip().replace(" [title]", ". ")
    # One pass, so three spaces become two; and a mark at the start leaves the space behind it. Both as in the harness.
    return BRACKETS.sub("", text).replace("  ", " ")


HELLASWAG = Task(
    name="hellaswag",
    version=2,
    to_example=to_example,
    # The paper reports an "F1" and does not define it. Accuracy comes first here, macro-F1 is given beside it.
    metrics=("accuracy", "accuracy_per_character", "macro_f1"),
    worlds=("english",),
    scored=True,
    dataset=Dataset(
        name="hellaswag",
        hub_id="Rowan/hellaswag",
        subset=None,
        revision="218ec52e09a7e7462a5400043bb9a69a41d06b76",
        train="train",
        test="validation",  # 10,042 rows; the labels of the test split are not published
        fields=("activity_label", "ctx_a", "ctx_b", "endings", "label"),
    ),
    chance=lambda n, alphabet: 0.25,
)
