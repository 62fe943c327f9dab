"""Gradients of weights of its own at every position, and of the hidden features and the projection they are made of.

Where no one asks for the gradient of the weights, it is made for some rows or images at a time and multiplied at once
by two ordinary matrix products. The sums of the parts are added in one order.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from localmix.kernels.triton import local_weight_gradient_kernels as kernels
from localmix.kernels.triton import tuning
from localmix.kernels.triton.local_weight_parts import Part, buffers, parts_of
from localmix.kernels.triton.local_weight_words import in_words

Pair = tuple[int, int]

_MOST_NUMBERS = 12
"""Of a block that are kept in float32 for each row, at most."""

_MOST_SUMS = 56
"""Of a thread, in registers."""

_GRADIENTS_AT_ONCE = 8
"""Taps of a kernel column that are unrolled, at most."""

_ENOUGH_WARPS = 2048
"""To fill a GPU; where a tile of positions is the work of fewer, kernel columns are given to several programs."""


class _Words(NamedTuple):
    """How a thread reads channels: see local_weight_gradient_kernels.py."""

    parts: int
    each: int
    vector: int
    pieces: int


def run_weight_gradient(
    gradient: Tensor, x: Tensor, of_weight: Tensor, kernel: Sequence[int], dilation: Sequence[int]
) -> None:
    """Writes of_weight [B, H, W, G, K], in its strides."""
    if not of_weight.numel():
        return
    tensors = (in_words(gradient), in_words(x), of_weight)
    tuning.run(_plan, tensors, (), (kernel[0], kernel[1]), (dilation[0], dilation[1]))


def _plan(tensors: Sequence[Tensor], kernel: Pair, dilation: Pair, first_row: int = 0) -> tuning.Plan:
    """For gradient [B, rows, W, C] and x [B, H, W, C], and of_weight [B, rows, W, G, K], which is written.

    The rows of gradient and of_weight are those of x from the first one on.
    """
    _, x, of_weight = tensors
    batch, rows, width, groups, _ = of_weight.shape
    height, channels, strides, words = x.shape[1], x.shape[3], of_weight.stride(), _words_of(x, groups)
    units = batch * width * (groups // words.each)
    step = _step(kernel)
    steps = tuning.cdiv(kernel[0], step) * kernel[1]
    top, left = (d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True))

    def launch(strip: int, warps: int) -> tuning.Launch:
        strips, threads = dilation[0] * tuning.cdiv(tuning.cdiv(rows, dilation[0]), strip), 32 * warps
        programs = tuning.cdiv(units, threads) * strips
        shares = min(steps, tuning.cdiv(_ENOUGH_WARPS, programs * warps))
        return tuning.Launch(
            kernels.weight_gradient,
            programs * shares,
            (units - 1, rows, first_row, height, width, strips, shares, top, left, *strides[:3]),
            (
                *(groups, channels // groups, *kernel, *dilation, *strides[3:], *words),
                *(tuning.integers_up_to(units + threads), step, strip, threads),
            ),
            warps,
        )

    tiles = _tiles(tuning.cdiv(rows, dilation[0]), step, words.each)
    problem = ((batch, rows, width, channels), (groups, strides[3] == 1), kernel, dilation)
    return tuning.Plan("local_weight_gradient", problem, tiles, launch)


def run_projected_gradients(
    gradient: Tensor,
    x: Tensor,
    hidden: Tensor,
    projection: Tensor,
    groups: int,
    kernel: Sequence[int],
    dilation: Sequence[int],
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of hidden, projection and its bias; an empty tensor for one that is not needed."""
    if not any(needed):
        return x.new_empty(0), x.new_empty(0), x.new_empty(0)
    if not x.numel():
        of_hidden = torch.empty_like(hidden, memory_format=torch.contiguous_format) if needed[0] else x.new_empty(0)
        of_projection = torch.zeros_like(projection) if needed[1] else x.new_empty(0)
        return of_hidden, of_projection, x.new_zeros(len(projection)) if needed[2] else x.new_empty(0)
    gradient, x = in_words(gradient), in_words(x)
    row = x.shape[2] * len(projection)

    def run(size: int, *tile: int) -> tuple[Tensor, Tensor, Tensor]:
        parts = parts_of(x, row, size)
        return _gradients_in_parts(parts, tile, (gradient, x, hidden, projection), groups, kernel, dilation, needed)

    sizes = buffers(x, row)
    rows = tuning.cdiv(parts_of(x, row, sizes[0])[0][3], dilation[0])
    candidates = [(size, *tile) for size in sizes for tile in _tiles(rows, _step(kernel), _words_of(x, groups).each)]
    problem = (x.shape, (groups, hidden.shape[3], *needed, len(sizes)), kernel, dilation)
    return run(*tuning.choose("projected_local_weight_gradients", problem, candidates, run, x))


def _gradients_in_parts(
    parts: Sequence[Part],
    tile: Sequence[int],
    tensors: Sequence[Tensor],
    groups: int,
    kernel: Sequence[int],
    dilation: Sequence[int],
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """`run_projected_gradients` of (gradient, x, hidden, projection), with a tile of `_plan` for each part."""
    gradient, x, hidden, projection = tensors
    (lines, rank), width = projection.shape, x.shape[2]
    num_taps = lines // groups
    of_hidden, of_projection, of_bias = (x.new_empty(0) for _ in range(3))
    # groups innermost: side by side a thread writes them, and neighbors beside it
    buffer = hidden.new_empty((max(images * rows for _, images, _, rows in parts) * width, lines))
    # views cost a microsecond each, unless they are made together
    sizes = [images * rows * width for _, images, _, rows in parts]
    own = gradient.view(-1, gradient.shape[3]).split(sizes)
    if needed[0]:
        of_hidden = torch.empty_like(hidden, memory_format=torch.contiguous_format)
        by_taps = projection.unflatten(0, (groups, num_taps)).transpose(0, 1).reshape(lines, rank)
        of_features = of_hidden.view(-1, rank).split(sizes)
    if needed[1] or needed[2]:
        # ones beside hidden: the bias is a feature that is 1 everywhere; eight times a number of columns are aligned
        padded = torch.nn.functional.pad(hidden, (0, 8 - rank % 8), value=1.0).flatten(0, 2)
        features = padded.split(sizes)
        partial = hidden.new_empty((len(parts), lines, padded.shape[1]))
        sums = partial.unbind()
    launches: dict[tuple[int, int, int], tuple[tuning.Launch, Tensor, Tensor]] = {}
    for index, (image, images, row, rows) in enumerate(parts):
        of_part = (own[index], x[image : image + images])
        found = launches.get((images, row, rows))
        if found is None:
            of_taps = buffer[: sizes[index]]
            of_weight = of_taps.view(images, rows, width, num_taps, groups).transpose(3, 4)
            plan = _plan((*of_part, of_weight), (kernel[0], kernel[1]), (dilation[0], dilation[1]), row)
            found = launches[images, row, rows] = plan.launch(*tile), of_taps, of_taps.t()
        it, of_taps, transposed = found
        tuning.launch(it.kernel, it.programs, (*of_part, of_taps), it.integers, it.constants, it.warps)
        if needed[0]:
            torch.mm(of_taps, by_taps, out=of_features[index])
        if needed[1] or needed[2]:
            torch.mm(transposed, features[index], out=sums[index])
    if needed[1] or needed[2]:
        total = partial.sum(0, dtype=torch.float32).view(num_taps, groups, -1).transpose(0, 1)
        if needed[1]:
            of_projection = hidden.new_empty(lines, rank)
            of_projection.view(groups, num_taps, rank).copy_(total[..., :rank])
        if needed[2]:
            of_bias = hidden.new_empty(lines)
            of_bias.view(groups, num_taps).copy_(total[..., rank])
    return of_hidden, of_projection, of_bias


def _step(kernel: Sequence[int]) -> int:
    """Taps of a kernel column that are unrolled."""
    return tuning.cdiv(kernel[0], tuning.cdiv(kernel[0], _GRADIENTS_AT_ONCE))


def _words_of(x: Tensor, groups: int) -> _Words:
    dim = x.shape[3] // groups
    # where a word belongs to two groups, a thread has all of both
    each = 1 if dim % 2 == 0 or groups % 2 or 2 * dim > _MOST_NUMBERS else 2
    parts, each = (2, each) if x.element_size() == 2 and each * dim % 2 == 0 else (1, 1)
    number = each * dim // parts
    vector = math.gcd(number, 4)
    most = max(1, _MOST_NUMBERS // (vector * parts))
    pieces = max(p for p in range(1, most + 1) if number // vector % p == 0)
    return _Words(parts, each, vector, pieces)


@functools.cache
def _tiles(rows: int, step: int, each: int) -> list[tuple[int, int]]:
    """Candidates (rows, warps) where a thread has so many taps and groups: as many sums for each row."""
    most = max(1, _MOST_SUMS // (step * each))
    sizes = dict.fromkeys(min(size, most, rows) for size in (7, 4))
    return [(size, 4) for size in sizes]
