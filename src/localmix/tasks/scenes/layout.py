"""Which garments a scene has, where they lie, and which pixels of each are seen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageFilter

from localmix.tasks import fashion_mnist
from localmix.tasks.scenes import SPLITS

SIDE = (0.15, 0.9)
"""Least and greatest side of a garment, as a share of the shorter side of the scene."""
EMPTY, CROWDED = 0.05, 0.15
"""Shares of scenes without garments, and of those with nearly as many as are allowed."""
LEAST_SEEN, LEAST_PIXELS = 0.25, 48
"""A garment of which less is seen is left out: as a share of its pixels, and as their number."""
FABRIC = 10
"""Grey value from which a pixel of an embedded image is garment; beneath is noise of the background."""


@dataclass(frozen=True)
class Garment:
    """One garment, stretched, turned and perhaps mirrored.

    Args:
        label: its class, from 1.
        top: row of the scene of its first row; may be negative.
        left: the same for columns.
        grey: its brightness, float32 [h, w] in 0..1.
        cover: how much of a pixel it covers, float32 [h, w]; its mask is where that is half or more.
    """

    label: int
    top: int
    left: int
    grey: np.ndarray
    cover: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        """Its pixels, bool [h, w]."""
        return self.cover >= 0.5


def layout(
    split: str, size: tuple[int, int], max_objects: int, random: np.random.Generator
) -> tuple[list[Garment], np.ndarray]:
    """Garments from back to front, and what is seen of each: int32 [H, W], 1 + its place in the list, 0 for ground.

    Nothing hidden is in the list: each garment is seen in part, a quarter of it at least.
    """
    number = _number(max_objects, random)
    sides = np.exp(random.uniform(*np.log(SIDE), number)) * min(size)
    # large ones mostly lie behind, or they would hide the others
    order = np.argsort(random.normal(0, 0.5, number) - np.log(sides), kind="stable")
    garments = [_garment(split, size, float(side), random) for side in sides[order]]
    seen = _seen(garments, size)
    counts = np.bincount(seen.ravel(), minlength=len(garments) + 1)[1:]
    # one pass is enough: without a garment, more is seen of the others
    kept = [
        garment
        for garment, count in zip(garments, counts, strict=True)
        if count >= max(LEAST_PIXELS, LEAST_SEEN * garment.mask.sum())
    ]
    return kept, seen if len(kept) == len(garments) else _seen(kept, size)


def windows(
    top: int, left: int, shape: tuple[int, ...], size: tuple[int, ...]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where an array of `shape` lies in a scene of `size`, and the part of the array that does."""
    (rows, own_rows), (columns, own_columns) = (
        _overlap(start, length, total) for start, length, total in zip((top, left), shape, size, strict=False)
    )
    return (rows, columns), (own_rows, own_columns)


def _number(max_objects: int, random: np.random.Generator) -> int:
    kind, share = random.random(2)
    usual = max(1, math.ceil(max_objects / 2))
    if kind < EMPTY:
        return 0
    if kind < EMPTY + CROWDED:
        return usual + int(share * (max_objects - usual + 1))
    return 1 + int(share * usual)


def _garment(split: str, size: tuple[int, int], side: float, random: np.random.Generator) -> Garment:
    images, labels, silhouettes = _embedded(split)
    index = int(random.integers(len(images)))
    angle, mirror = random.normal(0, 0.35), random.choice((-1.0, 1.0))
    stretch = math.exp(random.uniform(-0.15, 0.15))
    centre = random.random(2) * size
    reach = side * (abs(math.cos(angle)) + abs(math.sin(angle))) * max(stretch, 1 / stretch)
    length = max(4, math.ceil(reach))
    # from a pixel of the scene to one of the embedded image, both seen from their middle
    scale = images.shape[-1] / side
    middle, from_middle = images.shape[-1] / 2, length / 2
    a, b = math.cos(angle) * scale * mirror * stretch, math.sin(angle) * scale * mirror * stretch
    c, d = -math.sin(angle) * scale / stretch, math.cos(angle) * scale / stretch
    affine = (a, b, middle - (a + b) * from_middle, c, d, middle - (c + d) * from_middle)

    def placed(pixels: np.ndarray) -> np.ndarray:
        image = Image.fromarray(pixels.astype(np.float32) / np.float32(255))
        return np.asarray(
            image.transform((length, length), Image.Transform.AFFINE, affine, resample=Image.Resampling.BICUBIC)
        )

    # an edge a pixel and a half wide, whatever the scale
    cover = np.clip((placed(silhouettes[index]) - 0.5) * np.float32(max(1.0, side / 28)) + 0.5, 0, 1)
    top, left = (int(place) - length // 2 for place in centre)
    return Garment(1 + int(labels[index]), top, left, np.clip(placed(images[index]), 0, 1), cover)


def _seen(garments: list[Garment], size: tuple[int, int]) -> np.ndarray:
    seen = np.zeros(size, np.int32)
    for place, garment in enumerate(garments, 1):
        there, own = windows(garment.top, garment.left, garment.cover.shape, size)
        seen[there][garment.mask[own]] = place
    return seen


@cache
def _embedded(split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, labels from 0 and silhouettes, 0 or 255, of the embedded garments of a split."""
    images, labels = fashion_mnist.load(SPLITS[split])
    # dark seams are closed; the gap under a handle is wider and stays
    silhouettes = np.stack([_closed((image >= FABRIC).astype(np.uint8) * 255) for image in images])
    return images, labels, silhouettes


def _closed(mask: np.ndarray) -> np.ndarray:
    padded = Image.fromarray(np.pad(mask, 2))
    return np.asarray(padded.filter(ImageFilter.MaxFilter(3)).filter(ImageFilter.MinFilter(3)))[2:-2, 2:-2]


def _overlap(start: int, length: int, total: int) -> tuple[slice, slice]:
    first, last = min(max(start, 0), total), min(max(start + length, 0), total)
    return slice(first, last), slice(first - start, last - start)
