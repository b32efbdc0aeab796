"""``--help``, written from the schema, the tasks and conf/. Imports neither torch nor Hydra, so it answers at once."""

from __future__ import annotations

import dataclasses
import textwrap
import typing
from enum import Enum
from pathlib import Path

from pausebench.config.commands import COMMANDS
from pausebench.config.options import MISSING
from pausebench.config.training import RunConfig
from pausebench.tasks import TASKS

SUMMARIES = {
    "prepare": "tokenise a corpus to disk once, for any number of pretrainings",
    "pretrain": "train a decoder on text, with pauses (PausePT) or without (StdPT)",
    "finetune": "finetune a pretrained run on a task, with K pauses (PauseFT) or none (StdFT)",
    "evaluate": "score a finetuned run with any number M of pauses",
    "reproduce": "plan, run, resume and report a whole study",
    "plan": "estimate what a study costs: tokens, FLOPs, device time, disk",
    "report": "make tables and a page from the run folders",
    "tasks": "list the tasks: metric, splits, rows, K and steps",
    "show": "print examples of a task as the model sees them: tokens, pauses, attention",
}

# Complete lines to paste. A message about a missing option shows the last but one.
EXAMPLES = {
    "prepare": (
        "pausebench prepare corpus=c4",
        "pausebench prepare corpus=c4 corpus.files=64 workers=16",
        "pausebench prepare data=files data.root=DIR corpus=text corpus.name=FOLDER tokenizer=bpe",
    ),
    "pretrain": (
        "pausebench pretrain world=count20 pause=on seed=0",
        "pausebench pretrain -m model=tiny pause=on,off seed=0,1,2",
        "pausebench pretrain model=small data=files data.root=DIR tokenizer=bpe pause=on",
    ),
    "finetune": (
        "pausebench finetune task=parity k=8 pretraining=pause seed=0",
        "pausebench finetune -m task=parity,majority k=0,8 pretraining=std,pause",
        "pausebench finetune task=squad model=small data=files data.root=DIR tokenizer=bpe k=10",
    ),
    "evaluate": (
        "pausebench evaluate run=runs/finetune/NAME mt=[0,2,4,8,16]",
        "pausebench evaluate run=runs/finetune/NAME mt=8 filler=end",
        "pausebench evaluate run=runs/finetune/NAME limit=100",
    ),
    "reproduce": (
        "pausebench reproduce result=demo",
        "pausebench reproduce result=table1 model=tiny task=[squad,gsm8k] seeds=3",
        "pausebench reproduce result=miniature seeds=2 dry_run=true",
        "pausebench reproduce result=text model=small data=files data.root=DIR tokenizer=bpe",
    ),
    "plan": (
        "pausebench plan result=table1 gpu=h100 gpus=8",
        "pausebench plan result=table1 model=130m gpu=a100 mfu=0.3 seeds=1",
        "pausebench plan result=demo gpu=cpu gpus=2",
    ),
    "report": ("pausebench report", "pausebench report runs=runs study=demo"),
    "tasks": ("pausebench tasks", "pausebench tasks data.root=DIR"),
    "show": (
        "pausebench show task=squad model=tiny k=3",
        "pausebench show task=coqa data=files data.root=DIR k=10 examples=1 start=7",
    ),
}

# In the order in which a user decides. Not read from the schema: ``plan`` inherits a tracking group that it never uses,
# and the ``data`` of ``tasks`` is no group.
GROUPS = {
    "prepare": ("data", "corpus", "tokenizer", "world"),
    "pretrain": ("model", "data", "corpus", "tokenizer", "world", "pause", "tracking"),
    "finetune": ("task", "model", "data", "corpus", "tokenizer", "world", "pause", "tracking"),
    "evaluate": ("tracking",),
    "reproduce": ("result", "model", "data", "corpus", "tokenizer", "tracking"),
    "plan": ("result", "model", "data", "corpus", "tokenizer"),
    "report": (),
    "tasks": (),
    "show": ("task", "model", "data", "corpus", "tokenizer", "world", "pause", "tracking"),
}


def conf_dir() -> Path:
    """The configuration files: inside the package once installed, beside it in a checkout."""
    package = Path(__file__).parent.parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


def overview() -> str:
    """What ``pausebench --help`` prints."""
    commands = "\n".join(f"  {name:<10} {SUMMARIES[name]}" for name in COMMANDS)
    return (
        "usage: pausebench COMMAND [OPTION=VALUE ...]\n\n"
        "Does a language model that pauses before it answers answer better?\n\n"
        f"commands:\n{commands}\n\n"
        "pausebench COMMAND --help lists a command's groups and options.\n"
        "Start with:  pausebench reproduce result=demo\n"
        "exit codes:  0 done, 2 bad input, 1 a run failed, 130 interrupted"
    )


def command_help(command: str) -> str:
    """What ``pausebench COMMAND --help`` prints: groups, options with defaults, examples."""
    lines = [f"usage: pausebench {command} [-m] [OPTION=VALUE ...]", "", SUMMARIES[command], ""]
    if GROUPS[command]:
        lines.append("groups (GROUP=CHOICE):")
        for group in GROUPS[command]:
            lines += _entry(group, " | ".join(choices(group)))
        lines.append("")
    lines.append("options (OPTION=VALUE) with their defaults; a task or model may set others:")
    # A command's own options first, then the nested ones, then what every command has.
    shared = {item.name for item in dataclasses.fields(RunConfig)}
    options = sorted(_options(COMMANDS[command]), key=lambda option: ("." in option[0], option[0] in shared))
    for name, default, kind, text in options:
        if name not in GROUPS[command]:
            lines += _entry(f"{name}={default}", f"{text} [{kind}]")
    lines += ["", "-m sweeps over every OPTION=A,B,C; hydra/launcher=joblib runs cells in parallel."]
    lines += ["--cfg job prints the resolved config instead of running.", "", "examples:"]
    lines += [f"  {example}" for example in EXAMPLES[command]]
    return "\n".join(lines)


def choices(group: str) -> list[str]:
    """The choices of a configuration group."""
    # A task is declared in Python alone, and its config is generated (``config.recipes``): it has no file.
    if group == "task":
        return sorted(TASKS)
    return sorted(file.stem for file in (conf_dir() / group).glob("*.yaml"))


def option_names(command: str) -> list[str]:
    """Every option and group of a command, dotted."""
    return [*GROUPS[command], *(name for name, *_ in _options(COMMANDS[command]))]


def _entry(left: str, right: str) -> list[str]:
    # 32 + 64 columns. A longer name gets a line of its own, as in argparse.
    wrapped = textwrap.wrap(right, 64) or [""]
    if len(left) > 28:
        return [f"  {left}", *(f"{'':32}{line}" for line in wrapped)]
    return [f"  {left:<30}{wrapped[0]}", *(f"{'':32}{line}" for line in wrapped[1:])]


def _options(schema: type, prefix: str = "") -> list[tuple[str, str, str, str]]:
    """(dotted name, default, kind, help) of every field, with the fields of groups."""
    # The hints are strings in the source (``from __future__ import annotations``), so they have to be evaluated.
    hints = typing.get_type_hints(schema)
    found: list[tuple[str, str, str, str]] = []
    for item in dataclasses.fields(schema):
        hint = hints[item.name]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            found += _options(hint, f"{prefix}{item.name}.")
            continue
        default = item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default
        text = str(item.metadata["help"])
        found.append((f"{prefix}{item.name}", _shown(default), _kind(hint), text))
    return found


def _shown(default: object) -> str:
    if isinstance(default, Enum):
        return str(default.value)
    if isinstance(default, bool):
        return str(default).lower()
    return {None: "none", MISSING: "..."}.get(default, str(default)) if not isinstance(default, list) else "[]"


def _kind(hint: object) -> str:
    """An option's type in words."""
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    if typing.get_origin(hint) is list:
        return "list"
    if len(kinds) == 1:
        return f"{_kind(kinds[0])} or none"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return " | ".join(hint.__members__)
    names: dict[object, str] = {int: "integer", float: "number", str: "text", bool: "true | false"}
    return names.get(hint, "value or list")
