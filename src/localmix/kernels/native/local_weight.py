"""Weights of its own at every position: given, or made of features by a projection, used and forgotten."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from localmix.kernels.linear import register
from localmix.kernels.native.library import NO_MEMORY, TYPES, library, num_threads, pointer
from localmix.registration import operator

Pair = tuple[int, int]

_FORWARD, _BACKWARD_X, _BACKWARD_WEIGHT = range(3)


def inhomogeneous_convolution(x: Tensor, weight: Tensor, *, kernel_size: Pair, dilation: Pair) -> Tensor:
    return _forward(x, weight, kernel_size, dilation)


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


@operator("localmix::local_weight", "cpu")
def _forward(x: Tensor, weight: Tensor, kernel_size: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """y[b, p, c] = sum_k weight[b, p, g(c), k] * x[b, p + k, c]."""
    x, weight = x.contiguous(), _ordered(weight)
    y = torch.empty_like(x)
    groups_inside = not weight.is_contiguous()
    _run(_FORWARD, x, weight, y, x, weight.shape[3], kernel_size, dilation, groups_inside=groups_inside)
    return y


@_forward.register_fake
def _(x: Tensor, weight: Tensor, kernel_size: Sequence[int], dilation: Sequence[int]) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@operator("localmix::local_weight_backward", "cpu")
def _backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    """Gradients of x and of weight; an empty tensor for one that is not needed."""
    gradient, x, weight = gradient.contiguous(), x.contiguous(), _ordered(weight)
    of_x = torch.empty_like(x) if needed[0] else x.new_empty(0)
    of_weight = torch.empty_like(weight) if needed[1] else x.new_empty(0)
    sizes, groups_inside = (x, weight.shape[3], kernel_size, dilation), not weight.is_contiguous()
    if needed[0]:
        _run(_BACKWARD_X, gradient, weight, of_x, *sizes, groups_inside=groups_inside)
    if needed[1]:
        _run(_BACKWARD_WEIGHT, gradient, x, of_weight, *sizes, groups_inside=groups_inside)
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
    return of_x, torch.empty_like(_ordered(weight)) if needed[1] else x.new_empty(0)


register(_forward, _backward, has_bias=False)


@operator("localmix::projected_local_weight", "cpu")
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
    x, hidden, projection = x.contiguous(), hidden.contiguous(), projection.contiguous()
    bias = None if bias is None else bias.contiguous()
    y = torch.empty_like(x)
    problem = _problem(x, num_groups, kernel_size, dilation, rank=hidden.shape[3])
    pointers = [pointer(t) for t in (x, hidden, projection, bias, y)]
    if library().localmix_projected_local_weight(ctypes.byref(problem), *pointers, num_threads()):
        raise MemoryError(NO_MEMORY)
    return y


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


@operator("localmix::projected_local_weight_backward", "cpu")
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
    """Gradients of x, hidden, projection and bias; an empty tensor for one that is not needed.

    The weights are made again, used and forgotten, as are their gradients.
    """
    tensors = [gradient.contiguous(), x.contiguous(), hidden.contiguous(), projection.contiguous()]
    tensors.append(None if bias is None else bias.contiguous())
    results = _empty_gradients(x, hidden, projection, needed)
    problem = _problem(x, num_groups, kernel_size, dilation, rank=hidden.shape[3])
    pointers = [*map(pointer, tensors), *(pointer(t) if n else None for t, n in zip(results, needed, strict=True))]
    gradients = _ProjectedGradients(*pointers)
    if library().localmix_projected_local_weight_backward(
        ctypes.byref(problem), ctypes.byref(gradients), num_threads()
    ):
        raise MemoryError(NO_MEMORY)
    return results


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
    return _empty_gradients(x, hidden, projection, needed)


def _empty_gradients(
    x: Tensor, hidden: Tensor, projection: Tensor, needed: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For x, hidden, projection and bias: without elements where not needed."""
    shapes = (x.shape, hidden.shape, projection.shape, projection.shape[:1])
    of_x, of_hidden, of_projection, of_bias = (
        x.new_empty(shape if n else (0,)) for shape, n in zip(shapes, needed, strict=True)
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


def _ordered(weight: Tensor) -> Tensor:
    """weight [B, H, W, G, K] so that the numbers of a position are one stretch of memory, G or K innermost."""
    as_taps_inside, as_groups_inside = weight.is_contiguous(), weight.transpose(3, 4).is_contiguous()
    return weight if as_taps_inside or as_groups_inside else weight.contiguous()


class _Problem(ctypes.Structure):
    """`LocalWeightProblem` of csrc/interface.h."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            *("batch", "height", "width", "groups", "dim"),
            *("kernel_height", "kernel_width", "dilation_height", "dilation_width"),
            *("weight_group_stride", "weight_tap_stride", "rank", "dtype"),
        )
    ]


class _ProjectedGradients(ctypes.Structure):
    """`ProjectedGradients` of csrc/interface.h."""

    _fields_ = [
        *(
            (name, ctypes.c_void_p)
            for name in (
                *("gradient", "x", "hidden", "projection", "bias"),
                *("of_x", "of_hidden", "of_projection", "of_bias", "packed", "turned", "sums"),
            )
        ),
        ("threads", ctypes.c_int64),
    ]


def _run(
    kernel: int,
    a: Tensor,
    b: Tensor,
    out: Tensor,
    x: Tensor,
    num_groups: int,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    *,
    groups_inside: bool = True,
) -> None:
    """Runs a kernel on all lines of the map."""
    problem = _problem(x, num_groups, kernel_size, dilation, groups_inside=groups_inside)
    pointers, lines = [a.data_ptr(), b.data_ptr(), out.data_ptr()], x.shape[0] * x.shape[1]
    if library().localmix_local_weight(kernel, ctypes.byref(problem), *pointers, 0, lines, num_threads()):
        raise MemoryError(NO_MEMORY)


def _problem(
    x: Tensor,
    num_groups: int,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    *,
    groups_inside: bool = True,
    rank: int = 0,
) -> _Problem:
    *sizes, channels = x.shape
    strides = (1, num_groups) if groups_inside else (kernel_size[0] * kernel_size[1], 1)
    return _Problem(*sizes, num_groups, channels // num_groups, *kernel_size, *dilation, *strides, rank, TYPES[x.dtype])


def products(
    gradient: Tensor, x: Tensor, of_weight: Tensor, kernel_size: Sequence[int], dilation: Sequence[int]
) -> None:
    """Writes the gradient of the weight into `of_weight` [B, H, W, G, K], groups innermost; all are contiguous."""
    _run(_BACKWARD_WEIGHT, gradient, x, of_weight, x, of_weight.shape[3], kernel_size, dilation)
