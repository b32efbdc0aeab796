"""Is the number of ones even or odd? Never asked in pretraining.

    prefix  1 0 0 1 1 PAR
    target  odd

The count of ones is uniform in 0..n (each row has its own probability of a one), so for even n the class "even" is
the larger one, (n/2 + 1) / (n + 1): .524 at n = 20.
"""

from pausebench.tasks.base import Example, Row, Task


def to_example(row: Row) -> Example:
    target = "odd" if row["bits"].count("1") % 2 else "even"
    return Example(f"{row['bits']} PAR", target, (target,))


PARITY = Task(
    name="parity",
    version=1,
    to_example=to_example,
    metrics=("exact_match",),
    worlds=("count",),
    generated_rows=2000,  # a standard error of about one point at 50 %
    answer_tokens=1,  # one word: no end token is trained, and decoding stops by count
    default_k=8,
    chance=lambda n, alphabet: (n // 2 + 1) / (n + 1),
)
