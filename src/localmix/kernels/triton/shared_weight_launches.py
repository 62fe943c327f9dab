"""How the kernels for weights shared over positions are launched: by vectors, or by products.

No gradient is summed by atomic additions: each program sums its share, and the shares are summed in one order.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from localmix.kernels.triton import shared_weight_kernels as vectors
from localmix.kernels.triton import shared_weight_products as products
from localmix.kernels.triton import tuning
from localmix.kernels.triton.shared_weight_tiles import (
    BY_PRODUCTS,
    COLUMNS,
    MOST_CHANNELS,
    SOURCES,
    UNITS,
    pieces_of,
    tiles_by_vectors,
    units_of,
    with_products,
)

Pair = tuple[int, int]

_LONGEST_COLUMN = 32
"""Taps of a kernel column that are unrolled at most."""

_GRADIENTS_AT_ONCE = 8
"""Taps whose gradients are kept in registers at a time, at most."""


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

    def by_products(strips: int, _: int, block: int, warps: int) -> tuning.Launch:
        rows, pieces, units = units_of(x.shape, weight.shape, dilation, strips, block)
        return tuning.Launch(
            products.convolve_by_products,
            weight.shape[0] * tuning.cdiv(units, UNITS) * pieces[2],
            (
                *(height, width, channels, *pieces[:2], units, pieces[2]),
                *(weight.stride(0) if weight.shape[0] > 1 else 0, *before),
            ),
            (*kernel, *dilation, flipped, has_bias, *_sides_of_products(x), rows, UNITS, SOURCES, COLUMNS, block),
            warps,
            stages=1,
            registers=128,
            results=[(x.shape, x.dtype)],
        )

    def launch(*tile: int) -> tuning.Launch:
        return by_products(*tile) if tile[1] == BY_PRODUCTS else by_vectors(*tile)

    tiles = tiles_by_vectors(x, parts, 7 if 1 < step < 16 else 4 if step > 1 else 1)
    tiles = with_products(x, weight.shape, dilation, ((16, 8), (32, 16)), tiles)
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
    # [N, taps and perhaps a line of the bias, parts of a word, words]
    sums, num_taps = partial.sum(1), kernel[0] * kernel[1]
    of_weight = sums[:, :num_taps].permute(0, 3, 2, 1).flatten(1, 2).unflatten(2, kernel).to(weight.dtype)
    if not of_bias:
        return of_weight.contiguous(), x.new_empty(0)
    has_line = sums.shape[1] > num_taps
    gradient_of_bias = sums[:, num_taps].sum((0, 1)).to(x.dtype) if has_line else gradient.sum((0, 1, 2))
    return of_weight.contiguous(), gradient_of_bias


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

    def by_products(strips: int, _: int, block: int, warps: int, __: int) -> tuning.Launch:
        rows, pieces, units = units_of(x.shape, weight, dilation, strips, block)
        shares = tuning.cdiv(units, UNITS)
        with_bias = of_bias and (kernel[1] - 1) * dilation[1] + COLUMNS < SOURCES
        return tuning.Launch(
            products.shared_weight_gradient_by_products,
            results * shares * pieces[2],
            (height, width, channels, *pieces[:2], units, pieces[2], *before),
            (*kernel, *dilation, with_bias, *_sides_of_products(x), rows, UNITS, SOURCES, COLUMNS, block),
            warps,
            stages=1,
            results=[((results, shares, num_taps + with_bias, 1, channels), torch.float32)],
        )

    def launch(*tile: int) -> tuning.Launch:
        return by_products(*tile) if tile[1] == BY_PRODUCTS else by_vectors(*tile)

    some = tiles_by_vectors(x, parts, 7)
    tiles = [*((*tile, 8) for tile in some), *((*tile, share) for share in (4, 16) for tile in some[:2])]
    tiles = with_products(x, weight, dilation, ((16, 16, 0), (16, 8, 0)), tiles)
    return tuning.Plan(
        "shared_weight_gradient", (x.shape, tuple(kernel), dilation, (results, parts, of_bias)), tiles, launch
    )


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


def _sides_of_products(x: Tensor) -> tuple[Any, Any]:
    """Types of the factors, and of integers that reach all of an image."""
    _, height, width, channels = x.shape
    return tuning.dot_dtype(x), tuning.integers_up_to(4 * (height + width) * width * channels)


def _reach(x: Tensor) -> Any:
    """Integers that reach along a row, over its border too."""
    return tuning.integers_up_to(4 * x.shape[2] * x.shape[3])


def _line_of_taps(words: int, parts: int) -> int:
    """Words of a line of taps, which fill blocks."""
    block = MOST_CHANNELS // parts
    return tuning.cdiv(words, block) * block


def _taps(weight: Tensor, parts: int) -> Tensor:
    """[N, K, parts, words] in float32 of weights [N, C, kh, kw], by one copy; words that fill a block are unwritten."""
    images, channels, height, width = weight.shape
    num_taps, words = height * width, channels // parts
    shape = (images, num_taps, parts, _line_of_taps(words, parts))
    taps = weight.new_empty(shape, dtype=torch.float32)
    strides = (channels * num_taps, 1, num_taps, parts * num_taps)
    written = taps if words == shape[3] else taps[..., :words]
    written.copy_(weight.as_strided((*shape[:3], words), strides))
    return taps


def _before(kernel: Sequence[int], dilation: Sequence[int], flipped: bool) -> Pair:
    """Rows and columns of the padding before the map; of a flipped kernel it is that after the map."""
    reach = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    top, left = (r - r // 2 if flipped else r // 2 for r in reach)
    return top, left
