"""Checks of a row's fields, the same for all tasks: each raises ValueError with the field's name and its value."""

from typing import Any

from pausebench.tasks.base import Row


def text(row: Row, name: str) -> str:
    """A field that holds text, which may be blank."""
    value = row[name]
    if not isinstance(value, str):
        raise ValueError(f"{name} is {value!r}, which is not text.")
    return value


def all_spoken(value: Any, name: str, count: int | None = None) -> tuple[str, ...]:
    """A list of texts to say or to choose from, none of them blank, without white space around them.

    count: how many it has to have; None is at least one.
    """
    if not isinstance(value, list) or not (value if count is None else len(value) == count):
        raise ValueError(f"{name} is {value!r}, which is not a list of {count or 'at least one'}.")
    for item in value:
        # An empty answer would be right for a model that says nothing.
        if not isinstance(item, str) or not item.strip():
            raise ValueError(f"{name} has {item!r}, which says nothing.")
    return tuple(item.strip() for item in value)


def distinct(answers: tuple[str, ...]) -> tuple[str, ...]:
    """Each answer once, in order."""
    # In order, because the first is the target.
    return tuple(dict.fromkeys(answers))


def right_option(row: Row, count: int) -> int:
    """``label``: the number of the right one of ``count`` options, as an integer or as text."""
    label, allowed = row["label"], [str(number) for number in range(count)]
    # Hub copies differ: some have labels as text, some as numbers.
    if str(label) not in allowed:
        raise ValueError(f"label is {label!r}; allowed are {', '.join(allowed)}.")
    return int(label)
