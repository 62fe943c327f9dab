"""Weights from each slot of a window to each slot, alike in all windows, in Triton: the local MLP.

For a group of channels that is a product of two matrices: the weights [N, N], and a matrix whose rows are the slots of
a window and whose columns are the windows of all images with the channels of the group. A program owns some columns of
one group; it reads them where they lie, so that nothing is partitioned, rolled or padded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from localmix.kernels.linear import register, register_fake
from localmix.kernels.triton import tuning
from localmix.registration import operator

Pair = tuple[int, int]

_SMALLEST_FACTOR, _LARGEST_BLOCK = 16, 64
"""Sides of the blocks of slots: what a matrix unit takes at least, and what registers hold at most."""

_MOST_SHARES = 64


@triton.jit
def _columns(
    first,
    units,
    group,
    block_d,
    height,
    width,
    windows_h,
    windows_w,
    top,
    left,
    G: tl.constexpr,
    D: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    WINDOWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """For windows from `first` on and channels of a group: where slot 0 lies, its row and column, and which exist."""
    column = tl.arange(0, WINDOWS * BLOCK_D)
    unit = first + column // BLOCK_D
    dim = block_d * BLOCK_D + column % BLOCK_D
    known = (unit < units) & (dim < D)
    left_of = unit % windows_w * KW - left
    unit = unit // windows_w
    top_of = unit % windows_h * KH - top
    start = ((unit // windows_h * height + top_of) * width + left_of) * (G * D) + group * D + dim
    return start, top_of, left_of, known


@triton.jit
def _slots(
    first,
    start,
    top_of,
    left_of,
    known,
    height,
    width,
    C: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """For slots from `first` on and columns: offsets into a map, and which of them are on it."""
    slot = first + tl.arange(0, BLOCK)
    row = top_of[None, :] + (slot // KW)[:, None]
    column = left_of[None, :] + (slot % KW)[:, None]
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    inside = inside & known[None, :] & (slot < KH * KW)[:, None]
    offsets = start[None, :] + ((slot // KW * width + slot % KW) * C)[:, None]
    return offsets, inside


@triton.jit
def _mix_windows(
    x,
    weight,
    bias,
    y,
    height,
    width,
    windows_h,
    windows_w,
    top,
    left,
    units,
    blocks_d,
    stride_out,
    stride_in,
    G: tl.constexpr,
    D: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    FACTOR: tl.constexpr,
    PRECISION: tl.constexpr,
    OFFSET: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    WINDOWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """y[i] = bias[i] + sum_j weight[i, j] * x[j]; the gradient of x is the same with the matrix transposed."""
    N: tl.constexpr = KH * KW
    pid = tl.program_id(0).to(OFFSET)
    group = pid % G
    pid = pid // G
    block_d = pid % blocks_d
    pid = pid // blocks_d
    blocks: tl.constexpr = (N + BLOCK - 1) // BLOCK
    first_out = (pid % blocks).to(tl.int32) * BLOCK
    first = pid // blocks * WINDOWS
    start, top_of, left_of, known = _columns(
        first, units, group, block_d, height, width, windows_h, windows_w, top, left, G, D, KH, KW, WINDOWS, BLOCK_D
    )
    out = first_out + tl.arange(0, BLOCK)
    sums = tl.zeros((BLOCK, WINDOWS * BLOCK_D), tl.float32)
    for first_in in range(0, N, BLOCK_IN):
        offsets, inside = _slots(first_in, start, top_of, left_of, known, height, width, G * D, KH, KW, BLOCK_IN)
        values = tl.load(x + offsets, mask=inside, other=0).to(FACTOR)
        slot = first_in + tl.arange(0, BLOCK_IN)
        pointers = weight + group * (N * N) + out[:, None] * stride_out + slot[None, :] * stride_in
        matrix = tl.load(pointers, mask=(out < N)[:, None] & (slot < N)[None, :], other=0).to(FACTOR)
        sums = tl.dot(matrix, values, sums, input_precision=PRECISION)
    if HAS_BIAS:
        sums += tl.load(bias + group * N + out, mask=out < N, other=0).to(tl.float32)[:, None]
    offsets, inside = _slots(first_out, start, top_of, left_of, known, height, width, G * D, KH, KW, BLOCK)
    tl.store(y + offsets, sums.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _matrix_gradient(
    gradient,
    x,
    partial,
    partial_of_bias,
    height,
    width,
    windows_h,
    windows_w,
    top,
    left,
    units,
    blocks_d,
    shares,
    G: tl.constexpr,
    D: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    FACTOR: tl.constexpr,
    PRECISION: tl.constexpr,
    OFFSET: tl.constexpr,
    BLOCK: tl.constexpr,
    WINDOWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Sums over a share of the columns: gradient[i] * x[j] for all pairs of slots, and gradient[i] alone."""
    N: tl.constexpr = KH * KW
    blocks: tl.constexpr = (N + BLOCK - 1) // BLOCK
    pid = tl.program_id(0).to(OFFSET)
    group = pid % G
    pid = pid // G
    first_in = (pid % blocks).to(tl.int32) * BLOCK
    pid = pid // blocks
    first_out = (pid % blocks).to(tl.int32) * BLOCK
    share = pid // blocks
    sums = tl.zeros((BLOCK, BLOCK), tl.float32)
    sums_of_bias = tl.zeros((BLOCK,), tl.float32)
    for part in range(share, (units + WINDOWS - 1) // WINDOWS * blocks_d, shares):
        first = part // blocks_d * WINDOWS
        start, top_of, left_of, known = _columns(
            first, units, group, part % blocks_d, height, width, windows_h, windows_w, top, left,
            G, D, KH, KW, WINDOWS, BLOCK_D,
        )  # fmt: skip
        offsets, inside = _slots(first_out, start, top_of, left_of, known, height, width, G * D, KH, KW, BLOCK)
        gradients = tl.load(gradient + offsets, mask=inside, other=0)
        offsets, inside = _slots(first_in, start, top_of, left_of, known, height, width, G * D, KH, KW, BLOCK)
        values = tl.load(x + offsets, mask=inside, other=0).to(FACTOR)
        sums = tl.dot(gradients.to(FACTOR), tl.trans(values), sums, input_precision=PRECISION)
        sums_of_bias += tl.sum(gradients.to(tl.float32), 1)
    out = first_out + tl.arange(0, BLOCK)
    slot = first_in + tl.arange(0, BLOCK)
    line = (share * G + group) * N + out
    tl.store(partial + line[:, None] * N + slot[None, :], sums, mask=(out < N)[:, None] & (slot < N)[None, :])
    tl.store(partial_of_bias + line, sums_of_bias, mask=out < tl.where(first_in == 0, N, 0))


def local_mlp(x: Tensor, weight: Tensor, bias: Tensor | None, *, window_size: Pair, shift: Pair) -> Tensor:
    return _forward(x, weight, bias, window_size, shift)


@operator("localmix::triton_window_weight", ("cpu", "cuda"))
def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, window_size: Sequence[int], shift: Sequence[int]
) -> Tensor:
    """y[b, i, g, d] = bias[g, i] + sum_j weight[g, i, j] * x[b, j, g, d], i and j slots of a window."""
    return _run_mix(x, weight, bias, window_size, shift, transposed=False)


@operator("localmix::triton_window_weight_backward", ("cpu", "cuda"))
def _backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    window_size: Sequence[int],
    shift: Sequence[int],
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias; an empty tensor for one that is not needed."""
    of_x, of_weight, of_bias = (x.new_empty(0) for _ in range(3))
    if needed[0]:
        of_x = _run_mix(gradient, weight, None, window_size, shift, transposed=True)
    if needed[1] or needed[2]:
        sums = _run_matrix_gradient(gradient, x, weight, window_size, shift)
        of_weight, of_bias = (s if n else x.new_empty(0) for s, n in zip(sums, needed[1:], strict=True))
    return of_x, of_weight, of_bias


register(_forward, _backward)
register_fake(_forward, _backward, lambda x, weight: weight.shape[:2])


def _run_mix(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window_size: Sequence[int],
    shift: Sequence[int],
    *,
    transposed: bool,
) -> Tensor:
    x, weight = x.contiguous(), weight.contiguous()
    y = torch.empty_like(x)
    if not y.numel():
        return y
    geometry, units = _geometry(x, window_size, shift)
    groups, slots = weight.shape[:2]
    dim, block = x.shape[3] // groups, _block(slots)
    # vector units, which float32 takes, keep what they sum over in registers
    block_in = _SMALLEST_FACTOR if x.dtype == torch.float32 else block
    strides = (1, slots) if transposed else (slots, 1)
    bias = None if bias is None else bias.contiguous()

    def run(windows: int, block_d: int, warps: int) -> None:
        blocks_d = tuning.cdiv(dim, block_d)
        tuning.launch(
            _mix_windows,
            groups * blocks_d * tuning.cdiv(slots, block) * tuning.cdiv(units, windows),
            (x, weight, weight if bias is None else bias, y, *geometry, units, blocks_d),
            strides,
            (groups, dim, *window_size, bias is not None, *_products_of(x), block, block_in, windows, block_d),
            warps,
        )

    problem = (x.shape, (groups, transposed), window_size)
    run(*tuning.choose("window_weight", problem, _tiles(x, dim), run, x))
    return y


def _run_matrix_gradient(
    gradient: Tensor, x: Tensor, weight: Tensor, window_size: Sequence[int], shift: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Gradients of weight and of bias."""
    if not x.numel():
        return x.new_zeros(weight.shape), x.new_zeros(weight.shape[:2])
    gradient, x = gradient.contiguous(), x.contiguous()
    geometry, units = _geometry(x, window_size, shift)
    groups, slots = weight.shape[:2]
    dim, block = x.shape[3] // groups, _block(slots)

    def run(windows: int, block_d: int, warps: int) -> tuple[Tensor, Tensor]:
        blocks_d = tuning.cdiv(dim, block_d)
        parts = tuning.cdiv(units, windows) * blocks_d
        # the sums of the shares are no more numbers than x has
        shares = max(1, min(parts, _MOST_SHARES, x.numel() // (groups * slots * (slots + 1))))
        partial = x.new_empty((shares, groups, slots, slots), dtype=torch.float32)
        partial_of_bias = x.new_empty((shares, groups, slots), dtype=torch.float32)
        tuning.launch(
            _matrix_gradient,
            shares * groups * tuning.cdiv(slots, block) ** 2,
            (gradient, x, partial, partial_of_bias, *geometry, units, blocks_d, shares),
            (),
            (groups, dim, *window_size, *_products_of(x), block, windows, block_d),
            warps,
        )
        return partial, partial_of_bias

    problem = (x.shape, (groups,), window_size)
    partial, partial_of_bias = run(*tuning.choose("window_weight_gradient", problem, _tiles(x, dim), run, x))
    return partial.sum(0).to(weight.dtype), partial_of_bias.sum(0).to(weight.dtype)


def _geometry(x: Tensor, window_size: Sequence[int], shift: Sequence[int]) -> tuple[tuple[int, ...], int]:
    """Height, width, windows down and across, slots above and before the map; and how many windows all images have."""
    batch, *sides, _ = x.shape
    before = [(size - s) % size for size, s in zip(window_size, shift, strict=True)]
    windows = [tuning.cdiv(b + n, size) for b, n, size in zip(before, sides, window_size, strict=True)]
    return (*sides, *windows, *before), batch * math.prod(windows)


def _products_of(x: Tensor) -> tuple[Any, ...]:
    """Dtype and rounding of factors, and the integers that reach all of x."""
    return tuning.dot_dtype(x), tuning.dot_precision(x), tl.int64 if x.numel() >= 2**30 else tl.int32


def _block(slots: int) -> int:
    return min(max(tuning.next_power_of_2(slots), _SMALLEST_FACTOR), _LARGEST_BLOCK)


def _tiles(x: Tensor, dim: int) -> list[tuple[int, int, int]]:
    """Candidates (windows, channels of a group, warps)."""
    block_d = min(tuning.next_power_of_2(dim), 64)
    columns = (32, 16, 64) if x.dtype == torch.float32 else (64, 128, 32)
    return list(dict.fromkeys((max(n // block_d, 1), block_d, warps) for n in columns for warps in (4, 8)))
