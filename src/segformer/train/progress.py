"""Progress as lines of text, for output that is no terminal."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

SCORES = {"val/miou": "mIoU", "val/top1": "top-1"}  # by their names in the logs


class ProgressLines(ProgressBar):
    """Prints step, loss, score and remaining time, after each validation and every few minutes.

    Args:
        minutes: Minutes between two lines.
    """

    def __init__(self, minutes: float = 2.0) -> None:
        super().__init__()
        self.minutes = minutes
        self.enabled = True
        self._loss = torch.tensor(torch.nan)
        self._begun = self._printed = time.monotonic()
        self._first_step = 0

    def enable(self) -> None:
        self.enabled = True

    def disable(self) -> None:
        self.enabled = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begun = self._printed = time.monotonic()
        self._first_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._loss = outputs["loss"].detach()  # float() would wait for the device
        if self._is_due():
            self._print(self._of_training(trainer))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._print(self._of_training(trainer))

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._is_due():
            self._print(f"validation, batch {batch_idx + 1} of {sum(trainer.num_val_batches)}")

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._is_due():
            self._print(f"test, batch {batch_idx + 1} of {sum(trainer.num_test_batches)}")

    def _of_training(self, trainer: Trainer) -> str:
        steps = int(trainer.estimated_stepping_batches)
        words = [
            f"step {trainer.global_step} of {steps}",
            f"loss {float(self._loss) * trainer.accumulate_grad_batches:.4f}",
        ]
        words += [
            f"{name} {100 * float(trainer.callback_metrics[key]):.2f} %"
            for key, name in SCORES.items()
            if key in trainer.callback_metrics
        ]
        if done := trainer.global_step - self._first_step:
            seconds = (time.monotonic() - self._begun) / done * (steps - trainer.global_step)
            words.append(f"{_duration(seconds)} left")
        return ", ".join(words)

    def _is_due(self) -> bool:
        return time.monotonic() - self._printed > 60 * self.minutes

    def _print(self, line: str) -> None:
        self._printed = time.monotonic()
        if self.enabled:
            print(line, flush=True)


def _duration(seconds: float) -> str:
    """Returns hours and minutes, or minutes and seconds if it is less than an hour."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"
