"""Window attention and neighborhood attention in Triton: operators and autograd rules.

The weights of a position are never written: the backward pass makes them again from query, key and the logarithm of
their denominator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from localmix.kernels.gathered_attention import differentiable_gradients
from localmix.kernels.triton import pairwise_launches as launches
from localmix.kernels.triton import tuning
from localmix.kernels.triton.pairwise_geometry import Geometry, Neighborhoods, Pair, Windows
from localmix.registration import Operator


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
    return _attend_in_windows(query, key, value, bias, _scale(query, scale), window_size, shift)[0]


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
    return _attend_in_neighborhoods(query, key, value, bias, _scale(query, scale), kernel_size, dilation)[0]


def _scale(query: Tensor, scale: float | None) -> float:
    return query.shape[4] ** -0.5 if scale is None else float(scale)


def _register(name: str, make: Callable[..., Geometry]) -> Operator:
    """Registers an attention and its gradients with PyTorch: `triton_<name>`, of two pairs that make its geometry."""
    tensors, options = (
        "Tensor query, Tensor key, Tensor value, Tensor? bias",
        "float scale, SymInt[] size, SymInt[] step",
    )

    def run(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        scale: float,
        size: Sequence[int],
        step: Sequence[int],
    ) -> tuple[Tensor, ...]:
        return _run_attend(query, key, value, bias, scale, (make, tuple(size), tuple(step)))

    def run_backward(*inputs: Any) -> tuple[Tensor, ...]:
        *operands, size, step, needed = inputs
        return _run_gradients(*operands, (make, tuple(size), tuple(step)), tuple(needed))

    devices = ("cpu", "cuda")
    schema = f"({tensors}, {options}) -> (Tensor, Tensor, Tensor)"
    forward = Operator(f"localmix::triton_{name}", run, devices, schema=schema)
    backward = Operator(
        f"localmix::triton_{name}_backward",
        run_backward,
        devices,
        schema=f"(Tensor gradient, {tensors}, Tensor output, Tensor peaks, Tensor logarithms, {options},"
        " bool[] needed) -> (Tensor, Tensor, Tensor, Tensor)",
    )

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.scale, ctx.size, ctx.step = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*tensors, *output)

    def gradients(ctx: Any, gradient: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        saved, needed = ctx.saved_tensors, ctx.needs_input_grad[:4]
        if torch.is_grad_enabled():
            geometry = make(tuple(ctx.size), tuple(ctx.step))
            results = differentiable_gradients(gradient, saved[:4], ctx.scale, geometry, needed)
        else:
            results = backward(gradient, *saved, ctx.scale, ctx.size, ctx.step, needed)
        return *(g if n else None for g, n in zip(results, needed, strict=True)), None, None, None

    def shapes(query: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
        *_, size, step = inputs
        return query.new_empty(query.shape), *_empty_logarithms(query, make(tuple(size), tuple(step)))

    def shapes_backward(gradient: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
        return tuple(_empty_gradients(*inputs[:4], inputs[-1]))

    forward.register_fake(shapes)
    backward.register_fake(shapes_backward)
    forward.register_autograd(gradients, setup_context=save)
    return forward


def _empty_logarithms(query: Tensor, geometry: Geometry) -> list[Tensor]:
    """For the log-sum-exp [B, heads, H, W] or, of windows that fit a block, nothing.

    Its parts are the largest score and the logarithm of the sum relative to that: added they would lose digits.
    """
    if launches.fits_a_block(query, geometry):
        return [query.new_empty(0), query.new_empty(0)]
    batch, height, width, heads, _ = query.shape
    return [query.new_empty((batch, heads, height, width), dtype=torch.float32) for _ in range(2)]


def _empty_gradients(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, needed: Sequence[bool]
) -> list[Tensor]:
    """For the gradients of query, key, value and bias: without elements where not needed."""
    tensors = (query, key, value, bias)
    return [query.new_empty((0,) if t is None or not n else t.shape) for t, n in zip(tensors, needed, strict=True)]


def _run_attend(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float, seen: launches.Seen
) -> tuple[Tensor, ...]:
    """Output, largest scores and logarithms; the latter without elements where the gradients do not need them."""
    if not query.numel():
        return query.new_empty(query.shape), *_empty_logarithms(query, launches.geometry_of(seen))
    pointers = _pointers(query, key, value, bias)
    y, *logarithms = tuning.run(launches.plan_attend, pointers, (scale,), seen, bias is not None)
    return (y, *logarithms) if logarithms else (y, query.new_empty(0), query.new_empty(0))


def _run_gradients(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    output: Tensor,
    peaks: Tensor,
    logarithms: Tensor,
    scale: float,
    seen: launches.Seen,
    needed: tuple[bool, ...],
) -> tuple[Tensor, ...]:
    """Gradients of query, key, value and bias; an empty tensor for one that is not needed."""
    if not output.numel():
        *results, of_bias = _empty_gradients(query, key, value, bias, needed)
        return *results, of_bias.zero_()
    pointers, gradient, has_bias = _pointers(query, key, value, bias), gradient.contiguous(), bias is not None
    if not peaks.numel():  # windows that fit a block
        tensors = (*pointers, gradient)
        *results, sums = tuning.run(launches.plan_window_gradients, tensors, (scale,), seen, has_bias, needed)
        if not needed[3]:
            return *results, sums
        return *results, launches.geometry_of(seen).gradient_of_slots(sums.sum(0), query.shape).to(query.dtype)

    def run(plan: Callable[..., tuning.Plan], *others: Tensor, flags: tuple[bool, ...] = ()) -> list[Tensor]:
        return tuning.run(plan, (*pointers, gradient, *others), (scale,), seen, has_bias, *flags)

    of_query = of_key = of_value = of_bias = None
    delta, geometry = peaks, launches.geometry_of(seen)
    # where it can the kernel for the bias makes the gradient of the queries too
    both = needed[0] and needed[3] and launches.holds_all_keys(query, geometry)
    if needed[3]:
        sums, _, delta, of_query = run(launches.plan_bias_gradient, output, peaks, logarithms, flags=(both,))
        of_bias = geometry.gradient_of_bias(sums).to(query.dtype)
    if (needed[0] or needed[1]) and not both:
        delta, of_query = run(launches.plan_query_gradient, output, peaks, logarithms, flags=needed[:1])
    if needed[1] or needed[2]:
        of_key, of_value = run(launches.plan_key_gradient, peaks, logarithms, delta, flags=needed[1:3])
    return tuple(query.new_empty(0) if of is None else of for of in (of_query, of_key, of_value, of_bias))


def _dense(t: Tensor) -> Tensor:
    """A tensor whose channels of a head lie side by side."""
    return t if t.stride(4) == 1 else t.contiguous()


def _pointers(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
    """Query, key, value and bias as the kernels read them; where there is no bias any other."""
    return _dense(query), _dense(key), _dense(value), query if bias is None else bias


_attend_in_windows = _register("window_attention", Windows)
_attend_in_neighborhoods = _register("neighborhood_attention", Neighborhoods)
