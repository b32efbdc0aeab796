"""Tasks by name. A task turns a source row into an Example and names its metric; it knows no tokens and no pauses."""

from pausebench.tasks.base import Example, Task
from pausebench.tasks.majority import MAJORITY
from pausebench.tasks.mod3 import MOD3
from pausebench.tasks.parity import PARITY
from pausebench.tasks.relay import RELAY

TASKS: dict[str, Task] = {task.name: task for task in (PARITY, MOD3, MAJORITY, RELAY)}

__all__ = ["TASKS", "Example", "Task"]
