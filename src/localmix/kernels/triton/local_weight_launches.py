"""How the kernels for weights of its own at every position are launched: their tiles and strides."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from localmix.kernels.triton import local_weight_by_rows as by_rows
from localmix.kernels.triton import local_weight_kernels as kernels
from localmix.kernels.triton import tuning
from localmix.kernels.triton.local_weight_parts import parts_to_apply, run_in_parts
from localmix.kernels.triton.local_weight_words import run_by_words, tiles_by_words

Pair = tuple[int, int]
Tile = tuple[int, ...]

_SMALLEST_FACTOR = 16
"""Sides of the factors of a matrix product are at least that long on a matrix unit."""

_SMALL_GROUP = 8
"""Channels of a group up to which a product may make a weight for each of them."""

_BY_ROWS = -1
"""Stands for the channels of a group in a tile (rows, columns, channels, `_BY_ROWS`, warps): strips of so many rows."""

_BY_WORDS = -2
"""Stands there in a tile (rows, columns, words of a thread, `_BY_WORDS`, warps)."""

_NUMBERS = 64
"""Of x for a thread, at most."""

_POSITIONS = 64
"""Of a tile of strips: as many as a group of four warps multiplies at a time."""


def run_apply(
    x: Tensor,
    weight: Tensor | tuple[Tensor, Tensor, Tensor | None, int],
    kernel: Sequence[int],
    dilation: Sequence[int],
    *,
    transposed: bool,
) -> Tensor:
    """Weights are [B, H, W, G, K], or (hidden, projection, bias, groups) to make them of."""
    x = x.contiguous()
    y = torch.empty_like(x)
    if not y.numel():
        return y
    batch, height, width, channels = x.shape
    if isinstance(weight, Tensor):
        groups, rank, made_of = weight.shape[3], 0, None
        operands, strides, has_bias = (weight, weight, weight, weight), weight.stride(), False
    else:
        hidden, projection, bias, groups = weight
        rank, has_bias = hidden.shape[3], bias is not None
        hidden, projection = hidden.contiguous(), projection.contiguous()
        bias = None if bias is None else bias.contiguous()
        made_of = (hidden, projection, bias, groups)
        operands = (hidden, hidden, projection, hidden if bias is None else bias)
        strides = (0, 0, 0, 0, 0)
    dim = channels // groups
    # of an image, in the strides of its map, of hidden features and of weights
    reach = sum((n - 1) * stride for n, stride in zip((height, width, groups), strides[1:4], strict=True))
    largest = height * width * max(channels, rank) + reach

    def run(tile_h: int, tile_w: int, block: int, block_d: int, warps: int) -> None:
        if block_d == _BY_ROWS:
            run_by_rows(tile_h, tile_w, block, warps)
        elif block_d == _BY_WORDS:
            tile, sizes = (tile_h, tile_w, block, warps), (kernel, dilation)
            if made_of is None:
                run_by_words(tile, x, y, operands[0], *sizes, transposed=transposed)
            else:
                run_in_parts(tile, x, y, made_of, *sizes, transposed=transposed)
        else:
            run_by_groups(tile_h, tile_w, block, block_d, warps)

    def run_by_groups(tile_h: int, tile_w: int, block: int, block_d: int, warps: int) -> None:
        tiles = tuning.cdiv(height, tile_h), tuning.cdiv(width, tile_w)
        blocks = tuning.cdiv(groups, block), tuning.cdiv(dim, block_d)
        constants = (groups, dim, rank, *kernel, *dilation, transposed, has_bias, *_products_of(x))
        tuning.launch(
            kernels.apply,
            batch * math.prod(tiles) * math.prod(blocks),
            (x, y, *operands, height, width, *tiles, *blocks, *_before(kernel, dilation)),
            strides,
            (*constants, tile_h, tile_w, block, block_d, _block_of_rank(rank)),
            warps,
        )

    def run_by_rows(rows: int, tile_w: int, block: int, warps: int) -> None:
        strips, tile_s = dilation[0] * tuning.cdiv(height, rows * dilation[0]), _POSITIONS // tile_w
        tiles_s, tiles_w, blocks = (
            tuning.cdiv(batch * strips, tile_s),
            tuning.cdiv(width, tile_w),
            tuning.cdiv(channels, block),
        )
        block_r = _block_of_rank(rank + has_bias)
        images = tuning.cdiv(tile_s, strips) + 1  # of a tile, at most
        # three programs then share the registers of a processor; transposed, too much would spill
        is_small = rows * block_r <= 128 and not transposed
        constants = (groups, dim, rank, *kernel, *dilation, transposed, has_bias, tuning.dot_dtype(x))
        tuning.launch(
            by_rows.apply_by_rows,
            tiles_s * tiles_w * blocks,
            (x, y, *operands[1:], height, width, strips, batch * strips, tiles_w, blocks, *_before(kernel, dilation)),
            (),
            (*constants, tuning.integers_up_to(images * largest), rows, tile_s, tile_w, block, block_r),
            warps,
            stages=1,
            registers=168 if is_small and tuning.is_hopper(x) else None,
        )

    name = "projected_local_weight" if rank else "local_weight"
    problem = (x.shape, (groups, rank, transposed, strides[3] == 1), kernel, dilation)
    candidates = _tiles_of_groups(width, groups, dim, bool(rank))
    by_words = [(*tile[:3], _BY_WORDS, tile[3]) for tile in tiles_by_words(x, groups, kernel, dilation)]
    if made_of is None:
        candidates = [*by_words, *candidates[: 1 if by_words else 2]]
    else:
        in_parts = by_words[:2] if parts_to_apply(x, made_of[1].shape[0], kernel, dilation, transposed) else []
        strips = []
        if x.dtype != torch.float32:
            strips = _tiles_by_rows(height, width, channels, dim, rank + has_bias, kernel[0], transposed)
        # the fewer channels a weight serves, the more it costs to write and to read it
        better = [*strips, *in_parts] if dim < 4 and not transposed else [*in_parts, *strips]
        candidates = [*better, *candidates[: 1 if better else 2]]
    run(*tuning.choose(name, problem, candidates, run, x))
    return y


def _before(kernel: Sequence[int], dilation: Sequence[int]) -> Pair:
    """Rows and columns of the padding before the map."""
    top, left = (d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True))
    return top, left


def _products_of(x: Tensor) -> tuple[Any, str]:
    return tuning.dot_dtype(x), tuning.dot_precision(x)


def _block_of_rank(rank: int) -> int:
    return min(max(tuning.next_power_of_2(rank), _SMALLEST_FACTOR), 128)


@functools.cache
def _tiles_by_rows(
    height: int, width: int, channels: int, dim: int, rank: int, taps_h: int, transposed: bool
) -> list[Tile]:
    """Candidates (rows, columns, channels, `_BY_ROWS`, warps), none where groups are large or taps too many to unroll.

    A product makes a weight for every channel, and the features of all rows of a strip wait in registers.
    """
    block_r = _block_of_rank(rank)
    if dim > _SMALL_GROUP or block_r > 64 or taps_h > 9:
        return []
    columns = min((8, 4, 16), key=lambda size: tuning.cdiv(width, size) * size)
    block = max(min(32, tuning.next_power_of_2(channels)), _SMALLEST_FACTOR)
    sizes = (2, 3) if block_r > 32 and not transposed else (4, 3)
    strips = dict.fromkeys(min(rows, tuning.next_power_of_2(height)) for rows in sizes)
    return [(rows, columns, block, _BY_ROWS, 4) for rows in strips]


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
