"""Are there more ones than zeros? It occurs in pretraining: a ceiling control that can only show harm.

    prefix  1 0 0 1 1 MAJ
    target  more

A tie is "less". The count of ones is uniform in 0..n, so "less" has (n // 2 + 1) / (n + 1): .524 at n = 20.
"""

from pausebench.tasks.base import Example, Row, Task


def to_example(row: Row) -> Example:
    bits = row["bits"].split()
    target = "more" if 2 * bits.count("1") > len(bits) else "less"
    return Example(f"{row['bits']} MAJ", target, (target,))


MAJORITY = Task(
    name="majority",
    version=1,
    to_example=to_example,
    metrics=("exact_match",),
    worlds=("count",),
    generated_rows=2000,  # a standard error of about one point at 50 %
    answer_tokens=1,  # one word: no end token is trained, and decoding stops by count
    default_k=8,
    chance=lambda n, alphabet: (n // 2 + 1) / (n + 1),
)
