"""Axes 2 and 3 as modules that a mixer holds: where its weights come from and over what they are shared.

A source turns the map into what is mixed and the weights to mix it with:

    source(x [B, H, W, C], connectivity) -> value [B, H, W, C], weight [B|1, H|1, W|1, G, K]
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from localmix import arguments
from localmix.arguments import Size
from localmix.functional import relative_position_bias
from localmix.functional import weight as weights
from localmix.layers.activation import relu
from localmix.layers.channels_last import Pointwise, batch_norm
from localmix.layers.connectivity import Sliding, Window


class StaticKernel(nn.Module):
    """A parameter: one kernel per channel, shared over images and positions."""

    def __init__(self, dim: int, *, kernel_size: Size) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim, *arguments.pair("kernel_size", kernel_size)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The start of `nn.Conv2d`: uniform within 1 / sqrt(K)."""
        bound = self.weight[0].numel() ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, x: Tensor, connectivity: Sliding) -> tuple[Tensor, Tensor]:
        return x, weights.static(self.weight)


class StaticWindow(nn.Module):
    """A parameter: one matrix over the slots of a window per group of channels, shared over images and windows."""

    def __init__(self, num_groups: int, *, window_size: Size) -> None:
        super().__init__()
        slots = math.prod(arguments.pair("window_size", window_size))
        self.weight = nn.Parameter(torch.empty(num_groups, slots, slots))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The start of `nn.Linear`: uniform within 1 / sqrt(N)."""
        bound = self.weight.shape[2] ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, x: Tensor, connectivity: Window) -> tuple[Tensor, Tensor]:
        height, width = x.shape[1:3]
        shift = connectivity.shift_at(height, width)
        return x, weights.static_in_window(self.weight, height, width, connectivity.window_size, shift=shift)


class HomogeneousKernel(nn.Module):
    """Global average pool, then C -> C / reduction, batch norm, ReLU, -> G * K: one kernel per image and group.

    There are as many groups as channels if `num_groups` is not given.
    """

    def __init__(self, dim: int, *, kernel_size: Size, reduction: int = 4, num_groups: int | None = None) -> None:
        super().__init__()
        self.kernel_size = arguments.pair("kernel_size", kernel_size)
        self.num_groups = dim if num_groups is None else arguments.divides("num_groups", num_groups, "dim", dim)
        hidden = hidden_size(dim, reduction)
        self.reduce = Pointwise(dim, hidden, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(hidden)
        self.expand = Pointwise(hidden, self.num_groups * math.prod(self.kernel_size))

    def kernels(self, x: Tensor) -> Tensor:
        """[B, G, kh, kw]."""
        hidden = self.reduce(x.mean((1, 2), keepdim=True))
        hidden = relu(batch_norm(self.norm, hidden), self.reduce, self.norm)
        return self.expand(hidden).view(x.shape[0], self.num_groups, *self.kernel_size)

    def forward(self, x: Tensor, connectivity: Sliding) -> tuple[Tensor, Tensor]:
        return x, weights.homogeneous(self.kernels(x))


class InhomogeneousKernel(nn.Module):
    """At every position C -> C / reduction, batch norm, ReLU, -> G * K: one kernel per image, position and group."""

    def __init__(self, dim: int, *, num_groups: int, num_taps: int, reduction: int = 4) -> None:
        super().__init__()
        self.num_groups = arguments.divides("num_groups", num_groups, "dim", dim)
        hidden = hidden_size(dim, reduction)
        self.reduce = Pointwise(dim, hidden)
        self.norm: nn.Module = nn.BatchNorm2d(hidden)
        self.expand = Pointwise(hidden, num_groups * num_taps)

    def hidden(self, x: Tensor) -> Tensor:
        """[B, H, W, C / reduction]: what `expand` makes the kernels of."""
        return relu(batch_norm(self.norm, self.reduce(x)), self.reduce, self.norm)

    def forward(self, x: Tensor, connectivity: Sliding) -> tuple[Tensor, Tensor]:
        kernels = self.expand(self.hidden(x)).unflatten(3, (self.num_groups, -1))  # [B, H, W, G, K]
        return x, weights.inhomogeneous(kernels)


class DotProduct(nn.Module):
    """Softmax of dot products q . k over the neighborhood, plus a bias by distance; what is mixed is v."""

    relative_position_bias_table: nn.Parameter | None

    def __init__(
        self, dim: int, *, num_heads: int, span: Size, qkv_bias: bool = True, relative_position_bias: bool = True
    ) -> None:
        """`span` is the size of the kernel or window: keys are less than that far away."""
        super().__init__()
        self.num_heads = arguments.divides("num_heads", num_heads, "dim", dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        height, width = arguments.pair("span", span)
        self.relative_position_bias_table = (
            nn.Parameter(torch.empty(num_heads, 2 * height - 1, 2 * width - 1)) if relative_position_bias else None
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Swin's start: normal of deviation 0.02 truncated at 2, biases zero."""
        for weight in (self.qkv.weight, self.relative_position_bias_table):
            if weight is not None:
                nn.init.trunc_normal_(weight, std=0.02)
        if self.qkv.bias is not None:
            nn.init.zeros_(self.qkv.bias)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value, each [B, H, W, heads, D]."""
        query, key, value = self.qkv(x).unflatten(3, (3, self.num_heads, -1)).unbind(3)
        return query, key, value

    def window_bias(self, window_size: tuple[int, int]) -> Tensor | None:
        """[heads, N, N], or None."""
        table = self.relative_position_bias_table
        return None if table is None else relative_position_bias(table, window_size)

    def forward(self, x: Tensor, connectivity: Sliding | Window) -> tuple[Tensor, Tensor]:
        height, width = x.shape[1:3]
        query, key, value = self.project(x)
        if isinstance(connectivity, Window):
            bias, size = self.window_bias(connectivity.window_size), connectivity.window_size
            if bias is not None:
                bias = weights.window_bias(bias, height, width, size, shift=connectivity.shift_at(height, width))
        else:
            bias, size = self.relative_position_bias_table, connectivity.kernel_size
            if bias is not None:
                bias = weights.neighborhood_bias(bias, height, width, size, dilation=connectivity.dilation)
        neighborhood = connectivity.neighborhood(height, width, x.device)
        return value.flatten(3), weights.pairwise(query, key, neighborhood, bias=bias)


class FreeDotProduct(DotProduct):
    """Dot products and a bias by offset, used as they are: no softmax. What is mixed is v.

        w[i, j] = q[i] . k[j] / (K sqrt(D)) + b[j - i]

    The bias is the static part of the weights. It starts around 1 / K, so that the weights start as those of a softmax
    do, to first order in the dot products.
    """

    def __init__(self, dim: int, *, num_heads: int, connectivity: Sliding | Window, qkv_bias: bool = True) -> None:
        span = connectivity.window_size if isinstance(connectivity, Window) else connectivity.kernel_size
        self.num_taps = math.prod(span)
        super().__init__(dim, num_heads=num_heads, span=span, qkv_bias=qkv_bias)
        self.scale = (dim // num_heads) ** -0.5 / self.num_taps  # weights are then of the size that a softmax gives
        if isinstance(connectivity, Sliding):  # which has a tap for each offset
            self.relative_position_bias_table = nn.Parameter(torch.empty(num_heads, *span))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Swin's start, with the bias in units of 1 / K and around one of them."""
        super().reset_parameters()
        with torch.no_grad():
            self.by_offset.add_(1.0).div_(self.num_taps)

    @property
    def by_offset(self) -> Tensor:
        """b: [heads, 2 wh - 1, 2 ww - 1] in windows, [heads, kh, kw] of a sliding kernel."""
        assert self.relative_position_bias_table is not None
        return self.relative_position_bias_table

    def forward(self, x: Tensor, connectivity: Sliding | Window) -> tuple[Tensor, Tensor]:
        height, width = x.shape[1:3]
        query, key, value = self.project(x)
        if isinstance(connectivity, Window):
            size, shift = connectivity.window_size, connectivity.shift_at(height, width)
            of_slots = relative_position_bias(self.by_offset, size)
            bias = weights.window_bias(of_slots, height, width, size, shift=shift)
        else:
            bias = self.by_offset.flatten(1)
        neighborhood = connectivity.neighborhood(height, width, x.device)
        return value.flatten(3), weights.free_pairwise(query, key, neighborhood, bias=bias, scale=self.scale)


def hidden_size(dim: int, reduction: int) -> int:
    """Channels between the two linear maps that predict kernels."""
    arguments.positive("reduction", reduction)
    if dim < reduction:
        raise ValueError(f"reduction: expected at most dim = {dim}, got {reduction}")
    return dim // reduction
