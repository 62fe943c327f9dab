"""Window attention and neighborhood attention in Triton: launches and autograd rules.

The weights of a position are never written: the backward pass makes them again from query, key and the logarithm of
their denominator. No gradient is summed by atomic additions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from localmix.kernels.gathered_attention import Neighborhoods, Windows, differentiable_gradients
from localmix.kernels.triton import pairwise_tile_gradients as gradients_by_tiles
from localmix.kernels.triton import pairwise_tile_kernels as by_tiles
from localmix.kernels.triton import pairwise_window_kernels as in_windows
from localmix.kernels.triton import tuning
from localmix.registration import Operator

Pair = tuple[int, int]
Tile = tuple[int, ...]

_SMALLEST_FACTOR = 16
"""Sides of the factors of a matrix product are at least that long on a matrix unit."""

_MOST_SHARES = 64


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


class _Windows(Windows):
    """Positions see the window that holds them."""

    def arguments(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Of the kernels: empty slots before the map, size and dilation."""
        top, left = ((size - shift) % size for size, shift in zip(self.size, self.shift, strict=True))
        return top, left, *self.size, 1, 1

    def tile(self, shape: Sequence[int], positions: int) -> Pair:
        """A tile is a window, however many blocks of positions that is."""
        return self.size

    def tiles(self, shape: Sequence[int], tile: Pair) -> Pair:
        """Rows and columns of windows."""
        before = self.arguments(shape)[:2]
        rows, columns = (tuning.cdiv(b + n, t) for b, n, t in zip(before, shape[1:3], tile, strict=True))
        return rows, columns

    def reach(self, shape: Sequence[int]) -> Pair:
        """How many steps beyond their tile queries see."""
        return 0, 0

    def gradient_of_bias(self, of_pairs: Tensor, shape: Sequence[int], tile: Pair) -> Tensor:
        """From the sum over all tiles, by query and key: that is the bias."""
        return of_pairs


class _Neighborhoods(Neighborhoods):
    """Positions see the kernel around them, which stops at the border."""

    def _residues(self, shape: Sequence[int]) -> Pair:
        """Classes of positions a dilation apart; of a dilation that is larger than the map as many as positions."""
        rows, columns = map(min, self.dilation, shape[1:3])
        return rows, columns

    def _longest(self, shape: Sequence[int]) -> Pair:
        """The most steps that a residue has."""
        rows, columns = self._residues(shape)
        return tuning.cdiv(shape[1], rows), tuning.cdiv(shape[2], columns)

    def arguments(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Of the kernels: empty slots before the map, size and dilation."""
        return 0, 0, *self.size, *self._residues(shape)

    def tile(self, shape: Sequence[int], positions: int) -> Pair:
        """About as wide as high, so that the queries of a tile see much the same keys."""
        height, width = map(tuning.next_power_of_2, self._longest(shape))
        rows = min(positions // min(2 ** (positions.bit_length() // 2), width), height)
        return rows, min(positions // rows, width)

    def tiles(self, shape: Sequence[int], tile: Pair) -> Pair:
        """Rows and columns of tiles, of all residues."""
        rows, columns = (
            residues * tuning.cdiv(length, t)
            for residues, length, t in zip(self._residues(shape), self._longest(shape), tile, strict=True)
        )
        return rows, columns

    def reach(self, shape: Sequence[int]) -> Pair:
        """How many steps beyond their tile queries see, at a border."""
        rows, columns = (min(size, length) - 1 for size, length in zip(self.size, self._longest(shape), strict=True))
        return rows, columns

    def gradient_of_bias(self, of_pairs: Tensor, shape: Sequence[int], tile: Pair) -> Tensor:
        """From the sum over all tiles, by query and key: the sum over pairs of the same distance.

        Key `i + d` of the strip is at distance `d - reach` of query `i`, so they are the diagonals.
        """
        reach = self.reach(shape)
        strip = [t + 2 * r for t, r in zip(tile, reach, strict=True)]
        of_pairs = of_pairs.unflatten(2, strip).unflatten(1, tile)
        head, query_h, query_w, key_h, key_w = of_pairs.stride()
        distances = [2 * r + 1 for r in reach]
        diagonals = of_pairs.as_strided(
            (of_pairs.shape[0], *tile, *distances), (head, query_h + key_h, query_w + key_w, key_h, key_w)
        )
        # kernels that are larger than the map have distances that no pair has
        (top, left) = (size - 1 - r for size, r in zip(self.size, reach, strict=True))
        return F.pad(diagonals.sum((1, 2)), (left, left, top, top))


_Geometry = _Windows | _Neighborhoods


def _register(name: str, make: Callable[..., _Geometry]) -> Operator:
    """Registers an attention and its gradients with PyTorch: `triton_<name>`, of two pairs that make its geometry."""
    tensors, options = (
        "Tensor query, Tensor key, Tensor value, Tensor? bias",
        "float scale, SymInt[] size, SymInt[] step",
    )

    def geometry(size: Sequence[int], step: Sequence[int]) -> _Geometry:
        return make(tuple(size), tuple(step))

    def run(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float, *sizes: Any) -> Any:
        return _run_attend(query, key, value, bias, scale, geometry(*sizes))

    def run_backward(*inputs: Any) -> Any:
        *operands, size, step, needed = inputs
        return _run_gradients(*operands, geometry(size, step), needed)

    devices = ("cpu", "cuda")
    forward = Operator(f"localmix::triton_{name}", run, devices, schema=f"({tensors}, {options}) -> (Tensor, Tensor)")
    backward = Operator(
        f"localmix::triton_{name}_backward",
        run_backward,
        devices,
        schema=f"(Tensor gradient, {tensors}, Tensor output, Tensor lse, {options}, bool[] needed)"
        " -> (Tensor, Tensor, Tensor, Tensor)",
    )

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *tensors, ctx.scale, ctx.size, ctx.step = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*tensors, *output)

    def gradients(ctx: Any, gradient: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        saved, needed = ctx.saved_tensors, ctx.needs_input_grad[:4]
        if torch.is_grad_enabled():
            results = differentiable_gradients(gradient, saved[:4], ctx.scale, geometry(ctx.size, ctx.step), needed)
        else:
            results = backward(gradient, *saved, ctx.scale, ctx.size, ctx.step, needed)
        return *(g if n else None for g, n in zip(results, needed, strict=True)), None, None, None

    forward.register_fake(lambda query, *inputs: _empty_results(query, geometry(*inputs[-2:])))
    backward.register_fake(lambda gradient, *inputs: tuple(_empty_gradients(*inputs[:4], inputs[-1])))
    forward.register_autograd(gradients, setup_context=save)
    return forward


def _empty_results(query: Tensor, geometry: _Geometry) -> tuple[Tensor, Tensor]:
    """For the output, and for the log-sum-exp [2, B, heads, H, W] or, of windows that fit a block, nothing.

    Its parts are the largest score and the logarithm of the sum relative to that: added they would lose digits.
    """
    batch, height, width, heads, _ = query.shape
    lse = (0,) if _fits_a_block(query, geometry) else (2, batch, heads, height, width)
    return query.new_empty(query.shape), query.new_empty(lse, dtype=torch.float32)


def _empty_gradients(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, needed: Sequence[bool]
) -> list[Tensor]:
    """For the gradients of query, key, value and bias: without elements where not needed."""
    tensors = (query, key, value, bias)
    return [query.new_empty((0,) if t is None or not n else t.shape) for t, n in zip(tensors, needed, strict=True)]


def _run_attend(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float, geometry: _Geometry
) -> tuple[Tensor, Tensor]:
    y, lse = _empty_results(query, geometry)
    if y.numel():
        tensors, flags = (*map(_dense, (query, key, value)), bias), (bias is not None,)
        if _fits_a_block(query, geometry):
            _run_in_windows(in_windows.attend_in_windows, tensors, (y,), scale, geometry, flags)
        else:
            _run_by_tiles(by_tiles.attend, tensors, (y, *lse.unbind()), scale, geometry, flags)
    return y, lse


def _run_gradients(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    output: Tensor,
    lse: Tensor,
    scale: float,
    geometry: _Geometry,
    needed: Sequence[bool],
) -> tuple[Tensor, ...]:
    """Gradients of query, key, value and bias; an empty tensor for one that is not needed."""
    results = _empty_gradients(query, key, value, bias, needed)
    if not output.numel():
        return *results[:3], results[3].zero_()
    tensors, gradient = (*map(_dense, (query, key, value)), bias), gradient.contiguous()
    has_bias = bias is not None
    if _fits_a_block(query, geometry):
        others, flags = (gradient, *results[:3]), (has_bias, *needed)
        partial = _run_in_windows(in_windows.gradients_in_windows, tensors, others, scale, geometry, flags, needed[3])
        if needed[3]:
            results[3] = partial.sum(0).to(query.dtype)
        return tuple(results)
    delta = torch.empty_like(lse[0])
    if needed[0] or needed[1] or needed[3]:
        others = (gradient, output, *lse.unbind(), delta, results[0])
        _run_by_tiles(gradients_by_tiles.query_gradient, tensors, others, scale, geometry, (has_bias, needed[0]))
    if needed[1] or needed[2]:
        others = (gradient, *lse.unbind(), delta, *results[1:3])
        _run_by_tiles(gradients_by_tiles.key_gradient, tensors, others, scale, geometry, (has_bias, *needed[1:3]))
    if needed[3]:
        results[3] = _run_bias_gradient(tensors, (gradient, *lse.unbind(), delta), scale, geometry)
    return tuple(results)


def _fits_a_block(query: Tensor, geometry: _Geometry) -> bool:
    """Whether one program has the registers for all scores of a window; float32 on no matrix unit takes more."""
    most = 32 if query.dtype == torch.float32 else 64
    fits = query.shape[4] * query.element_size() <= 128
    return isinstance(geometry, _Windows) and math.prod(geometry.size) <= most and fits


def _run_in_windows(
    kernel: Any,
    tensors: Sequence[Any],
    others: Sequence[Tensor],
    scale: float,
    geometry: _Geometry,
    flags: Sequence[bool],
    of_bias: bool = False,
) -> Tensor:
    """Runs a kernel of windows that fit a block; gives the sums of its shares, for the gradient of the bias."""
    query, slots = tensors[0], math.prod(geometry.size)
    batch, height, width, heads, dim = query.shape
    windows = geometry.tiles(query.shape, geometry.size)
    units = batch * math.prod(windows)
    top, left, kh, kw, _, _ = geometry.arguments(query.shape)

    def run(share: int, warps: int, stages: int) -> Tensor:
        if of_bias:
            # the sums of the shares are no more numbers than query has
            share = max(share, tuning.cdiv(units * heads * slots**2, query.numel()))
        shares = tuning.cdiv(units, share)
        partial = query.new_empty((shares, heads, slots, slots) if of_bias else (0,), dtype=torch.float32)
        tuning.launch(
            kernel,
            shares * heads,
            (*_pointers(tensors), *others, partial, scale, height, width, heads, *windows, top, left, units, share),
            (kh, kw, *_strides(tensors)),
            (*flags, dim, *_products_of(query), _block(slots), _block(dim)),
            warps,
            stages,
        )
        return partial

    warps = 1 if slots <= _SMALLEST_FACTOR else 4 if dim * query.element_size() <= 64 else 8
    # gradients hold much in registers, and a second stage takes more of them
    first, second = (2, 1) if kernel is in_windows.attend_in_windows else (1, 2)
    candidates = [
        *((share, warps, first) for share in (4, 8, 16, 1)),
        *((4, warps, second), (4, min(2 * warps, 8), first)),
    ]
    return run(*_choose(kernel, query, geometry, flags, list(dict.fromkeys(candidates)), run))


def _run_by_tiles(
    kernel: Any,
    tensors: Sequence[Any],
    others: Sequence[Tensor],
    scale: float,
    geometry: _Geometry,
    flags: Sequence[bool],
) -> None:
    """Runs a kernel whose programs own a block of a tile, of keys in the gradient of these and else of queries."""
    query = tensors[0]
    batch, height, width, heads, dim = query.shape

    def run(positions: int, across: int, warps: int) -> None:
        tile = geometry.tile(query.shape, positions)
        tiles = geometry.tiles(query.shape, tile)
        own = _block(min(tile[0], height) * min(tile[1], width), positions)
        blocks = tuning.cdiv(min(tile[0], height) * min(tile[1], width), own)
        tuning.launch(
            kernel,
            batch * math.prod(tiles) * blocks * heads,
            (*_pointers(tensors), *others, scale, height, width, heads, *tiles, *tile, blocks),
            (*geometry.arguments(query.shape), *_strides(tensors)),
            (
                *(isinstance(geometry, _Windows), *flags, dim, *_products_of(query)),
                *((across, own) if kernel is gradients_by_tiles.key_gradient else (own, across)),
                _block(dim),
            ),
            warps,
        )

    run(*_choose(kernel, query, geometry, flags, _blocks(query), run))


def _run_bias_gradient(tensors: Sequence[Any], others: Sequence[Tensor], scale: float, geometry: _Geometry) -> Tensor:
    query, bias = tensors[0], tensors[3]
    batch, height, width, heads, dim = query.shape
    reach = geometry.reach(query.shape)

    def run(positions: int, across: int, warps: int) -> tuple[Tensor, Pair]:
        tile = geometry.tile(query.shape, positions)
        tiles = geometry.tiles(query.shape, tile)
        queries, keys = math.prod(tile), math.prod(t + 2 * r for t, r in zip(tile, reach, strict=True))
        own = _block(queries, positions)
        blocks = tuning.cdiv(queries, own), tuning.cdiv(keys, across)
        units = batch * math.prod(tiles)
        # the sums of the shares are no more numbers than query has
        shares = max(1, min(units, _MOST_SHARES, query.numel() // (heads * queries * keys)))
        partial = query.new_empty((shares, heads, queries, keys), dtype=torch.float32)
        tuning.launch(
            gradients_by_tiles.bias_gradient,
            shares * math.prod(blocks) * heads,
            (*_pointers(tensors), *others, partial, scale, height, width, heads, *tiles, *tile, *reach, *blocks),
            (units, shares, *geometry.arguments(query.shape), *_strides(tensors)),
            (isinstance(geometry, _Windows), dim, *_products_of(query), own, across, _block(dim)),
            warps,
        )
        return partial, tile

    partial, tile = run(*_choose(gradients_by_tiles.bias_gradient, query, geometry, (), _blocks(query), run))
    return geometry.gradient_of_bias(partial.sum(0), query.shape, tile).to(bias.dtype)


def _dense(t: Tensor) -> Tensor:
    """A tensor whose channels of a head lie side by side."""
    return t if t.stride(4) == 1 else t.contiguous()


def _pointers(tensors: Sequence[Any]) -> tuple[Tensor, ...]:
    """Query, key, value and bias, where there is none any other."""
    query, key, value, bias = tensors
    return query, key, value, query if bias is None else bias


def _strides(tensors: Sequence[Any]) -> tuple[int, ...]:
    """Of batch, rows, columns and heads of query, key and value, and those of the bias."""
    *maps, bias = tensors
    return *(stride for t in maps for stride in t.stride()[:4]), *((0, 0, 0) if bias is None else bias.stride())


def _products_of(x: Tensor) -> tuple[Any, str]:
    return tuning.dot_dtype(x), tuning.dot_precision(x)


def _block(size: int, most: int | None = None) -> int:
    """Side of a block, which is a power of two, for so many numbers."""
    side = max(tuning.next_power_of_2(size), _SMALLEST_FACTOR)
    return side if most is None else min(side, most)


def _blocks(query: Tensor) -> list[Tile]:
    """Candidates (positions that a program owns, positions of a step of its loop, warps)."""
    line = _block(query.shape[4]) * query.element_size()
    if query.dtype == torch.float32:
        return [(32, 32, 8), (32, 16, 4), (16, 32, 4)] if line <= 128 else [(16, 16, 4), (32, 16, 8)]
    if line <= 64:
        return [(64, 32, 4), (64, 64, 8), (128, 32, 8), (32, 32, 2), (32, 64, 4), (16, 32, 1)]
    return [(32, 32, 4), (64, 32, 8), (16, 32, 2)] if line <= 128 else [(32, 32, 8), (32, 16, 4), (16, 32, 4)]


def _choose(
    kernel: Any,
    query: Tensor,
    geometry: _Geometry,
    flags: Sequence[bool],
    candidates: list[Tile],
    run: Callable[..., Any],
) -> Tile:
    *sizes, heads, dim = query.shape
    problem = ((*sizes, heads * dim), (heads, isinstance(geometry, _Windows), *flags), *geometry)
    return tuning.choose(kernel.__name__, problem, candidates, run, query)


_attend_in_windows = _register("window_attention", _Windows)
_attend_in_neighborhoods = _register("neighborhood_attention", _Neighborhoods)
