"""One training run in one folder; interrupted and called again, it ends with the same numbers."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.plugins.environments import LightningEnvironment

from localmix.tasks.classification.data import Images
from localmix.tasks.classification.task import Classification
from localmix.tasks.engine.checkpoint import load_checkpoint
from localmix.tasks.engine.claim import claim
from localmix.tasks.engine.record import OnEpoch, OnStep, Record
from localmix.tasks.engine.run_folder import CHECKPOINT, METRICS
from localmix.tasks.engine.saving import Saving
from localmix.tasks.engine.training import PATIENCE, batches, fit, loaders, new_task, new_trainer


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
    steps: int | None = None,
    on_step: OnStep = lambda done, total: None,
    on_epoch: OnEpoch = lambda row, seconds: None,
) -> dict[str, Any]:
    """Train a net in this process in `folder`, going on from its checkpoint if there is one.

    Args:
        recipe: the model and the arguments of `Classification` that the images do not decide.
        folder: receives checkpoint.ckpt (each epoch) and metrics.csv (each step).
        device: "cpu" or "cuda".
        workers: processes that decode images; none for images in memory.
        steps: of an epoch; by default those of a pass through the images.

    Returns:
        Metrics of the last epoch, the losses of the first and the last tenth of the steps, and the time.

    Raises:
        ValueError: another process trains in `folder`.
    """
    with claim(folder, patience=PATIENCE):
        checkpoint = folder / CHECKPOINT if (folder / CHECKPOINT).exists() else None
        trainer = new_trainer(
            folder,
            accelerator=device,
            devices=1,
            max_epochs=epochs,
            # One process, also where Slurm's variables are set.
            plugins=[LightningEnvironment()],
        )
        task = new_task(Classification, recipe, images, seed)
        training, validation = loaders(
            images, batch_size, trainer=trainer, seed=seed, augment=augment, workers=workers, steps=steps
        )
        record = Record(folder, batches(training), seed=seed, on_step=on_step, on_epoch=on_epoch)
        if checkpoint:
            record.go_on(load_checkpoint(checkpoint))
        trainer.callbacks += [record, Saving(record)]  # ty: ignore[missing-attribute] -- set in its constructor
        fit(trainer, task, training, validation, checkpoint, contexts=[record])
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
