"""ONE training loop, for pretraining and finetuning.

Invariants: the loss of a step is the sum over the supervised positions of the global batch divided by their number,
however it is split into micro-batches; a run that is killed at any instant and started again gives the weights and
metrics of one that was not.
"""

from __future__ import annotations

import dataclasses
import math
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pausebench.data.batch import Batch, Batches
from pausebench.errors import Interrupted, RunFailed
from pausebench.groups import Precision, TrainConfig
from pausebench.model.decoder import Decoder
from pausebench.pauses import IGNORE_INDEX
from pausebench.results.run_folder import RunFolder, read_metrics
from pausebench.training import checkpoint, stop
from pausebench.training.device import peak_flops
from pausebench.training.loss import summed_loss
from pausebench.training.optim import build_optimizer, learning_rate
from pausebench.training.progress import Progress
from pausebench.training.tracking import Tracker


@dataclass
class Position:
    """Where a run stands, beside its weights: what a checkpoint stores."""

    step: int = 0
    tokens: int = 0
    best_step: int | None = None
    best_loss: float | None = None
    window: list[tuple[int, float, float, float]] = field(
        default_factory=list
    )  # step, loss, norm, rate; not yet logged


class Trainer:
    """Trains ``model`` on ``batches`` in ``folder`` until ``config.steps``."""

    def __init__(
        self,
        model: Decoder,
        batches: Batches,
        config: TrainConfig,
        folder: RunFolder,
        *,
        precision: Precision,
        device: torch.device,
        tracker: Tracker,
        progress: Progress,
    ) -> None:
        self.model = model.to(device)
        self.batches = batches
        self.config = config
        self.folder = folder
        self.precision = precision
        self.device = device
        self.tracker = tracker
        self.progress = progress
        self.optimizer = build_optimizer(model, config)
        self.position = Position()
        self._unread: list[tuple[int, Tensor, Tensor, float]] = []  # step, loss, gradient norm, rate; not yet synced

    def train(self) -> dict[str, Any]:
        """Run to the last step and return the summary for ``result.json``.

        Raises:
            RunFailed: a loss or gradient that is not finite, a disk that takes no checkpoint.
            Interrupted: a stop was asked for; the message says what was saved.
        """
        self._resume()
        peak = peak_flops(self.device, self._dtype, torch.get_num_threads())
        self.batches.batch(self.position.step + 1)  # made before the clock starts
        began, began_tokens, flops = time.perf_counter(), self.position.tokens, 0.0
        with self.progress:
            for step in range(self.position.step + 1, self.config.steps + 1):
                batch = self.batches.batch(step)
                self._step(step, batch)
                tokens = batch.tokens
                self.position.step = step
                self.position.tokens += tokens
                flops += tokens * self.model.flops_per_token(batch.attention_length)
                last = step == self.config.steps
                validate = last or step % self.config.validate_every == 0
                if validate or step % self.config.log_every == 0:
                    row = self._window()
                    seconds = time.perf_counter() - began
                    row["tokens_per_second"] = (self.position.tokens - began_tokens) / seconds
                    row["mfu"] = flops / seconds / peak
                    if validate:
                        row["validation_loss"] = self._validate(step)
                    self.folder.append_metrics(row)
                    self.tracker.log(row)
                    self.progress.update(row)
                    began, began_tokens, flops = time.perf_counter(), self.position.tokens, 0.0
                saved = last or step % self.config.checkpoint_every == 0
                if saved:
                    self._save()
                if stop.reason() is not None and not last:
                    if not saved:
                        self._save()
                    raise Interrupted(
                        f"{stop.reason()}: saved step {step} of {self.config.steps} in {self.folder.path}. "
                        "Type the same command to go on from there."
                    )
        row = read_metrics(self.folder.path / "metrics.jsonl")[-1]
        return {
            "step": self.position.step,
            "tokens": self.position.tokens,
            "tokens_per_step": round(self.position.tokens / self.position.step),
            "loss": row["loss"],
            "validation_loss": row["validation_loss"],
            "best_step": self.position.best_step,
            "best_validation_loss": self.position.best_loss,
            "checkpoint": str(checkpoint.path_of(self.folder.path, self.position.step).relative_to(self.folder.path)),
        }

    def _step(self, step: int, batch: Batch) -> None:
        """One optimizer step on the global batch."""
        rate = learning_rate(step, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        supervised = batch.supervised
        if supervised == 0:
            raise RunFailed(f"{self.folder.path}: the batch of step {step} has no position with a loss.")
        rows = len(batch.input_ids)
        size = self.config.micro_batch_size or rows
        total = torch.zeros((), device=self.device)
        for start in range(0, rows, size):
            with self._autocast():
                loss = summed_loss(self.model, batch.rows(start, min(size, rows - start)), self.device) / supervised
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._unread.append((step, total, norm, rate))

    def _read(self) -> None:
        """Fetch the losses of the steps since the last look; the only wait for the device.

        Raises ``RunFailed`` for the first step whose loss or gradient is not finite.
        """
        if self._unread:
            steps, losses, norms, rates = zip(*self._unread, strict=True)
            values = torch.stack([*losses, *norms]).tolist()
            self.position.window += list(zip(steps, values[: len(steps)], values[len(steps) :], rates, strict=True))
            self._unread = []
        for step, loss, norm, _ in self.position.window:
            if not (math.isfinite(loss) and math.isfinite(norm)):
                saved = checkpoint.steps_of(self.folder.path)
                good = f"The last good checkpoint is step {saved[-1]}" if saved else "No checkpoint was saved yet"
                raise RunFailed(
                    f"{self.folder.path}: loss {loss} and gradient norm {norm} at step {step}. {good}. "
                    "Lower train.lr or train.clip, or set precision=fp32; other settings make another run."
                )

    def _window(self) -> dict[str, Any]:
        """The metrics row of the steps since the last one: means of loss and gradient norm, the current rate."""
        self._read()
        window, self.position.window = self.position.window, []
        return {
            "step": self.position.step,
            "tokens": self.position.tokens,
            "loss": math.fsum(entry[1] for entry in window) / len(window),
            "lr": window[-1][3],
            "grad_norm": math.fsum(entry[2] for entry in window) / len(window),
        }

    @torch.no_grad()
    def _validate(self, step: int) -> float:
        """Mean loss over the validation rows; remembers the best step."""
        batch = self.batches.validation(self.config.validation_rows)
        supervised = int((batch.labels != IGNORE_INDEX).sum())
        rows = len(batch.input_ids)
        size = self.config.micro_batch_size or self.config.batch_size
        with self._autocast():
            losses = [
                summed_loss(self.model, batch.rows(start, min(size, rows - start)), self.device)
                for start in range(0, rows, size)
            ]
        loss = float(torch.stack(losses).sum()) / supervised
        if self.position.best_loss is None or loss < self.position.best_loss:
            self.position.best_step, self.position.best_loss = step, loss
        return loss

    def _save(self) -> None:
        self._read()
        checkpoint.save_checkpoint(
            self.folder.path, self.position.step, self.model, self.optimizer, dataclasses.asdict(self.position)
        )
        checkpoint.prune(self.folder.path, self.config.keep_checkpoints, self.position.best_step)

    def _resume(self) -> None:
        """Go on from the newest checkpoint, if there is one."""
        steps = checkpoint.steps_of(self.folder.path)
        if steps:
            path = checkpoint.path_of(self.folder.path, steps[-1])
            self.position = Position(**checkpoint.load_checkpoint(path, self.model, self.optimizer))
            if not self.progress.quiet:
                self.progress.say(f"{self.folder.name}: goes on from step {self.position.step}")
        self.folder.cut_metrics(self.position.step)

    @property
    def _dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.precision is Precision.bf16 else torch.float32

    def _autocast(self) -> AbstractContextManager[object]:
        if self.precision is Precision.bf16:
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()
