"""A scene: its image, what is in it, and both as files."""

from __future__ import annotations

import colorsys
import io
from typing import Any, NamedTuple

import numpy as np
from faster_coco_eval.core import mask as run_lengths
from PIL import Image, ImageFilter

from localmix.tasks.scenes import CLASSES, SPLITS
from localmix.tasks.scenes.layout import Garment, layout, windows
from localmix.tasks.scenes.textures import smooth_noise, texture

QUALITY = 92
"""Of the JPEGs."""
DARK, BRIGHT = (0.05, 0.25), (0.7, 1.0)
"""Least and greatest value of the colours of plain scenes: of the ground, and of garments."""


class Scene(NamedTuple):
    """What is known of a scene.

    Args:
        image: uint8 [H, W, 3].
        seen: int32 [H, W], 0 for ground, and 1, 2, ... for what is seen of each garment.
        classes: that of each garment, from 1.
    """

    image: np.ndarray
    seen: np.ndarray
    classes: tuple[int, ...]

    @property
    def labels(self) -> np.ndarray:
        """The label map, uint8 [H, W]: `CLASSES` by their place."""
        return np.array((0, *self.classes), np.uint8)[self.seen]


class EncodedScene(NamedTuple):
    """A scene as files: a JPEG, a PNG with a palette, and annotations of COCO's json without ids."""

    image: bytes
    labels: bytes
    objects: list[dict[str, Any]]


def compose(
    split: str, index: int, *, size: tuple[int, int], max_objects: int, seed: int, plain: bool = False
) -> Scene:
    """The scene of this index; what it looks like is a function of the arguments alone.

    Args:
        split: "train" or "val"; of different garments.
        index: from 0.
        size: height and width [pixels].
        max_objects: most garments, before those that others hide are left out.
        seed: of the set.
        plain: whether garments of one bright colour each lie on dark ground of one colour; by default both have
            patterns and any brightness. What lies where is the same.
    """
    garments, seen = layout(split, size, max_objects, _random(seed, split, index, 0))
    image = _painted(garments, size, _random(seed, split, index, 1), plain)
    return Scene(image, seen, tuple(garment.label for garment in garments))


def objects(split: str, index: int, *, size: tuple[int, int], max_objects: int, seed: int) -> list[dict[str, Any]]:
    """The annotations of a scene that need not be painted again."""
    garments, seen = layout(split, size, max_objects, _random(seed, split, index, 0))
    return _objects(seen, tuple(garment.label for garment in garments))


def encode(scene: Scene) -> EncodedScene:
    """Files of a scene; masks and label map are exact, the image is as good as a JPEG is."""
    image, labels = io.BytesIO(), io.BytesIO()
    Image.fromarray(scene.image).save(image, "JPEG", quality=QUALITY, subsampling=0)
    drawn = Image.fromarray(scene.labels, "P")
    drawn.putpalette(PALETTE)
    drawn.save(labels, "PNG")
    return EncodedScene(image.getvalue(), labels.getvalue(), _objects(scene.seen, scene.classes))


def _objects(seen: np.ndarray, classes: tuple[int, ...]) -> list[dict[str, Any]]:
    found = []
    for place, label in enumerate(classes, 1):
        mask = seen == place
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        encoded = run_lengths.encode(np.asfortranarray(mask, dtype=np.uint8))
        counts: Any = encoded["counts"]
        x, y = int(columns[0]), int(rows[0])
        found.append(
            {
                "category_id": label,
                "bbox": [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y],
                "area": int(mask.sum()),
                "iscrowd": 0,
                "segmentation": {
                    "size": [*seen.shape],
                    "counts": counts.decode() if isinstance(counts, bytes) else counts,
                },
            }
        )
    return found


def _painted(garments: list[Garment], size: tuple[int, int], random: np.random.Generator, plain: bool) -> np.ndarray:
    height, width = size
    if plain:
        image = np.tile(_colour(random, *DARK), (height, width, 1))
        for garment in garments:
            _lay(
                garment, image, _colour(random, *BRIGHT), random.uniform(0.5, 0.7), np.ones_like(garment.cover), random
            )
    else:
        ground = [_colour(random) for _ in range(2)]
        pattern = texture(height, width, random)[..., None]
        image = ground[0] + (ground[1] - ground[0]) * pattern
        for garment in garments:
            colour, pattern = _colour_that_differs(ground, random), texture(*garment.cover.shape, random)
            contrast, ambient = random.uniform(0, 0.4), random.uniform(0.15, 0.4)
            _lay(garment, image, colour, ambient, 1 - contrast * pattern, random)
    # light that is not the same everywhere, then the noise of a sensor
    image *= 0.7 + 0.5 * smooth_noise(height, width, max(size) / 2, random)[..., None]
    grain = random.integers(-128, 128, image.shape, np.int8).astype(np.float32)
    image += grain * np.float32(random.uniform(0.01, 0.06) / 128)
    return (np.clip(image, 0, 1) * 255 + np.float32(0.5)).astype(np.uint8)


def _lay(
    garment: Garment,
    image: np.ndarray,
    colour: np.ndarray,
    ambient: float,
    pattern: np.ndarray,
    random: np.random.Generator,
) -> None:
    """Paint a garment over the image, its shadow first.

    Args:
        colour: float32 [3]; `ambient` is the share of it that is left where the garment is black.
        pattern: factor of the brightness, of the shape of the garment's cover.
    """
    depth = max(1, round(0.04 * max(garment.cover.shape)))
    shift_down, shift_right = (int(shift) for shift in random.integers(-depth, depth + 1, 2))

    around = 2 * depth
    cover = np.pad(garment.cover, around)
    blurred = Image.fromarray((cover * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(depth))
    top, left = garment.top - around + shift_down, garment.left - around + shift_right
    there, own = windows(top, left, cover.shape, image.shape)
    image[there] *= 1 - np.asarray(blurred, np.float32)[own][..., None] * np.float32(0.5 / 255)

    there, own = windows(garment.top, garment.left, garment.cover.shape, image.shape)
    brightness = (ambient + (1 - ambient) * garment.grey[own]) * pattern[own]
    image[there] += garment.cover[own][..., None] * (brightness[..., None] * colour - image[there])


def _colour_that_differs(others: list[np.ndarray], random: np.random.Generator) -> np.ndarray:
    """A colour that can be told from the others, or the best of eight."""
    drawn = [_colour(random, brightest=1.0) for _ in range(8)]
    distances = [min(float(np.abs(colour - other).max()) for other in others) for colour in drawn]
    return next(
        (c for c, distance in zip(drawn, distances, strict=True) if distance >= 0.35), drawn[np.argmax(distances)]
    )


def _colour(random: np.random.Generator, darkest: float = 0.25, brightest: float = 0.85) -> np.ndarray:
    """A colour, float32 [3] in 0..1."""
    hue, saturation, value = random.random(), random.uniform(0, 0.8), random.uniform(darkest, brightest)
    return np.array(colorsys.hsv_to_rgb(hue, saturation, value), np.float32)


def _random(seed: int, split: str, index: int, part: int) -> np.random.Generator:
    return np.random.default_rng([seed, list(SPLITS).index(split), index, part])


def _palette() -> list[int]:
    """Colours of the label maps: ground is dark, hues for the garments."""
    hues = [
        colorsys.hsv_to_rgb(place * 0.6180339887 % 1, 0.55 + 0.3 * (place % 2), 0.95)
        for place in range(1, len(CLASSES))
    ]
    return [40, 40, 40, *(round(255 * channel) for hue in hues for channel in hue)]


PALETTE = _palette()
"""RGB of the stored values of a label map, flat."""
