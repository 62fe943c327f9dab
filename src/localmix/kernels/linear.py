"""Autograd rules of operators that are linear in their map and in their weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def register(forward: Any, backward: Any) -> None:
    """Register the derivatives of y = forward(x, weight, bias, *sizes), and those of its gradients.

    Args:
        backward: (gradient of y, x, weight, *sizes, needed) to the gradients of x, weight and bias, without elements
            where not needed.
    """

    def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, *ctx.sizes = inputs
        ctx.save_for_backward(x, weight)

    def gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[:3]
        results = backward(gradient, *ctx.saved_tensors, *ctx.sizes, needed)
        return *(g if n else None for g, n in zip(results, needed, strict=True)), *(None for _ in ctx.sizes)

    def save_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        gradient, x, weight, *ctx.sizes, ctx.needed = inputs
        ctx.save_for_backward(gradient, x, weight)

    def gradients_of_gradients(
        ctx: Any, of_of_x: Tensor, of_of_weight: Tensor, of_of_bias: Tensor
    ) -> tuple[Tensor | None, ...]:
        # the sum is linear in x and in weight, so its second derivatives are the same sums again
        gradient, x, weight = ctx.saved_tensors
        of_gradient, of_x, of_weight = torch.zeros_like(gradient), None, None
        if ctx.needed[0]:
            of_gradient = of_gradient + forward(of_of_x, weight, None, *ctx.sizes)
            of_weight = backward(gradient, of_of_x, weight, *ctx.sizes, (False, True, False))[1]
        if ctx.needed[1]:
            of_gradient = of_gradient + forward(x, of_of_weight, None, *ctx.sizes)
            of_x = backward(gradient, x, of_of_weight, *ctx.sizes, (True, False, False))[0]
        if ctx.needed[2]:
            of_gradient = of_gradient + forward(torch.zeros_like(x), weight, of_of_bias, *ctx.sizes)
        return of_gradient, of_x, of_weight, *(None for _ in ctx.sizes), None

    forward.register_autograd(gradients, setup_context=save)
    backward.register_autograd(gradients_of_gradients, setup_context=save_backward)
