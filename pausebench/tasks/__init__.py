"""Tasks by name. A task turns a source row into an Example and names its metrics; it knows no tokens and no pauses."""

from pausebench.tasks.base import Dataset, Example, Row, Task
from pausebench.tasks.commonsense_qa import COMMONSENSE_QA
from pausebench.tasks.coqa import COQA
from pausebench.tasks.gsm8k import GSM8K
from pausebench.tasks.hellaswag import HELLASWAG
from pausebench.tasks.lambada import LAMBADA, LAMBADA_OPENAI
from pausebench.tasks.majority import MAJORITY
from pausebench.tasks.mod3 import MOD3
from pausebench.tasks.natural_questions import NATURAL_QUESTIONS
from pausebench.tasks.parity import PARITY
from pausebench.tasks.piqa import PIQA
from pausebench.tasks.relay import RELAY
from pausebench.tasks.squad import SQUAD
from pausebench.tasks.web_questions import WEB_QUESTIONS

PAPER_TASKS = (SQUAD, GSM8K, COMMONSENSE_QA, LAMBADA, WEB_QUESTIONS, NATURAL_QUESTIONS, COQA, PIQA, HELLASWAG)
TASKS: dict[str, Task] = {task.name: task for task in (PARITY, MOD3, MAJORITY, RELAY, *PAPER_TASKS, LAMBADA_OPENAI)}

__all__ = ["PAPER_TASKS", "TASKS", "Dataset", "Example", "Row", "Task"]
