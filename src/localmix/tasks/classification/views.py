"""How an image becomes the pixels that a net sees: in training by chance, in validation always alike."""

from __future__ import annotations

import random as python_random
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info

from localmix.tasks.images import centre_square, normalise, random_square, to_tensor


class Views(Protocol):
    """Pixels of an image, [C, H, W]: uint8, which are normalised a batch at a time, or float, which are so already."""

    def train(self, image: Image.Image, random: np.random.Generator) -> Tensor:
        """An augmented view; every draw comes from `random`."""
        ...

    def validate(self, image: Image.Image) -> Tensor:
        """The view that accuracy is measured on."""
        ...


class SquareViews:
    """A random resized crop of 35% to 100% of the area and a flip; for validation the largest centred square.

    Args:
        size: side of the view [pixels].
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def train(self, image: Image.Image, random: np.random.Generator) -> Tensor:
        return to_tensor(random_square(image, self.size, random))

    def validate(self, image: Image.Image) -> Tensor:
        return to_tensor(centre_square(image, self.size))


class ImageNetViews:
    """The views of the paper, made by timm's transforms.

    Training: random resized crop, flip, RandAugment (else colour jitter), normalisation, random erasing by noise.
    Validation: the shorter side is resized to `size / crop_pct`, then the centre is cropped.

    Args:
        size: side of the view [pixels].
        mean: of each channel, values in 0..1.
        std: of each channel, values in 0..1.
        crop_pct: share of the shorter side that validation shows.
        interpolation: "bicubic", "bilinear", "lanczos" or (training only) "random".
        scale: least share of the area that a training crop shows.
        auto_augment: timm's name of a policy, such as "rand-m9-mstd0.5-inc1"; "" for none.
        color_jitter: strength; timm applies it where there is no `auto_augment`.
        random_erasing: share of the images of which a rectangle is erased.

    Raises:
        ValueError: timm knows no such policy.
    """

    def __init__(
        self,
        size: int,
        *,
        mean: list[float],
        std: list[float],
        crop_pct: float = 0.875,
        interpolation: str = "bicubic",
        scale: float = 0.08,
        auto_augment: str = "rand-m9-mstd0.5-inc1",
        color_jitter: float = 0.4,
        random_erasing: float = 0.25,
    ) -> None:
        from timm.data import transforms_factory
        from timm.data.random_erasing import RandomErasing
        from timm.data.transforms import MaybePILToTensor

        self.mean, self.std = mean, std
        try:
            self.augment: Any = transforms_factory.transforms_imagenet_train(
                size,
                scale=(scale, 1.0),
                color_jitter=color_jitter,
                auto_augment=auto_augment or None,
                interpolation=interpolation,
                mean=tuple(mean),
                std=tuple(std),
                normalize=False,
            )
        except AssertionError as error:
            raise ValueError(
                f"auto_augment: expected a policy that timm knows, got {auto_augment!r}: {error}"
            ) from None
        mend_posterize(self.augment)
        self.erase = RandomErasing(random_erasing, mode="pixel", device="cpu") if random_erasing else None
        self.centre: Any = transforms_factory.transforms_imagenet_eval(
            size,
            crop_pct=crop_pct,
            interpolation="bicubic" if interpolation == "random" else interpolation,
            normalize=False,
        )
        for transform in (self.augment, self.centre):
            if isinstance(transform.transforms[-1], MaybePILToTensor):
                # the same in half of the time
                transform.transforms[-1] = to_tensor

    def train(self, image: Image.Image, random: np.random.Generator) -> Tensor:
        with drawn_from(random):
            pixels = self.augment(image)
            # erased by noise of the deviation of normalised pixels
            return self.erase(normalise(pixels, self.mean, self.std)) if self.erase else pixels

    def validate(self, image: Image.Image) -> Tensor:
        return self.centre(image)


def mend_posterize(augment: Any) -> None:
    """timm's policies may ask to keep no bit of a channel, as they always did; Pillow refuses that since version 13."""
    from timm.data.auto_augment import posterize

    for transform in augment.transforms:
        for operations in (getattr(transform, "ops", []), *getattr(transform, "policy", [])):
            for operation in operations:
                if operation.aug_fn is posterize:
                    operation.aug_fn = _posterize


def _posterize(image: Image.Image, bits_to_keep: int, **options: Any) -> Image.Image:
    from timm.data.auto_augment import posterize

    return posterize(image, bits_to_keep, **options) if bits_to_keep else Image.new(image.mode, image.size)


@contextmanager
def drawn_from(random: np.random.Generator) -> Generator[None]:
    """The global generators, which transforms draw from, draw from `random`; afterwards they are as they were.

    In a worker of a loader they are not put back: nothing else draws there, and to keep them takes a good part of the
    time to decode a small image.
    """
    alone = get_worker_info() is not None
    states = None if alone else (python_random.getstate(), np.random.get_state(), torch.get_rng_state())
    legacy: Any = np.random
    numpy_generator = legacy.get_bit_generator()
    try:
        seed = int(random.integers(2**63))
        python_random.seed(seed)
        # Not torch.manual_seed, which notes down for each GPU where it was called: that takes half of the time above.
        torch.default_generator.manual_seed(seed)
        legacy.set_bit_generator(random.bit_generator)
        yield
    finally:
        legacy.set_bit_generator(numpy_generator)
        if states:
            python_random.setstate(states[0])
            np.random.set_state(states[1])
            torch.set_rng_state(states[2])
