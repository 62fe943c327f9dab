"""Images with objects that answer requests for batches, and the order in which they make good batches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from localmix.arguments import positive
from localmix.tasks.detection.coco import CocoImages
from localmix.tasks.detection.targets import Target
from localmix.tasks.detection.views import DetectionViews
from localmix.tasks.engine.batches import Request, Samples
from localmix.tasks.images import to_tensor


class ByAspect:
    """An order in which the images of a batch are all wide or all high, so that little of it is padding.

    Whole batches of either kind come in a random order, and behind them what is left of both. It depends on nothing but
    seed and pass; see `localmix.tasks.engine.batches`.

    Args:
        wide: of each image, whether it is wider than high.
        batch_size: images of a batch.
    """

    def __init__(self, wide: Sequence[bool], batch_size: int) -> None:
        self.wide, self.batch_size = np.asarray(wide, dtype=bool), positive("batch_size", batch_size)

    def __call__(self, seed: int, through: int) -> np.ndarray:
        random = np.random.default_rng([seed, through])
        batches, rest = [], []
        for kind in (False, True):
            images = random.permutation(np.flatnonzero(self.wide == kind))
            whole = len(images) // self.batch_size * self.batch_size
            batches.append(images[:whole].reshape(-1, self.batch_size))
            rest.append(images[whole:])
        batches = random.permutation(np.concatenate(batches))
        return np.concatenate([batches.ravel(), random.permutation(np.concatenate(rest))])


class TrainingImages(Samples):
    """Answers (seed, epoch, indices) with images, uint8 [3, h, w] of any sizes, and their targets.

    A view is a function of seed, epoch and index; without a seed it is that without chance.

    Args:
        images: with objects.
        views: how an image becomes pixels and a target.
        batch_size: images of a batch, which are of one kind then, see `ByAspect`.
        empty: whether images without objects are trained on; COCO's are not, by mmdetection.

    Raises:
        ValueError: there is no image to train on.
    """

    def __init__(self, images: CocoImages, views: DetectionViews, batch_size: int, *, empty: bool = False) -> None:
        self.images, self.views = images, views
        self.indices = list(range(len(images))) if empty else images.with_objects()
        if not self.indices:
            raise ValueError("data.root: expected images with objects to train on, found none")
        entries = [images.images[index] for index in self.indices]
        self.order = ByAspect([entry["width"] > entry["height"] for entry in entries], batch_size)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, request: Request) -> tuple[list[Tensor], list[Target]]:
        seed, epoch, indices = request
        views = []
        for index in indices:
            place = self.indices[index]
            image, target = self.images.read(place), self.images.target(place)
            if seed is None:
                views.append(self.views.plain(image, target))
            else:
                views.append(self.views.train(image, target, np.random.default_rng([seed, epoch, index])))
        pixels, targets = zip(*views, strict=True)
        return list(pixels), list(targets)


class ValidationImages(Samples):
    """Answers with the indices and the images, uint8 [3, H, W], as they are: a detector scales them itself."""

    def __init__(self, images: CocoImages) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, request: Request) -> tuple[list[int], list[Tensor]]:
        _, _, indices = request
        return indices, [to_tensor(self.images.read(index)) for index in indices]
