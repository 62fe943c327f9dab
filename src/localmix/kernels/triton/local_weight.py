"""Inhomogeneous dynamic convolution in Triton, plain and projected: launches and autograd rules.

No gradient is summed by atomic additions: each program sums its share, and the shares are summed in one order.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from localmix.kernels.linear import register
from localmix.kernels.triton import local_weight_by_channels as by_channels
from localmix.kernels.triton import local_weight_kernels as kernels
from localmix.kernels.triton import tuning
from localmix.registration import operator

Pair = tuple[int, int]
Tile = tuple[int, ...]

_SMALLEST_FACTOR = 16
"""Sides of the factors of a matrix product are at least that long on a matrix unit."""

_MOST_SHARES = 64

_SMALL_GROUP = 8
"""Channels of a group up to which blocks of channels may be faster than blocks of groups."""

_BY_CHANNELS = 0
"""Stands for the channels of a group in a tile of channels, whatever their groups."""


def inhomogeneous_convolution(x: Tensor, weight: Tensor, *, kernel_size: Pair, dilation: Pair) -> Tensor:
    return _forward(x, weight, kernel_size, dilation)


def neighborhood_products(query: Tensor, key: Tensor, *, num_groups: int, kernel_size: Pair, dilation: Pair) -> Tensor:
    """The gradient of the weight; of a weight of which that needs no more than the shape."""
    weight = query.new_empty(1).expand(*query.shape[:3], num_groups, kernel_size[0] * kernel_size[1])
    sizes = (kernel_size, dilation)
    return _backward(query, key, weight, *sizes, (False, True))[1]


def projected_inhomogeneous_convolution(
    x: Tensor,
    hidden: Tensor,
    projection: Tensor,
    projection_bias: Tensor | None,
    *,
    kernel_size: Pair,
    num_groups: int,
    dilation: Pair,
) -> Tensor:
    return _projected_forward(x, hidden, projection, projection_bias, num_groups, kernel_size, dilation)


@operator("localmix::triton_local_weight", ("cpu", "cuda"))
def _forward(x: Tensor, weight: Tensor, kernel_size: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """y[b, p, c] = sum_k weight[b, p, g(c), k] * x[b, p + k, c]."""
    return _run_apply(x, weight, kernel_size, dilation, transposed=False)


@_forward.register_fake
def _(x: Tensor, weight: Tensor, kernel_size: Sequence[int], dilation: Sequence[int]) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@operator("localmix::triton_local_weight_backward", ("cpu", "cuda"))
def _backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    """Gradients of x and of weight; an empty tensor for one that is not needed."""
    of_x, of_weight = x.new_empty(0), x.new_empty(0)
    if needed[0]:
        of_x = _run_apply(gradient, weight, kernel_size, dilation, transposed=True)
    if needed[1]:
        of_weight = torch.empty_like(weight)
        _run_weight_gradient(gradient, x, of_weight, kernel_size, dilation)
    return of_x, of_weight


@_backward.register_fake
def _(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    of_x = torch.empty_like(x, memory_format=torch.contiguous_format) if needed[0] else x.new_empty(0)
    return of_x, torch.empty_like(weight) if needed[1] else x.new_empty(0)


register(_forward, _backward, has_bias=False)


@operator("localmix::triton_projected_local_weight", ("cpu", "cuda"))
def _projected_forward(
    x: Tensor,
    hidden: Tensor,
    projection: Tensor,
    bias: Tensor | None,
    num_groups: int,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """`_forward` with weights [B, H, W, G * K] = hidden [B, H, W, R] @ projection.T + bias, projection [G * K, R]."""
    return _run_apply(x, (hidden, projection, bias, num_groups), kernel_size, dilation, transposed=False)


@_projected_forward.register_fake
def _(
    x: Tensor,
    hidden: Tensor,
    projection: Tensor,
    bias: Tensor | None,
    num_groups: int,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@operator("localmix::triton_projected_local_weight_backward", ("cpu", "cuda"))
def _projected_backward(
    gradient: Tensor,
    x: Tensor,
    hidden: Tensor,
    projection: Tensor,
    bias: Tensor | None,
    num_groups: int,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, hidden, projection and bias, empty where not needed; the weights are made again."""
    of_x, of_hidden, of_projection, of_bias = (x.new_empty(0) for _ in range(4))
    if needed[0]:
        of_x = _run_apply(gradient, (hidden, projection, bias, num_groups), kernel_size, dilation, transposed=True)
    if needed[1]:
        of_hidden = _run_hidden_gradient(gradient, x, hidden, projection, num_groups, kernel_size, dilation)
    if needed[2] or needed[3]:
        sums = _run_projection_gradient(gradient, x, hidden, projection, num_groups, kernel_size, dilation)
        of_projection, of_bias = (s if n else x.new_empty(0) for s, n in zip(sums, needed[2:], strict=True))
    return of_x, of_hidden, of_projection, of_bias


@_projected_backward.register_fake
def _(
    gradient: Tensor,
    x: Tensor,
    hidden: Tensor,
    projection: Tensor,
    bias: Tensor | None,
    num_groups: int,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    of_x, of_hidden, of_projection, of_bias = (
        x.new_empty(shape if n else (0,))
        for n, shape in zip(needed, (x.shape, hidden.shape, projection.shape, projection.shape[:1]), strict=True)
    )
    return of_x, of_hidden, of_projection, of_bias


def _save_projected(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.num_groups, ctx.kernel_size, ctx.dilation = inputs
    ctx.save_for_backward(*tensors)


def _projected_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    tensors, sizes, needed = ctx.saved_tensors, (ctx.kernel_size, ctx.dilation), ctx.needs_input_grad[:4]
    if torch.is_grad_enabled():
        # for second derivatives: the same by operators that have them, the weights in memory after all
        x, hidden, projection, bias = tensors
        weight = hidden @ projection.t() if bias is None else hidden @ projection.t() + bias
        of_x, of_weight = _backward(gradient, x, weight.unflatten(3, (ctx.num_groups, -1)), *sizes, (True, True))
        of_taps = of_weight.flatten(3)
        of_projection = of_taps.flatten(0, 2).t() @ hidden.flatten(0, 2)
        gradients = (of_x, of_taps @ projection, of_projection, of_taps.sum((0, 1, 2)))
    else:
        gradients = _projected_backward(gradient, *tensors, ctx.num_groups, *sizes, needed)
    return *(g if n else None for g, n in zip(gradients, needed, strict=True)), None, None, None


_projected_forward.register_autograd(_projected_gradients, setup_context=_save_projected)


def _run_apply(
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
        groups, rank = weight.shape[3], 0
        operands, strides, has_bias = (weight, weight, weight, weight), weight.stride(), False
    else:
        hidden, projection, bias, groups = weight
        rank, has_bias = hidden.shape[3], bias is not None
        hidden, projection = hidden.contiguous(), projection.contiguous()
        operands = (hidden, hidden, projection, hidden if bias is None else bias.contiguous())
        strides = (0, 0, 0, 0, 0)
    dim = channels // groups
    # of an image, in the strides of its map, of hidden features and of weights
    reach = sum((n - 1) * stride for n, stride in zip((height, width, groups), strides[1:4], strict=True))
    largest = height * width * max(channels, rank) + reach

    def run(tile_h: int, tile_w: int, block: int, block_d: int, warps: int) -> None:
        tiles = tuning.cdiv(height, tile_h), tuning.cdiv(width, tile_w)
        constants = (groups, dim, rank, *kernel, *dilation, transposed, has_bias, *_products_of(x))
        if block_d == _BY_CHANNELS:
            function, blocks = by_channels.apply_by_channels, (tuning.cdiv(channels, block),)
            sizes = (_offset(largest), tile_h, tile_w, block)
        else:
            blocks = tuning.cdiv(groups, block), tuning.cdiv(dim, block_d)
            function, sizes = kernels.apply, (tile_h, tile_w, block, block_d)
        tuning.launch(
            function,
            batch * math.prod(tiles) * math.prod(blocks),
            (x, y, *operands, height, width, *tiles, *blocks, *_before(kernel, dilation)),
            strides,
            (*constants, *sizes, _block_of_rank(rank)),
            warps,
        )

    name = "projected_local_weight" if rank else "local_weight"
    problem = (x.shape, (groups, rank, transposed, strides[3] == 1), kernel, dilation)
    run(*tuning.choose(name, problem, _tiles(x, groups, bool(rank)), run, x))
    return y


def _run_weight_gradient(
    gradient: Tensor, x: Tensor, of_weight: Tensor, kernel: Sequence[int], dilation: Sequence[int]
) -> None:
    if not of_weight.numel():
        return
    gradient, x = gradient.contiguous(), x.contiguous()
    batch, height, width, channels = x.shape
    groups = of_weight.shape[3]

    def run(tile_h: int, tile_w: int, block_g: int, block_d: int, warps: int) -> None:
        tiles_h, tiles_w, blocks_g = (
            tuning.cdiv(height, tile_h),
            tuning.cdiv(width, tile_w),
            tuning.cdiv(groups, block_g),
        )
        tuning.launch(
            kernels.weight_gradient,
            batch * tiles_h * tiles_w * blocks_g,
            (gradient, x, of_weight, height, width, tiles_h, tiles_w, blocks_g, *_before(kernel, dilation)),
            of_weight.stride(),
            (groups, channels // groups, *kernel, *dilation, tile_h, tile_w, block_g, block_d),
            warps,
        )

    candidates = _tiles_of_groups(width, groups, channels // groups, False, 64)
    problem = (x.shape, (groups, of_weight.stride(3) == 1), kernel, dilation)
    run(*tuning.choose("local_weight_gradient", problem, candidates, run, x))


def _run_hidden_gradient(
    gradient: Tensor,
    x: Tensor,
    hidden: Tensor,
    projection: Tensor,
    groups: int,
    kernel: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    of_hidden = torch.empty_like(hidden, memory_format=torch.contiguous_format)
    if not of_hidden.numel():
        return of_hidden
    gradient, x, projection = gradient.contiguous(), x.contiguous(), projection.contiguous()
    batch, height, width, channels = x.shape
    rank, block_r = hidden.shape[3], _block_of_rank(hidden.shape[3])

    def run(tile_h: int, tile_w: int, block: int, block_d: int, warps: int) -> None:
        tiles, blocks_r = (tuning.cdiv(height, tile_h), tuning.cdiv(width, tile_w)), tuning.cdiv(rank, block_r)
        constants = (groups, channels // groups, rank, *kernel, *dilation, *_products_of(x))
        if block_d == _BY_CHANNELS:
            function, blocks = by_channels.hidden_gradient_by_channels, (blocks_r,)
            sizes = (_offset(height * width * max(channels, rank)), tile_h, tile_w, block)
        else:
            function, blocks = kernels.hidden_gradient, (tuning.cdiv(groups, block), blocks_r)
            sizes = (tile_h, tile_w, block, block_d)
        tuning.launch(
            function,
            batch * math.prod(tiles) * blocks_r,
            (gradient, x, projection, of_hidden, height, width, *tiles, *blocks),
            _before(kernel, dilation),
            (*constants, *sizes, block_r),
            warps,
        )

    problem = (x.shape, (groups, rank), kernel, dilation)
    run(*tuning.choose("projected_local_weight_hidden", problem, _tiles(x, groups, True), run, x))
    return of_hidden


def _run_projection_gradient(
    gradient: Tensor,
    x: Tensor,
    hidden: Tensor,
    projection: Tensor,
    groups: int,
    kernel: Sequence[int],
    dilation: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Gradients of projection and of its bias."""
    lines, rank = projection.shape
    if not x.numel():
        return x.new_zeros(lines, rank), x.new_zeros(lines)
    gradient, x, hidden = gradient.contiguous(), x.contiguous(), hidden.contiguous()
    batch, height, width, channels = x.shape
    block_r, num_taps = _block_of_rank(rank), kernel[0] * kernel[1]

    def run(tile_h: int, tile_w: int, block: int, block_d: int, warps: int) -> tuple[Tensor, Tensor]:
        tiles, blocks_r = (tuning.cdiv(height, tile_h), tuning.cdiv(width, tile_w)), tuning.cdiv(rank, block_r)
        rows = channels * num_taps if block_d == _BY_CHANNELS else lines
        # the sums of the shares are no more numbers than x has
        shares = max(1, min(batch * math.prod(tiles), _MOST_SHARES, x.numel() // (rows * (rank + 1))))
        # and those of a program fit the registers
        taps = max(1, min(num_taps, 4096 // (block * block_r), 2 if x.dtype == torch.float32 else 4))
        partial = x.new_empty((shares, rows, rank), dtype=torch.float32)
        partial_of_bias = x.new_empty((shares, rows), dtype=torch.float32)
        constants = (groups, channels // groups, rank, *kernel, *dilation, *_products_of(x))
        if block_d == _BY_CHANNELS:
            function, blocks = by_channels.projection_gradient_by_channels, tuning.cdiv(channels, block)
            sizes = (_offset(height * width * max(channels, rank)), taps, tile_h, tile_w, block)
        else:
            function, blocks = kernels.projection_gradient, tuning.cdiv(groups, block)
            sizes = (taps, tile_h, tile_w, block, block_d)
        tuning.launch(
            function,
            shares * tuning.cdiv(num_taps, taps) * blocks * blocks_r,
            (gradient, x, hidden, partial, partial_of_bias, height, width, *tiles, blocks, blocks_r),
            (shares, batch * math.prod(tiles), *_before(kernel, dilation)),
            (*constants, *sizes, block_r),
            warps,
            stages=1,
        )
        return partial, partial_of_bias

    problem = (x.shape, (groups, rank), kernel, dilation)
    partial, partial_of_bias = run(
        *tuning.choose("projected_local_weight_projection", problem, _tiles(x, groups, True, 16), run, x)
    )
    # of channels or of groups: [shares, G, D or 1, K, R]
    each = (-1, groups, partial.shape[1] // lines, num_taps)
    of_projection, of_bias = partial.view(*each, rank).sum((0, 2)), partial_of_bias.view(each).sum((0, 2))
    return of_projection.flatten(0, 1).to(projection.dtype), of_bias.flatten().to(projection.dtype)


def _before(kernel: Sequence[int], dilation: Sequence[int]) -> Pair:
    """Rows and columns of the padding before the map."""
    top, left = (d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True))
    return top, left


def _products_of(x: Tensor) -> tuple[Any, str]:
    return tuning.dot_dtype(x), tuning.dot_precision(x)


def _block_of_rank(rank: int) -> int:
    return min(max(tuning.next_power_of_2(rank), _SMALLEST_FACTOR), 128)


def _offset(largest: int) -> Any:
    """Integers that reach so far."""
    return tl.int64 if largest >= 2**31 else tl.int32


def _tiles(x: Tensor, groups: int, has_products: bool, numbers: int = 64) -> list[Tile]:
    """Candidates (rows, columns, groups, channels of a group, warps), up to so many numbers of x for a thread.

    Small groups come as channels too; but not for products in float32, which are no work for a matrix unit.
    """
    width, channels = x.shape[2:]
    candidates = _tiles_of_groups(width, groups, channels // groups, has_products, numbers)
    if channels // groups <= _SMALL_GROUP and not (has_products and x.dtype == torch.float32):
        return [*_tiles_by_channels(width, channels), *candidates[:2]]
    return candidates


@functools.cache
def _tiles_by_channels(width: int, channels: int) -> list[Tile]:
    """Candidates (rows, columns, channels, `_BY_CHANNELS`, warps)."""
    columns, most = min(8, tuning.next_power_of_2(width)), tuning.next_power_of_2(channels)
    candidates = []
    for positions, block, warps in ((128, 32, 4), (64, 32, 4), (128, 64, 8), (64, 64, 4)):
        block_c = max(min(block, most), _SMALLEST_FACTOR)
        candidates.append((positions // columns, columns, block_c, _BY_CHANNELS, warps))
    return list(dict.fromkeys(candidates))


@functools.cache
def _tiles_of_groups(width: int, groups: int, dim: int, has_products: bool, numbers: int) -> list[Tile]:
    channels = tuning.next_power_of_2(dim)
    smallest = _SMALLEST_FACTOR if has_products else 1
    candidates = []
    for part, warps, most in ((1, 4, 32), (2, 4, 32), (2, 8, 32), (2, 4, 16), (2, 2, 16)):
        block_g = max(min(tuning.next_power_of_2(groups), most), smallest)
        block_d = min(channels, 32)
        positions = max(_SMALLEST_FACTOR, min(128, 32 * warps * numbers // part // (block_g * block_d)))
        columns = min(8, tuning.next_power_of_2(width))
        candidates.append((positions // columns, columns, block_g, block_d, warps))
    return list(dict.fromkeys(candidates))
