"""The six mixers of the paper, each as a neighborhood, a weight and the one equation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from localmix import arguments
from localmix.arguments import Size
from localmix.functional import weight as weights
from localmix.functional.aggregate import aggregate
from localmix.functional.neighborhood import sliding, window, window_slot


def depthwise_convolution(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, dilation: Size = 1) -> Tensor:
    """Depth-wise convolution: static weights, shared over positions, one kernel per channel.

        y[b, p, c] = sum_k weight[c, k] * x[b, p + k, c] + bias[c]

    Args:
        x: [B, H, W, C].
        weight: [C, kh, kw], taps row-major.
        bias: [C].
        dilation: distance between taps [positions].

    Returns:
        [B, H, W, C]; outside of the map x is zero, as with PyTorch's `padding="same"`.

    Raises:
        ValueError: an argument of the wrong shape, dtype or device, or a size below 1.

    Source: section 2.2 of the paper.

    >>> import torch
    >>> x = torch.ones(1, 2, 3, 1)
    >>> depthwise_convolution(x, torch.ones(1, 3, 3)).squeeze()
    tensor([[4., 6., 4.],
            [4., 6., 4.]])
    """
    x, weight, bias = arguments.autocast(x, weight, bias)
    dilation = arguments.depthwise_convolution(x, weight, bias, dilation)
    neighborhood = sliding(x.shape[1], x.shape[2], tuple(weight.shape[1:]), dilation=dilation, device=x.device)
    return _add(aggregate(x, weights.static(weight), neighborhood), bias)


def homogeneous_convolution(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, dilation: Size = 1) -> Tensor:
    """Homogeneous dynamic depth-wise convolution: each image brings its own kernel, shared over positions.

        y[b, p, c] = sum_k weight[b, c, k] * x[b, p + k, c] + bias[c]

    Args:
        x: [B, H, W, C].
        weight: [B, C, kh, kw], taps row-major; made from the globally pooled feature of each image.
        bias: [C].
        dilation: distance between taps [positions].

    Returns:
        [B, H, W, C]; outside of the map x is zero.

    Raises:
        ValueError: an argument of the wrong shape, dtype or device, or a size below 1.

    Source: section 2.3 of the paper, D-DW.

    >>> import torch
    >>> x = torch.ones(2, 1, 3, 1)
    >>> scale = torch.tensor([1., 10.]).reshape(2, 1, 1, 1)
    >>> homogeneous_convolution(x, scale.expand(2, 1, 1, 3)).squeeze()
    tensor([[ 2.,  3.,  2.],
            [20., 30., 20.]])
    """
    x, weight, bias = arguments.autocast(x, weight, bias)
    dilation = arguments.homogeneous_convolution(x, weight, bias, dilation)
    neighborhood = sliding(x.shape[1], x.shape[2], tuple(weight.shape[2:]), dilation=dilation, device=x.device)
    return _add(aggregate(x, weights.homogeneous(weight), neighborhood), bias)


def inhomogeneous_convolution(x: Tensor, weight: Tensor, *, kernel_size: Size, dilation: Size = 1) -> Tensor:
    """Inhomogeneous dynamic depth-wise convolution: each position of each image brings its own kernel.

        y[b, p, c] = sum_k weight[b, p, c // (C // G), k] * x[b, p + k, c]

    Args:
        x: [B, H, W, C].
        weight: [B, H, W, G, K], K = kh * kw taps row-major, G divides C; made from the feature at the position.
        kernel_size: kh, kw [positions]; an int counts for both.
        dilation: distance between taps [positions].

    Returns:
        [B, H, W, C]; outside of the map x is zero.

    Raises:
        ValueError: an argument of the wrong shape, dtype or device, or a size below 1.

    Source: section 2.3 of the paper, I-D-DW.

    >>> import torch
    >>> x = torch.tensor([1., 2., 4.]).reshape(1, 1, 3, 1)
    >>> left = torch.tensor([1., 0., 0.]).expand(1, 1, 3, 1, 3)
    >>> inhomogeneous_convolution(x, left, kernel_size=(1, 3)).flatten()
    tensor([0., 1., 2.])
    """
    x, weight = arguments.autocast(x, weight)
    kernel_size, dilation = arguments.inhomogeneous_convolution(x, weight, kernel_size, dilation)
    neighborhood = sliding(x.shape[1], x.shape[2], kernel_size, dilation=dilation, device=x.device)
    return aggregate(x, weights.inhomogeneous(weight), neighborhood)


def projected_inhomogeneous_convolution(
    x: Tensor,
    hidden: Tensor,
    projection: Tensor,
    projection_bias: Tensor | None = None,
    *,
    kernel_size: Size,
    num_groups: int,
    dilation: Size = 1,
) -> Tensor:
    """Inhomogeneous dynamic convolution whose weights are a linear map of a hidden feature of each position.

        y[b, p, c] = sum_k (projection[g(c) * K + k] . hidden[b, p] + projection_bias[g(c) * K + k]) * x[b, p + k, c]

    The fast implementations use the weights of a position at once and forget them, forward and backward.

    Args:
        x: [B, H, W, C].
        hidden: [B, H, W, R].
        projection: [G * K, R], groups outside and taps inside.
        projection_bias: [G * K].
        kernel_size: kh, kw [positions]; an int counts for both.
        num_groups: G, divides C.
        dilation: distance between taps [positions].

    Returns:
        [B, H, W, C]; outside of the map x is zero.

    Raises:
        ValueError: an argument of the wrong shape, dtype or device, or a size below 1.

    Source: section 2.3 of the paper, I-D-DW.

    >>> import torch
    >>> x = torch.tensor([1., 2., 4.]).reshape(1, 1, 3, 1)
    >>> to_the_left = torch.tensor([[1.], [0.], [0.]])
    >>> hidden = torch.tensor([1., 1., 5.]).reshape(1, 1, 3, 1)
    >>> projected_inhomogeneous_convolution(x, hidden, to_the_left, kernel_size=(1, 3), num_groups=1).flatten()
    tensor([ 0.,  1., 10.])
    """
    x, hidden, projection, projection_bias = arguments.autocast(x, hidden, projection, projection_bias)
    kernel_size, dilation = arguments.projected_inhomogeneous_convolution(
        x, hidden, projection, projection_bias, kernel_size, num_groups, dilation
    )
    weight = F.linear(hidden, projection, projection_bias).unflatten(3, (num_groups, -1))
    return inhomogeneous_convolution(x, weight, kernel_size=kernel_size, dilation=dilation)


def window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    window_size: Size,
    shift: Size = 0,
    bias: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Local attention: each position attends to the window that holds it.

        y[b, p] = sum_{j in window(p)} softmax_j(scale * query[b, p] . key[b, j] + bias[slot(p), slot(j)]) value[b, j]

    Windows begin at `shift`; a window that the border cuts holds fewer positions and its softmax runs over those.

    Args:
        query, key, value: [B, H, W, heads, D].
        window_size: wh, ww [positions]; an int counts for both.
        shift: where the first whole window begins, 0 <= shift < window_size [positions].
        bias: [heads, N, N] with N = wh * ww, query slot and key slot (see `relative_position_bias`).
        scale: D ** -0.5 if not given.

    Returns:
        [B, H, W, heads, D].

    Raises:
        ValueError: an argument of the wrong shape, dtype or device, or a size outside of its range.

    Source: section 2.1 of the paper; Swin Transformer, section 3.2.

    >>> import torch
    >>> value = torch.tensor([1., 3., 10., 20., 7.]).reshape(1, 1, 5, 1, 1)
    >>> window_attention(value * 0, value, value, window_size=(1, 2)).flatten()
    tensor([ 2.,  2., 15., 15.,  7.])
    """
    query, key, value, bias = arguments.autocast(query, key, value, bias)
    arguments.attention(query, key, value)
    window_size = arguments.pair("window_size", window_size)
    shift = arguments.shift_of_window(shift, window_size)
    slots = window_size[0] * window_size[1]
    arguments.attention_bias(bias, query, (slots, slots), "[heads, N, N]")
    height, width = query.shape[1:3]
    neighborhood = window(height, width, window_size, shift=shift, device=query.device)
    if bias is not None:
        bias = weights.window_bias(bias, height, width, window_size, shift=shift)
    weight = weights.pairwise(query, key, neighborhood, bias=bias, scale=scale)
    return aggregate(value.flatten(3), weight, neighborhood).unflatten(3, value.shape[3:])


def neighborhood_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    kernel_size: Size,
    dilation: Size = 1,
    bias: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Neighborhood attention: each position attends to the kernel around it, which stops at the border.

        y[b, p] = sum_{j in N(p)} softmax_j(scale * query[b, p] . key[b, j] + bias[j - p]) value[b, j]

    A kernel that covers the map is global attention.

    Args:
        query, key, value: [B, H, W, heads, D].
        kernel_size: kh, kw [positions]; an int counts for both.
        dilation: distance between taps [positions].
        bias: [heads, 2 kh - 1, 2 kw - 1], by the distance from query to key in steps of the dilation.
        scale: D ** -0.5 if not given.

    Returns:
        [B, H, W, heads, D].

    Raises:
        ValueError: an argument of the wrong shape, dtype or device, or a size below 1.

    Source: section 2.1 of the paper (sliding local attention); Neighborhood Attention Transformer, section 3.

    >>> import torch
    >>> value = torch.tensor([0., 3., 6., 30.]).reshape(1, 1, 4, 1, 1)
    >>> neighborhood_attention(value * 0, value, value, kernel_size=(1, 3)).flatten()
    tensor([ 3.,  3., 13., 13.])
    """
    query, key, value, bias = arguments.autocast(query, key, value, bias)
    arguments.attention(query, key, value)
    kernel_size, dilation = arguments.pair("kernel_size", kernel_size), arguments.pair("dilation", dilation)
    distances = (2 * kernel_size[0] - 1, 2 * kernel_size[1] - 1)
    arguments.attention_bias(bias, query, distances, "[heads, 2 kh - 1, 2 kw - 1]")
    height, width = query.shape[1:3]
    neighborhood = sliding(height, width, kernel_size, dilation=dilation, border="clamp", device=query.device)
    if bias is not None:
        bias = weights.neighborhood_bias(bias, height, width, kernel_size, dilation=dilation)
    weight = weights.pairwise(query, key, neighborhood, bias=bias, scale=scale)
    return aggregate(value.flatten(3), weight, neighborhood).unflatten(3, value.shape[3:])


def local_mlp(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, window_size: Size, shift: Size = 0) -> Tensor:
    """Local MLP, or static local attention: one learned matrix over the slots, which all windows share.

        y[b, p, c] = sum_{j in window(p)} weight[g(c), slot(p), slot(j)] * x[b, j, c] + bias[g(c), slot(p)]

    Args:
        x: [B, H, W, C].
        weight: [G, N, N] with N = wh * ww, output slot and input slot, G divides C.
        bias: [G, N], by output slot.
        window_size: wh, ww [positions]; an int counts for both.
        shift: where the first whole window begins, 0 <= shift < window_size [positions].

    Returns:
        [B, H, W, C]; a window that the border cuts holds fewer positions.

    Raises:
        ValueError: an argument of the wrong shape, dtype or device, or a size outside of its range.

    Source: section 3 of the paper, local MLP.

    >>> import torch
    >>> x = torch.tensor([1., 2., 4.]).reshape(1, 1, 3, 1)
    >>> swap = torch.tensor([[[0., 1.], [1., 0.]]])
    >>> local_mlp(x, swap, window_size=(1, 2)).flatten()
    tensor([2., 1., 0.])
    """
    x, weight, bias = arguments.autocast(x, weight, bias)
    window_size, shift = arguments.local_mlp(x, weight, bias, window_size, shift)
    height, width, channels = x.shape[1:]
    neighborhood = window(height, width, window_size, shift=shift, device=x.device)
    y = aggregate(x, weights.static_in_window(weight, height, width, window_size, shift=shift), neighborhood)
    if bias is not None:
        slot = window_slot(height, width, window_size, shift=shift, device=x.device)
        y = y + bias[:, slot].permute(1, 2, 0).repeat_interleave(channels // weight.shape[0], dim=2)
    return y


def _add(y: Tensor, bias: Tensor | None) -> Tensor:
    return y if bias is None else y + bias
