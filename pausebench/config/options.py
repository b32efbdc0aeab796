"""What every option is made of: its help, its part in a run's name, and the message for a bad value."""

from __future__ import annotations

import dataclasses
from dataclasses import field
from enum import Enum
from typing import Any

from pausebench.errors import BadInput

MISSING: Any = "???"  # OmegaConf's own mark, written out: --help must not wait for OmegaConf's import


class Identity(Enum):
    """Whether a field is part of a run's name."""

    always = "always"
    changed = "changed"  # unless it has its default: so an option can be added without renaming every earlier run
    never = "never"


def option(default: Any, help: str, *, identity: Identity = Identity.always) -> Any:
    """A config field with the text that ``--help`` prints for it."""
    # Help lives beside the default, where a reader of the schema needs it and where it cannot be forgotten.
    metadata = {"help": help, "identity": identity}
    if isinstance(default, (list, dict)) or callable(default):
        # A group's own class is its factory: each group is built with its defaults.
        factory = default if callable(default) else (lambda: type(default)(default))
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


def require(condition: bool, given: str, allowed: str, fix: str = "") -> None:
    """Raise ``BadInput`` in three parts: what was given, what is allowed, what to type instead."""
    if not condition:
        raise BadInput(f"{given}: {allowed}." + (f" {fix}" if fix else ""))


def require_at_least(smallest: int, config: Any, *names: str, group: str = "") -> None:
    """Raise ``BadInput`` for a field of ``config`` below ``smallest``; None is always allowed."""
    allowed = f"must be at least {smallest}" if smallest else "must not be negative"
    for name in names:
        value = getattr(config, name)
        require(value is None or value >= smallest, f"{group}{name}={value}", allowed)


def as_list(given: Any) -> list[Any] | None:
    """A value or a list as a list; None stays None."""
    return given if given is None or isinstance(given, list) else [given]


def whole_numbers(given: Any, smallest: int = 0) -> bool:
    """Whether this is None, a whole number or a list of at least one, none below ``smallest``."""
    values = as_list(given)
    # type(), since True is an int to isinstance: seeds=true would run one seed.
    return values is None or (len(values) > 0 and all(type(value) is int and value >= smallest for value in values))


def plain(value: Any) -> Any:
    """Dataclasses, enums and containers as the types of JSON and YAML."""
    # dataclasses.asdict would keep the enums, and copies deeply what is thrown away at once.
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def identity_fields(config: Any) -> dict[str, Any]:
    """The fields that determine a result, nested, as the types of JSON."""
    fields: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value, identity = getattr(config, item.name), item.metadata["identity"]
        if identity is Identity.always or (identity is Identity.changed and value != item.default):
            fields[item.name] = identity_fields(value) if dataclasses.is_dataclass(value) else plain(value)
    return fields
