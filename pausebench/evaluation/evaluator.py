"""Scores a model on a task's test split with M pauses.

Invariant: the result does not depend on the batch size, nor on which other M are scored in the same process. For that
padding is never seen, and arithmetic is float64 unless another precision is asked for. In float32 a batch of another
size rounds differently, which changes the sixth digit of a log-likelihood and can decide a near-tie between two tokens.

Words: a reading is one prefix that the model reads, and a row has several where its context is read through windows.
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
from pausebench.evaluation.batches import ReadBatch, Reading, reading_batches
from pausebench.evaluation.generate import Answer, decode, target_log_likelihoods
from pausebench.evaluation.metrics import CHOICE_METRICS, METRICS, macro_f1_estimate, mean_estimate
from pausebench.model.base import Model
from pausebench.model.flops import inference_flops, scoring_flops
from pausebench.model.prefill import Prefill
from pausebench.tasks import Example, Task

PARTS = ("history", "context", "question")  # of an example, in the order in which they are cut


class Likelihood(NamedTuple):
    """Log-likelihood of an answer in nats, summed over its tokens, and their number."""

    total: float
    tokens: int


class ReadingScores(NamedTuple):
    """What one reading gives: the likelihood of its target or of every candidate, and the decoded answer if any."""

    likelihoods: list[Likelihood]
    answer: Answer | None


# "exact" is float64: slower, and no batch size changes a score.
DTYPES = {Arithmetic.exact: torch.float64, Arithmetic.fp32: torch.float32, Arithmetic.bf16: torch.bfloat16}


class Evaluator:
    """Scores ``examples`` (the test split) with any M.

    Rows never pass ``max_length`` tokens. A prefix is cut (``data.examples.fit``) where it leaves too little room for
    the answer: the length that the task fixes, the longest candidate if the task is scored, an eighth of ``max_length``
    otherwise. The room never depends on a decoded task's target, which would tell something of the answer. Of several
    windows of a context, the one counts whose answer has the highest mean log-probability per token. Decoding stops at
    ``max_length``, and of a target that would pass it only the beginning is scored.

    max_new_tokens: the longest answer to decode, unless the task fixes its length. batch_size: rows read together
    (None: as many as ``evaluation.batches`` takes).
    """

    def __init__(
        self,
        model: Model,
        task: Task,
        examples: Sequence[Example],
        tokenizer: Tokenizer,
        *,
        batch_size: int | None = None,
        max_length: int,
        max_new_tokens: int | None = None,
        precision: Arithmetic = Arithmetic.exact,
    ) -> None:
        # A copy: the caller's model keeps its precision, and may train on.
        self.model = copy.deepcopy(model).to(DTYPES[precision]).eval()
        self.task = task
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.max_length = max_length
        self.max_new_tokens = task.answer_tokens or max_new_tokens or max_length
        self.examples = examples
        # Tokenised once; a sweep over ten M reads the same tokens ten times.
        self._encoded = encode(examples, task, tokenizer)

    def evaluate(self, layout: RowLayout, m: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Score with M = ``m`` pauses, or fillers (``layout.pause_id``): (result fields, one prediction a row)."""
        [(_, result, rows)] = self.sweep(layout, [m])
        return result, rows

    def sweep(
        self, layout: RowLayout, counts: Sequence[int], stopping: Callable[[], bool] = lambda: False
    ) -> Iterator[tuple[int, dict[str, Any], list[dict[str, Any]]]]:
        """(M, result, predictions) of each M, as ``evaluate`` gives them, one after the other.

        Where no position of a prefix sees the pauses after it, the M share one pass over the prefix and the most
        pauses. ``examples_per_second`` of an M then counts its share of that pass. Once ``stopping`` is true, only the
        first of the M that share a pass is finished; the caller may leave before the next.
        """
        if prefix_is_shared(layout):
            yield from self._sweep_together(layout, list(counts), stopping)
        else:
            for m in counts:
                yield from self._sweep_together(layout, [m], stopping)

    def _sweep_together(
        self, layout: RowLayout, counts: list[int], stopping: Callable[[], bool]
    ) -> Iterator[tuple[int, dict[str, Any], list[dict[str, Any]]]]:
        layouts = {m: layout.at(m) for m in counts}
        # Speed is reported for each M. Work that several share is divided equally among them.
        seconds = dict.fromkeys(counts, 0.0)
        readings, cut, scores = {}, {}, {}
        for m in counts:
            began = time.perf_counter()
            readings[m], cut[m] = self._readings(layouts[m].given)
            scores[m] = [ReadingScores([], None)] * len(readings[m])
            seconds[m] += time.perf_counter() - began
        # Rows with several windows, for any M. Only for them are answers compared, which costs a softmax a token.
        windowed = {row for listed in readings.values() for row, n in Counter(r.row for r in listed).items() if n > 1}
        for batch in self._batches(layout, readings):
            # A stop should leave one whole result rather than parts of many.
            if len(counts) > 1 and stopping():
                counts = counts[:1]
            wanted = sorted((m for m in batch.numbers if m in counts), reverse=True)
            if not wanted:
                continue
            began = time.perf_counter()
            most = layouts[wanted[0]]
            # The cue comes after the pauses. For several M it is read later, after the pauses of each.
            read = self._prefill(most if len(wanted) == 1 else replace(most, cue=most.cue[:0]), batch)
            shared = (time.perf_counter() - began) / len(wanted)
            compared = any(reading.row in windowed for reading in batch.readings)
            # From the most pauses to the fewest: each M drops pauses from the same cache and writes over them.
            for m in wanted:
                began = time.perf_counter()
                of_m = read
                if len(wanted) > 1:
                    dropped = read.without_last(wanted[0] - m, max(0, layout.policy.shift - m))
                    of_m = dropped.through(layout.cue)
                of_batch = self._scores(of_m, layouts[m], batch, compared, last=m == wanted[-1])
                for number, one in zip(batch.numbers[m], of_batch, strict=True):
                    scores[m][number] = one
                seconds[m] += time.perf_counter() - began + shared
        for m in counts:
            began = time.perf_counter()
            result, rows = self._result(layouts[m], readings[m], cut[m], scores[m])
            total = seconds[m] + time.perf_counter() - began
            yield m, result | {"examples_per_second": len(rows) / total}, rows

    def _result(
        self,
        layout: RowLayout,
        readings: Sequence[Reading],
        cut: Sequence[tuple[str, ...]],
        scores: Sequence[ReadingScores],
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """One M's fields of result.json and its predictions."""
        rows, flops = (self._scored if self.task.scored else self._decoded)(layout, readings, scores)
        groups = [example.group for example in self.examples]
        # Macro F1 is a number of the whole test set; all other metrics are means over rows.
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
            # A scored task decodes nothing.
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
        """The readings of all rows with ``given`` positions of pauses and cue, and which parts of each row were cut."""
        readings, cut = [], []
        for row, example in enumerate(self._encoded):
            answer = max(map(len, example.candidates), default=self.task.answer_tokens or self.max_length // 8)
            fitted = fit(example, self.max_length - given - answer)
            readings += [Reading(row, prefix) for prefix in fitted.prefixes]
            cut.append(fitted.cut)
        return readings, cut

    def _batches(self, layout: RowLayout, readings: Mapping[int, Sequence[Reading]]) -> Iterator[ReadBatch]:
        """Batches of the readings of several M, with room for all that is read after them."""
        # Cache slots are reserved for the longest continuation: an answer, or a target that is longer.
        shortest = min(len(reading.prefix) for listed in readings.values() for reading in listed)
        answer = 0 if self.task.scored else min(self.max_new_tokens, self.max_length - shortest)

        def continuation(reading: Reading) -> int:
            targets = self._targets(reading)
            return max(answer, min(self.max_length, max(map(len, targets))))

        most = max(layout.at(m).given for m in readings)
        return reading_batches(readings, continuation, most, self.model.slot_bytes(), self.batch_size)

    def _targets(self, reading: Reading) -> Sequence[Tokens]:
        """What is scored after a reading: every candidate, or the target alone."""
        example = self._encoded[reading.row]
        return example.candidates if self.task.scored else [example.target]

    def _prefill(self, layout: RowLayout, batch: ReadBatch) -> Prefill:
        # No targets: at inference the row ends with the last pause, which predicts the first answer token.
        prefixes = [reading.prefix for reading in batch.readings]
        rows = layout.inference_rows(EncodedExamples.of(prefixes, [[]] * len(prefixes), self.tokenizer.end_id))
        return self.model.prefill(rows, layout.attention, layout.policy.pause_visibility, batch.slots)

    def _scores(
        self, read: Prefill, layout: RowLayout, batch: ReadBatch, compared: bool, last: bool
    ) -> list[ReadingScores]:
        """What each reading of a batch gives.

        compared: whether a row has several answers. last: nothing is read from this cache afterwards.
        """
        # Candidates overwrite each other in the cache, so the prefix is read once for all of them.
        lists = [self._targets(reading) for reading in batch.readings]
        likelihoods: list[list[Likelihood]] = [[] for _ in lists]
        for place in range(max(map(len, lists))):
            # All rows of a batch go through one pass. A row with fewer candidates reads a token of its first again.
            targets = [
                # At least one token, so that every row has a likelihood, however little room its prefix leaves.
                listed[place][: max(1, self.max_length - layout.given - len(reading.prefix))]
                if place < len(listed)
                else listed[0][:1]
                for listed, reading in zip(lists, batch.readings, strict=True)
            ]
            for row, total in enumerate(target_log_likelihoods(read, targets)):
                if place < len(lists[row]):
                    likelihoods[row].append(Likelihood(total, len(targets[row])))
        if self.task.scored:
            return [ReadingScores(of_row, None) for of_row in likelihoods]
        # Decoding drops finished rows from the cache, which the next M still needs; so all but the last get a copy.
        answers = decode(
            read if last else read.copy(),
            max_new_tokens=self.max_new_tokens,
            end_id=self.tokenizer.end_id,
            pause_id=self.tokenizer.pause_id,
            limit=self.max_length,
            means=compared,
        )
        return [ReadingScores(of_row, answer) for of_row, answer in zip(likelihoods, answers, strict=True)]

    def _decoded(
        self, layout: RowLayout, readings: Sequence[Reading], scores: Sequence[ReadingScores]
    ) -> tuple[list[dict[str, Any]], float]:
        """The predictions, with the likelihood of the target after the same window as the answer; FLOPs of decoding."""
        answers = [one.answer for one in scores if one.answer is not None]
        # Without windows each row has one reading, and this picks it.
        best = _best([reading.row for reading in readings], [answer.mean_log_probability for answer in answers])
        rows = []
        for row, number in enumerate(best):
            example, text = self.examples[row], self.tokenizer.decode(answers[number].tokens)
            metrics = {name: METRICS[name](text, example.references) for name in self.task.metrics}
            # "correct" marks rows in the report's list of predictions; exact match says it best where a task has it.
            correct = metrics["exact_match" if "exact_match" in metrics else self.task.metrics[0]] == 1.0
            rows.append(self._row(row, text, correct, metrics, scores[number].likelihoods[0]))
        flops = sum(
            self._flops(inference_flops, layout, reading.prefix, self._predicted(layout, reading.prefix, answer))
            for reading, answer in zip(readings, answers, strict=True)
        )
        return rows, flops

    def _predicted(self, layout: RowLayout, prefix: Tokens, answer: Answer) -> int:
        """Tokens predicted for an answer: its own and the end token, unless it was cut off before."""
        # One more than there are free positions: the last token is predicted and never read.
        room = self.max_length - len(prefix) - layout.policy.longest - len(layout.cue) + 1
        return min(len(answer.tokens) + 1, self.max_new_tokens, room)

    def _scored(
        self, layout: RowLayout, readings: Sequence[Reading], scores: Sequence[ReadingScores]
    ) -> tuple[list[dict[str, Any]], float]:
        """The predictions, the likeliest candidate of each row; FLOPs of all candidates."""
        # Candidates differ in length, and so do what windows give: the window is chosen by its best mean per token.
        means = [max(likelihood.total / likelihood.tokens for likelihood in one.likelihoods) for one in scores]
        rows = []
        for row, number in enumerate(_best([reading.row for reading in readings], means)):
            example, likelihoods = self.examples[row], scores[number].likelihoods
            totals = [likelihood.total for likelihood in likelihoods]
            # The space before a candidate belongs to the target's tokens, not to its length.
            characters = [len(candidate.strip()) for candidate in example.candidates]
            picked = {name: choose(totals, characters) for name, choose in CHOICE_METRICS.items()}
            right, chosen = example.candidates.index(example.target), picked["accuracy"]
            metrics: dict[str, Any] = {name: float(choice == right) for name, choice in picked.items()}
            metrics |= {"chosen": chosen, "right": right, "log_likelihoods": [round(total, 9) for total in totals]}
            text = example.candidates[chosen]
            rows.append(self._row(row, text, chosen == right, metrics, likelihoods[right]))
        flops = sum(
            self._flops(scoring_flops, layout, reading.prefix, [likelihood.tokens for likelihood in one.likelihoods])
            for reading, one in zip(readings, scores, strict=True)
        )
        return rows, flops

    def _flops(
        self, formula: Callable[..., float], layout: RowLayout, prefix: Tokens, predicted: int | list[int]
    ) -> float:
        """FLOPs by a formula of ``model.flops``, of ``predicted`` tokens after a prefix and its pauses."""
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
    """Whether several M can share one pass over a prefix and the most pauses, and each give what it gives alone.

    No position of the prefix may see a pause, and no pause may depend on the pauses after it. That rules out
    bidirectional prefixes, which see all pauses; prepended pauses, which everything sees; and a read-out, the last
    pause, which sees what other pauses do not.
    """
    return (
        layout.attention is not AttentionKind.bidirectional
        and layout.policy.placement is Placement.append
        and layout.policy.pause_visibility is not PauseVisibility.readout
    )


def _best(rows: Sequence[int], values: Sequence[float]) -> list[int]:
    """For each row 0, 1, ... the index of its entry with the highest value; the first of equal ones."""
    best: dict[int, int] = {}
    for number, row in enumerate(rows):
        if row not in best or values[number] > values[best[row]]:
            best[row] = number
    return [best[row] for row in range(len(best))]
