"""SQuAD v1.1: read a passage, answer with words from it (the paper's extractive task).

    A piece of paper was later found on which Luther had written his last statement. The statement was in Latin,
    apart from "We are beggars," which was in German.
    Question: What was later discovered written by Luther?
    Answer: his last statement

The passage keeps its line breaks and ends in one of its own; here it is wrapped to fit the page. " his last statement"
is the target: the space is the target's, because prefix and target are tokenised apart and a word after a space is
another token than the same word at the start of a text.

Training says the first of the annotators' answers. Every one of them counts as right ("his last statement", "last
statement"), by the rules of the official v1.1 script.
"""

from pausebench.tasks.base import Dataset, Example, Row, Task
from pausebench.tasks.fields import all_spoken, distinct, text


def to_example(row: Row) -> Example:
    """The prompt and the annotators' answers, each answer once.

    Raises ValueError where a field is not text, or where there is no answer to say.
    """
    # ``answer_start`` is not read, here or by the official script: an offset that misses its answer changes nothing.
    references = distinct(all_spoken(row["answers"]["text"], "answers.text"))
    question = f"Question: {text(row, 'question').strip()}\nAnswer:"
    return Example(question, f" {references[0]}", references, context=f"{text(row, 'context').strip()}\n")


SQUAD = Task(
    name="squad",
    version=1,
    to_example=to_example,
    metrics=("squad_exact_match", "squad_f1"),  # the paper's first
    worlds=("english",),
    dataset=Dataset(
        name="squad",
        hub_id="rajpurkar/squad",
        subset=None,
        # A commit: "main" may change between two cells of a study, and a study takes weeks.
        revision="7b6d24c440a36b6815f21b70d25016731768db1f",
        train="train",
        test="validation",  # the test split was never published: its answers are behind a leaderboard
        fields=("context", "question", "answers.text"),
    ),
)
