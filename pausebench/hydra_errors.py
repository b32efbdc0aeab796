"""What Hydra and OmegaConf refuse, in messages that say what was given, what is allowed and what to type."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from pausebench.errors import BadInput, PausebenchError
from pausebench.help import choices, option_names

NEEDS = {"joblib": "sweep", "submitit_slurm": "slurm", "submitit_local": "slurm"}  # launchers that an extra brings


class Translated:
    """Turns the errors of Hydra and OmegaConf into messages with what was given, what is allowed and what to type."""

    def __init__(self, command: str, overrides: Sequence[str], studies: bool) -> None:
        self.command = command
        self.overrides = overrides
        self.studies = studies  # whether the command line spelled ``task=`` as ``tasks=``

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: object) -> None:
        if error is None or isinstance(error, PausebenchError):
            return
        from hydra.errors import HydraException, OverrideParseException
        from omegaconf.errors import OmegaConfBaseException

        if isinstance(error, OverrideParseException):
            raise BadInput(
                f"{error.override!r} cannot be read: options are written OPTION=VALUE, text with blanks or commas as "
                f"OPTION='\"...\"', lists as OPTION=[A,B]. See pausebench {self.command} --help."
            ) from None
        if isinstance(error, (HydraException, OmegaConfBaseException)):
            message = self._message(error)
            raise BadInput(message.replace("tasks=", "task=") if self.studies else message) from None  # as it was typed

    def _message(self, error: BaseException) -> str:
        text = "\n".join(str(part) for part in (error, error.__cause__) if part is not None)
        see = f"See pausebench {self.command} --help."
        if found := re.search(r"Could not find '([\w/]+)/([^'/]*)'", text):
            group, choice = found.groups()
            if group == "hydra/launcher" and choice in NEEDS:
                extra = NEEDS[choice]
                return f"hydra/launcher={choice} is not installed. Type: pip install 'pausebench[{extra}]'"
            allowed = choices(group)
            near = difflib.get_close_matches(choice, allowed, 1)
            return f"{group}={choice}: allowed are {', '.join(allowed)}." + (
                f" Did you mean {group}={near[0]}?" if near else ""
            )
        if found := re.search(r"You must specify '([\w/]+)'", text):
            group = found.group(1)
            allowed = choices(group)
            return f"{group}= is missing; allowed are {', '.join(allowed)}. For example {group}={allowed[0]}."
        if found := re.search(r"Key '([^']*)' (?:is )?not in|Could not override '([^']*)'", text):
            name = next((item for item in self.overrides if found.group(1) and found.group(1) in item), None)
            key = (name or found.group(2) or found.group(1)).partition("=")[0].lstrip("+~")
            near = difflib.get_close_matches(key, option_names(self.command), 3)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            return f"{key} is no option of pausebench {self.command}.{hint} {see}"
        if "Ambiguous value" in text:
            argument = re.search(r"argument '([^']*)'", text)
            name, _, value = (argument.group(1) if argument else "").partition("=")
            return f"{name}={value}: several values need -m (a sweep), or {name}=[{value}] where a list is meant. {see}"
        if found := re.search(r"full_key: ([\w.]+)", text):
            key = found.group(1)
            given = next((item for item in self.overrides if item.lstrip("+").startswith(f"{key}=")), key)
            return f"{given}: {_reason(text)}. {see}"
        return f"{first_line(error)} {see}"


def _reason(text: str) -> str:
    """The sentence of OmegaConf's error that says what is wrong with a value."""
    for line in text.splitlines():
        if "could not be converted" in line or "Invalid" in line or "not a valid" in line or "incompatible" in line:
            return re.sub(r"^.*?(Value|Invalid)", r"\1", line).rstrip(".")
    return text.splitlines()[-1].strip()


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
