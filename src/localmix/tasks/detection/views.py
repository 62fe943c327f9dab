"""How an image with objects becomes what a detector is trained on: scaled, cropped and mirrored by chance."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from localmix.tasks.detection.resizing import fitted
from localmix.tasks.detection.targets import Target
from localmix.tasks.images import to_tensor

SIZES = tuple(range(480, 801, 32))
CROP_FROM = (400, 500, 600)
CROP_SIZE = (384, 600)


class DetectionViews:
    """The views of the paper's recipe, which are those of DETR.

    The image is mirrored with even odds. Then its shorter side is resized to one of `sizes`; or, with even odds, first
    to one of `crop_from`, a part of it is cropped, each side from `crop_size[0]` to `crop_size[1]` pixels, and that is
    resized to one of `sizes`. Pixels are computed once, from the image itself, in either case.

    Boxes are cut at the border. An object of which less than a pixel is left, or no pixel of its mask, is gone; so an
    image may be without objects.

    Args:
        sizes: of the shorter side [pixels]; the last one is that without chance.
        max_size: what the longer side is at most [pixels].
        crop_from: of the shorter side in front of the crop; none: nothing is cropped.
        crop_size: least and largest side of the crop.

    Raises:
        ValueError: names the argument, what was expected and what came.
    """

    def __init__(
        self,
        *,
        sizes: Sequence[int] = SIZES,
        max_size: int = 1333,
        crop_from: Sequence[int] = CROP_FROM,
        crop_size: tuple[int, int] = CROP_SIZE,
    ) -> None:
        if not sizes or min(sizes) < 1:
            raise ValueError(f"sizes: expected one or more, of at least 1 pixel, got {list(sizes)}")
        if max_size < max(sizes):
            raise ValueError(f"max_size: expected at least the largest of the sizes, {max(sizes)}, got {max_size}")
        if any(size < 1 for size in crop_from):
            raise ValueError(f"crop_from: expected sizes of at least 1 pixel, got {list(crop_from)}")
        if not 0 < crop_size[0] <= crop_size[1]:
            raise ValueError(f"crop_size: expected 0 < least <= largest, got {tuple(crop_size)}")
        self.sizes, self.max_size = tuple(sizes), max_size
        self.crop_from, self.crop_size = tuple(crop_from), tuple(crop_size)

    def train(self, image: Image.Image, target: Target, random: np.random.Generator) -> tuple[Tensor, Target]:
        """uint8 [3, h, w] and its target; every draw comes from `random`."""
        flip, cropped = random.random(2) < 0.5
        shorter = int(random.choice(self.sizes))
        region = (0.0, 0.0, float(image.width), float(image.height))
        size = fitted(image.height, image.width, shorter, self.max_size)
        if cropped and self.crop_from:
            between = fitted(image.height, image.width, int(random.choice(self.crop_from)), math.inf)
            sides = [
                int(random.integers(min(side, self.crop_size[0]), min(side, self.crop_size[1]), endpoint=True))
                for side in between
            ]
            top, left = (
                int(random.integers(whole - side, endpoint=True)) for whole, side in zip(between, sides, strict=True)
            )
            down, across = image.height / between[0], image.width / between[1]
            region = (left * across, top * down, (left + sides[1]) * across, (top + sides[0]) * down)
            size = fitted(*sides, shorter, self.max_size)
        pixels, target = view(image, target, region, size)
        return mirrored(pixels, target) if flip else (pixels, target)

    def plain(self, image: Image.Image, target: Target) -> tuple[Tensor, Target]:
        """The same without chance: the whole image at the last of the sizes."""
        size = fitted(image.height, image.width, self.sizes[-1], self.max_size)
        return view(image, target, (0.0, 0.0, float(image.width), float(image.height)), size)


def view(
    image: Image.Image, target: Target, region: tuple[float, float, float, float], size: tuple[int, int]
) -> tuple[Tensor, Target]:
    """A region (x0, y0, x1, y1) of an image at a size (height, width), and what is left of its objects."""
    height, width = size
    x0, y0, x1, y1 = region
    box = (x0, y0, min(x1, image.width), min(y1, image.height))
    resized = image.resize((width, height), Image.Resampling.BILINEAR, box=box)
    scale = torch.tensor([width / (x1 - x0), height / (y1 - y0)] * 2)
    boxes = (target["boxes"] - torch.tensor([x0, y0, x0, y0])) * scale
    boxes = torch.stack([boxes[:, 0::2].clamp(0, width), boxes[:, 1::2].clamp(0, height)], 2).flatten(1)
    rows = _nearest(y0, y1, height, image.height)
    columns = _nearest(x0, x1, width, image.width)
    masks = target["masks"][:, rows[:, None], columns]
    kept = ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(1) & masks.flatten(1).any(1).bool()
    return to_tensor(resized), {"boxes": boxes[kept], "labels": target["labels"][kept], "masks": masks[kept]}


def mirrored(pixels: Tensor, target: Target) -> tuple[Tensor, Target]:
    """Left and right exchanged."""
    width = pixels.shape[2]
    x0, y0, x1, y1 = target["boxes"].unbind(1)
    boxes = torch.stack([width - x1, y0, width - x0, y1], 1)
    return pixels.flip(2), {**target, "boxes": boxes, "masks": target["masks"].flip(2)}


def _nearest(start: float, end: float, new: int, old: int) -> Tensor:
    """Of the centres of `new` positions from `start` to `end`, which of `old` each lies in."""
    centres = start + (torch.arange(new, dtype=torch.float64) + 0.5) * ((end - start) / new)
    return centres.long().clamp(0, old - 1)
