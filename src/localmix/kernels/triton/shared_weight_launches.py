"""How the kernels for weights shared over positions are launched: by vectors, or by products.

No gradient is summed by atomic additions: each program sums its share, and the shares are summed in one order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from localmix.kernels.triton import shared_weight_kernels as by_vectors
from localmix.kernels.triton import shared_weight_products as by_products
from localmix.kernels.triton import tuning
from localmix.kernels.triton.shared_weight_tiles import (
    BY_PRODUCTS,
    COLUMNS,
    MOST_CHANNELS,
    SOURCES,
    UNITS,
    has_products,
    pieces_of,
    tiles_by_vectors,
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
    x = x.contiguous()
    y = torch.empty_like(x)
    if not y.numel():
        return y
    kernel, bias = tuple(weight.shape[2:]), None if bias is None else bias.contiguous()

    def run(rows: int, columns: int, block: int, warps: int) -> None:
        if columns == BY_PRODUCTS:
            _convolve_by_products(x, weight, bias, y, dilation, flipped, rows, block, warps)
        else:
            _convolve_by_vectors(x, weight, bias, y, dilation, flipped, rows, columns, block, warps)

    parts, step = _parts(x), _column_step(kernel)
    candidates = tiles_by_vectors(x, parts, 7 if 1 < step < 16 else 4 if step > 1 else 1)
    if has_products(x, weight, dilation):
        candidates = with_products(x, weight, dilation, ((16, 8), (32, 16)), candidates)
    problem = (x.shape, kernel, dilation, (weight.shape[0], parts))
    run(*tuning.choose("shared_weight", problem, candidates, run, x))
    return y


def run_weight_gradient(
    gradient: Tensor, x: Tensor, weight: Tensor, dilation: Sequence[int], *, of_bias: bool
) -> tuple[Tensor, Tensor]:
    """Sums over the positions of the images of n: of_weight[n, c, k] of gradient[p] * x[p + k], of_bias of gradient.

    The latter is without elements unless it is asked for.
    """
    if not x.numel():
        return torch.zeros_like(weight, memory_format=torch.contiguous_format), x.new_zeros(x.shape[3] * of_bias)
    gradient, x = gradient.contiguous(), x.contiguous()
    kernel, parts = tuple(weight.shape[2:]), min(_parts(gradient), _parts(x))

    def run(rows: int, columns: int, block: int, warps: int, share: int) -> tuple[Tensor, Tensor]:
        if columns == BY_PRODUCTS:
            return _gradient_by_products(gradient, x, weight, dilation, of_bias, rows, block, warps)
        sums = _gradient_by_vectors(gradient, x, weight, dilation, rows, columns, block, warps, share)
        return sums, gradient.sum((0, 1, 2)) if of_bias else x.new_empty(0)

    tiles = tiles_by_vectors(x, parts, 7)
    candidates = [*((*tile, 8) for tile in tiles), *((*tile, share) for share in (4, 16) for tile in tiles[:2])]
    if has_products(x, weight, dilation):
        candidates = with_products(x, weight, dilation, ((16, 16, 0), (16, 8, 0)), candidates)
    problem = (x.shape, kernel, dilation, (weight.shape[0], parts, of_bias))
    of_taps, gradient_of_bias = run(*tuning.choose("shared_weight_gradient", problem, candidates, run, x))
    of_weight = of_taps.permute(0, 3, 2, 1).flatten(1, 2).unflatten(2, kernel).to(weight.dtype)
    return of_weight.contiguous(), gradient_of_bias


def _convolve_by_vectors(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    dilation: Sequence[int],
    flipped: bool,
    rows: int,
    columns: int,
    block: int,
    warps: int,
) -> None:
    parts, kernel = _parts(x), weight.shape[2:]
    words, taps = _words_of(x, parts), _taps(weight, parts)
    batch, height, width, channels = words.shape
    strips, tiles, blocks = pieces_of(words.shape, dilation, rows, columns, block)
    tuning.launch(
        by_vectors.convolve,
        batch * blocks * strips * tiles,
        (words, taps, taps if bias is None else bias, y, height, width, channels, strips, tiles, blocks),
        (taps.shape[3], taps.stride(0) if taps.shape[0] > 1 else 0, *_before(kernel, dilation, flipped)),
        (
            *kernel,
            *dilation,
            flipped,
            bias is not None,
            parts,
            _reach(words),
            _column_step(kernel),
            rows,
            columns,
            block,
        ),
        warps,
    )


def _convolve_by_products(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    dilation: Sequence[int],
    flipped: bool,
    rows: int,
    block: int,
    warps: int,
) -> None:
    weight = weight.contiguous()
    results, _, *kernel = weight.shape
    _, height, width, channels = x.shape
    strips, tiles, blocks = pieces_of(x.shape, dilation, rows, COLUMNS, block)
    units = x.shape[0] // results * strips * tiles
    image_stride = weight.stride(0) if results > 1 else 0
    tuning.launch(
        by_products.convolve_by_products,
        results * tuning.cdiv(units, UNITS) * blocks,
        (x, weight, weight if bias is None else bias, y, height, width, channels, strips, tiles, units, blocks),
        (image_stride, *_before(kernel, dilation, flipped)),
        (
            *kernel,
            *dilation,
            flipped,
            bias is not None,
            *_sides_of_products(x),
            rows,
            UNITS,
            SOURCES,
            COLUMNS,
            block,
        ),
        warps,
        stages=1,
        registers=128,
    )


def _gradient_by_vectors(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    dilation: Sequence[int],
    rows: int,
    columns: int,
    block: int,
    warps: int,
    share: int,
) -> Tensor:
    """Sums [N, taps, parts of a word, words]."""
    results, _, *kernel = weight.shape
    parts = min(_parts(gradient), _parts(x))
    gradients, words = _words_of(gradient, parts), _words_of(x, parts)
    batch, height, width, channels = words.shape
    step = tuning.cdiv(kernel[0], tuning.cdiv(kernel[0], _GRADIENTS_AT_ONCE))
    strips, tiles, blocks = pieces_of(words.shape, dilation, rows, columns, block)
    units = batch // results * strips * tiles
    # the sums of the shares take no more memory than x
    share = max(share, tuning.cdiv(4 * kernel[0] * kernel[1], rows * columns * x.element_size()))
    shares = tuning.cdiv(units, share)
    partial = x.new_empty((results, shares, kernel[0] * kernel[1], parts, channels), dtype=torch.float32)
    tuning.launch(
        by_vectors.shared_weight_gradient,
        results * shares * blocks,
        (gradients, words, partial, height, width, channels, strips, tiles, blocks, shares, share, units),
        _before(kernel, dilation, False),
        (*kernel, *dilation, parts, _reach(words), step, rows, columns, block),
        warps,
    )
    return partial.sum(1)


def _gradient_by_products(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    dilation: Sequence[int],
    of_bias: bool,
    rows: int,
    block: int,
    warps: int,
) -> tuple[Tensor, Tensor]:
    """Sums [N, taps, 1, channels], and those of the bias."""
    results, _, *kernel = weight.shape
    num_taps = kernel[0] * kernel[1]
    with_bias = of_bias and (kernel[1] - 1) * dilation[1] + COLUMNS < SOURCES
    _, height, width, channels = x.shape
    strips, tiles, blocks = pieces_of(x.shape, dilation, rows, COLUMNS, block)
    units = x.shape[0] // results * strips * tiles
    shares = tuning.cdiv(units, UNITS)
    partial = x.new_empty((results, shares, num_taps + with_bias, 1, channels), dtype=torch.float32)
    tuning.launch(
        by_products.shared_weight_gradient_by_products,
        results * shares * blocks,
        (gradient, x, partial, height, width, channels, strips, tiles, units, blocks),
        _before(kernel, dilation, False),
        (*kernel, *dilation, with_bias, *_sides_of_products(x), rows, UNITS, SOURCES, COLUMNS, block),
        warps,
        stages=1,
    )
    sums = partial.sum(1)
    if with_bias:
        return sums[:, :num_taps], sums[:, num_taps].sum((0, 1)).to(x.dtype)
    return sums, gradient.sum((0, 1, 2)) if of_bias else x.new_empty(0)


def _parts(x: Tensor) -> int:
    """Numbers of a word of memory: two if it is bfloat16 in pairs."""
    is_paired = x.dtype == torch.bfloat16 and x.shape[3] % 2 == 0 and x.data_ptr() % 4 == 0
    return 2 if is_paired else 1


def _words_of(x: Tensor, parts: int) -> Tensor:
    return x if parts == 1 else x.view(torch.int32)


def _column_step(kernel: Sequence[int]) -> int:
    """Taps of a kernel column that are unrolled."""
    return kernel[0] if kernel[0] <= _LONGEST_COLUMN else 1


def _sides_of_products(x: Tensor) -> tuple[Any, Any]:
    """Types of the factors, and of integers that reach all of an image."""
    _, height, width, channels = x.shape
    return tuning.dot_dtype(x), tuning.integers_up_to(4 * (height + width) * width * channels)


def _reach(words: Tensor) -> Any:
    """Integers that reach along a row, over its border too."""
    return tuning.integers_up_to(4 * words.shape[2] * words.shape[3])


def _taps(weight: Tensor, parts: int) -> Tensor:
    """[N, K, parts, words] in float32 of weights [N, C, kh, kw], by one copy; words that fill a block are unwritten."""
    images, channels, height, width = weight.shape
    num_taps, words, block = height * width, channels // parts, MOST_CHANNELS // parts
    shape = (images, num_taps, parts, tuning.cdiv(words, block) * block)
    taps = weight.new_empty(shape, dtype=torch.float32)
    strides = (channels * num_taps, 1, num_taps, parts * num_taps)
    written = taps if words == shape[3] else taps[..., :words]
    written.copy_(weight.contiguous().as_strided((*shape[:3], words), strides))
    return taps


def _before(kernel: Sequence[int], dilation: Sequence[int], flipped: bool) -> Pair:
    """Rows and columns of the padding before the map; of a flipped kernel it is that after the map."""
    reach = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    top, left = (r - r // 2 if flipped else r // 2 for r in reach)
    return top, left
