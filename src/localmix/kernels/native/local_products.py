"""Dot products of each position with the kernel around it: what an inhomogeneous convolution has for its weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from localmix.kernels.native import local_weight
from localmix.registration import operator

Pair = tuple[int, int]


def neighborhood_products(query: Tensor, key: Tensor, *, num_groups: int, kernel_size: Pair, dilation: Pair) -> Tensor:
    return _forward(query, key, num_groups, kernel_size, dilation)


@operator("localmix::native_local_products", "cpu")
def _forward(
    query: Tensor, key: Tensor, num_groups: int, kernel_size: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """products[b, p, g, k] = sum_{c in g} query[b, p, c] * key[b, p + k, c], groups innermost."""
    products = _empty(query, num_groups, kernel_size)
    if products.numel():
        local_weight.products(query.contiguous(), key.contiguous(), products, kernel_size, dilation)
    return products


@_forward.register_fake
def _(query: Tensor, key: Tensor, num_groups: int, kernel_size: Sequence[int], dilation: Sequence[int]) -> Tensor:
    return _empty(query, num_groups, kernel_size)


def _empty(query: Tensor, num_groups: int, kernel_size: Sequence[int]) -> Tensor:
    return query.new_empty(*query.shape[:3], kernel_size[0] * kernel_size[1], num_groups).transpose(3, 4)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    query, key, _, ctx.kernel_size, ctx.dilation = inputs
    ctx.save_for_backward(query, key)


def _gradients(ctx: Any, of_products: Tensor) -> tuple[Tensor | None, ...]:
    """The products are linear in query and in key: with their gradient as the weight, both gradients are its sums."""
    query, key = ctx.saved_tensors
    sizes, needed = (ctx.kernel_size, ctx.dilation), ctx.needs_input_grad
    of_query = torch.ops.localmix.local_weight(key, of_products, *sizes) if needed[0] else None
    of_key = None
    if needed[1]:
        of_key = torch.ops.localmix.local_weight_backward(query, key, of_products, *sizes, (True, False))[0]
    return of_query, of_key, None, None, None


_forward.register_autograd(_gradients, setup_context=_save)
