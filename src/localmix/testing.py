"""How far a fast implementation may be from the definition: an error budget that eager PyTorch sets, no tolerance.

    error of the implementation <= 2 * (error of eager PyTorch + eps * max |reference|)

The reference is the definition in float64; eager PyTorch is the same definition in the dtype under test. Both errors
are the largest over all elements.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from localmix import functional, kernels


def assert_within_budget(
    actual: Tensor,
    reference: Tensor,
    eager: Tensor,
    *,
    name: str = "result",
    summands: int = 0,
    cancelled: float = 0.0,
) -> None:
    """Raises unless `actual` is finite and its error is within the budget that `eager` sets.

    Args:
        actual: what the implementation under test gave.
        reference: what the definition gives in float64 for the same inputs.
        eager: what the definition gives in the dtype of `actual`.
        name: how the error message calls `actual`.
        summands: numbers that were added to make each of `actual`, if they are so many that their order counts. Eager
            PyTorch adds in pairs; a sum one after the other in float32, which many kernels keep, is as right, and by
            chance off by sqrt(summands) roundings. They are then allowed too.
        cancelled: size of the float32 terms whose difference a result is, where they are made in two ways: their
            roundings stay when the difference is small or zero.

    Raises:
        AssertionError: `actual` has another shape or dtype, is not finite, or is over the budget.
        ValueError: `reference` is not float64 or not finite, or `eager` is float64 too: they cannot judge.

    >>> third = torch.tensor([1 / 3], dtype=torch.float64)
    >>> assert_within_budget(third.float(), third, third.float())
    >>> assert_within_budget(third.bfloat16().float(), third, third.float())
    Traceback (most recent call last):
        ...
    AssertionError: result: error 6.51e-04 is over the budget of 9.93e-08
    """
    if reference.dtype != torch.float64 or not reference.isfinite().all():
        raise ValueError(f"reference: expected finite float64 values, got {reference.dtype}")
    if eager.dtype == torch.float64:
        raise ValueError(f"eager: expected a dtype below float64, got {eager.dtype}")
    if (actual.shape, actual.dtype) != (reference.shape, eager.dtype):
        expected = f"{eager.dtype} {tuple(reference.shape)}"
        raise AssertionError(f"{name}: expected {expected}, got {actual.dtype} {tuple(actual.shape)}")
    if not actual.isfinite().all():
        raise AssertionError(f"{name}: {int((~actual.isfinite()).sum())} of {actual.numel()} values are not finite")
    if not actual.numel():
        return
    error, error_of_eager = (float((t.double() - reference).abs().max()) for t in (actual, eager))
    largest = float(reference.abs().max())
    budget = 2 * (error_of_eager + torch.finfo(actual.dtype).eps * largest)
    budget += torch.finfo(torch.float32).eps * (math.sqrt(summands) * largest + cancelled)
    if not error <= budget:
        raise AssertionError(f"{name}: error {error:.2e} is over the budget of {budget:.2e}")


def output_and_gradients(
    function: Callable[..., Tensor], tensors: Mapping[str, Tensor], options: Mapping[str, Any], gradient: Tensor
) -> dict[str, Tensor]:
    """What `function(**tensors, **options)` gives, and the gradient of every tensor that `gradient` sends back."""
    leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
    output = function(**leaves, **options)
    gradients = torch.autograd.grad(output, tuple(leaves.values()), gradient)
    return {"output": output.detach(), **{f"gradient of {name}": g for name, g in zip(leaves, gradients, strict=True)}}


def check_operator(
    operator: str,
    tensors: Mapping[str, Tensor],
    options: Mapping[str, Any],
    gradient: Tensor,
    *,
    impl: str,
    summands: int = 0,
    cancelled: float = 0.0,
) -> None:
    """Raises unless the output and every gradient of an operator of `localmix.kernels` is within the budget.

    Args:
        operator: its name.
        tensors: its tensor arguments by name, all of one dtype below float64, in any strides.
        options: its other arguments.
        gradient: of the output.
        impl: the implementation under test.
        summands, cancelled: see `assert_within_budget`.

    Raises:
        AssertionError: what `assert_within_budget` raises.

    >>> x, weight = torch.randn(1, 4, 5, 2), torch.randn(2, 3, 3)
    >>> check_operator("depthwise_convolution", {"x": x, "weight": weight}, {}, torch.ones(1, 4, 5, 2), impl="aten")
    """
    definition = getattr(functional, operator)
    actual = output_and_gradients(getattr(kernels, operator), tensors, {**options, "impl": impl}, gradient)
    eager = output_and_gradients(definition, tensors, options, gradient)
    exact = {name: t.double() for name, t in tensors.items()}
    reference = output_and_gradients(definition, exact, options, gradient.double())
    for name, result in actual.items():
        label = f"{name} of {operator} ({impl})"
        assert_within_budget(result, reference[name], eager[name], name=label, summands=summands, cancelled=cancelled)
