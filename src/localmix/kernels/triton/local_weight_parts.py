"""Weights of its own at every position that are not kept: made, or their gradient, for some rows or images at a time.

They are K numbers per group and position: often the largest tensor there is. A part of them is written to a buffer that
is used again, which an L2 cache may hold until they are used, and read by the kernel or product that needs them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from localmix.kernels.triton import tuning
from localmix.kernels.triton.local_weight_words import run_by_words

Tile = tuple[int, ...]
Part = tuple[int, int, int, int]
"""First image, images, first row, rows."""

_BUFFER_BYTES = 2**25
"""At most: two thirds of the L2 cache of an H100."""

_BUFFER_OF_X = 4
"""And no more than so many times the numbers of x."""


def parts_of(x: Tensor, row: int, beyond: int = 0) -> list[Part]:
    """Parts of x of about one size, that fill a buffer: several images where they fit, or some rows of one.

    Args:
        x: a tensor [B, H, W, C] of the dtype of the buffer.
        row: numbers of it in the buffer.
        beyond: rows that a part has in the buffer besides its own, if it is not whole images. There are no parts, []
            where these were more than half of it; without any a part has at least a row.
    """
    most = min(_BUFFER_BYTES // x.element_size(), _BUFFER_OF_X * x.numel()) // row
    batch, height = x.shape[:2]
    if most >= height:
        return [(image, images, 0, height) for image, images in _shares(batch, most // height)]
    if most < 2 * beyond:
        return []
    rows = list(_shares(height, max(1, most - beyond)))
    return [(image, 1, first, share) for image in range(batch) for first, share in rows]


def _shares(number: int, most: int) -> Iterator[tuple[int, int]]:
    """First and number of shares that differ by one at most."""
    shares = tuning.cdiv(number, most)
    for share in range(shares):
        first = number * share // shares
        yield first, number * (share + 1) // shares - first


def parts_to_apply(
    x: Tensor, lines: int, kernel: Sequence[int], dilation: Sequence[int], transposed: bool
) -> list[Part]:
    """Parts of y: transposed, what they need is the weights of the rows around them too. None where these are many."""
    beyond = dilation[0] * (kernel[0] - 1) if transposed else 0
    return parts_of(x, x.shape[2] * lines, beyond)


def run_in_parts(
    tile: Tile,
    x: Tensor,
    y: Tensor,
    made_of: tuple[Tensor, Tensor, Tensor | None, int],
    kernel: Sequence[int],
    dilation: Sequence[int],
    *,
    transposed: bool,
) -> None:
    """Writes y by weights that are made of (hidden, projection, bias, groups), with a tile of `run_by_words`."""
    hidden, projection, bias, groups = made_of
    (lines, rank), (height, width) = projection.shape, x.shape[1:3]
    num_taps, reach = lines // groups, dilation[0] * (kernel[0] - 1)
    above, below = (reach - reach // 2, reach // 2) if transposed else (0, 0)
    parts = [
        (image, images, row, rows, max(row - above, 0), min(row + rows + below, height))
        for image, images, row, rows in parts_to_apply(x, lines, kernel, dilation, transposed)
    ]
    buffer = hidden.new_empty(max(images * (stop - start) for _, images, _, _, start, stop in parts) * width, lines)
    # groups innermost
    factor = projection.unflatten(0, (groups, num_taps)).transpose(0, 1).reshape(lines, rank).t()
    start_at = None if bias is None else bias.view(groups, num_taps).t().reshape(lines)
    for image, images, row, rows, start, stop in parts:
        features = hidden[image : image + images, start:stop].view(-1, rank)
        taps = buffer[: features.shape[0]]
        if start_at is None:
            torch.mm(features, factor, out=taps)
        else:
            torch.addmm(start_at, features, factor, out=taps)
        weight = taps.view(images, stop - start, width, num_taps, groups).transpose(3, 4)
        maps = x[image : image + images], y[image : image + images, row : row + rows]
        run_by_words(tile, *maps, weight, kernel, dilation, transposed=transposed, first_row=row, weight_row=start)
