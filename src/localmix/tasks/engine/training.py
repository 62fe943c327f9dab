"""One training run in one folder; interrupted and called again, it ends with the same numbers."""

from __future__ import annotations

import csv
import logging
import signal
import warnings
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch.utils.data import DataLoader

from localmix.tasks.classification.data import Images
from localmix.tasks.classification.loading import loader
from localmix.tasks.classification.task import Classification
from localmix.tasks.classification.views import seed_generators
from localmix.tasks.engine.checkpoint import load_checkpoint
from localmix.tasks.engine.claim import claim
from localmix.tasks.engine.record import OnEpoch, OnStep, Record
from localmix.tasks.engine.run_folder import CHECKPOINT, METRICS
from localmix.tasks.engine.saving import AtomicCheckpointIO, Saving

CLIP = 5.0
"""Largest norm of the gradient."""
PATIENCE = 120.0
"""How long a run waits for one in the same folder whose parent was killed: it ends with its step or validation [s]."""


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
    """Train a net in this process in `folder`, going on from its checkpoint if there is one.

    Args:
        recipe: the model and the arguments of `Classification` that the images do not decide.
        folder: receives checkpoint.ckpt (each epoch) and metrics.csv (each step).
        device: "cpu" or "cuda".
        workers: processes that decode images; none for images in memory.

    Returns:
        Metrics of the last epoch, the losses of the first and the last tenth of the steps, and the time.

    Raises:
        ValueError: another process trains in `folder`.
    """
    with claim(folder, patience=PATIENCE):
        path = folder / CHECKPOINT
        resumed = load_checkpoint(path) if path.exists() else None
        trainer = new_trainer(
            folder,
            accelerator=device,
            devices=1,
            max_epochs=epochs,
            # One process, also where Slurm's variables are set.
            plugins=[LightningEnvironment()],
        )
        task = new_task(recipe, images, seed)
        training, validation = loaders(images, batch_size, trainer=trainer, seed=seed, augment=augment, workers=workers)
        record = Record(folder, batches(training), seed=seed, on_step=on_step, on_epoch=on_epoch)
        if resumed:
            record.go_on(resumed)
        trainer.callbacks += [record, Saving(record)]  # ty: ignore[missing-attribute] -- set in its constructor
        fit(trainer, task, training, validation, path if resumed else None, contexts=[record])
        return {**summary(folder / METRICS), "seconds": record.seconds}


def new_task(recipe: dict[str, Any], images: Images, seed: int) -> Classification:
    """The net and its recipe for these images, initialised by `seed`."""
    seed_generators(seed)
    return Classification(
        **recipe,
        classes=images.classes,
        img_size=images.size,
        in_chans=images.channels,
        mean=images.mean,
        std=images.std,
    )


def new_trainer(folder: Path, *, plugins: Sequence[Any] = (), **options: Any) -> lightning.Trainer:
    """Lightning's trainer, silent and without what this package has of its own."""
    options = {"gradient_clip_val": CLIP, "logger": False, **options}
    with _quiet():
        return lightning.Trainer(
            **options,
            plugins=[AtomicCheckpointIO(), *plugins],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            default_root_dir=folder,
        )


def loaders(
    images: Images, batch_size: int, *, trainer: lightning.Trainer, seed: int, augment: bool, workers: int
) -> tuple[DataLoader, DataLoader]:
    """Loaders of the training and the validation images for this process of the trainer."""
    options: dict[str, Any] = {
        "workers": 0 if images.in_memory else workers,
        "pin_memory": trainer.strategy.root_device.type == "cuda",
        "process": trainer.global_rank,
        "num_processes": trainer.world_size,
    }
    training = loader(
        images.train,
        batch_size,
        seed=seed,
        augment=augment,
        accumulate=trainer.accumulate_grad_batches,
        **options,
    )
    return training, loader(images.validation, batch_size, seed=None, **options)


def batches(training: DataLoader) -> Any:
    """The `EpochBatches` of a loader."""
    return training.sampler


def fit(
    trainer: lightning.Trainer,
    task: Classification,
    training: DataLoader,
    validation: DataLoader,
    checkpoint: Path | None,
    *,
    contexts: Sequence[AbstractContextManager] = (),
) -> None:
    """Train, deterministically on a CPU; `contexts` are left however that ends."""
    with ExitStack() as stack:
        for context in (_quiet(), _deterministic(trainer.strategy.root_device.type), _interruptible(), *contexts):
            stack.enter_context(context)
        trainer.fit(task, training, validation, ckpt_path=checkpoint, weights_only=True)


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
            # Of a convolution of one input channel, whose strides have two equal names.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
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
