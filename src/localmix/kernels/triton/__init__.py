"""Triton kernels for the GPU: float32, bfloat16 and float16, sums in float32.

Triton and the kernels are loaded by the first call. With `TRITON_INTERPRET=1` in the environment the kernels run on CPU
tensors too, in Triton's interpreter: slow, for tests, and so only where `impl="triton"` is named.
"""

from __future__ import annotations

import importlib.util
import os
import shutil

import torch
from torch import Tensor

from localmix.exporting import reason_for_plain_operators

Pair = tuple[int, int]

_TYPES = (torch.float32, torch.bfloat16, torch.float16)

MISSING = None if importlib.util.find_spec("triton") else "Triton is not installed"
"""Why there are no kernels; None if there are."""

_HAS_COMPILER = bool(os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang"))


def refusal(x: Tensor, named: bool) -> str | None:
    """Why the kernels cannot serve a call on x; None if they can. `named` tells a call that names them."""
    is_interpreted = _is_interpreted()
    if is_interpreted and not named:
        return "Triton's interpreter serves only calls that name it"
    if x.device.type not in (("cuda", "cpu") if is_interpreted else ("cuda",)):
        return f"it runs on GPUs and x is on {x.device}"
    if not (_HAS_COMPILER or is_interpreted):
        return "Triton launches kernels by a stub in C, and there is no C compiler: CC, gcc or clang"
    if x.dtype not in _TYPES:
        return f"it has float32, bfloat16 and float16 and x has {x.dtype}"
    return reason_for_plain_operators() or MISSING


def _is_interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "y", "yes", "on", "true")


def depthwise_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *, dilation: Pair) -> Tensor:
    from localmix.kernels.triton import shared_weight

    return shared_weight.depthwise_convolution(x, weight, bias, dilation=dilation)


def homogeneous_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *, dilation: Pair) -> Tensor:
    from localmix.kernels.triton import shared_weight

    return shared_weight.homogeneous_convolution(x, weight, bias, dilation=dilation)


def inhomogeneous_convolution(x: Tensor, weight: Tensor, *, kernel_size: Pair, dilation: Pair) -> Tensor:
    from localmix.kernels.triton import local_weight

    return local_weight.inhomogeneous_convolution(x, weight, kernel_size=kernel_size, dilation=dilation)


def neighborhood_products(query: Tensor, key: Tensor, *, num_groups: int, kernel_size: Pair, dilation: Pair) -> Tensor:
    from localmix.kernels.triton import local_weight

    return local_weight.neighborhood_products(
        query, key, num_groups=num_groups, kernel_size=kernel_size, dilation=dilation
    )


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
    from localmix.kernels.triton import local_weight

    return local_weight.projected_inhomogeneous_convolution(
        x, hidden, projection, projection_bias, kernel_size=kernel_size, num_groups=num_groups, dilation=dilation
    )


def window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    window_size: Pair,
    shift: Pair,
    bias: Tensor | None,
    scale: float | None,
) -> Tensor:
    from localmix.kernels.triton import pairwise_weight

    return pairwise_weight.window_attention(
        query, key, value, window_size=window_size, shift=shift, bias=bias, scale=scale
    )


def neighborhood_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    kernel_size: Pair,
    dilation: Pair,
    bias: Tensor | None,
    scale: float | None,
) -> Tensor:
    from localmix.kernels.triton import pairwise_weight

    return pairwise_weight.neighborhood_attention(
        query, key, value, kernel_size=kernel_size, dilation=dilation, bias=bias, scale=scale
    )


def local_mlp(x: Tensor, weight: Tensor, bias: Tensor | None, *, window_size: Pair, shift: Pair) -> Tensor:
    from localmix.kernels.triton import window_weight

    return window_weight.local_mlp(x, weight, bias, window_size=window_size, shift=shift)
