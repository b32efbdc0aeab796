"""The command table; the only file that knows Hydra.

``main`` is the only place that exits: 0 done, 2 bad input, 1 a run failed, 130 interrupted. Torch and Hydra are
imported inside, so that help and wrong commands answer at once.
"""

from __future__ import annotations

import difflib
import os
import pickle
import re
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from pausebench import __version__
from pausebench.config.commands import COMMANDS
from pausebench.config.help import choices, command_help, conf_dir, option_names, overview
from pausebench.config.recipes import generated_groups
from pausebench.errors import BadInput, Interrupted, PausebenchError, RunFailed
from pausebench.runs import slurm

STUDIES = ("reproduce", "plan")


def main() -> NoReturn:
    """Console entry point."""
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has left (head, less)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Carry out one command line and return its exit code."""
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
        print(f"pausebench {command}: interrupted. Type the same command to go on.", file=sys.stderr)
        return 130


def _spelled(command: str, overrides: Sequence[str]) -> list[str]:
    """``task=`` of a study as ``tasks=``: Hydra would take it for a choice of the group, and a study has a list."""
    return [re.sub(r"^task=", "tasks=", given) if command in STUDIES else given for given in overrides]


def execute(command: str, composed: Any) -> dict[str, Any]:
    """Run one command on a composed config: the task function of every Hydra job. Raises, never exits."""
    from hydra.core.hydra_config import HydraConfig

    config = to_config(command, composed, list(HydraConfig.get().overrides.task))
    from importlib import import_module

    run = import_module(f"pausebench.commands.{command}").run
    result: dict[str, Any] = run(config, HydraCells()) if command in STUDIES else run(config)
    return result


def to_config(command: str, composed: Any, overrides: Sequence[str]) -> Any:
    """The checked and resolved dataclass of a config composed with ``overrides``. Raises ``BadInput``."""
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    try:
        config: Any = OmegaConf.to_object(composed)
    except MissingMandatoryValue as error:
        name = str(error.full_key or re.sub(r".*: ", "", str(error).splitlines()[0]))
        raise BadInput(f"{name}= is missing. Example:\n  {command_help(command).splitlines()[-2].strip()}") from None
    except OmegaConfBaseException as error:
        raise BadInput(f"{first_line(error)}. See pausebench {command} --help.") from None
    if hasattr(config, "refuse_unused"):
        config.refuse_unused(overrides)
    return config.resolved() if hasattr(config, "resolved") else config


@dataclass(frozen=True)
class CellOutcome:
    """How a cell ended: its error, or None."""

    error: Exception | None


class HydraCells:
    """Composes and launches cells of any command through the launcher named on the command line."""

    def __init__(self) -> None:
        from hydra.core.global_hydra import GlobalHydra

        self._hydra: Any = GlobalHydra.instance().hydra

    @property
    def run_elsewhere(self) -> bool:
        """Whether the launcher sends cells to the nodes of a cluster."""
        from hydra.core.hydra_config import HydraConfig

        return _sends_to_slurm(HydraConfig.get().launcher)

    def compose(self, command: str, overrides: Sequence[str]) -> Any:
        """The resolved config of one cell. Raises ``BadInput``."""
        from hydra.types import RunMode

        overrides = _spelled(command, overrides)
        with Translated(command, overrides, command in STUDIES):
            composed = self._hydra.compose_config(command, overrides, RunMode.RUN, with_log_configuration=False)
            return to_config(command, _without_hydra(composed), overrides)

    def launch(self, command: str, cells: Sequence[Sequence[str]], names: Sequence[str]) -> list[CellOutcome]:
        """Run cells of one command side by side as the launcher allows, and wait for all of them.

        ``names``: the cells' own, by which a later driver knows them in Slurm's queue. Raises ``RunFailed`` when the
        launcher itself broke down (a worker was killed): which cells are done then stands in their run folders.
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
        with open_dict(config):
            config.hydra.launcher = chosen.launcher
            config.hydra.job.name = command
        if _on_slurm(config):
            config.hydra.launcher.name = slurm.record(config.runs, config.hydra.launcher.name, names)
        return _launch(self._hydra.config_loader, command, config, cells)


def _launch(loader: Any, command: str, config: Any, cells: Sequence[Sequence[str]]) -> list[CellOutcome]:
    """``Launcher.launch``, the call that Hydra's own sweepers make."""
    from hydra._internal.callbacks import Callbacks
    from hydra.core.plugins import Plugins
    from hydra.core.utils import JobStatus
    from hydra.types import HydraContext

    if _on_slurm(config):
        from pausebench.runs import slurm

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


def _on_slurm(config: Any) -> bool:
    return _sends_to_slurm(config.hydra.launcher)


def _sends_to_slurm(launcher: Any) -> bool:
    return str(launcher._target_).endswith(".SlurmLauncher")


class _Task:
    """The task function of a command; importable, so that a sweep's workers can unpickle it."""

    def __init__(self, command: str) -> None:
        self.command = command
        self.__name__ = command  # Hydra names jobs by it

    def __call__(self, composed: Any) -> dict[str, Any]:
        try:
            return execute(self.command, composed)
        except Exception as error:
            error.add_note(traceback.format_exc())  # a traceback does not survive the way back from a worker
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
        except (PausebenchError, BrokenPipeError) as error:  # Hydra would print a line of its own
            failure.append(error)

    arguments, sys.argv = sys.argv, [f"pausebench {command}", *overrides]
    try:
        with Translated(command, overrides, command in STUDIES):
            hydra.main(version_base="1.3", config_path=str(conf_dir().resolve()), config_name=command)(task)()
    finally:
        sys.argv = arguments
    if failure:
        raise failure[0]


def _sweep(command: str, overrides: list[str]) -> int:
    """``-m``: compose and check every cell, then launch all of them; failed cells are listed at the end."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.types import RunMode

    if any(override.startswith("hydra/sweeper=") for override in overrides):
        raise BadInput("hydra/sweeper=: pausebench sweeps over products of values with -m and knows no other sweeper.")
    register_config()
    os.environ["HYDRA_FULL_ERROR"] = "1"
    hydra = Hydra.create_main_hydra2(command, create_config_search_path(str(conf_dir().resolve())))
    try:
        with Translated(command, overrides, command in STUDIES):
            config = hydra.compose_config(command, overrides, RunMode.MULTIRUN, with_log_configuration=False)
            parsed = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
            cells = BasicSweeper.split_arguments(parsed, None)[0]
        checked = _Checked(hydra.config_loader)
        for cell in cells:
            with Translated(command, cell, command in STUDIES):
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
    """What a launcher takes for Hydra's config loader: it hands out what the check of a sweep's cells composed.

    Composing is most of what a cell costs that is already done. Workers get no copy and compose their own cells.
    """

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._composed: dict[tuple[str, ...], bytes] = {}  # pickled, a config takes 20 kB

    def __getstate__(self) -> dict[str, Any]:
        return {"_loader": self._loader, "_composed": {}}

    def compose(self, master: Any, overrides: Sequence[str]) -> Any:
        """The config of one cell, kept for the launcher."""
        composed = self._loader.load_sweep_config(master, list(overrides))
        self._composed[tuple(overrides)] = pickle.dumps(composed)
        return composed

    def load_sweep_config(self, master_config: Any, sweep_overrides: Sequence[str]) -> Any:
        """The call that launchers make."""
        kept = self._composed.pop(tuple(sweep_overrides), None)
        return self._loader.load_sweep_config(master_config, sweep_overrides) if kept is None else pickle.loads(kept)


def describe_error(error: Exception) -> str:
    """One cell's error as a user reads it: our own message, or type and first line of anything else."""
    return str(error) if isinstance(error, PausebenchError) else f"{type(error).__name__}: {first_line(error)}"


def register_config() -> None:
    """Tell Hydra what is not a file of conf/: the commands' schemas, the tasks and the recipes."""
    from hydra.core.config_store import ConfigStore

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


# ------------------------------
# What Hydra and OmegaConf refuse, in messages that say what was given, what is allowed and what to type.

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
