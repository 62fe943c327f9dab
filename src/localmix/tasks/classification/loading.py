"""Batches in an order that depends on nothing but seed and epoch.

The sampler hands out `(seed, epoch, indices)` and a data set answers with the whole augmented batch. Every random draw
is a function of (seed, epoch, index): all nets see the same pixels in the same order, whatever their own use of random
numbers, the number of workers, or an interruption. Where a run stands in its data is one number, the batches done.
"""

from __future__ import annotations

import os
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from localmix.arguments import positive
from localmix.tasks.classification.views import SquareViews, Views
from localmix.tasks.images import normalise

Request: TypeAlias = tuple[int | None, int, list[int]]
"""Seed of the augmentation (None for none), epoch, indices of the images."""


class Permutation(Protocol):
    """All indices in some order, handed out by slices; an array is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, where: slice, /) -> np.ndarray: ...


Order: TypeAlias = Callable[[int, int], Permutation]
"""(seed, epoch) to the order of the images in the epoch, a permutation of their indices."""


class EpochBatches(Sampler[Request]):
    """Requests for the batches of one process, shuffled anew in each epoch.

    A step of all processes takes `batch_size * num_processes * accumulate` images, which follow each other in the order
    of the epoch: a step sees the same images however many processes share it. What is left at the end is dropped.
    With an `order` that the data set brings, each process takes a stretch of its own, so that it reads few files.

    With `seed=None`: in order, complete, not augmented, each image in one process alone.

    Args:
        batch_size: images of a batch of one process.
        order: instead of a shuffle.
        process: rank of this process.
        accumulate: batches of a step.
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
    ) -> None:
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
            return self.num_images // self.images_per_step * self.accumulate
        # the images of a batch of all processes go round, so the last batch may have none for this one
        whole, rest = divmod(self.num_images, self.batch_size * self.num_processes)
        return whole + (rest > self.process)

    def __iter__(self) -> Iterator[Request]:
        return self._requests(self.epoch, self.first)

    def _requests(self, epoch: int, first: int) -> Iterator[Request]:
        size, count, rank = self.batch_size, self.num_processes, self.process
        if self.seed is None:
            for batch in range(len(self)):
                images = range(batch * size * count, min((batch + 1) * size * count, self.num_images))
                yield None, epoch, list(images[rank::count])
            return
        order = self.order(self.seed, epoch) if self.order else shuffled(self.num_images, self.seed, epoch)
        for batch in range(first, len(self)):
            place = rank * len(self) + batch if self.order else batch * count + rank
            yield self.seed if self.augment else None, epoch, order[place * size : (place + 1) * size].tolist()


def shuffled(num_images: int, seed: int, epoch: int) -> np.ndarray:
    """A random order of all images."""
    order = np.arange(num_images)
    np.random.default_rng([seed, epoch]).shuffle(order)
    return order


class LabelledImages(Dataset, ABC):
    """Images with labels; answers a request with (float32 [n, C, H, H], int64 [n])."""

    order: Order | None = None
    """The order in which an epoch is best read, if any is better than another."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, request: Request) -> tuple[Tensor, Tensor]: ...


class StoredImages(LabelledImages):
    """Images that fit in memory, augmented a batch at a time by a flip and a shift of up to 1/14 of the side.

    Args:
        images: uint8 [N, C, H, H].
        labels: int64 [N].
    """

    def __init__(self, images: Tensor, labels: Tensor, *, mean: list[float], std: list[float]) -> None:
        self.images, self.labels, self.mean, self.std = images, labels, mean, std
        self.margin = images.shape[-1] // 14

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, request: Request) -> tuple[Tensor, Tensor]:
        seed, epoch, indices = request
        index = torch.tensor(indices)
        pixels = self.images[index]
        if seed is not None:
            # The draws of the whole epoch, so that those of an image do not depend on its place in a batch.
            shifts = np.random.default_rng([seed, epoch, 1]).integers(2 * self.margin + 1, size=(len(self), 2))
            flips = np.random.default_rng([seed, epoch, 2]).integers(2, size=len(self))
            shifts, flips = torch.from_numpy(shifts[indices]), torch.from_numpy(flips[indices])
            pixels = _shift_and_flip(pixels, shifts, flips, self.margin)
        return normalise(pixels, self.mean, self.std), self.labels[index]


def _shift_and_flip(pixels: Tensor, shifts: Tensor, flips: Tensor, margin: int) -> Tensor:
    along = torch.arange(pixels.shape[-1])
    rows = shifts[:, :1] + along
    columns = shifts[:, 1:] + torch.where(flips[:, None] == 1, along.flip(0), along)
    image = torch.arange(len(pixels))[:, None, None]
    padded = F.pad(pixels, (margin,) * 4)
    return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


class Pairs(Protocol):
    """Pairs (image, label) by their index; they may have an `order`, see `Order`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Image.Image, int]: ...


class DecodedImages(LabelledImages):
    """Images that are decoded when they are asked for.

    Args:
        images: pairs (PIL image, label).
        size: side of the square view [pixels].
        views: how an image becomes pixels; by default a random resized crop and a flip, see `SquareViews`.
    """

    def __init__(
        self, images: Pairs, *, size: int, mean: list[float], std: list[float], views: Views | None = None
    ) -> None:
        self.images, self.mean, self.std = images, mean, std
        self.views = views or SquareViews(size)
        self.order = getattr(images, "order", None)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, request: Request) -> tuple[Tensor, Tensor]:
        seed, epoch, indices = request
        views, labels = [], []
        for index in indices:
            image, label = self.images[index]
            if seed is None:
                views.append(self.views.validate(image))
            else:
                views.append(self.views.train(image, np.random.default_rng([seed, epoch, index])))
            labels.append(int(label))
        if views[0].is_floating_point():
            # In a worker it writes to the memory through which the batch is sent.
            pixels = default_collate(views)
        else:
            pixels = normalise(torch.stack(views), self.mean, self.std)
        return pixels, torch.tensor(labels)


def loader(
    dataset: LabelledImages,
    batch_size: int,
    *,
    seed: int | None,
    augment: bool = True,
    workers: int = 0,
    pin_memory: bool = False,
    process: int = 0,
    num_processes: int = 1,
    accumulate: int = 1,
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
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        continue
    os._exit(0)
