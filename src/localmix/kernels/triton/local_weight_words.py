"""How weights of its own at every position are applied by words: tiles and launches."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from localmix.kernels.triton import local_weight_by_words as kernels
from localmix.kernels.triton import tuning

Tile = tuple[int, ...]

_VECTORS = (3, 2, 5, 7, 1)
"""Words of a thread, the best first: with fewer, more threads read the same weights; more lie too far apart."""

_COLUMNS = (7, 6, 5, 4, 3, 2, 1)
"""Of a tile."""

_MOST_TAPS = 64
"""Of a row of a tile, that are unrolled."""

_MOST_SUMS = 56
"""Of a thread, in registers."""


class _Words(NamedTuple):
    """How threads read channels."""

    parts: int
    """Numbers of a word."""
    each: int
    """Groups of a unit of whole words."""
    number: int
    """Words of a unit."""


def in_words(x: Tensor) -> Tensor:
    """x, contiguous and in words of memory."""
    x = x.contiguous()
    return x.clone() if x.data_ptr() % 16 else x


def tiles_by_words(x: Tensor, groups: int, kernel: Sequence[int], dilation: Sequence[int]) -> list[Tile]:
    """Candidates (rows, columns, words of a thread, warps), none where there are too many taps to unroll."""
    return _tiles(x.shape[1:3], _words_of(x, groups), tuple(kernel), tuple(dilation))


@functools.cache
def _tiles(map_size: tuple[int, ...], words: _Words, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> list[Tile]:
    if kernel[1] > _MOST_TAPS:
        return []
    height, width = (tuning.cdiv(size, d) for size, d in zip(map_size, dilation, strict=True))
    # a unit of two groups is the work of one thread
    fitting = [v for v in _VECTORS if (v == words.number if words.each == 2 else words.number % v == 0)]
    vector, narrow = fitting[0], 2 if 2 in fitting else fitting[0]

    def tile(rows: int, vector: int) -> Tile:
        sums = rows * vector * words.parts
        sizes = [
            c for c in _COLUMNS if c == 1 or (c <= width and c * kernel[1] <= _MOST_TAPS and c * sums <= _MOST_SUMS)
        ]
        # columns that are computed, and those of x that are read for them
        columns = min(sizes, key=lambda c: tuning.cdiv(width, c) * (c + 0.3 * (c + kernel[1] - 1)))
        return rows, columns, vector, 4

    candidates = [tile(1, vector), tile(min(2, height), narrow), tile(1, narrow)]
    return list(dict.fromkeys(candidates))


def launch_by_words(
    tile: Tile,
    x: Tensor,
    weight: Tensor,
    rows: int,
    kernel: Sequence[int],
    dilation: Sequence[int],
    *,
    transposed: bool,
    first_row: int = 0,
    weight_row: int = 0,
) -> tuning.Launch:
    """A launch with x [B, H, W, C], made of words, and weights [B, rows, W, G, K], which writes y [B, rows, W, C].

    Its rows are those of x from the first one on. The rows of the weights are those of x from `weight_row` on: of y or,
    transposed, all that these need.
    """
    block_h, columns, vector, warps = tile
    (batch, height, width, channels), groups = x.shape, weight.shape[3]
    words, strides = _words_of(x, groups), weight.stride()
    strips = rows if block_h == 1 else dilation[0] * tuning.cdiv(tuning.cdiv(rows, dilation[0]), block_h)
    tiles = dilation[1] * tuning.cdiv(tuning.cdiv(width, dilation[1]), columns)
    units, threads = batch * tiles * (channels // (words.parts * vector)), 32 * warps
    reach = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    top, left = (r - r // 2 if transposed else r // 2 for r in reach)
    is_paired = words.each == 2 and _comes_in_pairs(weight)
    if is_paired:
        strides = (*(stride // 2 for stride in strides[:3]), 1, strides[4] // 2)
    is_full = width % (columns * dilation[1]) == 0
    return tuning.Launch(
        kernels.apply_by_words,
        tuning.cdiv(units, threads) * strips,
        (units - 1, rows, first_row, weight_row, height, width, strips, tiles, top, left, *strides[:2]),
        (
            *(groups, channels // groups, *kernel, *dilation, *strides[2:], transposed, is_full),
            *(words.parts, words.each, vector, is_paired, tuning.integers_up_to(units + threads)),
            *(block_h, columns, threads),
        ),
        warps,
        results=[((batch, rows, width, channels), x.dtype)],
    )


def _words_of(x: Tensor, groups: int) -> _Words:
    dim = x.shape[3] // groups
    # where a word belongs to two groups, a thread has all of both; a longer unit is read number by number
    is_whole = dim % 2 == 0 or (groups % 2 == 0 and dim in _VECTORS)
    if x.element_size() != 2 or not is_whole:
        return _Words(1, 1, dim)
    return _Words(2, 1, dim // 2) if dim % 2 == 0 else _Words(2, 2, dim)


def _comes_in_pairs(weight: Tensor) -> bool:
    """Whether the weights of two neighboring groups are one word of memory."""
    of_rows, of_groups = (*weight.stride()[:3], weight.stride(4)), weight.stride(3)
    is_aligned = weight.data_ptr() % 16 == 0 and all(stride % 2 == 0 for stride in of_rows)
    return weight.element_size() == 2 and of_groups == 1 and is_aligned
