"""When a run saves checkpoints, which it keeps, and from which it goes on."""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
from lightning.fabric.plugins import CheckpointIO

from localmix.tasks.engine.checkpoint import load_checkpoint, save_checkpoint
from localmix.tasks.engine.record import Record
from localmix.tasks.engine.run_folder import BEST, CHECKPOINT, CHECKPOINTS
from localmix.tasks.engine.stopping import Stopped, Stopping
from localmix.writing import write_atomically


class AtomicCheckpointIO(CheckpointIO):
    """Lets Lightning write checkpoints wholly or not at all, and read them without running code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        save_checkpoint(checkpoint, Path(path))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        return load_checkpoint(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


class Saving(lightning.Callback):
    """Saves at the end of each epoch, after every so many steps, and when the run is asked to stop.

    Steps are saved between them, never within one that accumulates. The last step of an epoch is saved with its
    validation, so a stop then waits for that. To be listed behind `Record`, `Guard` and `Stopping`.

    Args:
        every: steps; None for epochs only.
        keep: number of the last checkpoints that stay, in a folder of their own; 0: checkpoint.ckpt is all there is.
        monitor: name of the metric whose highest value makes the best checkpoint; None keeps no best one.
        facts: plain values to be found in each checkpoint under "run".
    """

    def __init__(
        self,
        record: Record,
        *,
        every: int | None = None,
        keep: int = 0,
        monitor: str | None = None,
        stopping: Stopping | None = None,
        facts: dict[str, Any] | None = None,
    ) -> None:
        self.record, self.folder, self.every, self.keep = record, record.folder, every, keep
        self.monitor, self.stopping, self.facts = monitor, stopping, facts
        self.best: float | None = None
        self.best_step = 0

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.best_step = state_dict["best"], state_dict["best_step"]

    def on_save_checkpoint(self, trainer: lightning.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        if self.facts:
            checkpoint["run"] = self.facts

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        # Not at the start of the training: a run that is finished has none.
        if self.keep and self.best_step and trainer.is_global_zero and self._path(self.best_step).exists():
            # killed between the two: the checkpoint was saved, but not yet named the best
            _name(self._path(self.best_step), self.folder / BEST)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        batches = batch_idx + 1
        if batches % trainer.accumulate_grad_batches or batches == trainer.num_training_batches:
            return
        stop = self.stopping is not None and self.stopping.agreed
        if stop or (self.every and trainer.global_step % self.every == 0):
            self.save(trainer)
        if stop:
            raise Stopped

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if not self.record.epoch_ended:
            return
        metric = trainer.callback_metrics.get(self.monitor) if self.monitor else None
        better = metric is not None and _is_better(metric.item(), self.best)
        if metric is not None and better:
            self.best, self.best_step = metric.item(), trainer.global_step
        self.save(trainer, best=better)
        if self.stopping is not None and self.stopping.agreed and trainer.current_epoch + 1 < (trainer.max_epochs or 0):
            raise Stopped

    def save(self, trainer: lightning.Trainer, best: bool = False) -> None:
        """Save the present state; in all processes."""
        self.record.flush(trainer)
        path = self._path(trainer.global_step)
        trainer.save_checkpoint(path)
        if not trainer.is_global_zero:
            return
        if best:
            _name(path, self.folder / BEST)
        if self.keep:
            _name(path, self.folder / CHECKPOINT)
            for old in step_checkpoints(self.folder)[self.keep :]:
                old.unlink()
            for partial in path.parent.glob(".*.partial"):
                # a process that was killed has left it
                partial.unlink()

    def _path(self, step: int) -> Path:
        return self.folder / CHECKPOINTS / f"step-{step:08}.ckpt" if self.keep else self.folder / CHECKPOINT


def _is_better(value: float, best: float | None) -> bool:
    """Whether a metric is above the best so far; NaN is below every number, and best only as the first."""
    return best is None or value > best or (math.isnan(best) and not math.isnan(value))


def _name(path: Path, other: Path) -> None:
    """Let `other` be another name of the file at `path`, in place of what had it before."""
    partial = other.with_name(f".{other.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        os.link(path, partial)
    except OSError:
        # a file system without links
        with path.open("rb") as source:
            write_atomically(other, lambda file: shutil.copyfileobj(source, file))
    else:
        partial.replace(other)


def step_checkpoints(folder: Path) -> list[Path]:
    """The last checkpoints of a run, the newest first."""
    names = ((re.fullmatch(r"step-(\d+)\.ckpt", path.name), path) for path in (folder / CHECKPOINTS).glob("*.ckpt"))
    return [path for _, path in sorted(((int(match[1]), path) for match, path in names if match), reverse=True)]


def newest_checkpoint(
    folder: Path, announce: Callable[[str], Any] = lambda text: None
) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint of a run and its content; None if the run has none yet.

    Args:
        announce: is told which checkpoints are passed over, and why.

    Raises:
        ValueError: there are checkpoints, but each is damaged; says what is wrong with each.
    """
    refused = []
    for path in step_checkpoints(folder) or [folder / CHECKPOINT]:
        try:
            return path, load_checkpoint(path)
        except FileNotFoundError:
            continue
        except ValueError as error:
            refused.append(str(error))
            announce(f"{error}; the one before is taken")
    if refused:
        raise ValueError(f"resume: no checkpoint in {folder} is whole: {'; '.join(refused)}")
    return None
