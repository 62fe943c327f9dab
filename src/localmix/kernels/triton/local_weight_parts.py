"""Weights of its own at every position that are not kept: made, or their gradient, for some rows or images at a time.

They are K numbers per group and position: often the largest tensor there is. A part of them is written to a buffer that
is used again, which an L2 cache may hold until they are used, and read by the kernel or product that needs them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from localmix.kernels.triton import tuning
from localmix.kernels.triton.local_weight_words import launch_by_words

Tile = tuple[int, ...]
Part = tuple[int, int, int, int]
"""First image, images, first row, rows."""

_BUFFER_BYTES = (2**28, 2**25)
"""At most: work for a whole GPU in each part, or two thirds of the L2 cache of an H100. The faster is measured."""

_BUFFER_OF_X = 4
"""And no more than so many times the numbers of x."""

_MOST_KEPT = 256
"""Maps whose parts are kept."""


def buffers(x: Tensor, row: int, beyond: int = 0) -> list[int]:
    """Sizes of the buffer [bytes] with which `parts_of` gives parts, others for each; the largest first."""
    sizes: dict[tuple[Part, ...], int] = {}
    for size in _BUFFER_BYTES:
        sizes.setdefault(parts_of(x, row, size, beyond), size)
    return [size for parts, size in sizes.items() if parts]


def parts_of(x: Tensor, row: int, size: int, beyond: int = 0) -> tuple[Part, ...]:
    """Parts of x of about one size, that fill a buffer: several images where they fit, or some rows of one.

    Args:
        x: a tensor [B, H, W, C] of the dtype of the buffer.
        row: numbers of it in the buffer.
        size: of the buffer, at most [bytes].
        beyond: rows that a part has in the buffer besides its own, if it is not whole images. There are no parts
            where these were more than half of it; without any a part has at least a row.
    """
    most = min(size // x.element_size(), _BUFFER_OF_X * x.numel()) // row
    return _parts(*x.shape[:2], most, beyond)


@functools.lru_cache(_MOST_KEPT)
def _parts(batch: int, height: int, most: int, beyond: int) -> tuple[Part, ...]:
    if most >= height:
        return tuple((image, images, 0, height) for image, images in _shares(batch, most // height))
    if most < 2 * beyond:
        return ()
    rows = list(_shares(height, max(1, most - beyond)))
    return tuple((image, 1, first, share) for image in range(batch) for first, share in rows)


def _shares(number: int, most: int) -> Iterator[tuple[int, int]]:
    """First and number of shares that differ by one at most."""
    shares = tuning.cdiv(number, most)
    for share in range(shares):
        first = number * share // shares
        yield first, number * (share + 1) // shares - first


def buffers_to_apply(
    x: Tensor, lines: int, kernel: Sequence[int], dilation: Sequence[int], transposed: bool
) -> list[int]:
    """Sizes of the buffer for `run_in_parts`; none where most of what is made would be made again."""
    return buffers(x, x.shape[2] * lines, _beyond(kernel, dilation, transposed))


def _beyond(kernel: Sequence[int], dilation: Sequence[int], transposed: bool) -> int:
    """Transposed, what a part needs is the weights of the rows around it too."""
    return dilation[0] * (kernel[0] - 1) if transposed else 0


def run_in_parts(
    tile: Tile,
    x: Tensor,
    y: Tensor,
    made_of: tuple[Tensor, Tensor, Tensor | None, int],
    kernel: Sequence[int],
    dilation: Sequence[int],
    *,
    size: int,
    transposed: bool,
) -> None:
    """Writes y by weights that are made of (hidden, projection, bias, groups), with a tile of `launch_by_words`.

    `size` is one of `buffers_to_apply`.
    """
    hidden, projection, bias, groups = made_of
    (lines, rank), (height, width, channels) = projection.shape, x.shape[1:]
    num_taps, reach = lines // groups, dilation[0] * (kernel[0] - 1)
    above, below = (reach - reach // 2, reach // 2) if transposed else (0, 0)
    parts = parts_of(x, width * lines, size, _beyond(kernel, dilation, transposed))
    owned = [(max(row - above, 0), min(row + rows + below, height)) for _, _, row, rows in parts]
    sizes = [images * (stop - start) * width for (_, images, _, _), (start, stop) in zip(parts, owned, strict=True)]
    buffer = hidden.new_empty(max(sizes), lines)
    # groups innermost
    factor = projection.unflatten(0, (groups, num_taps)).transpose(0, 1).reshape(lines, rank).t()
    constant = None if bias is None else bias.unflatten(0, (groups, num_taps)).t().reshape(lines)
    # views cost a microsecond each, unless they are made together
    of_y = y.view(-1, channels).split([images * rows * width for _, images, _, rows in parts])
    if parts[0][3] == height:
        of_x, features = x.split([images for _, images, _, _ in parts]), hidden.view(-1, rank).split(sizes)
    else:
        maps, of_hidden = x.split(1), hidden.unbind()
        of_x = [maps[image] for image, *_ in parts]
        features = [
            of_hidden[image][start:stop].view(-1, rank) for (image, *_), (start, stop) in zip(parts, owned, strict=True)
        ]
    launches: dict[tuple[int, ...], tuple[Tensor, tuning.Launch]] = {}
    for index, (_, images, row, rows) in enumerate(parts):
        found = launches.get((images, row))
        if found is None:
            taps, (start, stop) = buffer[: sizes[index]], owned[index]
            weight = taps.view(images, stop - start, width, num_taps, groups).transpose(3, 4)
            options = {"transposed": transposed, "first_row": row, "weight_row": start}
            found = taps, launch_by_words(tile, of_x[index], weight, rows, kernel, dilation, **options)
            launches[images, row] = found
        taps, it = found
        if constant is None:
            torch.mm(features[index], factor, out=taps)
        else:
            torch.addmm(constant, features[index], factor, out=taps)
        tensors = (of_x[index], taps, of_y[index])
        tuning.launch(it.kernel, it.programs, tensors, it.integers, it.constants, it.warps)
