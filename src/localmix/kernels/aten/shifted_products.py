"""Sums of shifted products with weights of its own at every position, and their gradients, a tap at a time.

Images have the batch innermost: [G, D, H, W, B].
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from localmix.exporting import is_vectorised

Pair = tuple[int, int]


class SumOfShiftedProducts(torch.autograd.Function):
    """y[g, d, i, b] = sum_k taps[g, k, i, b] * image[g, d, i + k, b]: tap by tap, one pass over the image each.

    Autograd of the same loop would keep every product and scatter each gradient into a tensor of full size.
    """

    @staticmethod
    def forward(image: Tensor, taps: Tensor, kernel_size: Pair, dilation: Pair) -> Tensor:
        padded = F.pad(image.contiguous(), _border(kernel_size, dilation))
        return _returned(_sum_of_products(padded, taps, kernel_size, dilation), image.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        image, taps, ctx.kernel_size, ctx.dilation = inputs
        ctx.save_for_backward(image, taps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradients[0].contiguous()
        image, taps = ctx.saved_tensors
        sizes = (ctx.kernel_size, ctx.dilation)
        border = _border(*sizes)
        of_image = of_taps = None
        if ctx.needs_input_grad[1]:
            of_taps = _gradient_of_taps(gradient, F.pad(image.contiguous(), border), *sizes)
        if ctx.needs_input_grad[0]:
            padded = F.pad(_zeros_like(image, gradient), border)
            _add_gradient_of_image(padded, gradient, taps, *sizes)
            of_image = F.pad(padded, [-size for size in border]).to(image.dtype)
        return of_image, of_taps, None, None


class ShiftedProducts(torch.autograd.Function):
    """products[g, k, i, b] = sum_d query[g, d, i, b] * key[g, d, i + k, b], each tap one pass over both."""

    @staticmethod
    def forward(query: Tensor, key: Tensor, kernel_size: Pair, dilation: Pair) -> Tensor:
        return _gradient_of_taps(
            query.contiguous(), F.pad(key.contiguous(), _border(kernel_size, dilation)), kernel_size, dilation
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        query, key, ctx.kernel_size, ctx.dilation = inputs
        ctx.save_for_backward(query, key)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key = ctx.saved_tensors
        taps, sizes = gradients[0].contiguous(), (ctx.kernel_size, ctx.dilation)
        border = _border(*sizes)
        padded = F.pad(_zeros_like(key, taps), border)
        _add_gradient_of_image(padded, query.contiguous(), taps, *sizes)
        of_query = _sum_of_products(F.pad(key.contiguous(), border), taps, *sizes)
        of_key = F.pad(padded, [-size for size in border])
        return of_query.to(query.dtype), of_key.to(key.dtype), None, None


class SumOfProjectedProducts(torch.autograd.Function):
    """`SumOfShiftedProducts` with taps = projection @ features + bias, made for some rows at a time and forgotten.

    Features are [R, H, W, B]. At any time the taps at hand are about as many numbers as the image has; the backward
    pass makes them again.
    """

    @staticmethod
    def forward(
        image: Tensor, features: Tensor, projection: Tensor, bias: Tensor, kernel_size: Pair, dilation: Pair
    ) -> Tensor:
        padded = F.pad(image.contiguous(), _border(kernel_size, dilation))
        strips = [
            _sum_of_products(rows, _project(projection, bias, features.narrow(1, *span), image), kernel_size, dilation)
            for span, rows in _strips(padded, image, projection, kernel_size, dilation)
        ]
        return _returned(torch.cat(strips, dim=2), image.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.kernel_size, ctx.dilation = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradients[0].contiguous()
        image, features, projection, bias = ctx.saved_tensors
        sizes = (ctx.kernel_size, ctx.dilation)
        border = _border(*sizes)
        padded, of_padded = F.pad(image.contiguous(), border), F.pad(_zeros_like(image, gradient), border)
        of_features, of_projection, of_bias = [], torch.zeros_like(projection), torch.zeros_like(bias)
        for span, rows in _strips(padded, image, projection, *sizes):
            strip, of_y = features.narrow(1, *span), gradient.narrow(2, *span)
            if any(ctx.needs_input_grad[1:4]):
                of_taps = _gradient_of_taps(of_y, rows, *sizes).reshape(projection.shape[0], -1)  # [G * K, h * W * B]
                of_features.append((projection.t() @ of_taps).view(strip.shape))
                of_projection = of_projection + of_taps @ strip.flatten(1).t()
                of_bias = of_bias + of_taps.sum(1)
            if ctx.needs_input_grad[0]:
                taps = _project(projection, bias, strip, image)
                _add_gradient_of_image(of_padded.narrow(2, span[0], rows.shape[2]), of_y, taps, *sizes)
        of_image = F.pad(of_padded, [-size for size in border]).to(image.dtype)
        return of_image, torch.cat(of_features, 1) if of_features else None, of_projection, of_bias, None, None


def _project(projection: Tensor, bias: Tensor, features: Tensor, image: Tensor) -> Tensor:
    """Taps [G, K, h, W, B] of some rows of features [R, h, W, B]."""
    if torch.compiler.is_compiling():  # the positions as one axis would shut out a batch of one image
        taps = F.linear(features.permute(3, 1, 2, 0), projection, bias).permute(3, 1, 2, 0).contiguous()
    else:
        taps = torch.addmm(bias[:, None], projection, features.flatten(1)).unflatten(1, features.shape[1:])
    return taps.unflatten(0, (image.shape[0], -1))


def _strips(
    padded: Tensor, image: Tensor, projection: Tensor, kernel_size: Pair, dilation: Pair
) -> Iterator[tuple[Pair, Tensor]]:
    """Rows of the map, (first, number), with the rows of the padded image [G, D, H + ., W + ., B] that they reach."""
    groups, dim, height = image.shape[:3]
    reach = dilation[0] * (kernel_size[0] - 1)
    if torch.compiler.is_compiling():  # a graph of open height does not know the number of strips
        yield (0, height), padded
        return
    size = max(1, height * groups * dim // projection.shape[0])
    for first in range(0, height, size):
        number = min(size, height - first)
        yield (first, number), padded.narrow(2, first, number + reach)


def _sum_of_products(padded: Tensor, taps: Tensor, kernel_size: Pair, dilation: Pair) -> Tensor:
    shape = (taps.shape[0], padded.shape[1], *taps.shape[2:])
    y = taps.new_zeros(shape, dtype=_accumulator(padded))  # of taps, which may have the axis of a vmap
    for k, shifted in enumerate(_shifts(padded, taps.shape[2:4], kernel_size, dilation)):
        _add_product(y, shifted, taps[:, k, None].to(shifted.dtype))
    return y


def _gradient_of_taps(gradient: Tensor, padded: Tensor, kernel_size: Pair, dilation: Pair) -> Tensor:
    groups, _, *positions = gradient.shape
    shifts = _shifts(padded, gradient.shape[2:4], kernel_size, dilation)
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or is_vectorised(gradient):
        return torch.stack([(gradient * shifted).sum(1) for shifted in shifts], dim=1)
    # the same in place: this gradient is as large as all weights, and a stack holds it twice
    of_taps = gradient.new_empty(groups, kernel_size[0] * kernel_size[1], *positions)
    for k, shifted in enumerate(shifts):
        torch.sum(gradient * shifted, 1, out=of_taps[:, k])
    return of_taps


def _add_gradient_of_image(
    of_padded: Tensor, gradient: Tensor, taps: Tensor, kernel_size: Pair, dilation: Pair
) -> None:
    for k, shifted in enumerate(_shifts(of_padded, taps.shape[2:4], kernel_size, dilation)):
        _add_product(shifted, gradient, taps[:, k, None])


def _add_product(total: Tensor, first: Tensor, second: Tensor) -> None:
    """total += first * second."""
    if is_vectorised(total):
        total.add_(first * second)  # a vmap has no rule for the other, and takes the gradients one by one
    else:
        total.addcmul_(first, second)


def _returned(y: Tensor, dtype: torch.dtype) -> Tensor:
    """What a function returns, in `dtype`; a copy in `torch.compile`.

    PyTorch 2.11 takes the gradient of a compiled function to be zero where a result is a tensor that its forward pass
    has changed in place, or a cast has handed on as it was: pytorch/pytorch#180642. A compiler fuses the copy.
    """
    return y.to(dtype, copy=torch.compiler.is_compiling())


def _zeros_like(image: Tensor, gradient: Tensor) -> Tensor:
    """Zeros in the dtype that sums are kept in, one number in memory, for each gradient that a vmap has at once."""
    return gradient.new_zeros((), dtype=_accumulator(image)).expand(image.shape)


def _accumulator(t: Tensor) -> torch.dtype:
    return torch.float32 if t.dtype in (torch.float16, torch.bfloat16) else t.dtype


def _border(kernel_size: Pair, dilation: Pair) -> list[int]:
    """Padding of [..., H, W, B], as `F.pad` takes it, that makes the output as large as the input."""
    border = [0, 0]
    for k, d in zip(reversed(kernel_size), reversed(dilation), strict=True):
        total = d * (k - 1)
        border += [total // 2, total - total // 2]
    return border


def _shifts(padded: Tensor, size: tuple[int, ...], kernel_size: Pair, dilation: Pair) -> Iterator[Tensor]:
    """Views of the padded image [..., H + ., W + ., B] that are H x W = `size` large, one per tap.

    One at a time: autograd refuses to change a view that is older than a change of its base.
    """
    for row in range(kernel_size[0]):
        for column in range(kernel_size[1]):
            yield padded.narrow(-3, dilation[0] * row, size[0]).narrow(-2, dilation[1] * column, size[1])
