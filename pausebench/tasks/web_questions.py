"""WebQuestions: answer a question from a search engine's log, with nothing to read (the paper's exact match).

    Question: what character did natalie portman play in star wars?
    Answer: Padmé Amidala

Training says the first of the published answers, and every one of them counts as right, by SQuAD's rules for case,
punctuation and articles: many questions ask for a list, and each member of the list is an answer.
"""

from pausebench.tasks.base import Dataset, Example, Row, Task
from pausebench.tasks.fields import all_spoken, distinct, text


def to_example(row: Row) -> Example:
    """The question and its answers, each once. Raises ValueError where a field is not text or an answer is blank."""
    # The first answer is trained on: with a random one of them, the same question would have several targets.
    references = distinct(all_spoken(row["answers"], "answers"))
    return Example(f"Question: {text(row, 'question').strip()}\nAnswer:", f" {references[0]}", references)


WEB_QUESTIONS = Task(
    name="web_questions",
    version=1,
    to_example=to_example,
    # SQuAD's rules: the data's own score is over sets of Freebase entities, and the model says one answer in words.
    metrics=("squad_exact_match", "squad_f1"),
    worlds=("english",),
    dataset=Dataset(
        name="web_questions",
        hub_id="stanfordnlp/web_questions",
        subset=None,
        revision="0e473cbe21d1e91ec18da343644498be6a3f5454",
        train="train",
        test="test",  # 2,032 rows; there is no validation split
        fields=("question", "answers"),
    ),
)
