"""CommonsenseQA: pick one of five options and say it in words. Decoded, not scored by likelihood (the paper's EM).

    Question: What do people aim to do at work?
    Options:
    - complete job
    - learn from each other
    - kill animals
    - wear hats
    - talk to each other
    Answer: complete job

The answer is the option's text, without its letter, and only that text is right: "complete the job" scores 0. Picking
a line blindly has chance .2.
"""

from pausebench.tasks.base import Dataset, Example, Row, Task
from pausebench.tasks.fields import all_spoken, text


def to_example(row: Row) -> Example:
    """The question with its options in published order, and the text of the right one.

    Raises ValueError where a field is not text, where labels and texts do not pair up, or where ``answerKey`` is no
    label (in the hub's test split it is empty: those answers were never published).
    """
    question, key = text(row, "question"), row["answerKey"]
    labels, texts = row["choices"]["label"], row["choices"]["text"]
    if not isinstance(labels, list) or not isinstance(texts, list) or len(labels) != len(texts):
        raise ValueError(f"choices.label is {labels!r} and choices.text is {texts!r}: not two lists of one length.")
    # In about one row of eighty the same text is on two lines. Those rows are kept: published scores include them.
    options = all_spoken(texts, "choices.text")
    if key not in labels:
        raise ValueError(f"answerKey is {key!r}, and choices.label has only {labels!r}.")
    answer = options[labels.index(key)]
    # Without letters, which a model could say instead of the words.
    lines = "\n".join(f"- {option}" for option in options)
    return Example(f"Question: {question.strip()}\nOptions:\n{lines}\nAnswer:", f" {answer}", (answer,))


COMMONSENSE_QA = Task(
    name="commonsense_qa",
    version=1,
    to_example=to_example,
    metrics=("exact_match",),  # of decoded words: not comparable with accuracies by likelihood
    worlds=("english",),
    dataset=Dataset(
        name="commonsense_qa",
        hub_id="tau/commonsense_qa",
        subset=None,
        revision="94630fe30dad47192a8546eb75f094926d47e155",
        train="train",
        test="validation",  # 1,221 rows; the test split's answers are not published
        fields=("question", "choices.label", "choices.text", "answerKey"),
    ),
    # A blind pick among five lines; without reading even those, exact match is near 0.
    chance=lambda n, alphabet: 0.2,
)
