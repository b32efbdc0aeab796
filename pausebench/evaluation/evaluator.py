"""Scores a model on a task's test split with M pauses.

Invariant: the result does not depend on the batch size, nor on which other M are scored in the same process. Padding is
never seen, and arithmetic is float64 unless another precision is asked for: in float32 a batch of another size rounds
differently, which moves a log-likelihood's sixth digit and can turn a near-tie between two tokens.
"""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from pausebench.config.groups import Arithmetic, AttentionKind, PauseVisibility, Placement
from pausebench.data.batches import EncodedExamples, RowLayout
from pausebench.data.examples import Tokens, encode, fit
from pausebench.data.tokenizer import Tokenizer
from pausebench.evaluation.batches import Reading, Together, reading_batches
from pausebench.evaluation.generate import Answer, Prefill, decode, prefill, target_log_likelihoods
from pausebench.evaluation.metrics import CHOICE_METRICS, METRICS, macro_f1_estimate, mean_estimate
from pausebench.model.cache import slot_bytes
from pausebench.model.fast import FastDecoder
from pausebench.model.flops import inference_flops, scoring_flops
from pausebench.tasks import Example, Task

PARTS = ("history", "context", "question")  # of an example; what may be cut, first to last


class Likelihood(NamedTuple):
    """Log-likelihood of an answer in nats, summed over so many tokens."""

    total: float
    tokens: int


class Found(NamedTuple):
    """What one reading gave: the likelihood of its target, or of every candidate; the answer where one is decoded."""

    likelihoods: list[Likelihood]
    answer: Answer | None


DTYPES = {Arithmetic.exact: torch.float64, Arithmetic.fp32: torch.float32, Arithmetic.bf16: torch.bfloat16}


class Evaluator:
    """Scores ``examples`` (the test split) with any M.

    Rows never pass ``max_length`` tokens. Behind the pauses an answer has room for its length where the task fixes
    that, for the longest candidate where it is scored, else for an eighth of ``max_length``; a prefix that leaves less
    is cut (``data.examples.fit``). Of several windows of a context the one counts whose answer has the highest mean
    log-probability a token. Decoding stops at ``max_length``; the likelihood of a target that is longer is that of its
    beginning. ``max_new_tokens``: the longest answer decoded, unless the task fixes its length. ``batch_size``: rows
    read together (None: as many as ``evaluation.batches`` takes).
    """

    def __init__(
        self,
        model: FastDecoder,
        task: Task,
        examples: Sequence[Example],
        tokenizer: Tokenizer,
        *,
        batch_size: int | None = None,
        max_length: int,
        max_new_tokens: int | None = None,
        precision: Arithmetic = Arithmetic.exact,
    ) -> None:
        self.model = copy.deepcopy(model).to(DTYPES[precision]).eval()
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
        [(_, result, rows)] = self.sweep(layout, [m])
        return result, rows

    def sweep(
        self, layout: RowLayout, counts: Sequence[int], stopping: Callable[[], bool] = lambda: False
    ) -> Iterator[tuple[int, dict[str, Any], list[dict[str, Any]]]]:
        """(M, result, predictions) of each M, as ``evaluate`` gives them, one after the other.

        Where no position of a prefix sees the pauses behind it, the M share one pass over it and the most pauses. An
        M's ``examples_per_second`` then counts its part of that pass. Once ``stopping``, M that share a pass are
        dropped, all but the first; the caller may leave before the next.
        """
        if prefix_is_shared(layout):
            yield from self._together(layout, list(counts), stopping)
        else:
            for m in counts:
                yield from self._together(layout, [m], stopping)

    def _together(
        self, layout: RowLayout, counts: list[int], stopping: Callable[[], bool]
    ) -> Iterator[tuple[int, dict[str, Any], list[dict[str, Any]]]]:
        layouts = {m: layout.at(m) for m in counts}
        clock = dict.fromkeys(counts, 0.0)
        readings, cut, found = {}, {}, {}
        for m in counts:
            began = time.perf_counter()
            readings[m], cut[m] = self._readings(layouts[m].given)
            found[m] = [Found([], None)] * len(readings[m])
            clock[m] += time.perf_counter() - began
        several = {row for listed in readings.values() for row, n in Counter(r.row for r in listed).items() if n > 1}
        for batch in self._batches(layout, readings):
            if len(counts) > 1 and stopping():
                counts = counts[:1]
            wanted = sorted((m for m in batch.numbers if m in counts), reverse=True)
            if not wanted:
                continue
            began = time.perf_counter()
            most = layouts[wanted[0]]
            read = self._prefill(most if len(wanted) == 1 else replace(most, cue=most.cue[:0]), batch)
            shared = (time.perf_counter() - began) / len(wanted)
            means = any(reading.row in several for reading in batch.readings)
            for m in wanted:
                began = time.perf_counter()
                behind = read
                if len(wanted) > 1:
                    behind = read.without_last(wanted[0] - m, max(0, layout.policy.shift - m)).through(layout.cue)
                ones = self._found(behind, layouts[m], batch, means, last=m == wanted[-1])
                for number, one in zip(batch.numbers[m], ones, strict=True):
                    found[m][number] = one
                clock[m] += time.perf_counter() - began + shared
        for m in counts:
            began = time.perf_counter()
            result, rows = self._result(layouts[m], readings[m], cut[m], found[m])
            seconds = clock[m] + time.perf_counter() - began
            yield m, result | {"examples_per_second": len(rows) / seconds}, rows

    def _result(
        self, layout: RowLayout, readings: Sequence[Reading], cut: Sequence[tuple[str, ...]], found: Sequence[Found]
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        rows, flops = (self._scored if self.task.scored else self._decoded)(layout, readings, found)
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

    def _batches(self, layout: RowLayout, readings: Mapping[int, Sequence[Reading]]) -> Iterator[Together]:
        """The readings of some M; rows of like length stand together."""
        shortest = min(len(reading.prefix) for listed in readings.values() for reading in listed)
        answer = 0 if self.task.scored else min(self.max_new_tokens, self.max_length - shortest)

        def continuation(reading: Reading) -> int:
            targets = self._targets(reading)
            return max(answer, min(self.max_length, max(map(len, targets))))

        most = max(layout.at(m).given for m in readings)
        weight = self.model.token_embedding.weight
        size = slot_bytes(self.model.config, weight.dtype, weight.device)
        return reading_batches(readings, continuation, most, size, self.batch_size)

    def _targets(self, reading: Reading) -> Sequence[Tokens]:
        """What is scored behind a reading: every candidate, or the target alone."""
        example = self._encoded[reading.row]
        return example.candidates if self.task.scored else [example.target]

    def _prefill(self, layout: RowLayout, batch: Together) -> Prefill:
        prefixes = [reading.prefix for reading in batch.readings]
        rows = layout.inference_rows(EncodedExamples.of(prefixes, [[]] * len(prefixes), self.tokenizer.end_id))
        return prefill(self.model, rows, layout.attention, layout.policy.pause_visibility, batch.slots)

    def _found(self, read: Prefill, layout: RowLayout, batch: Together, means: bool, last: bool) -> list[Found]:
        """What each reading of a batch gives. means: whether answers are compared; last: the cache is free."""
        lists = [self._targets(reading) for reading in batch.readings]
        likelihoods: list[list[Likelihood]] = [[] for _ in lists]
        for place in range(max(map(len, lists))):
            # A row with fewer candidates than another reads one token of its first again.
            targets = [
                listed[place][: max(1, self.max_length - layout.given - len(reading.prefix))]
                if place < len(listed)
                else listed[0][:1]
                for listed, reading in zip(lists, batch.readings, strict=True)
            ]
            for row, total in enumerate(target_log_likelihoods(read, targets)):
                if place < len(lists[row]):
                    likelihoods[row].append(Likelihood(total, len(targets[row])))
        if self.task.scored:
            return [Found(of_row, None) for of_row in likelihoods]
        answers = decode(
            read if last else read.copy(),
            max_new_tokens=self.max_new_tokens,
            end_id=self.tokenizer.end_id,
            pause_id=self.tokenizer.pause_id,
            limit=self.max_length,
            means=means,
        )
        return [Found(of_row, answer) for of_row, answer in zip(likelihoods, answers, strict=True)]

    def _decoded(
        self, layout: RowLayout, readings: Sequence[Reading], found: Sequence[Found]
    ) -> tuple[list[dict[str, Any]], float]:
        """A decoded answer for each row and the likelihood of its target after the same reading; FLOPs of decoding."""
        answers = [one.answer for one in found if one.answer is not None]
        best = _best([reading.row for reading in readings], [answer.mean_log_probability for answer in answers])
        rows = []
        for row, number in enumerate(best):
            example, text = self.examples[row], self.tokenizer.decode(answers[number].tokens)
            scores = {name: METRICS[name](text, example.references) for name in self.task.metrics}
            correct = scores["exact_match" if "exact_match" in scores else self.task.metrics[0]] == 1.0
            rows.append(self._row(row, text, correct, scores, found[number].likelihoods[0]))
        flops = sum(
            self._flops(inference_flops, layout, reading.prefix, self._predicted(layout, reading.prefix, answer))
            for reading, answer in zip(readings, answers, strict=True)
        )
        return rows, flops

    def _predicted(self, layout: RowLayout, prefix: Tokens, answer: Answer) -> int:
        """Tokens predicted for an answer: those it has and the end token, unless it was cut off before."""
        room = (
            self.max_length - len(prefix) - layout.policy.longest - len(layout.cue) + 1
        )  # the last token takes no position
        return min(len(answer.tokens) + 1, self.max_new_tokens, room)

    def _scored(
        self, layout: RowLayout, readings: Sequence[Reading], found: Sequence[Found]
    ) -> tuple[list[dict[str, Any]], float]:
        """The likeliest candidate of each row, and the FLOPs of all candidates."""
        means = [max(likelihood.total / likelihood.tokens for likelihood in one.likelihoods) for one in found]
        rows = []
        for row, number in enumerate(_best([reading.row for reading in readings], means)):
            example, likelihoods = self.examples[row], found[number].likelihoods
            totals = [likelihood.total for likelihood in likelihoods]
            characters = [len(candidate.strip()) for candidate in example.candidates]
            picked = {name: choose(totals, characters) for name, choose in CHOICE_METRICS.items()}
            right, chosen = example.candidates.index(example.target), picked["accuracy"]
            scores: dict[str, Any] = {name: float(choice == right) for name, choice in picked.items()}
            scores |= {"chosen": chosen, "right": right, "log_likelihoods": [round(total, 9) for total in totals]}
            text = example.candidates[chosen]
            rows.append(self._row(row, text, chosen == right, scores, likelihoods[right]))
        flops = sum(
            self._flops(scoring_flops, layout, reading.prefix, [likelihood.tokens for likelihood in one.likelihoods])
            for reading, one in zip(readings, found, strict=True)
        )
        return rows, flops

    def _flops(
        self, formula: Callable[..., float], layout: RowLayout, prefix: Tokens, predicted: int | list[int]
    ) -> float:
        """A formula of ``model.flops`` for so many tokens predicted behind a prefix and its pauses."""
        model = self.model
        given = len(prefix) + layout.policy.longest
        return formula(model.config, model.vocab_size, given, predicted, layout.attention, len(layout.cue))

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


def prefix_is_shared(layout: RowLayout) -> bool:
    """Whether several M can share one pass over a prefix and the most pauses, and give what each alone would.

    No position of the prefix may see a pause, nor a pause those behind it or whether it is the last: bidirectional
    prefixes see all pauses, prepended pauses are seen by all, and a read-out sees what other pauses do not.
    """
    return (
        layout.attention is not AttentionKind.bidirectional
        and layout.policy.placement is Placement.append
        and layout.policy.pause_visibility is not PauseVisibility.readout
    )


def _best(rows: Sequence[int], values: Sequence[float]) -> list[int]:
    """For each row 0, 1, ... the number of its entry with the highest value; the first of equal ones."""
    best: dict[int, int] = {}
    for number, row in enumerate(rows):
        if row not in best or values[number] > values[best[row]]:
            best[row] = number
    return [best[row] for row in range(len(best))]
