"""Lightning's trainer as this package uses it: silent, deterministic on a CPU, and for data that answer requests."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import lightning
import torch
from torch.utils.data import DataLoader

from localmix.tasks.engine.batches import EpochBatches, Samples, loader
from localmix.tasks.engine.saving import AtomicCheckpointIO
from localmix.tasks.engine.seeding import seed_generators
from localmix.tasks.engine.task import Task

CLIP = 5.0
"""Largest norm of the gradient."""
PATIENCE = 120.0
"""How long a run waits for one in the same folder whose parent was killed: it ends with its step or validation [s]."""


AnyTask = TypeVar("AnyTask", bound=Task)


class Data(Protocol):
    """What a run trains on."""

    @property
    def train(self) -> Samples:
        """To learn from."""
        ...

    @property
    def validation(self) -> Samples:
        """To measure with."""
        ...

    @property
    def in_memory(self) -> bool:
        """Whether a batch is a matter of microseconds, so that no processes are needed to make it."""
        ...

    def arguments(self) -> dict[str, Any]:
        """Those of the task that the data decide, plain values."""
        ...


def new_task(kind: type[AnyTask], recipe: dict[str, Any], data: Data, seed: int) -> AnyTask:
    """A task for these data, its net initialised by `seed`."""
    seed_generators(seed)
    return kind(**recipe, **data.arguments())


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
    data: Data,
    batch_size: int,
    *,
    trainer: lightning.Trainer,
    seed: int,
    workers: int,
    augment: bool = True,
    steps: int | None = None,
    validation_batch_size: int | None = None,
) -> tuple[DataLoader, DataLoader]:
    """Loaders of the training and the validation images for this process of the trainer.

    Args:
        steps: of an epoch; by default those of a pass through the images.
        validation_batch_size: if it is another.
    """
    options: dict[str, Any] = {
        "workers": 0 if data.in_memory else workers,
        "pin_memory": trainer.strategy.root_device.type == "cuda",
        "process": trainer.global_rank,
        "num_processes": trainer.world_size,
    }
    training = loader(
        data.train,
        batch_size,
        seed=seed,
        augment=augment,
        accumulate=trainer.accumulate_grad_batches,
        steps=steps,
        **options,
    )
    return training, loader(data.validation, validation_batch_size or batch_size, seed=None, **options)


def batches(training: DataLoader) -> EpochBatches:
    """The `EpochBatches` of a loader."""
    sampler: Any = training.sampler
    return sampler


def fit(
    trainer: lightning.Trainer,
    task: Task,
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
            raise KeyboardInterrupt(*error.__context__.args) from None
        raise
