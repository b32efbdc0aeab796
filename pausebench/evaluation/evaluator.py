"""Scores a model on a task's test split with M pauses.

Invariant: the result does not depend on the batch size, nor on which other M are scored in the same process. Padding is
never seen, and arithmetic is float64: in float32 a batch of another size rounds differently, which moves a
log-likelihood's sixth digit and can turn a near-tie between two tokens.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from pausebench.data.batches import EncodedExamples, RowLayout
from pausebench.data.task_rows import TokenLists, encode
from pausebench.data.tokenizer import Tokenizer
from pausebench.evaluation.generate import generate
from pausebench.evaluation.metrics import METRICS, mean_and_stderr
from pausebench.evaluation.score import target_log_likelihoods
from pausebench.model.decoder import Decoder
from pausebench.tasks import Example, Task


class Evaluator:
    """Scores ``examples`` (the test split) with any M.

    Rows never pass ``max_length`` tokens: a prefix that leaves the answer, behind the pauses, less than an eighth of
    them (or its length, where the task fixes that) loses its beginning, by a rule that never looks at the answer;
    decoding stops there; the likelihood of a target that is longer is that of its beginning. ``max_new_tokens``: the
    longest answer decoded, unless the task fixes its length.
    """

    def __init__(
        self,
        model: Decoder,
        task: Task,
        examples: Sequence[Example],
        tokenizer: Tokenizer,
        *,
        batch_size: int,
        max_length: int,
        max_new_tokens: int | None = None,
    ) -> None:
        self.model = copy.deepcopy(model).double().eval()
        self.task = task
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.max_length = max_length
        self.max_new_tokens = task.answer_tokens or max_new_tokens or max_length
        self.examples = examples
        self._lists = encode(examples, task, tokenizer)

    def _cut(self, given: int) -> tuple[EncodedExamples, int]:
        """Examples that fit beside ``given`` pauses and cue tokens, and how many prefixes were cut for it."""
        room = self.max_length - given
        longest = max(1, room - (self.task.answer_tokens or self.max_length // 8))
        prefixes = [ids[-longest:] for ids in self._lists.prefix]
        targets = [ids[: room - len(prefix)] for prefix, ids in zip(prefixes, self._lists.target, strict=True)]
        cut = sum(len(ids) > longest for ids in self._lists.prefix)
        return EncodedExamples.of(TokenLists(prefixes, targets), self.tokenizer.end_id), cut

    def evaluate(self, layout: RowLayout, m: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Scores with M = ``m`` pauses (or fillers: ``layout.pause_id``): (result fields, one prediction a row).

        Decoding never emits ``<pause>``, whatever fills the pauses' places.
        """
        layout = replace(layout, k=m)
        began = time.perf_counter()
        predictions: dict[int, dict[str, Any]] = {}
        encoded, cut = self._cut(m + len(layout.cue))
        # Rows of like length stand together; predictions are put back in the order of the split.
        order = torch.argsort(encoded.prefix_lengths + encoded.target_lengths, stable=True)
        for index in torch.split(order, self.batch_size):
            examples = encoded.rows(index)
            answers = generate(
                self.model,
                layout.inference_rows(examples),
                layout.attention,
                max_new_tokens=self.max_new_tokens,
                end_id=self.tokenizer.end_id,
                pause_id=self.tokenizer.pause_id,
                limit=self.max_length,
            )
            likelihoods = target_log_likelihoods(self.model, layout.training_batch(examples))
            lengths = examples.target_lengths.tolist()
            for number, answer, likelihood, length in zip(index.tolist(), answers, likelihoods, lengths, strict=True):
                example, text = self.examples[number], self.tokenizer.decode(answer)
                scores = {name: METRICS[name](text, example.references) for name in self.task.metrics}
                predictions[number] = {
                    "index": number,
                    "prefix": example.prefix,
                    "target": example.target,
                    "references": list(example.references),
                    "prediction": text,
                    "correct": scores["exact_match" if "exact_match" in scores else self.task.metrics[0]] == 1.0,
                    **scores,
                    "nll": round(-likelihood / length, 9),
                }
        rows = [predictions[number] for number in range(len(self.examples))]
        means = {name: mean_and_stderr([row[name] for row in rows]) for name in self.task.metrics}
        headline = self.task.metrics[0]
        nll, nll_stderr = mean_and_stderr([row["nll"] for row in rows])
        result = {
            "metric": headline,
            "value": means[headline][0],
            "stderr": means[headline][1],
            "n": len(rows),
            "prefixes_cut": cut,
            "max_new_tokens": self.max_new_tokens,
            "metrics": {name: mean for name, (mean, _) in means.items()},
            "target_nll": nll,
            "target_nll_stderr": nll_stderr,
            "examples_per_second": len(rows) / (time.perf_counter() - began),
        }
        return result, rows
