"""Tiles of the kernels for weights shared over positions: candidates, of which the fastest is measured."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from torch import Tensor

from localmix.kernels.triton import tuning

Pair = tuple[int, int]
Tile = tuple[int, ...]

MOST_CHANNELS = 64
"""Of a block of the kernels by vectors."""

IN_REGISTERS = 0
"""Stands for the rows in a tile of the kernels in registers, which go down all rows of a strip."""

BY_PRODUCTS = -1
"""Stands there in a tile of the kernel on the matrix units."""

CHANNELS_OF_PRODUCTS = 8
"""Of a program of that kernel: two for each of its four warps, and 16 bytes side by side."""

_SUMS_OF_PRODUCTS = 7 * 16 * 16
"""That a program has of a channel: 112 registers of a thread."""

_LEAST_IMAGES = 8
"""For products that take 16 lines at least."""

_NUMBERS = 100
"""Taps, and sums of as many columns as fit, of a thread: with what else it needs, registers for 12 warps."""

_MOST_COLUMNS = 8

_ENOUGH_WARPS = 1536
"""To fill a large GPU."""

_LEAST_ROWS = 4
"""Of a strip that goes down a map, if the map has so many: each reads the rows around it again."""


def pieces_of(shape: Sequence[int], dilation: Sequence[int], rows: int, tile: int, block: int) -> tuple[int, int, int]:
    """Strips of rows, tiles of columns and blocks of channels that cover a map."""
    _, height, width, channels = shape
    strips = dilation[0] * tuning.cdiv(tuning.cdiv(height, dilation[0]), rows)
    return strips, tuning.cdiv(width, tile), tuning.cdiv(channels, block)


def tiles_by_vectors(x: Tensor, parts: int, most_rows: int) -> list[Tile]:
    """Candidates (rows, columns, words, warps); a row of a tile is 16 bytes for each thread, or 32."""
    return _tiles_of(x.shape[2], x.shape[3] // parts, parts, 16 // (parts * x.element_size()), most_rows)


@functools.cache
def _tiles_of(width: int, words: int, parts: int, vector: int, most_rows: int) -> list[Tile]:
    widest, narrow = (min(most // parts, tuning.next_power_of_2(words)) for most in (MOST_CHANNELS, 32))
    few = min(4, most_rows)
    candidates = []
    for rows, block, warps, vectors in (
        (most_rows, widest, 4, 1),
        (most_rows, narrow, 4, 1),
        (most_rows, widest, 2, 1),
        (few, widest, 4, 1),
        (few, narrow, 4, 1),
        (few, widest, 2, 1),
        (few, widest, 4, 2),
    ):
        columns = min(max(1, 32 * warps * vector * vectors // block), tuning.next_power_of_2(width))
        candidates.append((rows, columns, block, warps))
    return list(dict.fromkeys(candidates))


def tiles_in_registers(
    shape: Sequence[int], weight: Sequence[int], dilation: Sequence[int]
) -> list[tuple[int, int, int, int]]:
    """Candidates (`IN_REGISTERS`, columns, channels, strips); none where the taps of a thread fit no registers.

    First the columns that take the fewest instructions, then fewer, for more programs of fewer registers. The strips
    are as few as fill a GPU.
    """
    return _tiles_in_registers(tuple(shape), tuple(weight), tuple(dilation))


@functools.cache
def _tiles_in_registers(
    shape: tuple[int, ...], weight: tuple[int, ...], dilation: tuple[int, ...]
) -> list[tuple[int, int, int, int]]:
    batch, height, width, channels = shape
    taps_h, taps_w = weight[2:]
    longest, widest = (tuning.cdiv(size, d) for size, d in zip((height, width), dilation, strict=True))
    most = min((_NUMBERS - taps_h * taps_w) // taps_h, _MOST_COLUMNS, widest)

    def instructions(columns: int) -> int:
        one = taps_h * taps_w * columns + 3 * (columns + taps_w - 1) + 5 * columns + 40
        return tuning.cdiv(widest, columns) * one

    block = min(32, tuning.next_power_of_2(channels))
    candidates = []
    for limit in (most, min(most, 4)):
        if limit < 1:
            break
        columns = min(range(limit, 0, -1), key=instructions)
        tiles = dilation[1] * tuning.cdiv(widest, columns)
        warps = dilation[0] * tuning.cdiv(batch * tiles * block, 32) * tuning.cdiv(channels, block)
        strips = min(tuning.cdiv(_ENOUGH_WARPS, warps), max(1, longest // _LEAST_ROWS))
        candidates.append((IN_REGISTERS, columns, block, strips))
    return list(dict.fromkeys(candidates))


@functools.cache
def tiles_by_products(shape: tuple[int, ...], weight: tuple[int, ...], dilation: tuple[int, ...]) -> list[Tile]:
    """Candidates (`BY_PRODUCTS`, images, columns, columns that are read).

    None for weights of each image, few images, channels that are no whole blocks, and kernels that reach too far.
    """
    batch, _, width, channels = shape
    if weight[0] > 1 or batch < _LEAST_IMAGES or channels % CHANNELS_OF_PRODUCTS:
        return []
    columns, read = 8 if width <= 8 else 16, 16 if width <= 16 else 32
    if read < min(width, columns + dilation[1] * (weight[3] - 1)):
        return []
    return [
        (BY_PRODUCTS, images, columns, read) for images in (32, 16) if weight[2] * images * columns <= _SUMS_OF_PRODUCTS
    ]
