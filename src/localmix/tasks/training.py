"""One training run in one folder; interrupted and called again, it ends with the same numbers."""

from __future__ import annotations

import csv
import logging
import os
import random
import signal
import time
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import lightning
import numpy as np
import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.plugins.environments import LightningEnvironment

from localmix.tasks.checkpoint import load_checkpoint, save_checkpoint
from localmix.tasks.classification import Classification
from localmix.tasks.data import Images
from localmix.tasks.loading import loader

CHECKPOINT, METRICS = "checkpoint.ckpt", "metrics.csv"
COLUMNS = ("epoch", "step", "lr", "loss", "val_loss", "val_top1")


OnStep = Callable[[int, int], Any]
"""Is told the steps done and the steps of the whole run."""
OnEpoch = Callable[[dict[str, float], float], Any]
"""Is told the epoch, its mean loss, val_loss and val_top1, and the seconds of the run up to here."""


def train(
    recipe: dict[str, Any],
    images: Images,
    folder: Path,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    augment: bool = True,
    device: str = "cpu",
    workers: int = 0,
    on_step: OnStep = lambda done, total: None,
    on_epoch: OnEpoch = lambda row, seconds: None,
) -> dict[str, Any]:
    """Train a net in `folder`, going on from its checkpoint if there is one.

    Args:
        recipe: the model and the arguments of `Classification` that the images do not decide.
        folder: receives checkpoint.ckpt (each epoch) and metrics.csv (each step).
        device: "cpu" or "cuda".
        workers: processes that decode images; none for images in memory.

    Returns:
        Metrics of the last epoch, the losses of the first and the last tenth of the steps, and the time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / CHECKPOINT
    resumed = load_checkpoint(checkpoint) if checkpoint.exists() else None
    record = Record(folder, on_step, on_epoch)
    seed_random_states(seed)
    task = Classification(
        **recipe,
        classes=images.classes,
        img_size=images.size,
        in_chans=images.channels,
        mean=images.mean,
        std=images.std,
    )
    workers = 0 if images.in_memory else workers
    training = loader(
        images.train, batch_size, seed=seed, augment=augment, workers=workers, pin_memory=device == "cuda"
    )
    validation = loader(images.validation, batch_size, seed=None, workers=workers, pin_memory=device == "cuda")
    if resumed:
        # Lightning sets the epoch only after the workers have begun to fetch.
        training.sampler.set_epoch(resumed["callbacks"][record.state_key]["epoch"])  # ty: ignore[missing-attribute]
    with _quiet(), _deterministic(device), _interruptible():
        trainer = lightning.Trainer(
            accelerator=device,
            devices=1,
            max_epochs=epochs,
            callbacks=[record],
            # One process, also where Slurm's variables are set.
            plugins=[AtomicCheckpointIO(), LightningEnvironment()],
            gradient_clip_val=5.0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            default_root_dir=folder,
        )
        with record:
            trainer.fit(task, training, validation, ckpt_path=checkpoint if resumed else None, weights_only=True)
    return {**summary(folder / METRICS), "seconds": record.seconds}


def summary(metrics: Path) -> dict[str, Any]:
    """What metrics.csv says of a whole run."""
    with metrics.open(newline="") as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["loss"]) for row in rows]
    tenth = max(1, len(losses) // 10)
    return {
        "top1": float(rows[-1]["val_top1"]),
        "val_loss": float(rows[-1]["val_loss"]),
        "train_loss_first": float(np.mean(losses[:tenth])),
        "train_loss_last": float(np.mean(losses[-tenth:])),
        "steps": len(losses),
    }


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


class Record(lightning.Callback):
    """Writes metrics.csv, and at the end of each epoch a checkpoint with the states of all random generators.

    The rows of an epoch are on the disk before its checkpoint is; rows later than the checkpoint from which a run goes
    on are dropped. So the file of an interrupted run equals that of an uninterrupted one.
    """

    def __init__(self, folder: Path, on_step: OnStep, on_epoch: OnEpoch) -> None:
        self.folder, self.on_step, self.on_epoch = folder, on_step, on_epoch
        self.epoch, self.num_rows, self.seconds = 0, 0, 0.0
        self.losses: list[float] = []
        self.random_states: dict[str, Any] | None = None
        self.pending: list[dict[str, Any]] = []

    def __enter__(self) -> None:
        self.file: IO[str] | None = None

    def __exit__(self, *_: object) -> None:
        # Not in a hook: Lightning calls none that always comes.
        if self.file:
            self.file.close()

    def state_dict(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "num_rows": self.num_rows,
            "seconds": self.seconds,
            "random_states": random_states(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epoch, self.num_rows, self.seconds = (state_dict[k] for k in ("epoch", "num_rows", "seconds"))
        self.random_states = state_dict["random_states"]

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.file = _open_rows(self.folder / METRICS, self.num_rows)
        self.num_steps = int(trainer.estimated_stepping_batches)
        self.started = time.perf_counter() - self.seconds

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.random_states:
            # Only now: what is built between loading and the first step draws numbers, too.
            set_random_states(self.random_states)
            self.random_states = None
        self.lr = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        row = {"epoch": trainer.current_epoch, "step": trainer.global_step, "lr": self.lr, "loss": outputs["loss"]}
        self.pending.append(row)
        if len(self.pending) >= 50:
            self._write(self.pending[:-1])
        self.on_step(trainer.global_step, self.num_steps)
        if trainer.received_sigterm:
            raise SystemExit(128 + signal.SIGTERM)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if not self.pending:
            # Lightning ends the epoch of the checkpoint once more when it goes on from it.
            return
        last = self.pending[-1]
        last |= {name: trainer.callback_metrics[name] for name in ("val_loss", "val_top1")}
        self._write([*self.pending])
        assert self.file
        os.fsync(self.file.fileno())
        self.epoch, self.seconds = trainer.current_epoch + 1, time.perf_counter() - self.started
        trainer.save_checkpoint(self.folder / CHECKPOINT)
        self.on_epoch(
            {
                "epoch": trainer.current_epoch,
                "loss": sum(self.losses) / len(self.losses),
                **{name: trainer.callback_metrics[name].item() for name in ("val_loss", "val_top1")},
            },
            self.seconds,
        )
        self.losses.clear()

    def _write(self, rows: list[dict[str, Any]]) -> None:
        # Values are fetched from the device here and not in each step.
        plain = [{k: v.item() if isinstance(v, torch.Tensor) else v for k, v in row.items()} for row in rows]
        self.losses += [row["loss"] for row in plain]
        assert self.file
        csv.DictWriter(self.file, COLUMNS, lineterminator="\n").writerows(plain)
        self.file.flush()
        self.num_rows += len(rows)
        del self.pending[: len(rows)]


def _open_rows(path: Path, num_rows: int) -> IO[str]:
    """Open a CSV file to append to, cut after `num_rows` rows; none: begun anew with the header."""
    if not num_rows:
        file = path.open("w", newline="")
        file.write(",".join(COLUMNS) + "\n")
        return file
    lines = path.read_bytes().splitlines(keepends=True)[: num_rows + 1] if path.exists() else []
    if len(lines) <= num_rows:
        raise ValueError(f"{path}: expected at least {num_rows} rows as the checkpoint says, got {len(lines) - 1}")
    file = path.open("r+", newline="")
    file.truncate(sum(map(len, lines)))
    file.seek(0, os.SEEK_END)
    return file


def seed_random_states(seed: int) -> None:
    """Seed the global generators of Python, NumPy and PyTorch (all devices)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def random_states() -> dict[str, Any]:
    """The states of all global generators, as tensors and plain values."""
    state: Any = np.random.get_state()
    name, keys, *rest = state
    return {
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Put back what `random_states` gave."""
    random.setstate(states["python"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])


@contextmanager
def _quiet() -> Generator[None]:
    """Lightning's advice is for people who write loops; users of a finished command have no use for it."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _deterministic(device: str) -> Generator[None]:
    """On the CPU, sums in a fixed order: otherwise gradients of gathered tables differ from run to run."""
    memory: Any = torch.utils.deterministic
    before, fill = torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(before or device == "cpu")
    memory.fill_uninitialized_memory = before and fill
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        memory.fill_uninitialized_memory = fill


@contextmanager
def _interruptible() -> Generator[None]:
    """Lightning turns Ctrl-C into `exit(1)` and ignores the next ones; give back the interrupt and the handler."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            signal.signal(signal.SIGINT, handler)
            raise KeyboardInterrupt from None
        raise
