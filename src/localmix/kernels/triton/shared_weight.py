"""Depth-wise and homogeneous dynamic convolution in Triton: registration with PyTorch, and autograd rules."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from localmix.kernels.linear import register, register_fake
from localmix.kernels.triton.shared_weight_launches import run_convolution, run_weight_gradient
from localmix.registration import operator

Pair = tuple[int, int]


def depthwise_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *, dilation: Pair) -> Tensor:
    return _forward(x, weight[None], bias, dilation)


def homogeneous_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *, dilation: Pair) -> Tensor:
    return _forward(x, weight, bias, dilation)


@operator("localmix::triton_shared_weight", ("cpu", "cuda"))
def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: Sequence[int]) -> Tensor:
    """y[b, p, c] = sum_k weight[n, c, k] * x[b, p + k, c] + bias[c], weight [N, C, kh, kw], n = b or 0 where N = 1."""
    return run_convolution(x, weight, bias, dilation, flipped=False)


@operator("localmix::triton_shared_weight_backward", ("cpu", "cuda"))
def _backward(
    gradient: Tensor, x: Tensor, weight: Tensor, dilation: Sequence[int], needed: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias; an empty tensor for one that is not needed."""
    of_x, of_weight, of_bias = (x.new_empty(0) for _ in range(3))
    if needed[0]:
        of_x = run_convolution(gradient, weight, None, dilation, flipped=True)
    if needed[1]:
        of_weight, of_bias = run_weight_gradient(gradient, x, weight, dilation, of_bias=needed[2])
    elif needed[2]:
        of_bias = gradient.sum((0, 1, 2))
    return of_x, of_weight, of_bias


register(_forward, _backward)
register_fake(_forward, _backward, lambda x, weight: x.shape[3:])
