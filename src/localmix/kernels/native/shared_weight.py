"""Weights that all positions share: static, or one set for each image."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from localmix.kernels.linear import register, register_fake
from localmix.kernels.native.library import NO_MEMORY, TYPES, library, num_threads, pointer
from localmix.registration import operator

Pair = tuple[int, int]


def depthwise_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *, dilation: Pair) -> Tensor:
    return _forward(x, weight[None], bias, dilation)


def homogeneous_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *, dilation: Pair) -> Tensor:
    return _forward(x, weight, bias, dilation)


class _Problem(ctypes.Structure):
    """`SharedWeightProblem` of csrc/interface.h."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            *("batch", "height", "width", "channels", "kernel_height", "kernel_width"),
            *("dilation_height", "dilation_width", "weights", "adjoint", "dtype", "strips", "parts"),
        )
    ]


def _problem(x: Tensor, weight: Tensor, dilation: Sequence[int], *, adjoint: bool = False) -> _Problem:
    return _Problem(*x.shape, *weight.shape[2:], *dilation, len(weight), adjoint, TYPES[x.dtype])


def _mix(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: Sequence[int], *, adjoint: bool = False) -> Tensor:
    x, weight, bias = x.contiguous(), weight.contiguous(), None if bias is None else bias.contiguous()
    y = torch.empty_like(x)
    if y.numel():
        problem = _problem(x, weight, dilation, adjoint=adjoint)
        tensors = map(pointer, (x, weight, bias, y))
        if library().localmix_shared_weight(ctypes.byref(problem), *tensors, num_threads()):
            raise MemoryError(NO_MEMORY)
    return y


@operator("localmix::native_shared_weight", "cpu")
def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: Sequence[int]) -> Tensor:
    """y[b, p, c] = bias[c] + sum_k weight[b, c, k] * x[b, p + k, c], weight [B or 1, C, kh, kw]."""
    return _mix(x, weight, bias, dilation)


@operator("localmix::native_shared_weight_backward", "cpu")
def _backward(
    gradient: Tensor, x: Tensor, weight: Tensor, dilation: Sequence[int], needed: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias; an empty tensor for one that is not needed."""
    gradient, x = gradient.contiguous(), x.contiguous()
    of_x = _mix(gradient, weight, None, dilation, adjoint=True) if needed[0] else x.new_empty(0)
    if not (needed[1] or needed[2]):
        return of_x, x.new_empty(0), x.new_empty(0)
    of_weight, of_bias = weight.new_zeros(weight.shape, dtype=torch.float32), torch.zeros(x.shape[3])
    if x.numel():
        problem = _problem(x, weight, dilation)
        tensors = map(pointer, (x, gradient, of_weight, of_bias))
        if library().localmix_shared_weight_backward(ctypes.byref(problem), *tensors, num_threads()):
            raise MemoryError(NO_MEMORY)
    of_weight, of_bias = (
        t.to(x.dtype) if n else x.new_empty(0) for t, n in ((of_weight, needed[1]), (of_bias, needed[2]))
    )
    return of_x, of_weight, of_bias


register(_forward, _backward)
register_fake(_forward, _backward, lambda x, weight: x.shape[3:])
