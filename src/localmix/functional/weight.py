"""Axes 2 and 3, weight sharing and weight computation: every mixer's weights in the one shape [B|1, H|1, W|1, G, K]."""

from __future__ import annotations

import torch
from torch import Tensor

from localmix import arguments
from localmix.arguments import Size
from localmix.functional.aggregate import gather
from localmix.functional.neighborhood import NO_INPUT, relative_position, sliding, window_slot


def static(weight: Tensor) -> Tensor:
    """One kernel per channel for all images and positions: [C, kh, kw] to [1, 1, 1, C, K]."""
    return weight.flatten(1)[None, None, None]


def static_in_window(weight: Tensor, height: int, width: int, window_size: Size, *, shift: Size = 0) -> Tensor:
    """One matrix per group that all windows share: [G, N, N] (output slot, input slot) to [1, H, W, G, N]."""
    return shared_by_windows(weight[None], height, width, window_size, shift=shift)


def shared_by_windows(weight: Tensor, height: int, width: int, window_size: Size, *, shift: Size = 0) -> Tensor:
    """Weights by the slot of the output in its window: [B|1, G, N, K] to [B|1, H, W, G, K]."""
    slot = window_slot(height, width, window_size, shift=shift, device=weight.device)
    return weight[:, :, slot].permute(0, 2, 3, 1, 4)


def homogeneous(weight: Tensor) -> Tensor:
    """One kernel per image and channel for all positions: [B, C, kh, kw] to [B, 1, 1, C, K]."""
    return weight.flatten(2)[:, None, None]


def inhomogeneous(weight: Tensor) -> Tensor:
    """One kernel per image, position and group: [B, H, W, G, K], the full shape as it is."""
    return weight


def pairwise(
    query: Tensor, key: Tensor, neighborhood: Tensor, *, bias: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """Softmax over the neighborhood of the dot products of a position with its neighbors.

        w[b, p, h, k] = softmax_k(scale * query[b, p, h] . key[b, neighborhood[p, k], h] + bias[p, h, k])

    Taps without an input take no part in the softmax; their weight is zero.

    Args:
        query, key: [B, H, W, heads, D].
        neighborhood: int64 [H, W, K].
        bias: broadcasts to [H, W, heads, K].
        scale: D ** -0.5 if not given.

    Returns:
        [B, H, W, heads, K].
    """
    logits = _products(query, key, neighborhood, bias, query.shape[4] ** -0.5 if scale is None else scale)
    return logits.masked_fill((neighborhood == NO_INPUT)[:, :, None], -torch.inf).softmax(-1)


def free_pairwise(
    query: Tensor, key: Tensor, neighborhood: Tensor, *, bias: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """The dot products of a position with its neighbors as they are.

        w[b, p, h, k] = scale * query[b, p, h] . key[b, neighborhood[p, k], h] + bias[p, h, k]

    Taps without an input have weight zero.

    Args:
        query, key: [B, H, W, heads, D].
        neighborhood: int64 [H, W, K].
        bias: broadcasts to [H, W, heads, K].
        scale: 1 / (K sqrt(D)) if not given, so that weights are of the size of those that a softmax gives.

    Returns:
        [B, H, W, heads, K].
    """
    scale = query.shape[4] ** -0.5 / neighborhood.shape[2] if scale is None else scale
    weight = _products(query, key, neighborhood, bias, scale)
    return weight.masked_fill((neighborhood == NO_INPUT)[:, :, None], 0.0)


def neighborhood_products(
    query: Tensor, key: Tensor, *, num_groups: int, kernel_size: Size, dilation: Size = 1
) -> Tensor:
    """Dot products of each position with the inputs of a sliding kernel around it, zero behind the border.

        products[b, p, g, k] = sum_{c in g} query[b, p, c] * key[b, p + k, c]

    They are the gradient of `inhomogeneous_convolution(key, weight)` in its weight, for the gradient `query` of its
    output: so an implementation of that operator has them.

    Args:
        query, key: [B, H, W, C].
        num_groups: G, divides C.
        kernel_size: kh, kw [positions]; an int counts for both.
        dilation: distance between taps [positions].

    Returns:
        [B, H, W, G, K], K = kh * kw taps row-major.

    Raises:
        ValueError: an argument of the wrong shape, dtype or device, or a size below 1.

    >>> x = torch.tensor([1., 2., 4.]).reshape(1, 1, 3, 1)
    >>> neighborhood_products(x, x, num_groups=1, kernel_size=(1, 3)).squeeze()
    tensor([[ 0.,  1.,  2.],
            [ 2.,  4.,  8.],
            [ 8., 16.,  0.]])
    """
    query, key = arguments.autocast(query, key)
    kernel_size, dilation = arguments.neighborhood_products(query, key, num_groups, kernel_size, dilation)
    neighborhood = sliding(query.shape[1], query.shape[2], kernel_size, dilation=dilation, device=query.device)
    query, key = (t.unflatten(3, (num_groups, -1)) for t in (query, key))
    return free_pairwise(query, key, neighborhood, scale=1.0)


def _products(query: Tensor, key: Tensor, neighborhood: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    keys = gather(key.flatten(3), neighborhood).unflatten(4, key.shape[3:])
    # a matrix product and no einsum, which multiplies single channels in a way that no counter of operations sees
    products = (keys.movedim(3, 4) @ (query * scale)[..., None]).squeeze(-1)
    return products if bias is None else products + bias


def window_bias(bias: Tensor, height: int, width: int, window_size: Size, *, shift: Size = 0) -> Tensor:
    """Bias of each position's slot: [heads, N, N] (query slot, key slot) to [H, W, heads, N]."""
    slot = window_slot(height, width, window_size, shift=shift, device=bias.device)
    return bias[:, slot].permute(1, 2, 0, 3)


def neighborhood_bias(bias: Tensor, height: int, width: int, kernel_size: Size, *, dilation: Size = 1) -> Tensor:
    """Bias by distance in a clamped neighborhood: [heads, 2 kh - 1, 2 kw - 1] to [H, W, heads, K]."""
    kernel = arguments.pair("kernel_size", kernel_size)
    rows, columns = relative_position(height, width, kernel, dilation=dilation, device=bias.device)
    return bias[:, rows + kernel[0] - 1, columns + kernel[1] - 1].flatten(3).permute(1, 2, 0, 3)


def relative_position_bias(table: Tensor, window_size: Size) -> Tensor:
    """Swin's relative position bias: from a table by distance to a matrix over the slots of a window.

        bias[h, m, n] = table[h, row(n) - row(m) + wh - 1, column(n) - column(m) + ww - 1]

    Args:
        table: [heads, 2 wh - 1, 2 ww - 1], indexed by key minus query.
        window_size: wh, ww [positions].

    Returns:
        [heads, N, N] with N = wh * ww: query slot, key slot.

    Raises:
        ValueError: a table that does not belong to that window.

    Source: Swin Transformer, equation 4.

    >>> relative_position_bias(torch.tensor([[[1., 2., 3.]]]), (1, 2))
    tensor([[[2., 3.],
             [1., 2.]]])
    """
    height, width = arguments.pair("window_size", window_size)
    arguments.tensor("table", table, "heads 2wh-1 2ww-1")
    shape = (2 * height - 1, 2 * width - 1)
    expected = ((None,), *((s,) for s in shape))
    arguments.sizes("table", table, expected, lambda: f"[heads, 2 wh - 1, 2 ww - 1] = [heads, *{shape}]")
    return by_offset(table, (height, width))


def by_offset(table: Tensor, window_size: tuple[int, int]) -> Tensor:
    """From a table by offset, key minus query, to a matrix over slots: [..., 2 wh - 1, 2 ww - 1] to [..., N, N]."""
    height, width = window_size
    slot = torch.arange(height * width, device=table.device)  # `repeat_interleave` is not in older versions of ONNX's
    rows, columns = slot // width, slot % width
    return table[..., rows - rows[:, None] + height - 1, columns - columns[:, None] + width - 1]
