"""Inhomogeneous dynamic convolution in Triton, plain and projected: operators and autograd rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from localmix.kernels.linear import register
from localmix.kernels.triton import local_weight_launches as launches
from localmix.kernels.triton.local_weight_gradients import run_projected_gradients, run_weight_gradient
from localmix.registration import operator

Pair = tuple[int, int]


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
    return launches.run_apply(x, weight, kernel_size, dilation, transposed=False)


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
        of_x = launches.run_apply(gradient, weight, kernel_size, dilation, transposed=True)
    if needed[1]:
        of_weight = torch.empty_like(weight)
        run_weight_gradient(gradient, x, of_weight, kernel_size, dilation)
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
    made_of = (hidden, projection, bias, num_groups)
    return launches.run_projected_apply(x, *made_of, kernel_size, dilation, transposed=False)


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
    of_x = x.new_empty(0)
    if needed[0]:
        made_of = (hidden, projection, bias, num_groups)
        of_x = launches.run_projected_apply(gradient, *made_of, kernel_size, dilation, transposed=True)
    others = run_projected_gradients(gradient, x, hidden, projection, num_groups, kernel_size, dilation, needed[1:])
    return of_x, *others


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
