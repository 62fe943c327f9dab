"""Windows whose weights are of one position each: a matrix for every window of every image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from localmix import kernels

Pair = tuple[int, int]


def mix_each_window(x: Tensor, weight: Tensor, *, window_size: Pair, shift: Pair, impl: str) -> Tensor:
    """Sum over the window of each position, with weights of its own.

        y[b, p, c] = sum_{j in window(p)} weight[b, p, g(c), slot(j)] * x[b, j, c]

    Args:
        x: [B, H, W, C], of at least one image.
        weight: [B, H, W, G, N] with N = wh * ww.
        window_size, shift: of the windows [positions].
        impl: see `localmix.kernels`.

    Returns:
        [B, H, W, C].
    """
    if kernels.is_exported_with_open_size(x):  # a number of windows would exclude sizes: one node, as local_mlp has
        return torch.ops.localmix.mix_each_window(x, weight, window_size, shift, impl)
    height, width = x.shape[1:3]
    matrices = _to_windows(weight, window_size, shift).permute(0, 1, 2, 5, 3, 4, 6)  # [B, nh, nw, G, wh, ww, N]
    by_group = x.unflatten(3, (weight.shape[3], -1))
    return _mix_windows(by_group, matrices.flatten(4, 5), (height, width), window_size, shift, impl).flatten(3)


def mix_by_products(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    *,
    scale: float,
    window_size: Pair,
    shift: Pair,
    impl: str,
) -> Tensor:
    """Sum over the window of each position, with dot products as weights, no softmax.

        y[b, p] = sum_{j in window(p)} (scale * query[b, p] . key[b, j] + bias[slot(p), slot(j)]) value[b, j]

    Weights are a matrix product for each window; a slot outside of the map holds a value of zero and adds nothing.

    Args:
        query, key, value: [B, H, W, G, D], of at least one image.
        bias: [G, N, N] with N = wh * ww, output slot and input slot.
        scale: of the dot products.
        window_size, shift: of the windows [positions].
        impl: see `localmix.kernels`.

    Returns:
        [B, H, W, G, D].
    """
    if kernels.is_exported_with_open_size(query):
        return torch.ops.localmix.mix_by_products(query, key, value, bias, scale, window_size, shift, impl)
    height, width = query.shape[1:3]
    query, key = (
        _to_windows(t, window_size, shift).permute(0, 1, 2, 5, 3, 4, 6).flatten(4, 5) for t in (query * scale, key)
    )  # [B, nh, nw, G, N, D]
    return _mix_windows(value, query @ key.mT + bias, (height, width), window_size, shift, impl)


def _mix_windows(x: Tensor, matrices: Tensor, size: Pair, window_size: Pair, shift: Pair, impl: str) -> Tensor:
    """`localmix.kernels.local_mlp` on one window: the groups of all windows of all images are its groups.

    x is [B, H, W, G, D] and so is the result, matrices are [B, nh, nw, G, N, N].
    """
    windows = _to_windows(x, window_size, shift)  # [B, nh, nw, wh, ww, G, D]
    y = kernels.local_mlp(
        windows.permute(3, 4, 0, 1, 2, 5, 6).flatten(2)[None],
        matrices.flatten(0, 3),  # [windows * G, N, N]
        window_size=window_size,
        impl=impl,
    )
    y = y.view(*window_size, *windows.shape[:3], *windows.shape[5:]).permute(2, 3, 4, 0, 1, 5, 6)
    return _from_windows(y, size, shift)


def _to_windows(t: Tensor, window_size: Pair, shift: Pair) -> Tensor:
    """[B, H, W, *, *] to [B, nh, nw, wh, ww, *, *], zero in slots outside of the map."""
    top, bottom = _margins(t.shape[1], window_size[0], shift[0])
    left, right = _margins(t.shape[2], window_size[1], shift[1])
    t = _pad(t, (left, right, top, bottom))
    return t.unflatten(2, (-1, window_size[1])).unflatten(1, (-1, window_size[0])).transpose(2, 3)


def _from_windows(t: Tensor, size: Pair, shift: Pair) -> Tensor:
    """[B, nh, nw, wh, ww, *, *] to [B, H, W, *, *]."""
    top, bottom = _margins(size[0], t.shape[3], shift[0])
    left, right = _margins(size[1], t.shape[4], shift[1])
    t = t.transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return _pad(t, (-left, -right, -top, -bottom))


def _margins(length: int, window: int, shift: int) -> Pair:
    """Empty slots before and behind an axis of the map."""
    before = (window - shift) % window
    return before, -(before + length) % window


def _pad(t: Tensor, margins: tuple[int, int, int, int]) -> Tensor:
    return F.pad(t, (0, 0, 0, 0, *margins)) if any(margins) else t


def _node(x: Tensor, weight: Tensor, window_size: list[int], shift: list[int], impl: str) -> Tensor:
    height, width = window_size
    return mix_each_window(x, weight, window_size=(height, width), shift=(shift[0], shift[1]), impl=impl).contiguous()


torch.library.custom_op(
    "localmix::mix_each_window",
    _node,
    mutates_args=(),
    schema="(Tensor x, Tensor weight, SymInt[] window_size, SymInt[] shift, str impl) -> Tensor",
).register_fake(lambda x, *_: x.new_empty(x.shape))


def _node_of_products(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    scale: float,
    window_size: list[int],
    shift: list[int],
    impl: str,
) -> Tensor:
    sizes = {"window_size": (window_size[0], window_size[1]), "shift": (shift[0], shift[1])}
    return mix_by_products(query, key, value, bias, scale=scale, **sizes, impl=impl).contiguous()


torch.library.custom_op(
    "localmix::mix_by_products",
    _node_of_products,
    mutates_args=(),
    schema="(Tensor query, Tensor key, Tensor value, Tensor bias, float scale, SymInt[] window_size, SymInt[] shift, "
    "str impl) -> Tensor",
).register_fake(lambda query, *_: query.new_empty(query.shape))
