"""Figure 4c's sweep on SQuAD: seven M scored in one go beside the same M one by one, ourselves both times."""

from __future__ import annotations

from typing import Any

from pausebench.commands.finetune import length_limit
from pausebench.data.batches import RowLayout
from pausebench.data.task_rows import DatasetRows, open_task
from pausebench.evaluation.evaluator import Evaluator
from pausebench.runs import lineage
from pausebench.tasks import TASKS
from tests.benchmarks.compare.contest import OURS, Contender, Line, alternate, seconds
from tests.benchmarks.compare.setting import Setting

TARGET = 2.5
COUNTS = (0, 2, 5, 8, 10, 15, 20)
PEER = "one by one"
ROWS_SHARE = 4  # a sweep scores one in so many of the rows that `decode` reads
NEW_TOKENS = 8


def run(setting: Setting) -> list[Line]:
    given = setting.options
    config = setting.finetuning("squad", 1)
    rows = open_task(config.task, config.text)
    layout = RowLayout.of(config.policy, config.prefix, TASKS["squad"], setting.tokenizer)
    assert isinstance(rows, DatasetRows)
    examples = rows.test()[: max(1, given.rows // ROWS_SHARE)]
    model = setting.build(config).eval()

    def evaluator() -> Evaluator:
        return Evaluator(
            model,
            rows.task,
            examples,
            setting.tokenizer,
            batch_size=given.batch_size,
            max_length=length_limit(config, lineage.RANDOM)[0],
            max_new_tokens=NEW_TOKENS,
        )

    scored: dict[str, list[dict[str, Any]]] = {}

    def together() -> None:
        scored[OURS] = [result for _, result, _ in evaluator().sweep(layout, COUNTS)]

    def one_by_one() -> None:
        scored[PEER] = [evaluator().evaluate(layout, m)[0] for m in COUNTS]

    answers = len(examples) * len(COUNTS)
    contenders = [
        Contender(
            name,
            lambda: evaluator().evaluate(layout, COUNTS[1]),
            lambda work=work: answers / seconds(work, setting.device),
        )
        for name, work in ((OURS, together), (PEER, one_by_one))
    ]
    rates = alternate(contenders, given.repeats, setting.note)
    pairs = zip(scored[OURS], scored[PEER], strict=True)
    same = all(abs(ours["target_nll"] - other["target_nll"]) <= 1e-4 * other["target_nll"] for ours, other in pairs)
    what = f"squad, {len(examples)} rows, M = {', '.join(map(str, COUNTS))}, causal prefix"
    return [Line("sweep", what, PEER, "answers/s", rates[OURS], rates[PEER], TARGET, checks={"same_likelihoods": same})]
