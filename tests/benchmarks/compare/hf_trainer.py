"""transformers' Trainer on rows padded to the longest of their batch, driven step by step.

It runs in a thread of its own that waits before every step until it is asked for one: so one training, compiled once,
can take turns with ours.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pausebench.pauses import IGNORE_INDEX

Row = dict[str, list[int]]


def padded(rows: Sequence[Row], pad_id: int) -> dict[str, torch.Tensor]:
    """The usual collator: right-padded to the longest row, with an attention mask; no labels on padding."""
    width = max(len(row["input_ids"]) for row in rows)

    def filled(name: str, filler: int) -> torch.Tensor:
        return torch.tensor([row[name] + [filler] * (width - len(row[name])) for row in rows])

    mask = torch.tensor([[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in rows])
    return {"input_ids": filled("input_ids", pad_id), "labels": filled("labels", IGNORE_INDEX), "attention_mask": mask}


class _Closed(Exception):
    """Ends the thread."""


class SteppedTrainer:
    """A ``transformers.Trainer`` over ``rows`` in their order that takes as many steps as it is told to."""

    def __init__(
        self,
        model: Any,
        rows: Sequence[Row],
        *,
        pad_id: int,
        batch_size: int,
        bf16: bool,
        compiled: bool,
        cpu: bool,
        scratch: Path,
    ) -> None:
        import transformers

        arguments = transformers.TrainingArguments(
            output_dir=str(scratch),
            per_device_train_batch_size=batch_size,
            max_steps=len(rows) // batch_size,
            learning_rate=1e-4,
            weight_decay=0.1,
            adam_beta2=0.95,
            max_grad_norm=1.0,
            optim="adamw_torch_fused",
            bf16=bf16,
            use_cpu=cpu,
            torch_compile=compiled,
            train_sampling_strategy="sequential",
            remove_unused_columns=False,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        self._threads = torch.get_num_threads()
        self._asked: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._taken: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        asked, taken, closing = self._asked, self._taken, self._closing

        class Gate(transformers.TrainerCallback):
            def on_step_begin(self, *given: Any, **more: Any) -> None:
                if not asked.get() or closing.is_set():
                    raise _Closed

            def on_step_end(self, *given: Any, **more: Any) -> None:
                taken.put(None)

        self._trainer = transformers.Trainer(
            model=model,
            args=arguments,
            train_dataset=list(rows),
            data_collator=lambda chosen: padded(chosen, pad_id),
            callbacks=[Gate()],
        )
        self._trainer.remove_callback(transformers.PrinterCallback)
        self._thread: threading.Thread | None = None

    def steps(self, count: int) -> None:
        """Take ``count`` optimizer steps. Raises what the training raises."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._train, name="transformers Trainer", daemon=True)
            self._thread.start()
        for _ in range(count):
            self._asked.put(True)
        for _ in range(count):
            error = self._taken.get()
            if error is not None:
                raise error

    def close(self) -> None:
        self._closing.set()
        self._asked.put(False)
        if self._thread is not None:
            self._thread.join()

    def _train(self) -> None:
        torch.set_num_threads(self._threads)
        try:
            self._trainer.train()
            self._taken.put(RuntimeError("the Trainer ran out of rows"))
        except _Closed:
            pass
        except BaseException as error:  # handed to the thread that asked
            self._taken.put(error)
