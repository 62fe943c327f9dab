"""Weights from each slot of a window to each slot, alike in all windows: the local MLP."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from localmix.kernels.linear import register, register_fake
from localmix.kernels.native.library import NO_MEMORY, TYPES, library, num_threads, pointer
from localmix.registration import operator

Pair = tuple[int, int]


def local_mlp(x: Tensor, weight: Tensor, bias: Tensor | None, *, window_size: Pair, shift: Pair) -> Tensor:
    return _forward(x, weight, bias, window_size, shift)


class _Problem(ctypes.Structure):
    """`WindowWeightProblem` of csrc/interface.h."""

    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in (
                *("batch", "height", "width", "groups", "dim", "size_height", "size_width"),
                *("before_height", "before_width", "windows", "dtype"),
            )
        ),
        *((name, ctypes.c_void_p) for name in ("x", "gradient", "weight", "bias", "y", "of_x", "packed")),
        ("parts", ctypes.c_int64),
    ]


def _run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window_size: Sequence[int],
    shift: Sequence[int],
    *,
    of_weight: Tensor | None = None,
    of_bias: Tensor | None = None,
    **maps: Tensor | None,
) -> None:
    batch, height, width, channels = x.shape
    groups = len(weight)
    before = [(size - s) % size for size, s in zip(window_size, shift, strict=True)]
    down, across = (-(-(b + n) // s) for b, n, s in zip(before, (height, width), window_size, strict=True))
    sizes = (batch, height, width, groups, channels // groups, *window_size, *before, batch * down * across)
    # kept alive until the kernel is done
    weight, bias = weight.to(x.dtype).contiguous(), None if bias is None else bias.float().contiguous()
    problem = _Problem(*sizes, TYPES[x.dtype])
    for name, t in {"x": x, "weight": weight, "bias": bias, **maps}.items():
        setattr(problem, name, pointer(t))
    sums = pointer(of_weight), pointer(of_bias)
    if library().localmix_window_weight(ctypes.byref(problem), *sums, num_threads()):
        raise MemoryError(NO_MEMORY)


@operator("localmix::native_window_weight", "cpu")
def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, window_size: Sequence[int], shift: Sequence[int]
) -> Tensor:
    """y[b, i, g, d] = bias[g, i] + sum_j weight[g, i, j] * x[b, j, g, d], i and j slots of a window."""
    x = x.contiguous()
    y = torch.empty_like(x)
    if y.numel():
        _run(x, weight, bias, window_size, shift, y=y)
    return y


@operator("localmix::native_window_weight_backward", "cpu")
def _backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    window_size: Sequence[int],
    shift: Sequence[int],
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias; an empty tensor for one that is not needed."""
    gradient, x = gradient.contiguous(), x.contiguous()
    of_x = torch.empty_like(x) if needed[0] else None
    of_weight = torch.zeros(weight.shape) if needed[1] else None
    of_bias = torch.zeros(weight.shape[:2]) if needed[2] else None
    if x.numel():
        results = {"of_x": of_x, "of_weight": of_weight, "of_bias": of_bias}
        _run(x, weight, None, window_size, shift, gradient=gradient, **results)
    none = x.new_empty(0)
    of_x, of_weight, of_bias = (none.clone() if t is None else t.to(x.dtype) for t in (of_x, of_weight, of_bias))
    return of_x, of_weight, of_bias


register(_forward, _backward)
register_fake(_forward, _backward, lambda x, weight: weight.shape[:2])
