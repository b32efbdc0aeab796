"""Scores a model on a task's test split with M pauses.

Invariant: the result does not depend on the batch size, nor on which other M are scored in the same process. Padding is
never seen, and arithmetic is float64: in float32 a batch of another size rounds differently, which moves a
log-likelihood's sixth digit and can turn a near-tie between two tokens.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from pausebench.data.batches import EncodedExamples, RowLayout
from pausebench.data.lengths import Tokens, encode, fit
from pausebench.data.tokenizer import Tokenizer
from pausebench.evaluation.generate import Answer, generate
from pausebench.evaluation.intervals import macro_f1_estimate, mean_estimate
from pausebench.evaluation.metrics import CHOICE_METRICS, METRICS
from pausebench.evaluation.score import target_log_likelihoods
from pausebench.model.decoder import Decoder
from pausebench.model.flops import inference_flops, scoring_flops
from pausebench.tasks import Example, Task

PARTS = ("history", "context", "question")  # of an example; what may be cut, first to last


class Reading(NamedTuple):
    """A row's prefix, or one of several: each with another window of its context."""

    row: int
    prefix: Tokens


class Likelihood(NamedTuple):
    """Log-likelihood of an answer in nats, summed over so many tokens."""

    total: float
    tokens: int


class Evaluator:
    """Scores ``examples`` (the test split) with any M.

    Rows never pass ``max_length`` tokens. Behind the pauses an answer has room for its length where the task fixes
    that, for the longest candidate where it is scored, else for an eighth of ``max_length``; a prefix that leaves less
    is cut (``data.lengths``). Of several windows of a context the one counts whose answer has the highest mean
    log-probability a token. Decoding stops at ``max_length``; the likelihood of a target that is longer is that of its
    beginning. ``max_new_tokens``: the longest answer decoded, unless the task fixes its length.
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
        self._encoded = encode(examples, task, tokenizer)

    def evaluate(self, layout: RowLayout, m: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Scores with M = ``m`` pauses (or fillers: ``layout.pause_id``): (result fields, one prediction a row).

        Decoding never emits ``<pause>``, whatever fills the pauses' places.
        """
        layout = replace(layout, k=m)
        began = time.perf_counter()
        readings, cut = self._readings(layout.given)
        rows, flops = self._scored(layout, readings) if self.task.scored else self._decoded(layout, readings)
        groups = [example.group for example in self.examples]
        estimates = {
            name: macro_f1_estimate([row["chosen"] for row in rows], [row["right"] for row in rows], groups)
            if name == "macro_f1"
            else mean_estimate([row[name] for row in rows], groups)
            for name in (*self.task.metrics, "nll")
        }
        nll = estimates.pop("nll")
        headline = estimates[self.task.metrics[0]]
        result = {
            "metric": self.task.metrics[0],
            "value": headline.value,
            "stderr": headline.stderr,
            "interval": [headline.low, headline.high],
            "n": len(rows),
            "truncated": sum(any(parts) for parts in cut),
            "truncated_parts": {part: sum(part in parts for parts in cut) for part in PARTS},
            "max_new_tokens": 0 if self.task.scored else self.max_new_tokens,
            "metrics": {name: estimate.value for name, estimate in estimates.items()},
            "stderrs": {name: estimate.stderr for name, estimate in estimates.items()},
            "intervals": {name: [estimate.low, estimate.high] for name, estimate in estimates.items()},
            "target_nll": nll.value,
            "target_nll_stderr": nll.stderr,
            "inference_flops": flops / len(rows),
            "examples_per_second": len(rows) / (time.perf_counter() - began),
        }
        return result, rows

    def _readings(self, given: int) -> tuple[list[Reading], list[tuple[str, ...]]]:
        """What is read of each row beside ``given`` positions of pauses and cue, and which parts of it were cut."""
        readings, cut = [], []
        for row, example in enumerate(self._encoded):
            answer = max(map(len, example.candidates), default=self.task.answer_tokens or self.max_length // 8)
            fitted = fit(example, self.max_length - given - answer)
            readings += [Reading(row, prefix) for prefix in fitted.prefixes]
            cut.append(fitted.cut)
        return readings, cut

    def _decoded(self, layout: RowLayout, readings: Sequence[Reading]) -> tuple[list[dict[str, Any]], float]:
        """A decoded answer for each row and the likelihood of its target after the same reading; FLOPs of decoding."""
        answers: dict[int, Answer] = {}
        for numbers in self._batches([len(reading.prefix) for reading in readings]):
            prefixes = [readings[number].prefix for number in numbers]
            decoded = generate(
                self.model,
                layout.inference_rows(EncodedExamples.of(prefixes, [[]] * len(prefixes), self.tokenizer.end_id)),
                layout.attention,
                max_new_tokens=self.max_new_tokens,
                end_id=self.tokenizer.end_id,
                pause_id=self.tokenizer.pause_id,
                limit=self.max_length,
                visibility=layout.visibility,
            )
            answers |= zip(numbers, decoded, strict=True)
        best = _best(
            [reading.row for reading in readings], [answers[i].mean_log_probability for i in range(len(readings))]
        )
        chosen = [readings[number] for number in best]
        targets = [example.target for example in self._encoded]
        likelihoods = self._likelihoods(layout, [reading.prefix for reading in chosen], targets)
        rows = []
        for row, number in enumerate(best):
            example, text = self.examples[row], self.tokenizer.decode(answers[number].tokens)
            scores = {name: METRICS[name](text, example.references) for name in self.task.metrics}
            correct = scores["exact_match" if "exact_match" in scores else self.task.metrics[0]] == 1.0
            rows.append(self._row(row, text, correct, scores, likelihoods[row]))
        flops = sum(
            self._flops(inference_flops, layout, reading.prefix, self._predicted(layout, reading.prefix, answers[i]))
            for i, reading in enumerate(readings)
        )
        return rows, flops

    def _predicted(self, layout: RowLayout, prefix: Tokens, answer: Answer) -> int:
        """Tokens predicted for an answer: those it has and the end token, unless it was cut off before."""
        room = self.max_length - len(prefix) - layout.k - len(layout.cue) + 1  # the last token takes no position
        return min(len(answer.tokens) + 1, self.max_new_tokens, room)

    def _flops(self, formula: Callable[..., float], layout: RowLayout, prefix: Tokens, tokens: int) -> float:
        """A formula of ``model.flops`` for so many tokens predicted behind a prefix and its pauses."""
        model = self.model
        given = len(prefix) + layout.k
        return formula(model.config, model.vocab_size, given, tokens, layout.attention, len(layout.cue))

    def _scored(self, layout: RowLayout, readings: Sequence[Reading]) -> tuple[list[dict[str, Any]], float]:
        """The likeliest candidate of each row, and the FLOPs of all candidates."""
        pairs = [
            (number, candidate)
            for number, reading in enumerate(readings)
            for candidate in self._encoded[reading.row].candidates
        ]
        prefixes = [readings[number].prefix for number, _ in pairs]
        likelihoods = self._likelihoods(layout, prefixes, [candidate for _, candidate in pairs])
        of_reading: list[list[Likelihood]] = [[] for _ in readings]
        for (number, _), likelihood in zip(pairs, likelihoods, strict=True):
            of_reading[number].append(likelihood)
        means = [max(likelihood.total / likelihood.tokens for likelihood in group) for group in of_reading]
        rows = []
        for row, number in enumerate(_best([reading.row for reading in readings], means)):
            example, found = self.examples[row], of_reading[number]
            totals = [likelihood.total for likelihood in found]
            characters = [len(candidate.strip()) for candidate in example.candidates]
            picked = {name: choose(totals, characters) for name, choose in CHOICE_METRICS.items()}
            right, chosen = example.candidates.index(example.target), picked["accuracy"]
            scores: dict[str, Any] = {name: float(choice == right) for name, choice in picked.items()}
            scores |= {"chosen": chosen, "right": right, "log_likelihoods": [round(total, 9) for total in totals]}
            text = example.candidates[chosen]
            rows.append(self._row(row, text, chosen == right, scores, found[right]))
        flops = sum(
            self._flops(scoring_flops, layout, prefix, likelihood.tokens)
            for prefix, likelihood in zip(prefixes, likelihoods, strict=True)
        )
        return rows, flops

    def _row(self, row: int, text: str, correct: bool, scores: dict[str, Any], target: Likelihood) -> dict[str, Any]:
        example = self.examples[row]
        return {
            "index": row,
            "prefix": example.prefix,
            "target": example.target,
            "references": list(example.references),
            "prediction": text,
            "correct": correct,
            **scores,
            "nll": round(-target.total / target.tokens, 9),
        }

    def _likelihoods(
        self, layout: RowLayout, prefixes: Sequence[Tokens], targets: Sequence[Tokens]
    ) -> list[Likelihood]:
        """Of each target behind its prefix, cut where the positions end."""
        fitting = [
            target[: max(1, self.max_length - layout.given - len(prefix))]
            for prefix, target in zip(prefixes, targets, strict=True)
        ]
        found: dict[int, Likelihood] = {}
        for numbers in self._batches(
            [len(prefix) + len(target) for prefix, target in zip(prefixes, fitting, strict=True)]
        ):
            examples = EncodedExamples.of(
                [prefixes[number] for number in numbers], [fitting[number] for number in numbers], self.tokenizer.end_id
            )
            totals = target_log_likelihoods(self.model, layout.training_batch(examples))
            found |= {i: Likelihood(total, len(fitting[i])) for i, total in zip(numbers, totals, strict=True)}
        return [found[number] for number in range(len(prefixes))]

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Numbers of the rows of each batch: rows of like length stand together."""
        order = torch.argsort(torch.tensor(lengths), stable=True)
        return (numbers.tolist() for numbers in torch.split(order, self.batch_size))


def _best(rows: Sequence[int], values: Sequence[float]) -> list[int]:
    """For each row 0, 1, ... the number of its entry with the highest value; the first of equal ones."""
    best: dict[int, int] = {}
    for number, row in enumerate(rows):
        if row not in best or values[number] > values[best[row]]:
            best[row] = number
    return [best[row] for row in range(len(best))]
