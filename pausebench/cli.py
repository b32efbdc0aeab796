"""The command line; the only file that knows Hydra.

Only ``main`` exits: 0 done, 2 bad input, 1 a run failed, 130 interrupted. Torch and Hydra are imported inside
functions, so that help and wrong commands answer at once.
"""

from __future__ import annotations

import difflib
import os
import pickle
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NoReturn

from pausebench import __version__
from pausebench.config.commands import COMMANDS
from pausebench.config.help import EXAMPLES, choices, command_help, conf_dir, option_names, overview
from pausebench.config.recipes import generated_groups
from pausebench.errors import BadInput, Interrupted, PausebenchError, RunFailed
from pausebench.runs import slurm

STUDIES = ("reproduce", "plan")  # the commands that compose and launch others
LAUNCHER_EXTRAS = {"joblib": "sweep", "submitit_slurm": "slurm", "submitit_local": "slurm"}


def main() -> NoReturn:
    """Console entry point."""
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has left (head, less)
        # Python flushes stdout once more at exit, and would print a traceback of its own.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code."""
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if command in ("-h", "--help", "help"):
        print(overview())
        return 0
    if command == "--version":
        print(f"pausebench {__version__}")
        return 0
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, 1)
        print(
            (f"{command!r} is no command of pausebench" if command else "a command is missing")
            + f"; allowed are {', '.join(COMMANDS)}."
            + (f" Did you mean: pausebench {near[0]}?" if near else " See pausebench --help."),
            file=sys.stderr,
        )
        return 2
    if "-h" in rest or "--help" in rest:
        print(command_help(command))
        return 0
    rest = _spelled(command, rest)
    try:
        if "-m" in rest or "--multirun" in rest:
            return _sweep(command, [item for item in rest if item not in ("-m", "--multirun")])
        _single(command, rest)
        return 0
    except PausebenchError as error:
        print(f"pausebench {command}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"pausebench {command}: interrupted. Type the same command to resume.", file=sys.stderr)
        return 130


def _spelled(command: str, overrides: Sequence[str]) -> list[str]:
    """The overrides as the schema spells them: ``task=`` of a study is ``tasks=``."""
    # Hydra takes task=[A,B] for choices of the group task, which composes several of them into one config.
    return [re.sub(r"^task=", "tasks=", given) if command in STUDIES else given for given in overrides]


def execute(command: str, composed: Any) -> dict[str, Any]:
    """Run one command on a composed config: the task function of every Hydra job."""
    # It raises and never exits: sys.exit inside a cell would end a whole sweep.
    from hydra.core.hydra_config import HydraConfig

    config = to_config(command, composed, list(HydraConfig.get().overrides.task))
    run = import_module(f"pausebench.commands.{command}").run
    result: dict[str, Any] = run(config, HydraCells()) if command in STUDIES else run(config)
    return result


def to_config(command: str, composed: Any, overrides: Sequence[str]) -> Any:
    """The checked and resolved dataclass of a composed config. Raises ``BadInput``."""
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    try:
        config: Any = OmegaConf.to_object(composed)
    except MissingMandatoryValue as error:
        name = str(error.full_key or re.sub(r".*: ", "", str(error).splitlines()[0]))
        raise BadInput(f"{name}= is missing. Example:\n  {EXAMPLES[command][-2]}") from None
    except OmegaConfBaseException as error:
        raise BadInput(f"{first_line(error)}. See pausebench {command} --help.") from None
    # The schema cannot see what was typed, only what came of it, so the overrides are checked on their own.
    if hasattr(config, "refuse_unused"):
        config.refuse_unused(overrides)
    return config.resolved() if hasattr(config, "resolved") else config


@dataclass(frozen=True)
class CellOutcome:
    """How a cell ended: with an error, or None."""

    error: Exception | None


class HydraCells:
    """Composes and launches cells of any command with the launcher that the command line names."""

    def __init__(self) -> None:
        from hydra.core.global_hydra import GlobalHydra

        self._hydra: Any = GlobalHydra.instance().hydra

    @property
    def run_elsewhere(self) -> bool:
        """Whether cells run on the nodes of a cluster."""
        from hydra.core.hydra_config import HydraConfig

        return _sends_to_slurm(HydraConfig.get().launcher)

    def compose(self, command: str, overrides: Sequence[str]) -> Any:
        """The resolved config of one cell. Raises ``BadInput``."""
        from hydra.types import RunMode

        overrides = _spelled(command, overrides)
        with translated(command, overrides):
            composed = self._hydra.compose_config(command, overrides, RunMode.RUN, with_log_configuration=False)
            return to_config(command, _without_hydra(composed), overrides)

    def launch(self, command: str, cells: Sequence[Sequence[str]], names: Sequence[str]) -> list[CellOutcome]:
        """Run cells of one command and wait for all of them.

        ``names``: the cells' names, by which a later driver finds them in Slurm's queue. Raises ``RunFailed`` if the
        launcher itself broke (a worker was killed); the run folders then tell which cells are done.
        """
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode
        from omegaconf import open_dict

        chosen = HydraConfig.get()
        config = self._hydra.compose_config(
            command,
            [f"hydra/launcher={chosen.runtime.choices['hydra/launcher']}", *cells[0]],  # a finetune needs its task
            RunMode.MULTIRUN,
            with_log_configuration=False,
        )
        # The launcher's options were typed for the study. A cell's own config has only the defaults of its choice.
        with open_dict(config):
            config.hydra.launcher = chosen.launcher
            config.hydra.job.name = command
        if _sends_to_slurm(config.hydra.launcher):
            config.hydra.launcher.name = slurm.record(config.runs, config.hydra.launcher.name, names)
        return _launch(self._hydra.config_loader, command, config, cells)


def _launch(loader: Any, command: str, config: Any, cells: Sequence[Sequence[str]]) -> list[CellOutcome]:
    """Run cells with a launcher, as Hydra's sweepers do.

    Hydra has no public way to it. ``pyproject.toml`` therefore pins Hydra's minor version.
    """
    from hydra._internal.callbacks import Callbacks
    from hydra.core.plugins import Plugins
    from hydra.core.utils import JobStatus
    from hydra.types import HydraContext

    if _sends_to_slurm(config.hydra.launcher):
        slurm.prepare(config.hydra.launcher.cpus_per_task)
    context = HydraContext(config_loader=loader, callbacks=Callbacks(config))
    launcher = Plugins.instance().instantiate_launcher(
        hydra_context=context, task_function=_Task(command), config=config
    )
    try:
        returns = launcher.launch([list(cell) for cell in cells], initial_job_idx=0)
    except PausebenchError:
        raise
    except Exception as error:  # whatever a launcher raises when its pool breaks
        raise RunFailed(f"the launcher broke down ({type(error).__name__}: {first_line(error)})") from error
    return [
        CellOutcome(None if job.status is JobStatus.COMPLETED else job._return_value)  # return_value would raise
        for job in returns
    ]


def _sends_to_slurm(launcher: Any) -> bool:
    return str(launcher._target_).endswith(".SlurmLauncher")


class _Task:
    """The task function of a command."""

    # A class, since workers have to unpickle it, and a closure cannot be pickled.

    def __init__(self, command: str) -> None:
        self.command = command
        self.__name__ = command  # Hydra reads it to name jobs

    def __call__(self, composed: Any) -> dict[str, Any]:
        try:
            return execute(self.command, composed)
        except Exception as error:
            error.add_note(traceback.format_exc())  # pickle drops tracebacks, and keeps notes
            if (log := slurm.own_log()) is not None:
                error.add_note(f"what the job printed: {log}")
            raise


def _single(command: str, overrides: list[str]) -> None:
    import hydra

    register_config()
    failure: list[PausebenchError | BrokenPipeError] = []

    def task(composed: Any) -> None:
        try:
            execute(command, composed)
            sys.stdout.flush()
        except (PausebenchError, BrokenPipeError) as error:
            failure.append(error)

    # hydra.main reads sys.argv itself. Its config path has to be absolute: a relative one is looked for beside the
    # console script.
    arguments, sys.argv = sys.argv, [f"pausebench {command}", *overrides]
    try:
        with translated(command, overrides):
            hydra.main(version_base="1.3", config_path=str(conf_dir().resolve()), config_name=command)(task)()
    finally:
        sys.argv = arguments
    if failure:
        raise failure[0]


def _sweep(command: str, overrides: list[str]) -> int:
    """``-m``: compose and check every cell, then launch all of them; list the failed ones at the end."""
    # Not hydra.main: its launchers compose a cell when its turn comes, so a typo in the last cell of a sweep would be
    # found after all the others have run.
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.types import RunMode

    if any(override.startswith("hydra/sweeper=") for override in overrides):
        raise BadInput("hydra/sweeper=: pausebench sweeps over products of values with -m and knows no other sweeper.")
    register_config()
    hydra = Hydra.create_main_hydra2(command, create_config_search_path(str(conf_dir().resolve())))
    try:
        with translated(command, overrides):
            config = hydra.compose_config(command, overrides, RunMode.MULTIRUN, with_log_configuration=False)
            parsed = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
            cells = BasicSweeper.split_arguments(parsed, None)[0]
        # Every cell is checked before the first one starts.
        checked = _Checked(hydra.config_loader)
        for cell in cells:
            with translated(command, cell):
                to_config(command, _without_hydra(checked.compose(config, cell)), cell)
        outcomes = _launch(checked, command, config, cells)
    finally:
        GlobalHydra.instance().clear()
    failed = [(cell, outcome.error) for cell, outcome in zip(cells, outcomes, strict=True) if outcome.error]
    for cell, error in failed:
        print(f"pausebench {command} {' '.join(cell)}: {describe_error(error)}", file=sys.stderr)
    print(f"{len(cells) - len(failed)} of {len(cells)} cells are done.", file=sys.stderr)
    if any(isinstance(error, Interrupted) for _, error in failed):
        return 130
    return 1 if failed else 0


class _Checked:
    """A config loader for launchers that hands out what the check of a sweep already composed.

    Composing is most of the cost of a cell that is already done. Workers in other processes compose their own cells.
    """

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._composed: dict[tuple[str, ...], bytes] = {}  # pickled, a config takes 20 kB

    def __getstate__(self) -> dict[str, Any]:
        return {"_loader": self._loader, "_composed": {}}

    def compose(self, master: Any, overrides: Sequence[str]) -> Any:
        composed = self._loader.load_sweep_config(master, list(overrides))
        self._composed[tuple(overrides)] = pickle.dumps(composed)
        return composed

    def load_sweep_config(self, master_config: Any, sweep_overrides: Sequence[str]) -> Any:
        """What launchers call, once a cell: a config is dropped when it is handed out."""
        kept = self._composed.pop(tuple(sweep_overrides), None)
        return self._loader.load_sweep_config(master_config, sweep_overrides) if kept is None else pickle.loads(kept)


def describe_error(error: Exception) -> str:
    """A cell's error for the user: our own message, or the type and first line of any other."""
    return str(error) if isinstance(error, PausebenchError) else f"{type(error).__name__}: {first_line(error)}"


def register_config() -> None:
    """Tell Hydra about the configs that are not files of conf/: schemas, tasks and recipes."""
    from hydra.core.config_store import ConfigStore

    # Otherwise Hydra prints its errors itself and exits with 1, and nobody learns what to type instead.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    for name, schema in COMMANDS.items():
        ConfigStore.instance().store(name=f"{name}_schema", node=schema, provider="pausebench")
    for (group, choice), node in generated_groups().items():
        ConfigStore.instance().store(choice, node, group=group, package="_global_", provider="pausebench")


def _without_hydra(composed: Any) -> Any:
    from omegaconf import open_dict

    with open_dict(composed):
        del composed["hydra"]
    return composed


@contextmanager
def translated(command: str, overrides: Sequence[str]) -> Iterator[None]:
    """Turn errors of Hydra and OmegaConf into ``BadInput``: what was given, what is allowed, what to type."""
    from hydra.errors import HydraException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except OverrideParseException as error:
        raise BadInput(
            f"{error.override!r} cannot be read: options are written OPTION=VALUE, text with blanks or commas as "
            f"OPTION='\"...\"', lists as OPTION=[A,B]. See pausebench {command} --help."
        ) from None
    except (HydraException, OmegaConfBaseException) as error:
        message = _message(command, overrides, error)
        raise BadInput(message.replace("tasks=", "task=") if command in STUDIES else message) from None  # as typed


def _message(command: str, overrides: Sequence[str], error: BaseException) -> str:
    # Only the text of an error says what it is about: Hydra has one class for most of them. Its cause is OmegaConf's.
    text = "\n".join(str(part) for part in (error, error.__cause__) if part is not None)
    see = f"See pausebench {command} --help."
    if found := re.search(r"Could not find '([\w/]+)/([^'/]*)'", text):
        group, choice = found.groups()
        if group == "hydra/launcher" and choice in LAUNCHER_EXTRAS:
            extra = LAUNCHER_EXTRAS[choice]
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
        name = next((item for item in overrides if found.group(1) and found.group(1) in item), None)
        key = (name or found.group(2) or found.group(1)).partition("=")[0].lstrip("+~")
        near = difflib.get_close_matches(key, option_names(command), 3)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        return f"{key} is no option of pausebench {command}.{hint} {see}"
    if "Ambiguous value" in text:
        argument = re.search(r"argument '([^']*)'", text)
        name, _, value = (argument.group(1) if argument else "").partition("=")
        return f"{name}={value}: several values need -m (a sweep), or {name}=[{value}] where a list is meant. {see}"
    if found := re.search(r"full_key: ([\w.]+)", text):
        key = found.group(1)
        given = next((item for item in overrides if item.lstrip("+").startswith(f"{key}=")), key)
        return f"{given}: {_reason(text)}. {see}"
    return f"{first_line(error)} {see}"


def _reason(text: str) -> str:
    """The sentence of an OmegaConf error that says what is wrong with the value."""
    for line in text.splitlines():
        if "could not be converted" in line or "Invalid" in line or "not a valid" in line or "incompatible" in line:
            return re.sub(r"^.*?(Value|Invalid)", r"\1", line).rstrip(".")
    return text.splitlines()[-1].strip()


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
