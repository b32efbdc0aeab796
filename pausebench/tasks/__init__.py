"""Tasks by name. A task turns a source row into an Example and names its metrics; it knows no tokens and no pauses."""

from pausebench.tasks.base import Dataset, Example, Row, Task
from pausebench.tasks.commonsense_qa import COMMONSENSE_QA
from pausebench.tasks.gsm8k import GSM8K
from pausebench.tasks.majority import MAJORITY
from pausebench.tasks.mod3 import MOD3
from pausebench.tasks.parity import PARITY
from pausebench.tasks.relay import RELAY
from pausebench.tasks.squad import SQUAD

TASKS: dict[str, Task] = {task.name: task for task in (PARITY, MOD3, MAJORITY, RELAY, SQUAD, GSM8K, COMMONSENSE_QA)}

__all__ = ["TASKS", "Dataset", "Example", "Row", "Task"]
