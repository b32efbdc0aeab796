"""Natural Questions, closed-book: answer a search engine's question with nothing to read (the paper's exact match).

    Question: when was the last time anyone was on the moon
    Answer: 14 December 1972 UTC

These are the rows of NQ-open, the questions that have a short answer. They are published in lower case and without
question marks, and they are asked that way. The target is the first answer; every annotator's answer counts as right,
by SQuAD's rules for case, punctuation and articles after Unicode's canonical decomposition (NFD), as in the official
evaluation script.
"""

from pausebench.tasks.base import Dataset, Example, Row, Task
from pausebench.tasks.fields import all_spoken, distinct, text


def to_example(row: Row) -> Example:
    """The question and its answers, each once. Raises ValueError where a field is not text or an answer is blank."""
    # No question mark is added: the prompt is the published text.
    references = distinct(all_spoken(row["answer"], "answer"))
    return Example(f"Question: {text(row, 'question').strip()}\nAnswer:", f" {references[0]}", references)


NATURAL_QUESTIONS = Task(
    name="natural_questions",
    version=2,
    to_example=to_example,
    # Not SQuAD's: NFD first, so that an accent written in two ways is no error.
    metrics=("nq_exact_match", "nq_f1"),
    worlds=("english",),
    dataset=Dataset(
        name="nq_open",  # 88k questions with short answers, not the 42 GB of pages
        hub_id="google-research-datasets/nq_open",
        subset=None,
        revision="5dd9790a83002ad084ddeb7c420dc716852c6f28",
        train="train",
        test="validation",  # the test split is not published
        fields=("question", "answer"),
    ),
)
