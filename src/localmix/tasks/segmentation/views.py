"""How a labelled scene becomes what a net sees: in training by chance, in validation always alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from localmix.arguments import positive
from localmix.tasks.engine.batches import Request, Samples
from localmix.tasks.images import normalise, to_tensor
from localmix.tasks.segmentation.labels import IGNORED
from localmix.tasks.segmentation.pairs import LabelledScenes

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
LONG_SIDE = 4
"""Longest side over the shorter one: as 2048 to 512 in the paper."""
TRIALS = 10
"""Crops that are tried until no class has too large a share; the last one is taken as it is."""


def fitted(width: int, height: int, short_side: float) -> tuple[int, int]:
    """Width and height with their ratio kept, the shorter one `short_side`, the longer one at most four times that."""
    scale = min(short_side / min(width, height), LONG_SIDE * short_side / max(width, height))
    return max(1, int(width * scale + 0.5)), max(1, int(height * scale + 0.5))


class SceneViews:
    """The views of the paper's recipe.

    Training: the shorter side is resized to `short_side` times a factor in `scale`; a square is cropped, another one if
    a class takes more than `largest_share` of its labelled pixels (ten trials); flip; photometric distortion. What the
    square has beyond the image is void, and of the mean colour.

    Validation: the shorter side is resized to `short_side`; labels stay as they are.

    Args:
        size: side of the crop [pixels].
        short_side: of the image at scale 1; by default `size`.
        scale: least and largest factor.
        largest_share: of one class among the labelled pixels of a crop.
        distort: whether brightness, contrast, saturation and hue vary.
        mean: of each channel, values in 0..1: the colour beyond the image.
    """

    def __init__(
        self,
        size: int,
        *,
        short_side: int | None = None,
        scale: tuple[float, float] = (0.5, 2.0),
        largest_share: float = 0.75,
        distort: bool = True,
        mean: Sequence[float] = MEAN,
    ) -> None:
        self.size = positive("size", size)
        self.short_side = self.size if short_side is None else positive("short_side", short_side)
        if not 0 < scale[0] <= scale[1]:
            raise ValueError(f"scale: expected 0 < least <= largest, got {scale}")
        if not 0 < largest_share <= 1:
            raise ValueError(f"largest_share: expected more than 0 and at most 1, got {largest_share}")
        self.scale, self.largest_share, self.distort = scale, largest_share, distort
        self.border = torch.tensor([round(255 * m) for m in mean], dtype=torch.uint8)[:, None, None]

    def train(self, image: Image.Image, labels: np.ndarray, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        """uint8 [3, size, size] and int64 [size, size]; every draw comes from `random`."""
        width, height = fitted(*image.size, self.short_side * random.uniform(*self.scale))
        rows, columns = _nearest(labels.shape[0], height), _nearest(labels.shape[1], width)
        for _ in range(TRIALS):
            top, left = (int(random.integers(max(side - self.size, 0) + 1)) for side in (height, width))
            bottom, right = min(top + self.size, height), min(left + self.size, width)
            cropped = labels[rows[top:bottom, None], columns[left:right]]
            if _largest_share(cropped) <= self.largest_share:
                break
        across, down = image.width / width, image.height / height
        # the same pixels as those of the whole image resized, of which most would be thrown away
        box = (left * across, top * down, min(right * across, image.width), min(bottom * down, image.height))
        view = image.resize((right - left, bottom - top), Image.Resampling.BILINEAR, box=box)
        flip = random.random() < 0.5
        if self.distort:
            view = distorted(view, random)
        pixels = self.border.repeat(1, self.size, self.size)
        target = torch.full((self.size, self.size), IGNORED)
        pixels[:, : bottom - top, : right - left] = to_tensor(view)
        target[: bottom - top, : right - left] = torch.from_numpy(cropped)
        return (pixels.flip(2), target.flip(1)) if flip else (pixels, target)

    def validate(self, image: Image.Image, labels: np.ndarray) -> tuple[Tensor, Tensor]:
        """uint8 [3, h, w] and int64 [H, W], as large as the image was."""
        size = fitted(*image.size, self.short_side)
        resized = image if size == image.size else image.resize(size, Image.Resampling.BILINEAR)
        return to_tensor(resized), torch.from_numpy(labels).long()


def _nearest(old: int, new: int) -> np.ndarray:
    """Of each of `new` positions the nearest one of `old`."""
    return (2 * np.arange(new) + 1) * old // (2 * new)


def _largest_share(labels: np.ndarray) -> float:
    """Of the most frequent class among the labelled pixels; 1 where nothing is labelled."""
    counts = np.bincount(labels.ravel() - IGNORED)[1:]
    return counts.max() / counts.sum() if counts.any() else 1.0


def distorted(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Brightness (by up to 32 of 255), contrast, saturation (factors 0.5 to 1.5) and hue (by up to 36 degrees).

    Each with even odds; contrast comes in front of saturation and hue or behind them, with even odds as well.
    """
    brightness, contrast, saturation, hue, contrast_first = random.random(5) < 0.5
    shift, factor, colour = random.uniform(-32, 32), random.uniform(0.5, 1.5), random.uniform(0.5, 1.5)
    turn = random.uniform(-36, 36) * 256 / 360
    values = np.arange(256)

    def mapped(image: Image.Image, *tables: np.ndarray) -> Image.Image:
        return image.point(np.clip(np.rint(np.concatenate(tables)), 0, 255).astype(int).tolist())

    if brightness:
        image = mapped(image, *[values + shift] * 3)
    if contrast and contrast_first:
        image = mapped(image, *[values * factor] * 3)
    if saturation or hue:
        turned = np.rint(values + turn) % 256 if hue else values
        stretched = values * colour if saturation else values
        image = mapped(image.convert("HSV"), turned, stretched, values).convert("RGB")
    if contrast and not contrast_first:
        image = mapped(image, *[values * factor] * 3)
    return image


class SceneDataset(Samples):
    """Scenes that answer requests for batches, see `localmix.tasks.engine.batches`.

    Training, (seed, epoch, indices): float32 [n, 3, size, size] and int64 [n, size, size], a function of seed, epoch
    and index. Validation, seed None: a single image, float32 [1, 3, h, w] and int64 [1, H, W].

    Args:
        scenes: pairs (image, labels).
        views: how a pair becomes pixels and targets.
        mean: of each channel, values in 0..1.
        std: of each channel, values in 0..1.
    """

    def __init__(
        self, scenes: LabelledScenes, views: SceneViews, *, mean: Sequence[float] = MEAN, std: Sequence[float] = STD
    ) -> None:
        self.scenes, self.views, self.mean, self.std = scenes, views, list(mean), list(std)

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, request: Request) -> tuple[Tensor, Tensor]:
        seed, epoch, indices = request
        if seed is None and len(indices) > 1:
            raise ValueError(f"batch_size: expected 1 in validation, where images keep their sizes, got {len(indices)}")
        views = []
        for index in indices:
            image, labels = self.scenes[index]
            if seed is None:
                views.append(self.views.validate(image, labels))
            else:
                views.append(self.views.train(image, labels, np.random.default_rng([seed, epoch, index])))
        pixels, targets = zip(*views, strict=True)
        return normalise(torch.stack(pixels), self.mean, self.std), torch.stack(targets)
