"""CoQA: a conversation about a story, one question after the other (the paper's F1).

    Lisa has a pet cat named Whiskers. Whiskers is black with a white spot on her chest. Whiskers also has white paws
    that look like little white mittens.

    Whiskers likes to sleep in the sun on her favorite chair. Whiskers also likes to drink creamy milk.

    Lisa is excited because on Saturday, Whiskers turns two years old.

    After school on Friday, Lisa rushes to the pet store. She wants to buy Whiskers' birthday presents. Last year, she
    gave Whiskers a play mouse and a blue feather.

    For this birthday, Lisa is going to give Whiskers a red ball of yarn and a bowl with a picture of a cat on the side.
    The picture is of a black cat. It looks a lot like Whiskers.
    Question: Why is Lisa excited?
    Answer: Saturday, Whiskers turns two
    Question: Who is Whiskers?
    Answer: a cat
    Question: What does it look like?
    Answer: black with a white spot

A published row is a story with all of its questions; each question is an example of its own, with the earlier questions
and their published answers before it, never the model's. The answer to a question that the story leaves open is
"unknown", a word like any other.

The hub's rows have one answer a question. Three further annotators answered the validation split; where their answers
lie beside the local file (``coqa/validation_references``), all four are references, equal ones included, because the
official score leaves one annotator out at a time.
"""

from collections.abc import Iterator

from pausebench.tasks.base import Dataset, Example, Row, Task
from pausebench.tasks.fields import all_spoken, text


def turns(row: Row) -> Iterator[Row]:
    """The rows of a story, one a question: the questions and answers up to there, and that question's references.

    Raises ValueError where questions, answers and references do not pair up, and where the first of a question's
    references is not its answer: they belong to another story then.
    """
    questions = row["questions"]
    if not isinstance(questions, list) or not questions:
        raise ValueError(f"questions is {questions!r}, which is not a list of at least one.")
    answers = all_spoken(row["answers"]["input_text"], "answers.input_text", len(questions))
    references = row.get("references")
    if references is not None and (not isinstance(references, list) or len(references) != len(questions)):
        raise ValueError(f"references is {references!r}, which is not a list of {len(questions)}.")
    for number, answer in enumerate(answers):
        given = (answer,) if references is None else all_spoken(references[number], f"references[{number}]")
        # Companions are joined by place: an answer that differs means that the files are not the same stories.
        if given[0] != answer:
            raise ValueError(f"references[{number}] begins with {given[0]!r}, but the row's answer is {answer!r}.")
        asked = {"questions": questions[: number + 1], "answers": {"input_text": list(answers[: number + 1])}}
        yield {"story": row["story"], **asked, "references": list(given)}


def to_example(row: Row) -> Example:
    """The last question of a row of ``turns``, with the story and the turns before it.

    Raises ValueError where a field is not text.
    """
    story, answers = text(row, "story").strip(), row["answers"]["input_text"]
    for question in row["questions"]:
        if not isinstance(question, str):
            raise ValueError(f"questions has {question!r}, which is not text.")
    # The published answers, not the model's: one wrong answer would otherwise cost the turns after it, too.
    *earlier, question = [f"Question: {question.strip()}\nAnswer:" for question in row["questions"]]
    history = tuple(f"{asked} {answer}\n" for asked, answer in zip(earlier, answers[:-1], strict=True))
    # Equal references stay: the official F1 averages over annotators, and dropping one would weigh the others more.
    references = tuple(row["references"])
    return Example(question, f" {answers[-1]}", references, context=f"{story}\n", history=history, group=story)


COQA = Task(
    name="coqa",
    version=1,
    to_example=to_example,
    metrics=("coqa_f1", "coqa_exact_match"),
    worlds=("english",),
    dataset=Dataset(
        name="coqa",
        hub_id="stanfordnlp/coqa",
        subset=None,
        revision="0d9e9952f1ef6e5415492d3d84b5873259137e3c",
        train="train",
        test="validation",  # 500 stories, 7,983 questions; the test split is not published
        fields=("story", "questions", "answers.input_text"),
        unfold=turns,
        # The hub's copy has one annotator's answers. The others are in the authors' own coqa-dev-v1.0.json.
        companion="validation_references",
    ),
)
