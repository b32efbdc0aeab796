"""HellaSwag: which of four endings goes on? Scored: the answer is the one with the highest log-likelihood.

    Roof shingle removal: A man is sitting on a roof. He starts pulling up roofing on a roof.

The other candidates go on "is using wrap to wrap a pair of skis.", "is ripping level tiles off." and "is holding a
rubik's cube." The question is the field's usual one: the activity, the finished sentences, and the unfinished one with
a capital. Texts from WikiHow carry marks in brackets: " [title]" ends a sentence, the others ("[header]", "[step]",
"[substeps]") go, and so does everything else in brackets. Rows that were cleaned before give the same text.

Training says the right ending. The paper's "F1" of this task is shown as reported; accuracy comes first here. The
labels of the test split are not published: scored on the validation split.
"""

import re

from pausebench.tasks.base import Dataset, Example, Row, Task
from pausebench.tasks.fields import all_spoken, right_option, text

BRACKETS = re.compile(r"\[[^\[\]]*\]")
SPACES = re.compile(r" {2,}")


def to_example(row: Row) -> Example:
    """The activity with the unfinished text, and the four endings.

    Raises ValueError where a field is not text, an ending blank, or ``label`` not one of 0 to 3 (in the hub's test
    split it is empty: those labels were never published).
    """
    finished, unfinished = text(row, "ctx_a"), text(row, "ctx_b")
    question = cleaned(f"{text(row, 'activity_label')}: {finished} {unfinished[:1].upper()}{unfinished[1:]}")
    endings = tuple(map(cleaned, all_spoken(row["endings"], "endings", 4)))
    if not all(endings):
        raise ValueError(f"endings is {row['endings']!r}: one of them is nothing but marks in brackets.")
    right = endings[right_option(row, 4)]
    return Example(question, f" {right}", (right,), candidates=tuple(f" {ending}" for ending in endings))


def cleaned(text: str) -> str:
    """The text without WikiHow's marks, and single-spaced."""
    return SPACES.sub(" ", BRACKETS.sub("", text.strip().replace(" [title]", ". "))).strip()


HELLASWAG = Task(
    name="hellaswag",
    version=1,
    to_example=to_example,
    metrics=("accuracy", "accuracy_per_character", "macro_f1"),
    worlds=("english",),
    scored=True,
    dataset=Dataset(
        name="hellaswag",
        hub_id="Rowan/hellaswag",
        subset=None,
        revision="218ec52e09a7e7462a5400043bb9a69a41d06b76",
        train="train",
        test="validation",
        fields=("activity_label", "ctx_a", "ctx_b", "endings", "label"),
    ),
    chance=lambda n, alphabet: 0.25,
)
