"""The number of ones modulo 3. Never asked in pretraining.

    prefix  1 0 0 1 1 M3
    target  rest0

The count of ones is uniform in 0..n, so the largest class is "rest0" with (n // 3 + 1) / (n + 1): .333 at n = 20.
"""

from pausebench.tasks.base import Example, Row, Task


def to_example(row: Row) -> Example:
    target = f"rest{row['bits'].count('1') % 3}"
    return Example(f"{row['bits']} M3", target, (target,))


MOD3 = Task(
    name="mod3",
    version=1,
    to_example=to_example,
    metrics=("exact_match",),
    worlds=("count",),
    generated_rows=2000,  # a standard error of about one point at 50 %
    answer_tokens=1,  # one word: no end token is trained, and decoding stops by count
    default_k=8,
    chance=lambda n, alphabet: (n // 3 + 1) / (n + 1),
)
