"""What every option of the configuration is made of: its help, its share in a run's name, the message of a bad one."""

from __future__ import annotations

import dataclasses
from dataclasses import field
from enum import Enum
from typing import Any

from pausebench.errors import BadInput

MISSING: Any = "???"  # OmegaConf's mark for a value that has to be given


class Identity(Enum):
    """Whether a field is part of a run's name."""

    always = "always"
    changed = "changed"  # where it is not the default: a new option leaves the names of runs without it as they are
    never = "never"


def option(default: Any, help: str, *, identity: Identity = Identity.always) -> Any:
    """A config field with the sentence that ``--help`` prints for it."""
    metadata = {"help": help, "identity": identity}
    if isinstance(default, (list, dict)) or callable(default):
        factory = default if callable(default) else (lambda: type(default)(default))
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


def require(condition: bool, given: str, allowed: str, fix: str = "") -> None:
    """Raise ``BadInput`` with the three parts every message has."""
    if not condition:
        raise BadInput(f"{given}: {allowed}." + (f" {fix}" if fix else ""))


def plain(value: Any) -> Any:
    """Dataclasses, enums and containers as what JSON and YAML know."""
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
    """The fields that determine a result, nested and plain."""
    fields: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value, identity = getattr(config, item.name), item.metadata["identity"]
        if identity is Identity.always or (identity is Identity.changed and value != item.default):
            fields[item.name] = identity_fields(value) if dataclasses.is_dataclass(value) else plain(value)
    return fields
