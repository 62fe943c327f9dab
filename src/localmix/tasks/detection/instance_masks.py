"""Masks of objects: cut out of an image for training, and put back into it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align


def mask_loss(
    logits: Tensor, channels: Tensor, masks: Sequence[Tensor], matched: Sequence[Tensor], boxes: Sequence[Tensor]
) -> Tensor:
    """Binary cross entropy of the mask of each object's own class, the mean over objects and cells.

    Args:
        logits: of the boxes of all images, [N, channels, S, S].
        channels: that of the class of each box, [N].
        masks: of the objects of each image, see `crop_masks`; likewise `matched` and `boxes`, N in all.
    """
    if not len(channels):
        # no object in the batch: every parameter still has a gradient, as processes that wait for it expect
        return 0 * logits.sum()
    images = zip(masks, matched, boxes, strict=True)
    cells = [crop_masks(*image, logits.shape[-1]) for image in images if len(image[2])]
    own = logits[torch.arange(len(channels), device=channels.device), channels]
    return F.binary_cross_entropy_with_logits(own, torch.cat(cells))


def crop_masks(masks: Tensor, matched: Tensor, boxes: Tensor, size: int) -> Tensor:
    """What a mask head has to say about each box: 1 where the cell is mostly object.

    Args:
        masks: of the objects in an image, [M, H, W], 0 or 1.
        matched: which of them belongs to each box, [N].
        boxes: [N, 4] [pixels].
        size: cells on a side.

    Shapes: -> float32 [N, size, size], 0 or 1.
    """
    used, index = matched.unique(return_inverse=True)
    regions = torch.cat([index[:, None].to(boxes), boxes], 1).float()
    shares = roi_align(masks[used, None].float(), regions, size, sampling_ratio=0, aligned=True)
    return (shares[:, 0] >= 0.5).float()


def paste_masks(masks: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """Bilinear values of masks, each stretched over its box, at the centres of the pixels of an image; 0 outside.

        y[n, v, u] = sum over i, j of  hat(vertical(v) - i) * hat(horizontal(u) - j) * masks[n, i, j]
        vertical(v) = (v + 0.5 - y0) / (y1 - y0) * S - 0.5,  hat(t) = max(0, 1 - |t|)

    Shapes: masks [N, S, S], boxes [N, 4] [pixels] -> [N, height, width].
    """
    x0, y0, x1, y1 = boxes.float().unbind(1)
    rows = _hats(y0, y1, masks.shape[1], height)
    columns = _hats(x0, x1, masks.shape[2], width)
    # autocast would round the sums to eight bits
    with torch.autocast(masks.device.type, enabled=False):
        return rows @ masks.float() @ columns.transpose(1, 2)


def _hats(start: Tensor, end: Tensor, size: int, length: int) -> Tensor:
    """Weight of each of `size` cells between `start` and `end` at each of `length` pixels: [N, length, size]."""
    pixels = torch.arange(length, device=start.device) + 0.5
    extent = (end - start).clamp(min=1e-6)
    position = (pixels - start[:, None]) / extent[:, None] * size - 0.5
    return (1 - (position[:, :, None] - torch.arange(size, device=start.device)).abs()).clamp(min=0)
