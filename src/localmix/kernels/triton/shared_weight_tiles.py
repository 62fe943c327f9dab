"""Tiles of the kernels for weights shared over positions: candidates, of which the fastest is measured."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from localmix.kernels.triton import tuning

Pair = tuple[int, int]
Tile = tuple[int, ...]

MOST_CHANNELS = 64
"""Of a block of the kernels by vectors."""

BY_PRODUCTS = 0
"""Stands for the columns in a tile of the kernels by products, which have no choice of them."""

UNITS, SOURCES, COLUMNS = 16, 16, 8
"""Sides of a product, the least that a matrix unit takes."""

_MOST_KERNEL_ROWS = 7
"""Of which the sums fit the registers."""

_VECTORS = 16
"""Triton reads in vectors only where it knows that lines are a multiple of so many numbers."""

_FEW_PROGRAMS = 256
"""That leave parts of a large GPU idle."""


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


def units_of(
    shape: Sequence[int], weight: Sequence[int], dilation: Sequence[int], strips: int, block: int
) -> tuple[int, tuple[int, int, int], int]:
    """For products: rows of a strip, strips, tiles and blocks of channels, and units of one of N weights.

    The rows fill whole rounds of a kernel's rows.
    """
    longest = tuning.cdiv(tuning.cdiv(shape[1], dilation[0]), strips)
    rows = (tuning.cdiv(longest + weight[2] - 1, weight[2]) - 1) * weight[2] + 1
    pieces = pieces_of(shape, dilation, rows, COLUMNS, block)
    return rows, pieces, shape[0] // weight[0] * pieces[0] * pieces[1]


def with_products(
    x: Tensor, weight: Sequence[int], dilation: Sequence[int], sizes: Sequence[Tile], others: list[Tile]
) -> list[Tile]:
    """Candidates (strips, `BY_PRODUCTS`, *size) and, in case it is faster here, one other; more where these are few.

    Maps are cut into strips where there are few programs without. There are no products where most of one would be
    empty, as for the weights of one image of a small map. Each candidate costs its first user the time to compile it.
    """
    if not has_products(x, weight, dilation):
        return others
    candidates: list[Tile] = []
    is_good, rows = False, 0
    for strips in (1, 2, 4):
        fewer, pieces, units = units_of(x.shape, weight, dilation, strips, sizes[0][0])
        if fewer == rows:
            break
        rows = fewer
        num_products = tuning.cdiv(units, UNITS)
        programs = weight[0] * num_products * pieces[2]
        if 4 * units >= num_products * UNITS:
            candidates = [*((strips, BY_PRODUCTS, *size) for size in sizes), *candidates]
            is_good = 2 * units >= num_products * UNITS and programs >= _FEW_PROGRAMS
        if is_good and programs >= 2 * _FEW_PROGRAMS:
            break
    return [*candidates[:4], others[0]] if is_good else [*others[:4], *candidates[:2]]


def has_products(x: Tensor, weight: Sequence[int], dilation: Sequence[int]) -> bool:
    """Whether matrix units take these numbers, x is read in vectors, and a product has all that the kernel reads."""
    takes = x.element_size() == 2 or tuning.is_interpreted()
    aligned = x.shape[3] % _VECTORS == 0 and x.data_ptr() % 16 == 0
    wide = (weight[3] - 1) * dilation[1] + COLUMNS <= SOURCES
    return takes and aligned and wide and weight[2] <= _MOST_KERNEL_ROWS and not torch.version.hip
