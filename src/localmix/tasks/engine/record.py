"""What a run writes down of every step, and where it stands: metrics.csv, whose rows outlive an interruption."""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import lightning
import numpy as np
import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor

from localmix.tasks.engine.batches import EpochBatches
from localmix.tasks.engine.run_folder import METRICS
from localmix.tasks.engine.seeding import seed_generators
from localmix.writing import named

STEP_COLUMNS = ("epoch", "step", "lr", "loss")
AT_A_TIME = 50
"""Rows that are fetched from the device, and written, together."""

OnStep = Callable[[int, int], Any]
"""Is told the steps done and the steps of the whole run."""
OnEpoch = Callable[[dict[str, float], float], Any]
"""Is told the epoch, the mean loss of all its steps and the metrics of the validation, and the seconds of the run up to
here; in the first process alone."""


class Record(lightning.Callback):
    """Writes metrics.csv: learning rate and loss of every step, the mean over all processes, and the validations.

    It also knows the position of the run, and before each batch it seeds the global generators by (seed, epoch, batch,
    process). So no random state has to be kept for a run to go on as if it had not been interrupted.

    The rows are on the disk before the checkpoint that counts them; rows later than the checkpoint from which a run
    goes on are dropped. So the file of an interrupted run equals that of an uninterrupted one.
    """

    def __init__(
        self,
        folder: Path,
        batches: EpochBatches,
        *,
        seed: int,
        on_step: OnStep = lambda done, total: None,
        on_epoch: OnEpoch = lambda row, seconds: None,
    ) -> None:
        self.folder, self.batches, self.seed = folder, batches, seed
        self.on_step, self.on_epoch = on_step, on_epoch
        self.epoch, self.batch, self.num_rows, self.seconds = 0, 0, 0, 0.0
        self.rows: list[dict[str, Any]] = []
        self.parts: list[Tensor] = []
        self.losses: list[float] = []
        self.validated = self.epoch_ended = False
        self.file: IO[str] | None = None

    def go_on(self, checkpoint: dict[str, Any]) -> None:
        """Take the position of a checkpoint; before the loader begins to fetch.

        Raises:
            ValueError: the position means nothing to this run, since its steps are made of other batches.
        """
        state = checkpoint["callbacks"][self.state_key]
        now, then = self.batches.layout, state["layout"]
        differences = ", ".join(f"{n} {then.get(n)} (now {now[n]})" for n in now if now[n] != then.get(n))
        if differences:
            raise ValueError(f"resume: the checkpoint belongs to a run of other steps: {differences}")
        self.batches.go_on(state["epoch"], state["batch"])

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        # Not in a hook: Lightning calls none that always comes.
        if self.file:
            with named(self.folder / METRICS):
                self.file.close()
            self.file = None

    def state_dict(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "batch": self.batch,
            "layout": self.batches.layout,
            "num_rows": self.num_rows,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epoch, self.batch, self.num_rows, self.seconds = (
            state_dict[name] for name in ("epoch", "batch", "num_rows", "seconds")
        )

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self.columns = (*STEP_COLUMNS, *pl_module.metrics)
        if not (self.folder / METRICS).exists():
            # a run that goes on from the checkpoint of another folder writes down its own steps
            self.num_rows = 0
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            self.file = _open_rows(self.folder / METRICS, self.columns, self.num_rows)
            # of the epoch that the run goes on within
            self.losses = _losses(self.folder / METRICS, self.epoch) if self.batch else []
        self.num_steps = int(trainer.estimated_stepping_batches)
        self.started = time.perf_counter() - self.seconds

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        place = [self.seed, trainer.current_epoch, batch_idx, trainer.global_rank]
        seed_generators(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0]))
        self.lr = max(group["lr"] / group.get("lr_scale", 1.0) for group in trainer.optimizers[0].param_groups)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.epoch, self.batch = trainer.current_epoch, batch_idx + 1
        self.parts.append(outputs["loss"])
        if self.batch % self.batches.accumulate:
            return
        # Lightning has divided each by their number
        loss = self.parts[0] if len(self.parts) == 1 else torch.stack(self.parts).sum()
        self.parts.clear()
        self.rows.append(
            {"epoch": trainer.current_epoch, "step": trainer.global_step, "lr": self.lr, "loss": loss},
        )
        if len(self.rows) > AT_A_TIME:
            # the last may be that of an epoch, which waits for its validation
            self._write(trainer, self.rows[:-1])
        self.on_step(trainer.global_step, self.num_steps)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self.validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        # Lightning ends the epoch of the checkpoint once more when it goes on from it.
        self.epoch_ended = bool(self.rows)
        if not self.epoch_ended:
            return
        row = {"epoch": trainer.current_epoch}
        if self.validated:
            metrics = {name: trainer.callback_metrics[name].item() for name in pl_module.metrics}
            self.rows[-1] |= metrics
            row |= metrics
        self.validated = False
        self.flush(trainer)
        self.epoch, self.batch = trainer.current_epoch + 1, 0
        self.on_epoch({**row, "loss": sum(self.losses) / len(self.losses)}, self.seconds)
        self.losses.clear()

    def flush(self, trainer: lightning.Trainer) -> None:
        """Bring all rows to the disk; in all processes."""
        self._write(trainer, self.rows)
        if self.file:
            with named(self.folder / METRICS):
                os.fsync(self.file.fileno())
        self.seconds = time.perf_counter() - self.started

    def _write(self, trainer: lightning.Trainer, rows: list[dict[str, Any]]) -> None:
        if not rows:
            return
        losses = torch.stack([row["loss"] for row in rows]).float()
        if trainer.world_size > 1:
            # Each process adds them up in the same order, which a reduction does not promise.
            losses = trainer.strategy.all_gather(losses).double().mean(0)
        for row, loss in zip(rows, losses.tolist(), strict=True):
            row["loss"] = loss
        self.losses += [row["loss"] for row in rows]
        if self.file:
            with named(self.folder / METRICS):
                csv.DictWriter(self.file, self.columns, lineterminator="\n").writerows(rows)
                self.file.flush()
            for logger in trainer.loggers:
                _log(logger, rows)
        self.num_rows += len(rows)
        del self.rows[: len(rows)]


def _log(logger: Logger, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        logger.log_metrics({"loss": row["loss"], "lr": row["lr"], "epoch": row["epoch"]}, step=row["step"])


def _losses(path: Path, epoch: int) -> list[float]:
    """Those of an epoch in a CSV file, in which they have all their digits."""
    with path.open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file) if int(row["epoch"]) == epoch]


def _open_rows(path: Path, columns: tuple[str, ...], num_rows: int) -> IO[str]:
    """Open a CSV file to append to, cut after `num_rows` rows; none: begun anew with the header."""
    if not num_rows:
        file = path.open("w", newline="")
        file.write(",".join(columns) + "\n")
        return file
    lines = path.read_bytes().splitlines(keepends=True)[: num_rows + 1] if path.exists() else []
    if len(lines) <= num_rows:
        raise ValueError(f"{path}: expected at least {num_rows} rows as the checkpoint says, got {len(lines) - 1}")
    file = path.open("r+", newline="")
    file.truncate(sum(map(len, lines)))
    file.seek(0, os.SEEK_END)
    return file
