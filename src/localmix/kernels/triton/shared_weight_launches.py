"""How the kernels for weights shared over positions are launched: in registers, or by vectors where taps do not fit.

No gradient is summed by atomic additions: each program sums its share, and the shares are summed in one order.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from localmix.kernels.triton import shared_weight_by_products as products
from localmix.kernels.triton import shared_weight_in_registers as registers
from localmix.kernels.triton import shared_weight_kernels as vectors
from localmix.kernels.triton import tuning
from localmix.kernels.triton.shared_weight_tiles import (
    BY_PRODUCTS,
    CHANNELS_OF_PRODUCTS,
    IN_REGISTERS,
    MOST_CHANNELS,
    pieces_of,
    tiles_by_products,
    tiles_by_vectors,
    tiles_in_registers,
)

Pair = tuple[int, int]

_LONGEST_COLUMN = 32
"""Taps of a kernel column that are unrolled at most."""

_GRADIENTS_AT_ONCE = 8
"""Taps whose gradients are kept in registers at a time, at most."""

_REGISTERS, _WARPS_AT_ONCE = 168, 12
"""Of a thread of the kernels in registers, and of how many warps a processor of an NVIDIA GPU has as many."""

_WARPS = 2
"""Of a program of theirs: where there is one unit, its place is uniform, and comparing it takes more instructions."""


def run_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, dilation: Sequence[int], *, flipped: bool
) -> Tensor:
    """y = weight * x + bias; `flipped` takes the taps in reverse order, for the gradient of x."""
    if not x.numel():
        return x.new_empty(x.shape)
    weight = weight.contiguous()
    tensors = (x.contiguous(), weight, weight if bias is None else bias.contiguous())
    (y,) = tuning.run(_plan_convolution, tensors, (), (dilation[0], dilation[1]), flipped, bias is not None)
    return y


def _plan_convolution(tensors: Sequence[Tensor], dilation: Pair, flipped: bool, has_bias: bool) -> tuning.Plan:
    x, weight, _ = tensors
    kernel, parts, step = tuple(weight.shape[2:]), _parts(x), _column_step(weight)
    batch, height, width, channels = x.shape
    before = _before(kernel, dilation, flipped)

    def by_vectors(rows: int, columns: int, block: int, warps: int) -> tuning.Launch:
        words = channels // parts
        strips, tiles, blocks = pieces_of((batch, height, width, words), dilation, rows, columns, block)
        num_taps, line = kernel[0] * kernel[1], _line_of_taps(words, parts)
        return tuning.Launch(
            vectors.convolve,
            batch * blocks * strips * tiles,
            (
                *(height, width, words, strips, tiles, blocks),
                *(line, num_taps * parts * line if weight.shape[0] > 1 else 0, *before),
            ),
            (*kernel, *dilation, flipped, has_bias, parts, _reach(x), step, rows, columns, block),
            warps,
            results=[(x.shape, x.dtype)],
            prepare=functools.partial(_with_taps, parts=parts, has_bias=has_bias),
        )

    def in_registers(_: int, columns: int, block: int, strips: int) -> tuning.Launch:
        warps = _WARPS
        units = _units_of(x.shape, weight.shape[0], dilation, columns, 32 * warps // block, strips)
        if units.number < units.at_once:  # the only tile of a map that has weights of its own: no warp is idle
            warps = 1
            units = _units_of(x.shape, weight.shape[0], dilation, columns, 32 // block, strips)
        # as many as run at the same time: each reads its taps once
        programs = weight.shape[0] * units.strips * tuning.cdiv(channels, block)
        shares = tuning.cdiv(_WARPS_AT_ONCE * tuning.num_multiprocessors(x) // warps, programs)
        shares = tuning.cdiv(units.shares, tuning.cdiv(units.shares, shares))
        return tuning.Launch(
            registers.convolve_in_registers,
            programs * shares,
            (height, width, units.rows, units.strips, units.tiles, units.number, shares),
            (
                *(channels, *kernel, *dilation, *before, flipped, has_bias),
                *(_reach_of_map(x), width if units.tiles == 1 else 0, columns, units.at_once, block),
                tuning.next_power_of_2(kernel[0] * kernel[1]),
            ),
            warps=warps,
            registers=_REGISTERS,
            results=[(x.shape, x.dtype)],
        )

    def by_products(_: int, images: int, columns: int, read: int) -> tuning.Launch:
        tiles, blocks = tuning.cdiv(width, columns), tuning.cdiv(batch, images)
        return tuning.Launch(
            products.convolve_by_products,
            blocks * dilation[0] * tiles * (channels // CHANNELS_OF_PRODUCTS),
            (batch, height, width, tiles, *before),
            (
                *(channels, *kernel, *dilation, flipped, has_bias, tuning.dot_dtype(x)),
                tuning.integers_up_to(2 * images * (height + dilation[0] * kernel[0]) * width * channels),
                *(images, columns, read, CHANNELS_OF_PRODUCTS),
            ),
            warps=4,
            stages=1,
            registers=_REGISTERS,
            results=[(x.shape, x.dtype)],
        )

    def launch(*tile: int) -> tuning.Launch:
        kinds = {IN_REGISTERS: in_registers, BY_PRODUCTS: by_products}
        return kinds.get(tile[0], by_vectors)(*tile)

    tiles: list[tuple[int, ...]] = [*tiles_in_registers(x.shape, weight.shape, dilation)]
    if not tiles or x.dtype == torch.float32:
        others = tiles_by_vectors(x, parts, 7 if 1 < step < 16 else 4 if step > 1 else 1)
        tiles = [*tiles, others[0]] if tiles else others
    if tuning.has_matrix_units(x):
        tiles = [*tiles, *tiles_by_products(tuple(x.shape), tuple(weight.shape), dilation)]
    return tuning.Plan("shared_weight", (x.shape, kernel, dilation, (weight.shape[0], parts)), tiles, launch)


def run_weight_gradient(
    gradient: Tensor, x: Tensor, weight: Tensor, dilation: Sequence[int], *, of_bias: bool
) -> tuple[Tensor, Tensor]:
    """Sums over the positions of the images of n: of_weight[n, c, k] of gradient[p] * x[p + k], of_bias of gradient.

    The latter is without elements unless it is asked for.
    """
    kernel = weight.shape[2:]
    if not x.numel():
        return torch.zeros_like(weight, memory_format=torch.contiguous_format), x.new_zeros(x.shape[3] * of_bias)
    tensors, options = (gradient.contiguous(), x.contiguous()), ((dilation[0], dilation[1]), of_bias)
    (partial,) = tuning.run(_plan_weight_gradient, tensors, (), tuple(weight.shape), *options)
    has_line = partial.shape[2] > kernel[0] * kernel[1]
    of_weight, gradient_of_bias = tuning.run(_plan_sum, (partial,), (), tuple(weight.shape), weight.dtype, has_line)
    if of_bias and not has_line:
        gradient_of_bias = gradient.sum((0, 1, 2))
    return of_weight, gradient_of_bias


def _plan_sum(tensors: Sequence[Tensor], weight: tuple[int, ...], dtype: torch.dtype, of_bias: bool) -> tuning.Plan:
    """The gradients of weights and bias are the sums of the shares of `partial`."""
    (partial,) = tensors
    results, shares, lines, parts, words = partial.shape
    num_taps = lines - of_bias

    def launch(shares_at_once: int, lines_at_once: int, block: int, warps: int) -> tuning.Launch:
        programs = results * tuning.cdiv(num_taps, lines_at_once) + of_bias
        return tuning.Launch(
            vectors.sum_of_shares,
            programs * parts * tuning.cdiv(words, block),
            (shares, words, results),
            (num_taps, of_bias, parts, shares_at_once, lines_at_once, block),
            warps,
            results=[(weight, dtype), ((words * parts * of_bias,), dtype)],
        )

    # few results have many shares, and many, of one image each, have few
    tile = (64, 1, 32, 4) if shares >= 16 else (1, min(64, tuning.next_power_of_2(num_taps)), 32, 4)
    return tuning.Plan("sum_of_shares", (partial.shape,), [tile], launch)


def _plan_weight_gradient(
    tensors: Sequence[Tensor], weight: tuple[int, ...], dilation: Pair, of_bias: bool
) -> tuning.Plan:
    """Its result is sums of shares: [N, shares, taps, parts of a word, words]."""
    gradient, x = tensors
    results, _, *kernel = weight
    num_taps, parts = kernel[0] * kernel[1], min(_parts(gradient), _parts(x))
    batch, height, width, channels = x.shape
    before = _before(kernel, dilation, False)

    def by_vectors(rows: int, columns: int, block: int, warps: int, share: int) -> tuning.Launch:
        words, step = channels // parts, tuning.cdiv(kernel[0], tuning.cdiv(kernel[0], _GRADIENTS_AT_ONCE))
        strips, tiles, blocks = pieces_of((batch, height, width, words), dilation, rows, columns, block)
        units = batch // results * strips * tiles
        # the sums of the shares take no more memory than x
        share = max(share, tuning.cdiv(4 * num_taps, rows * columns * x.element_size()))
        shares = tuning.cdiv(units, share)
        return tuning.Launch(
            vectors.shared_weight_gradient,
            results * shares * blocks,
            (height, width, words, strips, tiles, blocks, shares, share, units, *before),
            (*kernel, *dilation, parts, _reach(x), step, rows, columns, block),
            warps,
            results=[((results, shares, num_taps, parts, words), torch.float32)],
            prepare=functools.partial(_words_of, parts=parts),
        )

    def in_registers(_: int, columns: int, block: int, strips: int, __: int) -> tuning.Launch:
        units = _units_of(x.shape, results, dilation, columns, 32 // block, strips)
        items, blocks, lines = units.shares * units.strips, tuning.cdiv(channels, block), num_taps + of_bias
        # the sums of the shares take no more memory than x
        most = x.numel() * x.element_size() // (4 * results * lines * channels)
        most = max(1, min(_WARPS_AT_ONCE * tuning.num_multiprocessors(x) // (results * blocks), most))
        shares = tuning.cdiv(items, tuning.cdiv(items, most))  # of as many items each
        return tuning.Launch(
            registers.shared_weight_gradient_in_registers,
            results * shares * blocks,
            (height, width, units.rows, units.strips, units.tiles, units.number, items, shares),
            (
                *(channels, *kernel, *dilation, *before, of_bias),
                *(_reach_of_map(x), columns, units.at_once, block),
            ),
            warps=1,
            registers=_REGISTERS,
            results=[((results, shares, lines, 1, channels), torch.float32)],
        )

    def launch(*tile: int) -> tuning.Launch:
        return in_registers(*tile) if tile[0] == IN_REGISTERS else by_vectors(*tile)

    some = tiles_by_vectors(x, parts, 7)
    tiles = [*((*tile, 8) for tile in some), *((*tile, share) for share in (4, 16) for tile in some[:2])]
    better = [(*tile, 0) for tile in tiles_in_registers(x.shape, weight, dilation)]
    tiles = [*better, tiles[0]] if better else tiles
    return tuning.Plan(
        "shared_weight_gradient", (x.shape, tuple(kernel), dilation, (results, parts, of_bias)), tiles, launch
    )


class _Units(NamedTuple):
    """How maps are dealt out to threads: see shared_weight_in_registers.py."""

    rows: int
    strips: int
    tiles: int
    number: int
    at_once: int
    shares: int


def _units_of(
    shape: Sequence[int], results: int, dilation: Sequence[int], columns: int, at_once: int, strips: int
) -> _Units:
    """Units of one of so many results, if a map is cut into about so many strips of rows that are a dilation apart."""
    batch, height, width, _ = shape
    longest = tuning.cdiv(height, dilation[0])
    rows = tuning.cdiv(longest, strips)
    tiles = dilation[1] * tuning.cdiv(tuning.cdiv(width, dilation[1]), columns)
    number = batch // results * tiles
    return _Units(rows, dilation[0] * tuning.cdiv(longest, rows), tiles, number, at_once, tuning.cdiv(number, at_once))


def _parts(x: Tensor) -> int:
    """Numbers of a word of memory: two if it is bfloat16 in pairs."""
    is_paired = x.dtype == torch.bfloat16 and x.shape[3] % 2 == 0 and x.data_ptr() % 16 == 0
    return 2 if is_paired else 1


def _words_of(maps: Sequence[Tensor], parts: int) -> list[Tensor]:
    return [x if parts == 1 else x.view(torch.int32) for x in maps]


def _with_taps(tensors: Sequence[Tensor], parts: int, has_bias: bool) -> tuple[Tensor, ...]:
    """Words, taps and bias of x, weight and bias."""
    x, weight, bias = tensors
    taps = _taps(weight, parts)
    return *_words_of([x], parts), taps, bias if has_bias else taps


def _column_step(weight: Tensor) -> int:
    """Taps of a kernel column that are unrolled."""
    return weight.shape[2] if weight.shape[2] <= _LONGEST_COLUMN else 1


def _reach_of_map(x: Tensor) -> Any:
    """Integers that reach all of an image, over its border too."""
    _, height, width, channels = x.shape
    return tuning.integers_up_to(4 * (height + width) * width * channels)


def _reach(x: Tensor) -> Any:
    """Integers that reach along a row, over its border too."""
    return tuning.integers_up_to(4 * x.shape[2] * x.shape[3])


def _line_of_taps(words: int, parts: int) -> int:
    """Words of a line of taps, which fill blocks."""
    block = MOST_CHANNELS // parts
    return tuning.cdiv(words, block) * block


def _taps(weight: Tensor, parts: int) -> Tensor:
    """[N, K, parts, words] in float32 of weights [N, C, kh, kw]; words that fill a block are unwritten."""
    images, channels, height, width = weight.shape
    num_taps, words = height * width, channels // parts
    shape = (images, num_taps, parts, _line_of_taps(words, parts))
    taps = weight.new_empty(shape, dtype=torch.float32)
    if images == 1:  # so few that PyTorch's copy, though not in whole lines, is as fast and starts sooner
        strides = (channels * num_taps, 1, num_taps, parts * num_taps)
        written = taps if words == shape[3] else taps[..., :words]
        written.copy_(weight.as_strided((*shape[:3], words), strides))
    else:
        programs, block_k = images * tuning.cdiv(channels, 32), min(64, tuning.next_power_of_2(num_taps))
        tuning.launch(
            vectors.lay_out_taps, programs, (weight, taps), (channels, shape[3]), (num_taps, parts, block_k, 32), 4
        )
    return taps


def _before(kernel: Sequence[int], dilation: Sequence[int], flipped: bool) -> Pair:
    """Rows and columns of the padding before the map; of a flipped kernel it is that after the map."""
    reach = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    top, left = (r - r // 2 if flipped else r // 2 for r in reach)
    return top, left
