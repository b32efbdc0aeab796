"""ONE training loop, for pretraining and finetuning.

Invariants: the loss of a step is the sum over the supervised positions of the global batch divided by their number,
however it is split into micro-batches and over ranks; a run that is killed at any instant and started again gives the
weights and metrics of one that was not. Every rank takes the same decisions at the same step.
"""

from __future__ import annotations

import dataclasses
import math
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from pausebench import stop
from pausebench.config.groups import OnBadStep, Parallel, Precision, TrainConfig
from pausebench.console import Progress
from pausebench.data.batch import Batch, Batches, Prefetched
from pausebench.errors import Interrupted, RunFailed
from pausebench.model.base import Model
from pausebench.runs.folder import RunFolder, read_metrics
from pausebench.training import checkpoint
from pausebench.training.compiled import compile_model
from pausebench.training.device import peak_flops, return_freed_memory
from pausebench.training.loss import Objective, build_optimizer, learning_rate
from pausebench.training.parallel import ALONE, Ranks, is_share
from pausebench.training.profiler import Profiler
from pausebench.training.tracking import Tracker

NORM_WEIGHT = 0.02  # of the newest step in the running mean of gradient norms
MOST_SKIPPED = 5  # skipped steps between two log lines that a run may have, however few steps those are


class Taken(NamedTuple):
    """A step whose numbers wait on the device: this rank's share of the loss, gradient norm, whether it was skipped."""

    step: int
    loss: Tensor
    norm: Tensor
    skipped: Tensor
    rate: float


@dataclass
class Position:
    """Where a run stands, beside its weights: what a checkpoint stores.

    tokens: positions computed, pauses and padding included; meaningful: text alone. window: (step, loss, norm, rate,
    whether it was skipped) of the steps since the last log line. usual_norm: running mean of the gradient norm.
    """

    step: int = 0
    tokens: int = 0
    meaningful: int = 0
    skipped: int = 0
    usual_norm: float = 0.0
    best_step: int | None = None
    best_loss: float | None = None
    window: list[tuple[int, float, float, float, bool]] = field(default_factory=list)


class Trainer:
    """Trains ``model`` on this rank's share of ``batches`` in ``folder`` until ``config.steps``."""

    def __init__(
        self,
        model: Model,
        batches: Batches,
        config: TrainConfig,
        folder: RunFolder,
        *,
        precision: Precision,
        device: torch.device,
        tracker: Tracker,
        progress: Progress,
        ranks: Ranks = ALONE,
        profile: bool = False,
    ) -> None:
        self.model = model.to(device)
        self.batches = Prefetched(batches) if device.type == "cuda" else batches  # a CPU has no idle thread
        self.config = config
        self.folder = folder
        self.precision = precision
        self.device = device
        self.tracker = tracker
        self.progress = progress
        self.ranks = ranks
        self.optimizer = build_optimizer(model, config)
        self.position = Position()
        compile_model(self.model, device, config.compile, self._flops, progress.say)
        self._objective = ranks.wrap(Objective(self.model))
        self._profiler = Profiler(folder.path, profile and ranks.is_first, progress, self.model)
        self._unread: list[Taken] = []
        self._usual_norm = torch.zeros((), device=device)

    def train(self) -> dict[str, Any]:
        """Run to the last step and return the summary for ``result.json``.

        Raises:
            RunFailed: a loss or gradient that is not finite, a disk that takes no checkpoint.
            Interrupted: a stop was asked for; the message says what was saved.
        """
        self._resume()
        # Without bfloat16 instructions the fastest products are float32's, whatever the run computes in.
        kinds = {self._dtype, torch.float32} if self.device.type == "cpu" else {self._dtype}
        peak = max(peak_flops(self.device, kind, torch.get_num_threads()) for kind in kinds) * self.ranks.count
        first = self.batches.batch(self.position.step + 1)  # made before the clock starts
        if self.ranks.kind is Parallel.ddp:
            self._settle(first)
        began, began_tokens, flops = time.perf_counter(), self.position.tokens, 0.0
        with self.progress, self._profiler.over(self.config.steps - self.position.step):
            for step in range(self.position.step + 1, self.config.steps + 1):
                with self._profiler.range("data"):
                    batch = self.batches.batch(step)
                supervised, tokens, meaningful, work, stops = self.ranks.sum(
                    [
                        batch.supervised,
                        batch.tokens,
                        batch.meaningful,
                        batch.tokens * self.model.flops_per_token(batch.attention_length),
                        stop.reason() is not None,
                    ]
                )
                self.optimize(step, batch, int(supervised))
                self._profiler.step(tokens, work / peak)
                self.position.step = step
                self.position.tokens += int(tokens)
                self.position.meaningful += int(meaningful)
                flops += work
                last = step == self.config.steps
                validate = last or step % self.config.validate_every == 0
                if validate or step % self.config.log_every == 0:
                    row = self._window()
                    seconds = time.perf_counter() - began
                    row["tokens_per_second"] = (self.position.tokens - began_tokens) / seconds
                    row["mfu"] = flops / seconds / peak
                    if self.device.type == "cuda":
                        row["peak_memory_bytes"] = torch.cuda.max_memory_allocated(self.device)
                    if validate:
                        row["validation_loss"] = self._validate(step)
                    if self.ranks.is_first:
                        self.folder.append_metrics(row)
                        self.tracker.log(row)
                        self.progress.update(row)
                    began, began_tokens, flops = time.perf_counter(), self.position.tokens, 0.0
                if last or step % self.config.checkpoint_every == 0:
                    self._save()
                if not last and (stops if self.ranks.count > 1 else stop.reason() is not None):
                    self._stop()
        return self._summary()

    def _stop(self) -> NoReturn:
        """Save where the run stands, and say so."""
        step = self.position.step
        if step not in checkpoint.steps_of(self.folder.path):
            self._save()
        raise Interrupted(
            f"{stop.reason() or 'another rank was stopped'}: saved step {step} of {self.config.steps} in "
            f"{self.folder.path}. Type the same command to go on from there."
        )

    def _settle(self, batch: Batch) -> None:
        """One backward pass without a step: DDP orders its buckets by the first one, and sums of three ranks or more
        depend on that order, so that a run that goes on would differ in its last bits from one that was not stopped."""
        with self.model.lowered(self._dtype):
            self._objective(batch.rows(0, 1)).backward()
        self.optimizer.zero_grad()

    def _summary(self) -> dict[str, Any]:
        path = checkpoint.path_of(self.folder.path, self.position.step)
        if self.ranks.sharded:
            path = checkpoint.save_weights(self.folder.path, self.model, dataclasses.asdict(self.position), self.ranks)
        row = self.ranks.first(read_metrics(self.folder.path / "metrics.jsonl")[-1] if self.ranks.is_first else None)
        return {
            "step": self.position.step,
            "tokens": self.position.tokens,
            "meaningful_tokens": self.position.meaningful,
            "tokens_per_step": round(self.position.tokens / self.position.step),
            "skipped_steps": self.position.skipped,
            "loss": row["loss"],
            "validation_loss": row["validation_loss"],
            "best_step": self.position.best_step,
            "best_validation_loss": self.position.best_loss,
            "checkpoint": str(path.relative_to(self.folder.path)),
        }

    def optimize(self, step: int, batch: Batch, supervised: int) -> None:
        """One optimizer step on the global batch, of which ``batch`` is this rank's share."""
        rate = learning_rate(step, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if supervised == 0:
            raise RunFailed(f"{self.folder.path}: the batch of step {step} has no position with a loss.")
        rows = len(batch.input_ids)
        size = self.config.micro_batch_size or rows
        total = torch.zeros((), device=self.device)
        with self.model.lowered(self._dtype):
            for start in range(0, rows, size):
                if start and self.ranks.count == 1 and stop.reason() is not None:
                    self.optimizer.zero_grad()
                    self._stop()  # a step may take minutes; nothing was changed yet
                part = batch.rows(start, min(size, rows - start))
                last = start + size >= rows
                with nullcontext() if last else self.ranks.accumulating(self._objective):
                    with self._profiler.range("forward"):
                        loss = self._objective(part) / supervised
                    with self._profiler.range("backward"):
                        (loss * self.ranks.count).backward()  # ranks average their gradients; the sum is wanted
                total += loss.detach()
        with self._profiler.range("clipping"):
            norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        if is_share(norm):
            norm = norm.full_tensor()
        bad = self._bad(norm)
        if self.config.on_bad_step is OnBadStep.skip:
            self.optimizer.found_inf = bad.float()  # type: ignore[attr-defined]  # fused AdamW leaves all as it was
        first = not self.optimizer.state
        with self._profiler.range("optimizer"):
            self.optimizer.step()
            self.optimizer.zero_grad()
        if first:
            return_freed_memory()  # AdamW's new moments stand in the middle of what activations leave behind
        self._unread.append(Taken(step, total, norm, bad, rate))

    def _bad(self, norm: Tensor) -> Tensor:
        """bool scalar on the device: whether a gradient of this norm is not finite or a spike. No wait for it.

        A loss that is not finite has such a gradient.
        """
        bad = ~norm.isfinite()
        if self.config.spike is not None:
            usual = self._usual_norm
            bad = bad | ((usual > 0) & (norm > self.config.spike * usual))
            following = torch.where(usual > 0, usual.lerp(norm, NORM_WEIGHT), norm)
            self._usual_norm = torch.where(bad, usual, following)
        return bad

    def _read(self) -> None:
        """Fetch the numbers of the steps since the last look; the only wait for the device.

        Raises ``RunFailed`` for the first bad step, or, where those are skipped, when all of them were.
        """
        if self._unread:
            self.ranks.barrier()  # a wait for the device would not tell which rank is lost
            tensors = [tensor for taken in self._unread for tensor in (taken.loss, taken.norm, taken.skipped.float())]
            values = torch.stack([*tensors, self._usual_norm]).tolist()
            self.position.usual_norm = values.pop()
            losses = self.ranks.sum(values[::3])
            for taken, loss, norm, bad in zip(self._unread, losses, values[1::3], values[2::3], strict=True):
                self.position.window.append((taken.step, loss, norm, taken.rate, bool(bad)))
                self.position.skipped += bool(bad) and self.config.on_bad_step is OnBadStep.skip
            self._unread = []
        bad_steps = [entry for entry in self.position.window if entry[4] or not math.isfinite(entry[1])]
        skip = self.config.on_bad_step is OnBadStep.skip
        if not bad_steps or (skip and len(bad_steps) < max(len(self.position.window), MOST_SKIPPED)):
            return
        step, loss, norm, *_ = bad_steps[0]
        saved = checkpoint.steps_of(self.folder.path)
        good = f"The last good checkpoint is step {saved[-1]}" if saved else "No checkpoint was saved yet"
        what = f"loss {loss} and gradient norm {norm} at step {step}"
        if math.isfinite(norm):
            what += f", {norm / self.position.usual_norm:.1f} times the usual norm (train.spike={self.config.spike})"
        if skip:
            what += f" and {len(bad_steps)} of {len(self.position.window)} steps skipped since the last log line"
        raise RunFailed(
            f"{self.folder.path}: {what}. {good}. Lower train.lr or train.clip, or set precision=fp32"
            + ("" if skip else ", or train.on_bad_step=skip")
            + "; other settings make another run."
        )

    def _window(self) -> dict[str, Any]:
        """The metrics row of the steps since the last one: means of loss and gradient norm, the current rate."""
        self._read()
        window, self.position.window = self.position.window, []
        rate = window[-1][3]
        taken = [entry for entry in window if not entry[4]] or window
        row = {
            "step": self.position.step,
            "tokens": self.position.tokens,
            "meaningful_tokens": self.position.meaningful,
            "loss": math.fsum(entry[1] for entry in taken) / len(taken),
            "lr": rate,
            "grad_norm": math.fsum(entry[2] for entry in taken) / len(taken),
        }
        if self.config.on_bad_step is OnBadStep.skip:
            row["skipped_steps"] = self.position.skipped
        return row

    @torch.no_grad()
    def _validate(self, step: int) -> float:
        """Mean loss over the validation rows; remembers the best step."""
        batch = self.batches.validation(self.config.validation_rows)
        rows = len(batch.input_ids)
        size = self.config.micro_batch_size or self.config.batch_size
        with self.model.lowered(self._dtype):
            losses = [
                self.model.summed_loss(batch.rows(start, min(size, rows - start))) for start in range(0, rows, size)
            ]
        total, supervised = self.ranks.sum([float(torch.stack(losses).sum()), batch.supervised])
        loss = total / supervised
        if self.position.best_loss is None or loss < self.position.best_loss:
            self.position.best_step, self.position.best_loss = step, loss
        return loss

    def _save(self) -> None:
        self._read()
        checkpoint.save_checkpoint(
            self.folder.path,
            self.position.step,
            self.model,
            self.optimizer,
            dataclasses.asdict(self.position),
            self.ranks,
        )
        if self.ranks.is_first:
            checkpoint.prune(self.folder.path, self.config.keep_checkpoints, self.position.best_step)

    def _resume(self) -> None:
        """Go on from the newest checkpoint that is whole, if there is one."""
        position = checkpoint.load_newest(self.folder.path, self.model, self.optimizer, self.progress.say, self.ranks)
        if position is not None:
            self.position = Position(**position)
            self._usual_norm.fill_(self.position.usual_norm)
            if not self.progress.quiet:
                self.progress.say(f"{self.folder.name}: goes on from step {self.position.step}")
        if self.ranks.is_first:
            self.folder.cut_metrics(self.position.step)

    def _flops(self) -> float:
        """Of the whole run, by its first batch: the same however often it is resumed."""
        first = self.batches.batch(1)
        tokens = self.config.steps * first.tokens * self.ranks.count
        return tokens * self.model.flops_per_token(first.attention_length)

    @property
    def _dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.precision is Precision.bf16 else torch.float32
