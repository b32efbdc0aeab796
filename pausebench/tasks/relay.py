"""Copy the string, reading it through the pauses alone: the check that the instrument can see pauses work.

    prefix  c a a f h b ...   (24 symbols)
    cue     =
    target  c a a f h b ...

With ``prefix=bottleneck`` the cue and the target attend to the pauses and to each other, never to the prefix: the
pauses are the only channel. With K = 0 token accuracy is exactly chance, 1 / alphabet, whatever is learned.
"""

from pausebench.tasks.base import Example, Row, Task


def to_example(row: Row) -> Example:
    return Example(row["symbols"], row["symbols"], (row["symbols"],))


RELAY = Task(
    name="relay",
    version=1,
    to_example=to_example,
    metrics=("token_accuracy", "exact_match"),
    worlds=("relay",),
    generated_rows=500,  # 24 symbols each: 12,000 for the token accuracy
    answer_tokens=24,
    default_k=12,  # half as many pauses as symbols: each has to carry two
    chance=lambda n, alphabet: 1 / alphabet,
    cue="=",
)
