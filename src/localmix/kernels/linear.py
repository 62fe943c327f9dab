"""Autograd rules and fake results of operators that are linear in their map and in their weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def register(forward: Any, backward: Any, *, has_bias: bool = True) -> None:
    """Register the derivatives of y = forward(x, weight[, bias], *sizes), and those of its gradients.

    Args:
        backward: (gradient of y, x, weight, *sizes, needed) to the gradients of x, weight and bias, without elements
            where not needed.
        has_bias: whether there is a bias, or None in its place, and a gradient of it.
    """
    tensors = 3 if has_bias else 2
    no_bias = (None,) if has_bias else ()

    def only(index: int) -> tuple[bool, ...]:
        return tuple(i == index for i in range(tensors))

    def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight = inputs[:2]
        ctx.sizes = inputs[tensors:]
        ctx.save_for_backward(x, weight)

    def gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[:tensors]
        results = backward(gradient, *ctx.saved_tensors, *ctx.sizes, needed)
        return *(g if n else None for g, n in zip(results, needed, strict=True)), *(None for _ in ctx.sizes)

    def save_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        gradient, x, weight, *ctx.sizes, ctx.needed = inputs
        ctx.save_for_backward(gradient, x, weight)

    def gradients_of_gradients(
        ctx: Any, of_of_x: Tensor, of_of_weight: Tensor, *of_of_bias: Tensor
    ) -> tuple[Tensor | None, ...]:
        # the sum is linear in x and in weight, so its second derivatives are the same sums again
        gradient, x, weight = ctx.saved_tensors
        of_gradient, of_x, of_weight = torch.zeros_like(gradient), None, None
        if ctx.needed[0]:
            of_gradient = of_gradient + forward(of_of_x, weight, *no_bias, *ctx.sizes)
            of_weight = backward(gradient, of_of_x, weight, *ctx.sizes, only(1))[1]
        if ctx.needed[1]:
            of_gradient = of_gradient + forward(x, of_of_weight, *no_bias, *ctx.sizes)
            of_x = backward(gradient, x, of_of_weight, *ctx.sizes, only(0))[0]
        if has_bias and ctx.needed[2]:
            of_gradient = of_gradient + forward(torch.zeros_like(x), weight, *of_of_bias, *ctx.sizes)
        return of_gradient, of_x, of_weight, *(None for _ in ctx.sizes), None

    forward.register_autograd(gradients, setup_context=save)
    backward.register_autograd(gradients_of_gradients, setup_context=save_backward)


def register_fake(forward: Any, backward: Any, shape_of_bias: Callable[[Tensor, Tensor], Sequence[int]]) -> None:
    """Register results without data: all are contiguous. `shape_of_bias` makes that of the bias from x and weight."""

    def output(x: Tensor, *_: Any) -> Tensor:
        return torch.empty_like(x, memory_format=torch.contiguous_format)

    def gradients(gradient: Tensor, x: Tensor, weight: Tensor, *options: Any) -> tuple[Tensor, ...]:
        shapes, needed = (x.shape, weight.shape, shape_of_bias(x, weight)), options[-1]
        return tuple(x.new_empty(shape if n else (0,)) for shape, n in zip(shapes, needed, strict=True))

    forward.register_fake(output)
    backward.register_fake(gradients)
