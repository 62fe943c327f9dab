"""The local MLP in Triton: launches and autograd rules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from localmix.kernels.linear import register, register_fake
from localmix.kernels.triton import tuning
from localmix.kernels.triton import window_weight_kernels as kernels
from localmix.registration import operator

Pair = tuple[int, int]

_SMALLEST_FACTOR, _LARGEST_BLOCK = 16, 64
"""Sides of the blocks of slots: what a matrix unit takes at least, and what registers hold at most."""

_MOST_SHARES = 64


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
    if not x.numel():
        return x.new_empty(x.shape)
    weight = weight.contiguous()
    tensors = (x.contiguous(), weight, weight if bias is None else bias.contiguous())
    (y,) = tuning.run(_plan_mix, tensors, (), tuple(window_size), tuple(shift), bias is not None, transposed)
    return y


def _plan_mix(
    tensors: Sequence[Tensor], window_size: Pair, shift: Pair, has_bias: bool, transposed: bool
) -> tuning.Plan:
    x, weight, _ = tensors
    geometry, units = _geometry(x, window_size, shift)
    groups, slots = weight.shape[:2]
    dim, block = x.shape[3] // groups, _block(slots)
    # vector units, which float32 takes, keep what they sum over in registers
    block_in = _SMALLEST_FACTOR if x.dtype == torch.float32 else block

    def launch(windows: int, block_d: int, warps: int) -> tuning.Launch:
        blocks_d = tuning.cdiv(dim, block_d)
        return tuning.Launch(
            kernels.mix_windows,
            groups * blocks_d * tuning.cdiv(slots, block) * tuning.cdiv(units, windows),
            (*geometry, units, blocks_d, *((1, slots) if transposed else (slots, 1))),
            (groups, dim, *window_size, has_bias, *_products_of(x), block, block_in, windows, block_d),
            warps,
            results=[(x.shape, x.dtype)],
        )

    return tuning.Plan("window_weight", (x.shape, (groups, transposed), window_size), _tiles(x, dim), launch)


def _run_matrix_gradient(
    gradient: Tensor, x: Tensor, weight: Tensor, window_size: Sequence[int], shift: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Gradients of weight and of bias."""
    if not x.numel():
        return x.new_zeros(weight.shape), x.new_zeros(weight.shape[:2])
    tensors, groups = (gradient.contiguous(), x.contiguous()), weight.shape[0]
    sums = tuning.run(_plan_matrix_gradient, tensors, (), groups, tuple(window_size), tuple(shift))
    of_weight, of_bias = (of_shares.sum(0).to(weight.dtype) for of_shares in sums)
    return of_weight, of_bias


def _plan_matrix_gradient(tensors: Sequence[Tensor], groups: int, window_size: Pair, shift: Pair) -> tuning.Plan:
    """Its results are sums for each share of the windows."""
    _, x = tensors
    geometry, units = _geometry(x, window_size, shift)
    slots = math.prod(window_size)
    dim, block = x.shape[3] // groups, _block(slots)

    def launch(windows: int, block_d: int, warps: int) -> tuning.Launch:
        blocks_d = tuning.cdiv(dim, block_d)
        parts = tuning.cdiv(units, windows) * blocks_d
        # the sums of the shares are no more numbers than x has
        shares = max(1, min(parts, _MOST_SHARES, x.numel() // (groups * slots * (slots + 1))))
        return tuning.Launch(
            kernels.matrix_gradient,
            shares * groups * tuning.cdiv(slots, block) ** 2,
            (*geometry, units, blocks_d, shares),
            (groups, dim, *window_size, *_products_of(x), block, windows, block_d),
            warps,
            results=[(shape, torch.float32) for shape in ((shares, groups, slots, slots), (shares, groups, slots))],
        )

    return tuning.Plan("window_weight_gradient", (x.shape, (groups,), window_size), _tiles(x, dim), launch)


def _geometry(x: Tensor, window_size: Sequence[int], shift: Sequence[int]) -> tuple[tuple[int, ...], int]:
    """Height, width, windows down and across, slots above and before the map; and how many windows all images have."""
    batch, *sides, _ = x.shape
    before = [(size - s) % size for size, s in zip(window_size, shift, strict=True)]
    windows = [tuning.cdiv(b + n, size) for b, n, size in zip(before, sides, window_size, strict=True)]
    return (*sides, *windows, *before), batch * math.prod(windows)


def _products_of(x: Tensor) -> tuple[Any, ...]:
    """Dtype and rounding of factors, and the integers that reach all of x."""
    return tuning.dot_dtype(x), tuning.dot_precision(x), tuning.integers_up_to(2 * x.numel())


def _block(slots: int) -> int:
    return min(max(tuning.next_power_of_2(slots), _SMALLEST_FACTOR), _LARGEST_BLOCK)


def _tiles(x: Tensor, dim: int) -> list[tuple[int, int, int]]:
    """Candidates (windows, channels of a group, warps)."""
    block_d = min(tuning.next_power_of_2(dim), 64)
    columns = (32, 16, 64) if x.dtype == torch.float32 else (64, 128, 32)
    return list(dict.fromkeys((max(n // block_d, 1), block_d, warps) for n in columns for warps in (4, 8)))
