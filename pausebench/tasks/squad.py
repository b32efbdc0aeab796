"""SQuAD v1.1: read a passage, answer with words from it (the paper's extractive task).

    A piece of paper was later found on which Luther had written his last statement. The statement was in Latin,
    apart from "We are beggars," which was in German.
    Question: What was later discovered written by Luther?
    Answer: his last statement

The passage keeps its line breaks and ends in one of its own; here it is wrapped to fit the page. " his last statement"
is the target: the space is the target's, because prefix and target are tokenised apart and a word after a space is
another token than the same word at the start of a text.

Training says the first of the annotators' answers. Every one of them counts as right ("his last statement", "last
statement"), by the rules of the official v1.1 script: exact match is the paper's metric, F1 stands beside it.
"""

from pausebench.tasks.base import Dataset, Example, Row, Task


def to_example(row: Row) -> Example:
    """The prompt and the annotators' answers, each answer once.

    Raises ValueError where a field is not text, or where there is no answer to say.
    """
    for field in ("context", "question"):
        if not isinstance(row[field], str):
            raise ValueError(f"{field} is {row[field]!r}, which is not text.")
    answers = row["answers"]["text"]
    if not isinstance(answers, list) or not answers:
        raise ValueError(f"answers.text is {answers!r}, which is not a list of at least one answer.")
    for answer in answers:
        if not isinstance(answer, str) or not answer.strip():
            raise ValueError(f"answers.text has {answer!r}, which is not an answer in words.")
    references = tuple(dict.fromkeys(answer.strip() for answer in answers))
    question = f"Question: {row['question'].strip()}\nAnswer:"
    return Example(question, f" {references[0]}", references, context=f"{row['context'].strip()}\n")


SQUAD = Task(
    name="squad",
    version=1,
    to_example=to_example,
    metrics=("squad_exact_match", "squad_f1"),
    worlds=("english",),
    dataset=Dataset(
        name="squad",
        hub_id="rajpurkar/squad",
        subset=None,
        revision="7b6d24c440a36b6815f21b70d25016731768db1f",
        train="train",
        test="validation",
        fields=("context", "question", "answers.text"),
    ),
)
