"""Batches in an order that depends on nothing but seed and epoch.

The sampler hands out `(seed, epoch, indices)` and a data set answers with the whole augmented batch. Every random draw
is a function of (seed, epoch, index): all nets see the same pixels in the same order, whatever their own use of random
numbers, the number of workers, or an interruption.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Sampler

from localmix.tasks.images import normalise
from localmix.tasks.views import SquareViews, Views

Request: TypeAlias = tuple[int | None, int, list[int]]
"""Seed of the augmentation (None for none), epoch, indices of the images."""


class EpochBatches(Sampler[Request]):
    """Requests for batches, shuffled anew in each epoch; the incomplete batch at the end is dropped.

    With `seed=None`: in order, complete, not augmented.
    """

    def __init__(self, num_images: int, batch_size: int, *, seed: int | None, augment: bool = True) -> None:
        self.num_images, self.batch_size, self.seed = num_images, min(batch_size, num_images), seed
        self.augment = augment and seed is not None
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        whole, rest = divmod(self.num_images, self.batch_size)
        return whole + (self.seed is None and rest > 0)

    def __iter__(self) -> Iterator[Request]:
        epoch = self.epoch
        order = np.arange(self.num_images)
        if self.seed is not None:
            np.random.default_rng([self.seed, epoch]).shuffle(order)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield self.seed if self.augment else None, epoch, order[start : start + self.batch_size].tolist()


class LabelledImages(Dataset):
    """Images with labels; answers a request with (float32 [n, C, H, H], int64 [n])."""

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, request: Request) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


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
    """Pairs (image, label) by their index."""

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
        pixels = torch.stack(views)
        if not pixels.is_floating_point():
            pixels = normalise(pixels, self.mean, self.std)
        return pixels, torch.tensor(labels)


def loader(
    dataset: LabelledImages,
    batch_size: int,
    *,
    seed: int | None,
    augment: bool = True,
    workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader:
    """Batches of `dataset`: shuffled and augmented by `seed`, or plain and in order when it is None."""
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=EpochBatches(len(dataset), batch_size, seed=seed, augment=augment),
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin_memory,
        # A generator of its own: to start an epoch must not advance the global one, which drop path draws from.
        generator=torch.Generator().manual_seed(0),
    )
