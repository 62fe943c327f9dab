"""Labelled images that answer requests for batches: from memory, or decoded when they are asked for."""

from __future__ import annotations

from abc import abstractmethod
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import default_collate

from localmix.tasks.classification.views import SquareViews, Views
from localmix.tasks.engine.batches import Request, Samples
from localmix.tasks.images import normalise


class LabelledImages(Samples):
    """Images with labels; answers a request with (float32 [n, C, H, H], int64 [n])."""

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
