"""Batches in an order that depends on nothing but seed and epoch.

The sampler hands out `(seed, pass, indices)` and a data set answers with the whole augmented batch. Every random draw
is a function of (seed, pass, index): all nets see the same pixels in the same order, whatever their own use of random
numbers, the number of workers, or an interruption. Where a run stands in its data is one number, the batches done.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from localmix.arguments import positive

Request: TypeAlias = tuple[int | None, int, list[int]]
"""Seed of the augmentation (None for none), pass through the images, their indices."""


class Permutation(Protocol):
    """All indices in some order, handed out by slices; an array is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, where: slice, /) -> np.ndarray: ...


Order: TypeAlias = Callable[[int, int], Permutation]
"""(seed, pass) to the order of the images in the pass, a permutation of their indices."""


class EpochBatches(Sampler[Request]):
    """Requests for the batches of one process, shuffled anew in each pass through the images.

    A step of all processes takes `batch_size * num_processes * accumulate` images, which follow each other in the order
    of the pass: a step sees the same images however many processes share it. What is left at the end is dropped.
    With an `order` that the data set brings, each process takes a stretch of its own, so that it reads few files.

    An epoch is a pass, or with `steps` a stretch of so many steps, through as many passes as that takes.

    With `seed=None`: in order, complete, not augmented, each image in one process alone.

    Args:
        batch_size: images of a batch of one process.
        order: instead of a shuffle.
        process: rank of this process.
        accumulate: batches of a step.
        steps: of an epoch; by default those of a pass.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        *,
        seed: int | None,
        augment: bool = True,
        order: Order | None = None,
        process: int = 0,
        num_processes: int = 1,
        accumulate: int = 1,
        steps: int | None = None,
    ) -> None:
        self.steps = steps if steps is None else positive("steps", steps)
        self.num_images, self.seed, self.order = num_images, seed, order
        self.process, self.num_processes = process, num_processes
        self.accumulate = positive("accumulate", accumulate)
        self.batch_size = positive("batch_size", batch_size)
        if num_processes == accumulate == 1:
            self.batch_size = min(batch_size, num_images)
        elif seed is not None and self.images_per_step > num_images:
            raise ValueError(
                f"batch_size: expected at most the {num_images} images of an epoch in a step, got {batch_size} x "
                f"{num_processes} processes x {accumulate} accumulated = {self.images_per_step}"
            )
        self.augment = augment and seed is not None
        self.epoch = self.first = 0

    @property
    def images_per_step(self) -> int:
        """Images that all processes see in one step of the optimiser."""
        return self.batch_size * self.num_processes * self.accumulate

    @property
    def layout(self) -> dict[str, Any]:
        """What a position within an epoch refers to; a run that goes on needs the same."""
        return {
            "images": self.num_images,
            "images_per_step": self.images_per_step,
            "batches_per_step": self.accumulate,
            "stretches": self.num_processes if self.order else 1,
            "steps": self.steps,
        }

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch, unless it is the one that `go_on` has named."""
        if epoch != self.epoch:
            self.epoch, self.first = epoch, 0

    def go_on(self, epoch: int, batch: int) -> None:
        """Leave out the first `batch` batches of `epoch`, which are done."""
        self.epoch, self.first = epoch, batch

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        if self.seed is not None:
            return self._batches_per_pass() if self.steps is None else self.steps * self.accumulate
        # the images of a batch of all processes go round, so the last batch may have none for this one
        whole, rest = divmod(self.num_images, self.batch_size * self.num_processes)
        return whole + (rest > self.process)

    def _batches_per_pass(self) -> int:
        return self.num_images // self.images_per_step * self.accumulate

    def __iter__(self) -> Iterator[Request]:
        return self._requests(self.epoch, self.first)

    def _requests(self, epoch: int, first: int) -> Iterator[Request]:
        size, count, rank = self.batch_size, self.num_processes, self.process
        if self.seed is None:
            for batch in range(len(self)):
                images = range(batch * size * count, min((batch + 1) * size * count, self.num_images))
                yield None, epoch, list(images[rank::count])
            return
        per_pass, known, order = self._batches_per_pass(), None, np.empty(0)
        for number in range(epoch * len(self) + first, (epoch + 1) * len(self)):
            through, batch = divmod(number, per_pass)
            if through != known:
                order = (self.order or self._shuffled)(self.seed, through)
                known = through
            place = rank * per_pass + batch if self.order else batch * count + rank
            yield self.seed if self.augment else None, through, order[place * size : (place + 1) * size].tolist()

    def _shuffled(self, seed: int, through: int) -> np.ndarray:
        order = np.arange(self.num_images)
        np.random.default_rng([seed, through]).shuffle(order)
        return order


class Samples(Dataset, ABC):
    """What a task trains on or validates with; answers a request with a whole batch."""

    order: Order | None = None
    """The order in which a pass is best read, if any is better than another."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, request: Request) -> Any: ...


def loader(
    dataset: Samples,
    batch_size: int,
    *,
    seed: int | None,
    augment: bool = True,
    workers: int = 0,
    pin_memory: bool = False,
    process: int = 0,
    num_processes: int = 1,
    accumulate: int = 1,
    steps: int | None = None,
) -> DataLoader:
    """Batches of `dataset` for one process: shuffled and augmented by `seed`, or plain and in order when it is None."""
    batches = EpochBatches(
        len(dataset),
        batch_size,
        seed=seed,
        augment=augment,
        order=dataset.order,
        process=process,
        num_processes=num_processes,
        accumulate=accumulate,
        steps=steps,
    )
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=batches,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin_memory,
        worker_init_fn=_leave_signals_to_the_run,
        # A generator of its own: to start an epoch must not advance the global one, which drop path draws from.
        generator=torch.Generator().manual_seed(0),
    )


def _leave_signals_to_the_run(worker: int) -> None:
    """A terminal or a scheduler signals all processes; those that load images end when the run ends, not before."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A run that ends without closing its loader ends the workers by this signal, and waits for them: only its sender
    # tells it from that of a scheduler.
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_for_the_run, daemon=True).start()


def _end_for_the_run() -> None:
    run: Any = multiprocessing.parent_process()  # under a fork server another process than os.getppid()
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != run.pid:
        continue
    os._exit(0)
