"""Is the number of ones even or odd? Never asked in pretraining.

    prefix  1 0 0 1 1 PAR
    target  odd

The count of ones is uniform in 0..n (each row has its own probability of a one), so for even n the class "even" is
the larger one, (n/2 + 1) / (n + 1): .524 at n = 20.
"""

from pausebench.tasks.base import Example, Task


def to_example(row: dict[str, str]) -> Example:
    target = "odd" if row["bits"].count("1") % 2 else "even"
    return Example(f"{row['bits']} PAR", target, (target,))


PARITY = Task(
    name="parity",
    version=1,
    world_kind="count",
    to_example=to_example,
    metric="exact_match",
    test_rows=2000,
    max_new_tokens=1,
    chance=lambda n, alphabet: (n // 2 + 1) / (n + 1),
)
