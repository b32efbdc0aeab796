"""GSM8K: solve a word problem in steps, then give the number.

    Question: A robe takes 2 bolts of blue fiber and half that much white fiber.  How many bolts in total does it take?
    Answer: It takes 2/2=1 bolt of white fiber
    So the total amount of fabric is 2+1=3 bolts of fabric
    #### 3

The published solution writes "2/2=<<2/2=1>>1". The marks are for a calculator, which the model does not have here, so
they are stripped. The headline is the accuracy of the final number, read where the
authors of the data read it. Rouge-1 compares the whole solution.
"""

import re

from pausebench.tasks.base import Dataset, Example, Row, Task
from pausebench.tasks.fields import text

CALCULATOR_MARK = re.compile(r"<<[^<>]*>>")
# By the authors' rule: the number is what follows "####", wherever else numbers are.
FINAL_LINE = re.compile(r"####.*[0-9].*")


def to_example(row: Row) -> Example:
    """The problem and its worked solution without calculator marks; the solution is target and only reference.

    Raises ValueError where a field is not text, or where the solution does not end in "#### number".
    """
    # From target and reference alike: with marks in one of them, Rouge-1 would compare text with bookkeeping.
    solution = CALCULATOR_MARK.sub("", text(row, "answer")).strip()
    final_line = solution.rpartition("\n")[2]
    if not FINAL_LINE.fullmatch(final_line):
        raise ValueError(f'answer ends in {final_line!r}, and its last line should read "#### number".')
    return Example(f"Question: {text(row, 'question').strip()}\nAnswer:", f" {solution}", (solution,))


GSM8K = Task(
    name="gsm8k",
    version=2,
    to_example=to_example,
    metrics=("final_number", "rouge1"),  # Rouge-1 moves long before a small model gets a number right
    worlds=("english",),
    dataset=Dataset(
        name="gsm8k",
        hub_id="openai/gsm8k",
        subset="main",  # "socratic" has the same problems with sub-questions, a different task
        revision="e53f048856ff4f594e959d75785d2c2d37b678ee",
        train="train",
        test="test",  # 1,319 rows; there is no validation split
        fields=("question", "answer"),
    ),
)
