"""Depth-wise and homogeneous dynamic convolution in Triton: launches and autograd rules."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from localmix.kernels.linear import register, register_fake
from localmix.kernels.triton import shared_weight_kernels as kernels
from localmix.kernels.triton import tuning
from localmix.registration import operator

Pair = tuple[int, int]

_LONGEST_COLUMN = 32
"""Taps of a kernel column that are unrolled at most."""

_MOST_CHANNELS = 64
"""Of a block."""

_GRADIENTS_AT_ONCE = 8
"""Taps whose gradients are kept in registers at a time, at most."""


def depthwise_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *, dilation: Pair) -> Tensor:
    return _forward(x, weight[None], bias, dilation)


def homogeneous_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *, dilation: Pair) -> Tensor:
    return _forward(x, weight, bias, dilation)


@operator("localmix::triton_shared_weight", ("cpu", "cuda"))
def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: Sequence[int]) -> Tensor:
    """y[b, p, c] = sum_k weight[n, c, k] * x[b, p + k, c] + bias[c], weight [N, C, kh, kw], n = b or 0 where N = 1."""
    return _run_convolution(x, weight, bias, dilation, flipped=False)


@operator("localmix::triton_shared_weight_backward", ("cpu", "cuda"))
def _backward(
    gradient: Tensor, x: Tensor, weight: Tensor, dilation: Sequence[int], needed: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias; an empty tensor for one that is not needed."""
    of_x, of_weight, of_bias = (x.new_empty(0) for _ in range(3))
    if needed[0]:
        of_x = _run_convolution(gradient, weight, None, dilation, flipped=True)
    if needed[1]:
        of_weight = _run_weight_gradient(gradient, x, weight, dilation)
    if needed[2]:
        of_bias = gradient.sum((0, 1, 2))
    return of_x, of_weight, of_bias


register(_forward, _backward)
register_fake(_forward, _backward, lambda x, weight: x.shape[3:])


def _run_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, dilation: Sequence[int], *, flipped: bool
) -> Tensor:
    x = x.contiguous()
    y = torch.empty_like(x)
    if not y.numel():
        return y
    parts = _parts(x)
    words = _words_of(x, parts)
    batch, height, width, channels = words.shape
    kernel, bias = weight.shape[2:], None if bias is None else bias.contiguous()
    taps = _taps(weight, parts)
    top, left = _before(kernel, dilation, flipped)
    step = kernel[0] if kernel[0] <= _LONGEST_COLUMN else 1

    def run(rows: int, tile: int, block: int, warps: int) -> None:
        strips, tiles, blocks = _pieces(words.shape, dilation, rows, tile, block)
        tuning.launch(
            kernels.convolve,
            batch * blocks * strips * tiles,
            (words, taps, taps if bias is None else bias, y, height, width, channels, strips, tiles, blocks),
            (taps.shape[3], taps.stride(0) if taps.shape[0] > 1 else 0, top, left),
            (*kernel, *dilation, flipped, bias is not None, parts, _reach(words), step, rows, tile, block),
            warps,
        )

    candidates = _tiles(words, parts, 7 if 1 < step < 16 else 4 if step > 1 else 1)
    run(*tuning.choose("shared_weight", (x.shape, kernel, dilation, (parts,)), candidates, run, x))
    return y


def _run_weight_gradient(gradient: Tensor, x: Tensor, weight: Tensor, dilation: Sequence[int]) -> Tensor:
    if not x.numel():
        return torch.zeros_like(weight, memory_format=torch.contiguous_format)
    gradient, x = gradient.contiguous(), x.contiguous()
    parts = min(_parts(gradient), _parts(x))
    gradients, words = _words_of(gradient, parts), _words_of(x, parts)
    batch, height, width, channels = words.shape
    results, kernel = weight.shape[0], weight.shape[2:]
    top, left = _before(kernel, dilation, False)
    step = tuning.cdiv(kernel[0], tuning.cdiv(kernel[0], _GRADIENTS_AT_ONCE))

    def run(rows: int, tile: int, block: int, warps: int, share: int) -> Tensor:
        strips, tiles, blocks = _pieces(words.shape, dilation, rows, tile, block)
        units = batch // results * strips * tiles
        # the sums of the shares take no more memory than x
        share = max(share, tuning.cdiv(4 * kernel[0] * kernel[1], rows * tile * x.element_size()))
        shares = tuning.cdiv(units, share)
        partial = x.new_empty((results, shares, kernel[0] * kernel[1], parts, channels), dtype=torch.float32)
        tuning.launch(
            kernels.shared_weight_gradient,
            results * shares * blocks,
            (
                gradients,
                words,
                partial,
                height,
                width,
                channels,
                strips,
                tiles,
                blocks,
                shares,
                share,
                units,
                top,
                left,
            ),
            (),
            (*kernel, *dilation, parts, _reach(words), step, rows, tile, block),
            warps,
        )
        return partial

    tiles = _tiles(words, parts, 7)
    candidates = [*((*tile, 8) for tile in tiles), *((*tile, share) for share in (4, 16) for tile in tiles[:2])]
    problem = (x.shape, kernel, dilation, (parts,))
    partial = run(*tuning.choose("shared_weight_gradient", problem, candidates, run, x))
    # [N, K, parts, words] to [N, C, kh, kw]
    return partial.sum(1).permute(0, 3, 2, 1).flatten(1, 2).unflatten(2, kernel).to(weight.dtype).contiguous()


def _parts(x: Tensor) -> int:
    """Numbers of a word of memory: two if it is bfloat16 in pairs."""
    is_paired = x.dtype == torch.bfloat16 and x.shape[3] % 2 == 0 and x.data_ptr() % 4 == 0
    return 2 if is_paired else 1


def _words_of(x: Tensor, parts: int) -> Tensor:
    return x if parts == 1 else x.view(torch.int32)


def _reach(words: Tensor) -> Any:
    """Integers that reach along a row, over its border too."""
    return tuning.integers_up_to(4 * words.shape[2] * words.shape[3])


def _taps(weight: Tensor, parts: int) -> Tensor:
    """[N, K, parts, words] in float32 of weights [N, C, kh, kw], by one copy; words that fill a block are unwritten."""
    images, channels, height, width = weight.shape
    num_taps, words, block = height * width, channels // parts, _MOST_CHANNELS // parts
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


def _pieces(shape: Sequence[int], dilation: Sequence[int], rows: int, tile: int, block: int) -> tuple[int, int, int]:
    """Strips of rows, tiles of columns and blocks of channels that cover a map."""
    _, height, width, channels = shape
    strips = dilation[0] * tuning.cdiv(tuning.cdiv(height, dilation[0]), rows)
    return strips, tuning.cdiv(width, tile), tuning.cdiv(channels, block)


def _tiles(words: Tensor, parts: int, most_rows: int) -> list[tuple[int, int, int, int]]:
    """Candidates (rows, columns, words, warps); a row of a tile is 16 bytes for each thread, or 32."""
    return _tiles_of(words.shape[2], words.shape[3], parts, 16 // words.element_size(), most_rows)


@functools.cache
def _tiles_of(width: int, words: int, parts: int, vector: int, most_rows: int) -> list[tuple[int, int, int, int]]:
    widest, narrow = (min(most // parts, tuning.next_power_of_2(words)) for most in (_MOST_CHANNELS, 32))
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
