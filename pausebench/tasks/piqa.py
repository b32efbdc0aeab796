"""PIQA: which of two ways reaches the goal? Scored: the answer is the one with the higher log-likelihood.

    Question: When boiling butter, when it's ready, you can
    Answer: Pour it into a jar

The other candidate is "Pour it onto a plate". Training says the right one.
"""

from pausebench.tasks.base import Dataset, Example, Row, Task
from pausebench.tasks.fields import all_spoken, right_option, text


def to_example(row: Row) -> Example:
    """The goal and its two solutions.

    Raises ValueError where a field is not text, a solution blank, or ``label`` neither 0 nor 1 (in the test split it is
    -1: those labels were never published).
    """
    solutions = tuple(solution for name in ("sol1", "sol2") for solution in all_spoken([row[name]], name))
    right = solutions[right_option(row, 2)]
    question = f"Question: {text(row, 'goal').strip()}\nAnswer:"
    return Example(question, f" {right}", (right,), candidates=tuple(f" {solution}" for solution in solutions))


PIQA = Task(
    name="piqa",
    version=1,
    to_example=to_example,
    # The paper reports an "F1" and does not define it. Accuracy comes first here, macro-F1 is given beside it.
    metrics=("accuracy", "accuracy_per_character", "macro_f1"),
    worlds=("english",),
    scored=True,
    dataset=Dataset(
        name="piqa",
        hub_id="baber/piqa",  # the original repository is a loading script, which ``datasets`` no longer runs
        subset=None,
        revision="142f6d7367fd9877f0fb3b5734ea6a545f54cdd1",
        train="train",
        test="validation",  # 1,838 rows; the labels of the test split are not published
        fields=("goal", "sol1", "sol2", "label"),
    ),
    chance=lambda n, alphabet: 0.5,
)
