"""Scores a model on a task's test split with M pauses.

Invariant: the result does not depend on the batch size, nor on which other M are scored in the same process. Padding is
never seen, and arithmetic is float64: in float32 a batch of another size rounds differently, which moves a
log-likelihood's sixth digit and can turn a near-tie between two tokens.
"""

from __future__ import annotations

import copy
import time
from dataclasses import replace
from typing import Any

import torch

from pausebench.data.batches import RowLayout, encode_examples
from pausebench.data.embedded import TEST_SEED, World
from pausebench.evaluation.generate import generate
from pausebench.evaluation.metrics import METRICS, mean_and_stderr
from pausebench.evaluation.score import target_log_likelihoods
from pausebench.model.decoder import Decoder
from pausebench.tasks import Task


class Evaluator:
    """Holds the test split, tokenised once for every M."""

    def __init__(self, model: Decoder, task: Task, world: World, batch_size: int) -> None:
        self.model = copy.deepcopy(model).double().eval()
        self.task = task
        self.tokenizer = world.tokenizer
        self.batch_size = batch_size
        self.rows = world.task_rows(TEST_SEED, 0, task.test_rows)
        self.examples = [task.to_example(row) for row in self.rows]
        encoded = encode_examples(self.examples, self.tokenizer)
        order = torch.argsort(encoded.prefix_lengths + encoded.target_lengths, stable=True)
        # Rows of like length stand together; predictions are put back in the order of the split.
        self._batches = [(index.tolist(), encoded.rows(index)) for index in torch.split(order, batch_size)]

    def evaluate(self, layout: RowLayout, m: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Scores with M = ``m`` pauses (or fillers: ``layout.pause_id``): (result fields, one prediction a row).

        Decoding never emits ``<pause>``, whatever fills the pauses' places.
        """
        layout = replace(layout, k=m)
        began = time.perf_counter()
        predictions: dict[int, dict[str, Any]] = {}
        for numbers, examples in self._batches:
            answers = generate(
                self.model,
                layout.inference_rows(examples),
                layout.attention,
                max_new_tokens=self.task.max_new_tokens,
                end_id=self.tokenizer.end_id,
                pause_id=self.tokenizer.pause_id,
            )
            likelihoods = target_log_likelihoods(self.model, layout.training_batch(examples))
            lengths = examples.target_lengths.tolist()
            for number, answer, likelihood, length in zip(numbers, answers, likelihoods, lengths, strict=True):
                example, text = self.examples[number], self.tokenizer.decode(answer)
                scores = {name: metric(text, example.references) for name, metric in METRICS.items()}
                predictions[number] = {
                    "index": number,
                    "prefix": example.prefix,
                    "target": example.target,
                    "references": list(example.references),
                    "prediction": text,
                    "correct": scores["exact_match"] == 1.0,
                    **scores,
                    "nll": round(-likelihood / length, 9),
                }
        rows = [predictions[number] for number in range(len(self.examples))]
        means = {name: mean_and_stderr([row[name] for row in rows]) for name in METRICS}
        nll, nll_stderr = mean_and_stderr([row["nll"] for row in rows])
        result = {
            "metric": self.task.metric,
            "value": means[self.task.metric][0],
            "stderr": means[self.task.metric][1],
            "n": len(rows),
            "metrics": {name: mean for name, (mean, _) in means.items()},
            "target_nll": nll,
            "target_nll_stderr": nll_stderr,
            "examples_per_second": len(rows) / (time.perf_counter() - began),
        }
        return result, rows
