"""How the kernels for weights of its own at every position are launched: their tiles and strides."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from localmix.kernels.triton import local_weight_by_rows as by_rows
from localmix.kernels.triton import local_weight_by_strips as by_strips
from localmix.kernels.triton import local_weight_kernels as kernels
from localmix.kernels.triton import tuning
from localmix.kernels.triton.local_weight_parts import buffers_to_apply, run_in_parts
from localmix.kernels.triton.local_weight_words import in_words, launch_by_words, tiles_by_words

Pair = tuple[int, int]
Tile = tuple[int, ...]

_SMALLEST_FACTOR = 16
"""Sides of the factors of a matrix product are at least that long on a matrix unit."""

_BY_ROWS = -1
"""Stands for the channels of a group in a tile (rows, columns, weights, `_BY_ROWS`, warps): strips of so many rows."""

_ROW_WEIGHTS = 16
"""Columns of a product by rows; more would leave no room in the registers for its factors."""

_MOST_SHARED = 8
"""Channels that share a weight of a product; of larger groups it makes the weights more than once."""

_MOST_REGISTERS = 160
"""Of a thread, for the sums, features and weights of the rows of a strip."""

_BY_WORDS = -2
"""Stands there in a tile (rows, columns, words of a thread, `_BY_WORDS`, warps), before the size of a buffer if weights
are made."""

_BY_STRIPS = -3
"""Stands there in a tile (rows, columns, weights, `_BY_STRIPS`, warps): whole groups of strips of so many rows."""

_MOST_CHANNELS = 24
"""Of a thread that has a strip, for the fewest steps that a cache takes for its positions' lines."""

_MOST_FEATURES = 240
"""Of a thread that has a strip: so many lie in its registers, a quarter in each."""

_NUMBERS = 64
"""Of x for a thread, at most."""


class _Options(NamedTuple):
    """What the kernels are compiled for; weights that are given have no rank and no bias."""

    groups: int
    rank: int
    has_bias: bool
    kernel: Sequence[int]
    dilation: Sequence[int]
    transposed: bool


def run_apply(x: Tensor, weight: Tensor, kernel: Sequence[int], dilation: Sequence[int], *, transposed: bool) -> Tensor:
    """Weights are [B, H, W, G, K]."""
    if not x.numel():
        return x.new_empty(x.shape)
    options = ((kernel[0], kernel[1]), (dilation[0], dilation[1]), transposed)
    (y,) = tuning.run(_plan, (in_words(x), weight), (), *options)
    return y


def _plan(tensors: Sequence[Tensor], kernel: Pair, dilation: Pair, transposed: bool) -> tuning.Plan:
    x, weight = tensors
    groups, strides = weight.shape[3], weight.stride()

    def launch(*tile: int) -> tuning.Launch:
        if tile[3] == _BY_WORDS:
            words = (*tile[:3], tile[4])
            return launch_by_words(words, x, weight, x.shape[1], kernel, dilation, transposed=transposed)
        it = _by_groups(tile, x, strides, _Options(groups, 0, False, kernel, dilation, transposed))
        return it._replace(prepare=lambda tensors: (tensors[0], *[tensors[1]] * 4))

    by_words = _tiles_by_words(x, groups, kernel, dilation)
    tiles = by_words or _tiles_of_groups(x.shape[2], groups, x.shape[3] // groups, False)[:2]
    return tuning.Plan(
        "local_weight", (x.shape, (groups, transposed, strides[3] == 1), kernel, dilation), tiles, launch
    )


def run_projected_apply(
    x: Tensor,
    hidden: Tensor,
    projection: Tensor,
    bias: Tensor | None,
    groups: int,
    kernel: Sequence[int],
    dilation: Sequence[int],
    *,
    transposed: bool,
) -> Tensor:
    """`run_apply` with weights that are made: hidden [B, H, W, R] @ projection.T + bias, projection [G * K, R]."""
    x, hidden, projection = in_words(x), hidden.contiguous(), projection.contiguous()
    bias = None if bias is None else bias.contiguous()
    y = torch.empty_like(x)
    if not y.numel():
        return y
    rank, has_bias, dim = hidden.shape[3], bias is not None, x.shape[3] // groups
    options = _Options(groups, rank, has_bias, kernel, dilation, transposed)

    def run(*tile: int) -> None:
        if tile[3] == _BY_WORDS:
            made_of, sizes = (hidden, projection, bias, groups), (kernel, dilation)
            run_in_parts((*tile[:3], tile[4]), x, y, made_of, *sizes, size=tile[5], transposed=transposed)
            return
        if tile[3] == _BY_ROWS:
            it = _by_rows(tile, x, options)
            tensors = (x, hidden, _with_bias(projection, bias, _block_of_rank(rank + has_bias)), y)
        elif tile[3] == _BY_STRIPS:
            it = _by_strips(tile, x, options)
            lines = _with_bias(projection, bias, _features_of_strips(rank + has_bias))
            tensors = (x, hidden, _in_order_of_threads(lines), y)
        else:
            it = _by_groups(tile, x, (0, 0, 0, 0, 0), options)
            tensors = (x, hidden, hidden, projection, hidden if bias is None else bias, y)
        tuning.launch(it.kernel, it.programs, tensors, it.integers, it.constants, it.warps, it.stages, it.registers)

    sizes = buffers_to_apply(x, projection.shape[0], kernel, dilation, transposed)
    in_parts = [(*tile, size) for tile in _tiles_by_words(x, groups, kernel, dilation)[:1] for size in sizes]
    strips, most = [], 4 if transposed else 8
    if x.dtype != torch.float32 and tuning.is_hopper(x):
        # its matrix units leave room in the registers for whole groups
        strips = _tiles_by_strips(*x.shape[1:], dim, _features_of_strips(rank + has_bias), kernel[0], transposed)
        most *= 3
    elif x.dtype != torch.float32:
        strips = _tiles_by_rows(*x.shape[1:], dim, rank + has_bias, kernel[0], transposed)
    # the fewer channels a weight serves, the more it costs to write and to read it
    better = [*strips, *in_parts] if dim < most else [*in_parts, *strips]
    candidates = better or _tiles_of_groups(x.shape[2], groups, dim, True)[:2]
    # maps of about one size share a tile, but not all of them have parts
    problem = (x.shape, (groups, rank, has_bias, transposed, len(in_parts)), kernel, dilation)
    run(*tuning.choose("projected_local_weight", problem, candidates, run, x))
    return y


def _by_groups(tile: Tile, x: Tensor, strides: Sequence[int], options: _Options) -> tuning.Launch:
    groups, rank, has_bias, kernel, dilation, transposed = options
    tile_h, tile_w, block, block_d, warps = tile
    batch, height, width, channels = x.shape
    dim = channels // groups
    tiles = tuning.cdiv(height, tile_h), tuning.cdiv(width, tile_w)
    blocks = tuning.cdiv(groups, block), tuning.cdiv(dim, block_d)
    factors = tuning.dot_dtype(x), tuning.dot_precision(x)
    return tuning.Launch(
        kernels.apply,
        batch * math.prod(tiles) * math.prod(blocks),
        (height, width, *tiles, *blocks, *_before(kernel, dilation), *strides),
        (
            *(groups, dim, rank, *kernel, *dilation, transposed, has_bias, *factors),
            *(tile_h, tile_w, block, block_d, _block_of_rank(rank)),
        ),
        warps,
        results=[(x.shape, x.dtype)],
    )


def _by_rows(tile: Tile, x: Tensor, options: _Options) -> tuning.Launch:
    groups, rank, has_bias, kernel, dilation, transposed = options
    rows, tile_w, weights, _, warps = tile
    batch, height, width, channels = x.shape
    shared, block_r = _shared(channels // groups), _block_of_rank(rank + has_bias)
    strips, tile_s = dilation[0] * tuning.cdiv(height, rows * dilation[0]), 16 * warps // tile_w
    tiles_s, tiles_w = tuning.cdiv(batch * strips, tile_s), tuning.cdiv(width, tile_w)
    # of all images of a tile, at most
    reach = (tuning.cdiv(tile_s, strips) + 1) * height * width * max(channels, rank)
    return tuning.Launch(
        by_rows.apply_by_rows,
        tiles_s * tiles_w * (channels // (weights * shared)),
        (height, width, strips, batch * strips, tiles_w, *_before(kernel, dilation)),
        (
            *(groups, channels // groups, rank, *kernel, *dilation, transposed, has_bias, tuning.dot_dtype(x)),
            *(tuning.integers_up_to(reach), rows, tile_w, weights, shared, block_r, warps),
        ),
        warps,
        stages=1,
    )


def _by_strips(tile: Tile, x: Tensor, options: _Options) -> tuning.Launch:
    groups, rank, has_bias, kernel, dilation, transposed = options
    rows, tile_w, weights, _, warps = tile
    batch, height, width, channels = x.shape
    shared, block_r = _shared_by_thread(channels // groups, weights), _features_of_strips(rank + has_bias)
    # a product has 32 columns if it can; for the next two rows of a strip it is made two taps later
    taps = min(32 // weights, 4 if rows == 2 else 2)
    strips, tile_s = dilation[0] * tuning.cdiv(height, rows * dilation[0]), 8 * warps // tile_w
    tiles_s, tiles_w = tuning.cdiv(batch * strips, tile_s), tuning.cdiv(width, tile_w)
    # of all images of a tile, at most
    reach = (tuning.cdiv(tile_s, strips) + 1) * height * width * max(channels, rank)
    return tuning.Launch(
        by_strips.apply_transposed_by_strips if transposed else by_strips.apply_by_strips,
        tiles_s * tiles_w * (channels // (weights * shared)),
        (height, width, strips, batch * strips, tiles_w, *_before(kernel, dilation)),
        (
            *(groups, channels // groups, rank, *kernel, *dilation, has_bias, tuning.dot_dtype(x)),
            *(tuning.integers_up_to(reach), rows, tile_w, weights, shared, taps, block_r, warps),
        ),
        warps,
        stages=1,
        # three programs then share the registers of a processor; what else there is to hold would spill
        registers=168 if rows == 2 and block_r <= 128 else None,
    )


def _with_bias(projection: Tensor, bias: Tensor | None, size: int) -> Tensor:
    """Projection with the bias as one more column, and zeros up to `size` columns."""
    columns = [projection] if bias is None else [projection, bias.unsqueeze(1)]
    rank = sum(column.shape[1] for column in columns)
    return torch.cat([*columns, projection.new_zeros(len(projection), size - rank)], 1)


def _before(kernel: Sequence[int], dilation: Sequence[int]) -> Pair:
    """Rows and columns of the padding before the map."""
    top, left = (d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True))
    return top, left


def _shared(dim: int) -> int:
    """Channels of a group of so many that share a weight of a product, side by side."""
    return math.gcd(dim, _MOST_SHARED)


def _shared_by_thread(dim: int, weights: int) -> int:
    """Channels of a group of so many that share a weight, where a thread has a fourth of these for a position."""
    return max(shared for shared in range(1, dim + 1) if dim % shared == 0 and weights // 4 * shared <= _MOST_CHANNELS)


def _block_of_rank(rank: int) -> int:
    return min(max(tuning.next_power_of_2(rank), _SMALLEST_FACTOR), 128)


def _features_of_strips(rank: int) -> int:
    """That a line of the projection has by strips, bias and zeros among them: the sum of a few powers of two."""
    return max(_block_of_rank(rank), tuning.cdiv(rank, 32) * 32 if rank > 128 else 32)


def _in_order_of_threads(lines: Tensor) -> Tensor:
    """Lines of features in the order in which a product by strips finds them in its threads."""
    return lines.unflatten(1, (-1, 4, 4, 2)).transpose(2, 3).flatten(1)


def _tiles_by_words(x: Tensor, groups: int, kernel: Sequence[int], dilation: Sequence[int]) -> list[Tile]:
    """Candidates (rows, columns, words of a thread, `_BY_WORDS`, warps)."""
    return [(*sizes, _BY_WORDS, warps) for *sizes, warps in tiles_by_words(x, groups, kernel, dilation)]


@functools.cache
def _tiles_by_rows(
    height: int, width: int, channels: int, dim: int, rank: int, taps_h: int, transposed: bool
) -> list[Tile]:
    """Candidates (rows, columns, weights, `_BY_ROWS`, warps), none where taps or features are too many to unroll.

    The weights are those of whole blocks of channels.
    """
    shared, block_r = _shared(dim), _block_of_rank(rank)
    if rank > block_r or taps_h > 9:
        return []
    columns = min((8, 4), key=lambda size: tuning.cdiv(width, size) * size)
    rows = []
    for number in (2, 1):
        # sums, features and weights of a thread; transposed, features are read anew for each row
        registers = number * (_ROW_WEIGHTS * shared // 2 + block_r // 4 + _ROW_WEIGHTS // 2)
        if registers + (block_r if transposed else 0) <= _MOST_REGISTERS:
            rows.append(min(number, height))
    if channels % (_ROW_WEIGHTS * shared):
        return []
    return [(number, columns, _ROW_WEIGHTS, _BY_ROWS, 4) for number in dict.fromkeys(rows)]


@functools.cache
def _tiles_by_strips(
    height: int, width: int, channels: int, dim: int, features: int, taps_h: int, transposed: bool
) -> list[Tile]:
    """Candidates (rows, columns, weights, `_BY_STRIPS`, warps), none where taps or features are too many to unroll."""
    if features > _MOST_FEATURES or taps_h > 9:
        return []
    columns = min((8, 4, 2, 1), key=lambda size: tuning.cdiv(width, size) * size)
    possible = []
    for weights in (32, 16, 8):
        shared = _shared_by_thread(dim, weights)
        numbers = weights // 4 * shared
        if channels % (weights * shared) == 0 and numbers % 4 == 0:
            # the fewer channels share a weight, the more often it is made; the fewer a thread has, the more it reads
            possible.append((dim // shared, -numbers, weights))
    if not possible:
        return []
    _, numbers, weights = min(possible)
    # where the sums and features of twice as many rows fit in the registers
    rows = (2, 4) if height > 2 and -4 * numbers + features // 2 <= 128 and not transposed else (2,)
    return [(size, columns, weights, _BY_STRIPS, 4) for size in rows]


@functools.cache
def _tiles_of_groups(width: int, groups: int, dim: int, has_products: bool) -> list[Tile]:
    channels = tuning.next_power_of_2(dim)
    smallest = _SMALLEST_FACTOR if has_products else 1
    candidates = []
    for part, warps, most in ((1, 4, 32), (2, 4, 32), (2, 8, 32), (2, 4, 16), (2, 2, 16)):
        block_g = max(min(tuning.next_power_of_2(groups), most), smallest)
        block_d = min(channels, 32)
        positions = max(_SMALLEST_FACTOR, min(128, 32 * warps * _NUMBERS // part // (block_g * block_d)))
        columns = min(8, tuning.next_power_of_2(width))
        candidates.append((positions // columns, columns, block_g, block_d, warps))
    return list(dict.fromkeys(candidates))
