"""Weights that are the softmax of dot products: window attention and neighborhood attention.

The weights of a position are never written: the backward pass makes them again.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from localmix.kernels.gathered_attention import Neighborhoods, Windows, differentiable_gradients
from localmix.kernels.native.library import NO_MEMORY, TYPES, library, num_threads, pointer
from localmix.registration import Operator

Pair = tuple[int, int]


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
    return _attend_in_windows(query, key, value, bias, _scale(query, scale), window_size, shift)


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
    return _attend_in_neighborhoods(query, key, value, bias, _scale(query, scale), kernel_size, dilation)


def _scale(query: Tensor, scale: float | None) -> float:
    return query.shape[4] ** -0.5 if scale is None else float(scale)


class _Map(ctypes.Structure):
    """`PairwiseMap` of csrc/interface.h."""

    _fields_ = [("data", ctypes.c_void_p), ("strides", ctypes.c_int64 * 4)]


class _Problem(ctypes.Structure):
    """`PairwiseProblem` of csrc/interface.h."""

    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in (
                *("batch", "height", "width", "heads", "dim", "places", "size_height", "size_width"),
                *("before_height", "before_width", "dilation_height", "dilation_width"),
                *("kernel_height", "kernel_width", "dtype"),
            )
        ),
        ("scale", ctypes.c_double),
        *((name, _Map) for name in ("query", "key", "value", "gradient")),
        *((name, ctypes.c_void_p) for name in ("bias", "output", "of_query", "of_key", "of_value", "of_bias")),
        ("parts", ctypes.c_int64),
    ]


def _run(
    maps: Sequence[Tensor],
    bias: Tensor | None,
    results: dict[str, Tensor | None],
    scale: float,
    seen: Windows | Neighborhoods,
    *,
    is_backward: bool,
) -> None:
    """Runs a kernel on query, key, value and, for the gradients, that of the output."""
    query = maps[0]
    batch, height, width, heads, dim = query.shape
    size, before, dilation, kernel, places = seen.size, (0, 0), (1, 1), (0, 0), batch * height
    in_windows = isinstance(seen, Windows)
    if isinstance(seen, Windows):
        before = tuple((size - shift) % size for size, shift in zip(seen.size, seen.shift, strict=True))
        down, across = (-(-(b + n) // s) for b, n, s in zip(before, (height, width), seen.size, strict=True))
        places = batch * down * across
    elif _covers(seen, height, width) and batch * heads >= num_threads():
        # all positions see the whole map, which so is one window
        in_windows, size, kernel, places = True, (height, width), seen.size, batch
    else:
        dilation = seen.dilation
    sizes = (batch, height, width, heads, dim, places, *size, *before, *dilation, *kernel)
    # kept alive until the kernel is done
    maps = [_dense(t) for t in maps]
    bias = None if bias is None else bias.float().contiguous()
    fields = [_Map(t.data_ptr(), (ctypes.c_int64 * 4)(*t.stride()[:4])) for t in maps]
    problem = _Problem(*sizes, TYPES[query.dtype], scale, *fields)
    problem.bias = pointer(bias)
    for name, t in results.items():
        setattr(problem, name, pointer(t))
    if library().localmix_pairwise_weight(not in_windows, is_backward, ctypes.byref(problem), num_threads()):
        raise MemoryError(NO_MEMORY)


def _covers(seen: Neighborhoods, height: int, width: int) -> bool:
    return seen.dilation == (1, 1) and seen.size[0] >= height and seen.size[1] >= width


def _dense(t: Tensor) -> Tensor:
    """A tensor whose channels of a head lie side by side."""
    return t if t.stride(4) == 1 else t.contiguous()


def _attend(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float, seen: Windows | Neighborhoods
) -> Tensor:
    y = query.new_empty(query.shape)
    if y.numel():
        _run((query, key, value), bias, {"output": y}, scale, seen, is_backward=False)
    return y


def _gradients(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    scale: float,
    seen: Windows | Neighborhoods,
    needed: Sequence[bool],
) -> tuple[Tensor, ...]:
    """Gradients of query, key, value and bias; an empty tensor for one that is not needed."""
    results = _empty_gradients(query, key, value, bias, needed)
    sums = None if bias is None or not needed[3] else torch.zeros(bias.shape)
    if query.numel():
        names = ("of_query", "of_key", "of_value")
        wanted = {name: t if n else None for name, t, n in zip(names, results, needed, strict=False)}
        _run((query, key, value, gradient), bias, {**wanted, "of_bias": sums}, scale, seen, is_backward=True)
    if bias is not None and sums is not None:
        results[3] = sums.to(bias.dtype)
    return tuple(results)


def _empty_gradients(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, needed: Sequence[bool]
) -> list[Tensor]:
    """For the gradients of query, key, value and bias: without elements where not needed."""
    tensors = (query, key, value, bias)
    return [query.new_empty((0,) if t is None or not n else t.shape) for t, n in zip(tensors, needed, strict=True)]


def _register(name: str, make: Callable[..., Windows | Neighborhoods]) -> Operator:
    """Registers an attention and its gradients with PyTorch: `native_<name>`, of two pairs that say what is seen."""
    tensors = "Tensor query, Tensor key, Tensor value, Tensor? bias"
    options = "float scale, SymInt[] size, SymInt[] step"

    def seen(size: Sequence[int], step: Sequence[int]) -> Windows | Neighborhoods:
        return make(tuple(size), tuple(step))

    def run(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float, *sizes: Any) -> Tensor:
        return _attend(query, key, value, bias, scale, seen(*sizes))

    def run_backward(*inputs: Any) -> Any:
        *operands, size, step, needed = inputs
        return _gradients(*operands, seen(size, step), needed)

    forward = Operator(f"localmix::native_{name}", run, "cpu", schema=f"({tensors}, {options}) -> Tensor")
    backward = Operator(
        f"localmix::native_{name}_backward",
        run_backward,
        "cpu",
        schema=f"(Tensor gradient, {tensors}, {options}, bool[] needed) -> (Tensor, Tensor, Tensor, Tensor)",
    )

    def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.scale, ctx.size, ctx.step = inputs
        ctx.save_for_backward(*tensors)

    def gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        saved, needed = ctx.saved_tensors, ctx.needs_input_grad[:4]
        if torch.is_grad_enabled():
            results = differentiable_gradients(gradient, saved, ctx.scale, seen(ctx.size, ctx.step), needed)
        else:
            results = backward(gradient, *saved, ctx.scale, ctx.size, ctx.step, needed)
        return *(g if n else None for g, n in zip(results, needed, strict=True)), None, None, None

    forward.register_fake(lambda query, *_: query.new_empty(query.shape))
    backward.register_fake(lambda gradient, *inputs: tuple(_empty_gradients(*inputs[:4], inputs[-1])))
    forward.register_autograd(gradients, setup_context=save)
    return forward


_attend_in_windows = _register("window_attention", Windows)
_attend_in_neighborhoods = _register("neighborhood_attention", Neighborhoods)
