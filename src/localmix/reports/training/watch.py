"""What a training run shows while it goes on."""

from __future__ import annotations

import time
from typing import Any

import lightning

from localmix.reports.progress import Bar, Display
from localmix.tasks.engine.record import Record

WINDOW = 5.0
"""Time over which images per second are averaged, and between two lines where there is no terminal [s]."""


class Watch(lightning.Callback):
    """A bar with epoch, images per second, learning rate, loss and the time that is left; a line for each epoch.

    The loss is the mean of the last rows that were written, for which the device has not to be waited for.
    """

    def __init__(self, display: Display, record: Record) -> None:
        self.display, self.record = display, record
        self.bar: Bar | None = None
        self.shown: tuple[str, ...] = ()
        self.speed = ""
        self.images, self.since = 0, 0.0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self.shown = pl_module.shown
        if trainer.is_global_zero:
            self.bar = self.display.bar("training")
        self.images, self.since = 0, time.perf_counter()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.bar is None:
            return
        batches = self.record.batches
        self.images += batches.batch_size * batches.num_processes
        now = time.perf_counter()
        if now - self.since >= WINDOW:
            self.speed = f"  {self.images / (now - self.since):,.0f} images/s"
            self.images, self.since = 0, now
        recent = self.record.losses[-50:]
        loss = f"  loss {sum(recent) / len(recent):.3f}" if recent else ""
        self.bar.bars.update(
            self.bar.task,
            description=(
                f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}{self.speed}  lr {self.record.lr:.2e}{loss}"
            ),
            completed=trainer.global_step,
            total=self.record.num_steps,
        )

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if self.bar is not None:
            self.bar.bars.update(self.bar.task, description=f"epoch {trainer.current_epoch + 1}: validating")

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self.images, self.since = 0, time.perf_counter()

    def epoch(self, row: dict[str, float], seconds: float) -> None:
        """A line for an epoch, see `OnEpoch`."""
        scores = "".join(
            f"  {name.removeprefix('val_').replace('_', ' ')} {row[name]:.2%}" for name in self.shown if name in row
        )
        validation = f"  validation loss {row['val_loss']:.3f}" if "val_loss" in row else ""
        self.display.say(
            f"epoch {row['epoch'] + 1:.0f}  loss {row['loss']:.3f}{validation}{scores}{self.speed}  {seconds:.0f} s"
        )
