"""Errors a user can meet. Each message says what was given, what is allowed and what to type next.

Every class takes exactly one message string: an exception whose ``__init__`` needs more cannot be unpickled in a
sweep's worker and would take the whole pool down with it.
"""


class PausebenchError(Exception):
    """A failure that pausebench explains. ``exit_code`` is what the command line ends with."""

    exit_code = 1


class BadInput(PausebenchError):
    """The request cannot be carried out as given: an option, a file, a run or a checkpoint is wrong."""

    exit_code = 2


class RunFailed(PausebenchError):
    """A run that started in good order could not finish (a loss that is not finite, a full disk, a killed worker)."""

    exit_code = 1


class Interrupted(PausebenchError):
    """Ctrl-C, SIGTERM, or a parent that died: the message says what was saved and how to go on."""

    exit_code = 130
