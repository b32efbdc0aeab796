"""BoolQ: is it so, by the passage? Scored: yes or no, whichever is likelier.

    Typewriters have had a dollar sign since 1880.
    Question: was there a dollar sign on typewriters?
    Answer: yes

The row is invented. The labels of the test split are not published: scored on the validation split.
"""

from pausebench.tasks.base import Dataset, Example, Row, Task
from pausebench.tasks.fields import text


def to_example(row: Row) -> Example:
    """Raises ValueError where a field is not text, or the answer neither true nor false."""
    if not isinstance(row["answer"], bool):
        raise ValueError(f"answer is {row['answer']!r}; allowed are true and false.")
    target = " yes" if row["answer"] else " no"
    question = f"Question: {text(row, 'question').strip()}?\nAnswer:"
    return Example(question, target, (target.strip(),), (" yes", " no"), context=f"{text(row, 'passage').strip()}\n")


BOOLQ = Task(
    name="boolq",
    version=1,
    to_example=to_example,
    metrics=("accuracy", "macro_f1"),
    scored=True,
    dataset=Dataset(
        name="boolq",
        hub_id="google/boolq",
        subset=None,
        revision="35b264d03638db9f4ce671b711558bf7ff0f80d5",
        train="train",
        test="validation",
        fields=("question", "answer", "passage"),
    ),
    chance=lambda n, alphabet: 0.5,
)
