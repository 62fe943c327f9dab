"""How the kernels of attention are launched: their tiles, shares, strides and results.

No gradient is summed by atomic additions: each program sums its share, and the shares are summed in one order.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from localmix.kernels.triton import pairwise_bias_gradient, tuning
from localmix.kernels.triton import pairwise_tile_gradients as gradients_by_tiles
from localmix.kernels.triton import pairwise_tile_kernels as by_tiles
from localmix.kernels.triton import pairwise_window_kernels as in_windows
from localmix.kernels.triton.pairwise_geometry import Geometry, Pair, Windows

Tile = tuple[int, ...]
Result = tuple[Sequence[int], torch.dtype]

Seen = tuple[Callable[..., Geometry], Pair, Pair]
"""Kind and two pairs that make a geometry: it is made for a new plan alone."""

_SMALLEST_FACTOR = 16
"""Sides of the factors of a matrix product are at least that long on a matrix unit."""

_MOST_WARPS = 6144
"""Of a launch whose programs own a share of the images: they fill a GPU a few times, and each has many images."""

_NUMBERS_ALWAYS_ALLOWED = 2**21
"""Of partial sums, however small the maps."""


def plan_attend(tensors: Sequence[Tensor], seen: Seen, has_bias: bool) -> tuning.Plan:
    query, geometry = tensors[0], geometry_of(seen)
    result = (query.shape, query.dtype)
    if fits_a_block(query, geometry):
        return _plan_in_windows(in_windows.attend_in_windows, tensors, geometry, (has_bias,), [result], False)
    return _plan_by_tiles(by_tiles.attend, tensors, geometry, (has_bias,), [result, *2 * [_of_scores(query)]])


def plan_window_gradients(
    tensors: Sequence[Tensor], seen: Seen, has_bias: bool, needed: tuple[bool, ...]
) -> tuning.Plan:
    results = _gradients_of(tensors[0], needed[:3])
    flags, kernel = (has_bias, *needed), in_windows.gradients_in_windows
    return _plan_in_windows(kernel, tensors, geometry_of(seen), flags, results, True)


def plan_query_gradient(tensors: Sequence[Tensor], seen: Seen, has_bias: bool, needed: bool) -> tuning.Plan:
    results = [_of_scores(tensors[0]), *_gradients_of(tensors[0], (needed,))]
    return _plan_by_tiles(gradients_by_tiles.query_gradient, tensors, geometry_of(seen), (has_bias, needed), results)


def plan_key_gradient(tensors: Sequence[Tensor], seen: Seen, has_bias: bool, *needed: bool) -> tuning.Plan:
    results = _gradients_of(tensors[0], needed)
    return _plan_by_tiles(gradients_by_tiles.key_gradient, tensors, geometry_of(seen), (has_bias, *needed), results)


def plan_bias_gradient(tensors: Sequence[Tensor], seen: Seen, has_bias: bool, of_query: bool) -> tuning.Plan:
    """Sums [shares, queries of a tile, heads, columns], what programs write for themselves, and results of the query.

    The latter are those of `plan_query_gradient`, if `of_query`, which wants a block that holds all keys.
    """
    query, geometry = tensors[0], geometry_of(seen)
    batch, height, width, heads, dim = query.shape
    columns = geometry.columns()
    others = [_of_scores(query), *_gradients_of(query, (True,))] if of_query else []

    def launch(positions: int, most_keys: int, most_warps: int, stages: int, registers: int) -> tuning.Launch:
        tile = geometry.tile(query.shape, positions)
        across = _block(geometry.keys(query.shape, tile), most_keys)
        warps = max(1, most_warps * across // most_keys)
        tiles = geometry.tiles(query.shape, tile)
        queries = math.prod(tile)
        own = _block(queries, positions)
        blocks = tuning.cdiv(queries, own)
        # what the shares sum is no more numbers than query has
        numbers = heads * (queries * columns + blocks * own * across)
        allowed = max(query.numel(), _NUMBERS_ALWAYS_ALLOWED) // numbers
        most = max(1, min(_MOST_WARPS // (warps * blocks * heads), allowed))
        shares_of_tiles = min(math.prod(tiles), most)
        shares_of_images = min(batch, most // shares_of_tiles)
        shares = shares_of_tiles * shares_of_images
        integers = (batch, height, width, heads, *tiles, *tile, blocks, shares_of_tiles, shares_of_images, columns)
        results = [
            ((shares, queries, heads, columns), torch.float32),
            ((shares, blocks, heads, own, across), torch.float32),
        ]
        return tuning.Launch(
            pairwise_bias_gradient.bias_gradient,
            shares * blocks * heads,
            (*integers, *geometry.arguments(query.shape), *_strides(tensors, has_bias)),
            (isinstance(geometry, Windows), of_query, dim, *_products_of(query), own, across, _block(dim)),
            warps,
            stages,
            registers,
            results=[*results, *(others or 2 * [((0,), query.dtype)])],
        )

    return _plan(pairwise_bias_gradient.bias_gradient, query, geometry, (of_query,), _blocks_of_bias(query), launch)


def holds_all_keys(query: Tensor, geometry: Geometry) -> bool:
    """Whether a block of the gradient of the bias has all keys that a tile sees."""
    return all(
        geometry.keys(query.shape, geometry.tile(query.shape, positions)) <= across
        for positions, across in {block[:2] for block in _blocks_of_bias(query)}
    )


def _blocks_of_bias(query: Tensor) -> list[Tile]:
    """Candidates (positions that a program owns, keys of a block, warps, stages, registers of a thread).

    Keys and warps are the most, of tiles that see so many: what is measured for a map serves others of about its size.
    """
    if query.dtype == torch.float32:
        return [(*block, 1, 255) for block in _blocks(query)]
    line = _block(query.shape[4]) * query.element_size()
    across = max(32, min(256, 16384 // line))
    # of 16 queries and 32 keys for each warp a thread has 16 numbers
    block = (_SMALLEST_FACTOR, across, across // 32)
    return (
        [(*block, 2, 168), (*block, 1, 168), (*block, 1, 128)] if line <= 64 else [(*block, 2, 255), (*block, 1, 255)]
    )


def geometry_of(seen: Seen) -> Geometry:
    make, size, step = seen
    return make(size, step)


def _of_scores(query: Tensor) -> Result:
    """A number in float32 for each query."""
    batch, height, width, heads, _ = query.shape
    return (batch, heads, height, width), torch.float32


def _gradients_of(query: Tensor, needed: Sequence[bool]) -> list[Result]:
    return [(query.shape if n else (0,), query.dtype) for n in needed]


def fits_a_block(query: Tensor, geometry: Geometry) -> bool:
    """Whether one program has the registers for all scores of a window; float32 on no matrix unit takes more.

    A neighborhood that is the whole map is a window too.
    """
    most = 32 if query.dtype == torch.float32 else 64
    if query.shape[4] * query.element_size() > 128:
        return False
    windows = geometry.as_windows(query.shape)
    return windows is not None and math.prod(windows.size) <= most


def _plan_in_windows(
    kernel: Any,
    tensors: Sequence[Tensor],
    geometry: Geometry,
    flags: Sequence[bool],
    results: Sequence[Result],
    of_gradients: bool,
) -> tuning.Plan:
    """A kernel of windows that fit a block; that of gradients gives the sums of its shares, for that of the bias."""
    query, prepare, seen = tensors[0], None, geometry.as_windows(tensors[0].shape)
    assert seen is not None
    if flags[0] and seen is not geometry:
        prepare = functools.partial(_with_bias_of_slots, geometry)
        tensors = prepare(tensors)
    batch, height, width, heads, dim = query.shape
    slots, windows = math.prod(seen.size), seen.tiles(query.shape, seen.size)
    units = batch * math.prod(windows)
    top, left, kh, kw, _, _ = seen.arguments(query.shape)
    of_bias = of_gradients and flags[-1]

    def launch(share: int, warps: int, stages: int) -> tuning.Launch:
        if of_bias:
            # the sums of the shares are no more numbers than query has
            share = max(share, tuning.cdiv(units * heads * slots**2, query.numel()))
        shares = tuning.cdiv(units, share)
        sums = ((shares, heads, slots, slots), torch.float32) if of_bias else ((0,), query.dtype)
        return tuning.Launch(
            kernel,
            shares * heads,
            (height, width, heads, *windows, top, left, units, share, kh, kw, *_strides(tensors, flags[0])),
            (*flags, dim, *_products_of(query), _block(slots), _block(dim)),
            warps,
            stages,
            results=[*results, sums] if of_gradients else results,
            prepare=prepare,
        )

    warps = 1 if slots <= _SMALLEST_FACTOR else 4 if dim * query.element_size() <= 64 else 8
    # gradients hold much in registers, and a second stage takes more of them
    first, second = (1, 2) if of_gradients else (2, 1)
    tiles = [
        *((share, warps, first) for share in (4, 8, 16, 1)),
        *((share, warps, second) for share in (4, 16)),
    ]
    return _plan(kernel, query, geometry, flags, list(dict.fromkeys(tiles)), launch)


def _with_bias_of_slots(geometry: Geometry, tensors: Sequence[Tensor]) -> list[Tensor]:
    query, key, value, bias, *others = tensors
    return [query, key, value, geometry.bias_of_slots(bias, query.shape), *others]


def _plan_by_tiles(
    kernel: Any,
    tensors: Sequence[Tensor],
    geometry: Geometry,
    flags: Sequence[bool],
    results: Sequence[Result],
) -> tuning.Plan:
    """A kernel whose programs own a block of a tile, of keys in the gradient of these and else of queries."""
    query = tensors[0]
    batch, height, width, heads, dim = query.shape

    def launch(positions: int, across: int, warps: int) -> tuning.Launch:
        tile = geometry.tile(query.shape, positions)
        tiles = geometry.tiles(query.shape, tile)
        own = _block(min(tile[0], height) * min(tile[1], width), positions)
        blocks = tuning.cdiv(min(tile[0], height) * min(tile[1], width), own)
        strides = _strides(tensors, flags[0])
        of_keys = kernel is gradients_by_tiles.key_gradient
        # of a block of 256 or 512 numbers, which one warp has: the compiler would take more, and save no instruction
        registers = (128 if own * across <= 256 else 168) if of_keys and warps == 1 else None
        return tuning.Launch(
            kernel,
            batch * math.prod(tiles) * blocks * heads,
            (height, width, heads, *tiles, *tile, blocks, *geometry.arguments(query.shape), *strides),
            (
                *(isinstance(geometry, Windows), *flags, dim, *_products_of(query)),
                *((across, own) if of_keys else (own, across)),
                _block(dim),
            ),
            warps,
            registers=registers,
            results=results,
        )

    return _plan(kernel, query, geometry, flags, _blocks(query), launch)


def _strides(tensors: Sequence[Tensor], has_bias: bool) -> tuple[int, ...]:
    """Of batch, rows, columns and heads of query, key and value, and those of the bias."""
    of_bias = tensors[3].stride() if has_bias else (0, 0, 0)
    return *(stride for t in tensors[:3] for stride in t.stride()[:4]), *of_bias


def _products_of(x: Tensor) -> tuple[Any, str]:
    return tuning.dot_dtype(x), tuning.dot_precision(x)


def _block(size: int, most: int | None = None) -> int:
    """Side of a block, which is a power of two, for so many numbers."""
    side = max(tuning.next_power_of_2(size), _SMALLEST_FACTOR)
    return side if most is None else min(side, most)


def _blocks(query: Tensor) -> list[Tile]:
    """Candidates (positions that a program owns, positions of a step of its loop, warps)."""
    line = _block(query.shape[4]) * query.element_size()
    if query.dtype == torch.float32:
        return [(32, 32, 8), (32, 16, 4), (16, 32, 4)] if line <= 128 else [(16, 16, 4), (32, 16, 8)]
    if line <= 64:
        # larger blocks of one warp have more numbers than registers
        return [(16, 32, 1), (32, 32, 2), (64, 32, 4), (16, 16, 1)]
    return [(32, 32, 4), (64, 32, 8), (16, 32, 2)] if line <= 128 else [(32, 32, 8), (32, 16, 4), (16, 32, 4)]


def _plan(
    kernel: Any,
    query: Tensor,
    geometry: Geometry,
    flags: Sequence[bool],
    tiles: list[Tile],
    launch: Callable[..., tuning.Launch],
) -> tuning.Plan:
    *sizes, heads, dim = query.shape
    problem = ((*sizes, heads * dim), (heads, isinstance(geometry, Windows), *flags), *geometry)
    return tuning.Plan(kernel.__name__, problem, tiles, launch)
