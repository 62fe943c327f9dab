"""Tiles of the kernels for weights shared over positions: candidates, of which the fastest is measured."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

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


def has_products(x: Tensor, weight: Tensor, dilation: Sequence[int]) -> bool:
    """Whether matrix units take these numbers, x is read in vectors, and a product has all that the kernel reads."""
    takes = x.element_size() == 2 or tuning.is_interpreted()
    aligned = x.shape[3] % _VECTORS == 0 and x.data_ptr() % 16 == 0
    wide = (weight.shape[3] - 1) * dilation[1] + COLUMNS <= SOURCES
    return takes and aligned and wide and weight.shape[2] <= _MOST_KERNEL_ROWS and not torch.version.hip


def with_products(
    x: Tensor, weight: Tensor, dilation: Sequence[int], sizes: tuple[Tile, ...], others: list[Any]
) -> list[Tile]:
    """Candidates by products and, in case they are not faster here, one other; more others where they do not fill a GPU.

    Each costs its first user the time to compile it.
    """
    batch, height, width, channels = x.shape
    shape, kernel = (batch, height, width, channels), (weight.shape[2], weight.shape[3])
    tiles, are_good = _tiles_of_products(shape, weight.shape[0], kernel, (dilation[0], dilation[1]), sizes)
    if not tiles:
        return others
    return [*tiles, others[0]] if are_good else [*others[:4], *tiles[:2]]


@functools.lru_cache(1024)
def _tiles_of_products(
    shape: tuple[int, ...], results: int, kernel: Pair, dilation: Pair, sizes: tuple[Tile, ...]
) -> tuple[list[Tile], bool]:
    """Candidates (rows, `BY_PRODUCTS`, *size), and whether they fill their products and a GPU.

    Rows fill whole rounds of a kernel's rows. Where there are few programs, maps are cut into strips. There are none
    where most of a product would be empty, as for the weights of one image of a small map.
    """
    candidates: list[Tile] = []
    is_good = False
    for strips in (1, 2, 4):
        rounds = tuning.cdiv(tuning.cdiv(tuning.cdiv(shape[1], dilation[0]), strips) + kernel[0] - 1, kernel[0])
        rows = (rounds - 1) * kernel[0] + 1
        strips_of_map, tiles, blocks = pieces_of(shape, dilation, rows, COLUMNS, sizes[0][0])
        units = shape[0] // results * strips_of_map * tiles
        products = tuning.cdiv(units, UNITS)
        if 4 * units >= products * UNITS:
            candidates = [*((rows, BY_PRODUCTS, *size) for size in sizes), *candidates]
            is_good = 2 * units >= products * UNITS and results * products * blocks >= _FEW_PROGRAMS
        if is_good and results * products * blocks >= 2 * _FEW_PROGRAMS:
            break
    return list(dict.fromkeys(candidates))[:4], is_good
