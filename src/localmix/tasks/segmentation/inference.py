"""From a net to the classes of each pixel: whole or in windows, at several scales, mirrored, at any size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from localmix import arguments
from localmix.arguments import Size
from localmix.tasks.images import normalise, to_mode, to_tensor
from localmix.tasks.segmentation.pairs import LabelledScenes
from localmix.tasks.segmentation.scores import SegmentationScores
from localmix.tasks.segmentation.upernet import resize
from localmix.tasks.segmentation.views import MEAN, STD, fitted

Logits = Callable[[Tensor], Tensor]
"""Images [B, C, h, w] to logits [B, K, h, w]."""


def probabilities(
    net: Logits,
    images: Tensor,
    *,
    sizes: Sequence[Size] | None = None,
    flip: bool = False,
    window: Size | None = None,
    stride: Size | None = None,
) -> Tensor:
    """Of each class at each pixel, [B, K, H, W]: the mean over all sizes and their mirror images.

    Args:
        net: in evaluation mode.
        images: normalised, [B, C, H, W].
        sizes: heights and widths that the images are resized to; by default their own.
        flip: whether each is mirrored too.
        window: height and width of the windows that the net is run on, see `sliding`; by default the whole image.
        stride: from a window to the next; by default two thirds of it.

    Raises:
        ValueError: names the argument, what was expected and what came.
    """
    arguments.tensor("images", images, "B C H W")
    if stride is not None and window is None:
        raise ValueError(f"stride: expected a window with it, got {stride} alone")
    own = tuple(images.shape[2:])
    wanted = [own] if sizes is None else [arguments.pair("sizes", size) for size in sizes]
    if not wanted:
        raise ValueError("sizes: expected at least one, got none")
    total: Any = 0
    for size in wanted:
        # the filter that training has seen
        resized = images if size == own else F.interpolate(images, size, mode="bilinear", antialias=True)
        for mirrored in (False, True) if flip else (False,):
            view = resized.flip(3) if mirrored else resized
            logits = net(view) if window is None else sliding(net, view, window=window, stride=stride)
            shares = resize(logits, own).softmax(1)
            total = total + (shares.flip(3) if mirrored else shares)
    return total / (len(wanted) * (1 + flip))


def sliding(net: Logits, images: Tensor, *, window: Size, stride: Size | None = None) -> Tensor:
    """Logits of the net on windows, averaged where they overlap: [B, K, H, W].

    The last windows of a row and a column end with the image, so all have one size; an image smaller than the window
    makes it smaller. Where one window covers the image the result is that of the net.
    """
    height, width = images.shape[2:]
    wanted = arguments.pair("window", window)
    sides = [min(a, b) for a, b in zip(wanted, (height, width), strict=True)]
    steps = [max(1, 2 * side // 3) for side in sides] if stride is None else list(arguments.pair("stride", stride))
    for side, step in zip(wanted, steps, strict=True):
        if step > side:
            raise ValueError(f"stride: expected at most the {side} pixels of the window, got {step}")
    total: Any = None
    counts = images.new_zeros(height, width)
    for top in _starts(height, sides[0], steps[0]):
        for left in _starts(width, sides[1], steps[1]):
            place = (..., slice(top, top + sides[0]), slice(left, left + sides[1]))
            logits = net(images[place])
            if total is None:
                total = logits.new_zeros(*logits.shape[:2], height, width)
            total[place] += logits
            counts[place] += 1
    return total / counts.to(total.dtype)


def _starts(length: int, side: int, step: int) -> list[int]:
    last = length - side
    return [*range(0, last, step), last]


def known_scales(scales: Sequence[float]) -> tuple[float, ...]:
    """`scales`, of which there must be some, all finite and above 0."""
    if not scales or not all(0 < scale < math.inf for scale in scales):
        raise ValueError(f"scales: expected factors above 0, got {tuple(scales)}")
    return tuple(scales)


@torch.no_grad()
def predict(
    net: nn.Module,
    image: Image.Image,
    *,
    short_side: int | None = None,
    scales: Sequence[float] = (1.0,),
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
    **options: Any,
) -> Tensor:
    """The class of each pixel of an image, int64 [H, W], at the size the image has.

    Args:
        net: in evaluation mode, on the device where it is to run.
        image: of any mode.
        short_side: that the image is resized to at scale 1 [pixels], see `views.fitted`; by default its own.
        scales: factors, each of which gives a prediction, see `probabilities`.
        mean: of each channel, values in 0..1.
        std: of each channel, values in 0..1.
        options: `flip`, `window` and `stride`, as `probabilities` has them.

    Raises:
        ValueError: names the argument, what was expected and what came.
    """
    if net.training:
        raise ValueError("net: expected one in evaluation mode, got one in training mode; call net.eval()")
    known_scales(scales)
    image = to_mode(image, 3)
    side = min(image.size) if short_side is None else arguments.positive("short_side", short_side)
    sizes = [
        fitted(*image.size, side * scale)[::-1] if short_side or scale != 1 else image.size[::-1] for scale in scales
    ]
    device = next(net.parameters()).device
    pixels = normalise(to_tensor(image)[None], list(mean), list(std)).to(device)
    return probabilities(net, pixels, sizes=sizes, **options).argmax(1)[0]


def evaluate(
    net: nn.Module,
    scenes: LabelledScenes,
    *,
    indices: Iterable[int] | None = None,
    track: Callable[[Iterable[Any], str, int], Iterable[Any]] = lambda iterable, what, count: iterable,
    **options: Any,
) -> SegmentationScores:
    """Predict labelled images at their own sizes and count what is right; `compute()` of the result gives the scores.

    Args:
        net: in evaluation mode.
        scenes: pairs (image, labels).
        indices: of the images that this process evaluates: `range(rank, len(scenes), num_processes)`, so that each
            counts once; by default all.
        track: shows progress.
        options: as `predict` has them.
    """
    metric = SegmentationScores(scenes.labelling.num_classes)
    indices = range(len(scenes)) if indices is None else list(indices)
    for index in track(indices, "evaluate", len(indices)):
        image, labels = scenes[index]
        metric.update(predict(net, image, **options).cpu(), torch.from_numpy(labels))
    return metric
