"""Local attention: in windows, and in a neighborhood that slides."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from localmix import arguments, kernels
from localmix.arguments import Size
from localmix.layers.connectivity import Sliding, Window
from localmix.layers.mixer import Mixer
from localmix.layers.source import DotProduct


class WindowAttention(Mixer):
    """Window attention: windows, own weights at each position, shared within a head, from dot products.

    Args:
        dim: channels C.
        num_heads: heads; channels within a head share their weights.
        window_size: of the windows [positions].
        shift: where the first whole window begins [positions]; an axis that one window covers is not shifted.
        border: "cut" (a window at the border holds fewer positions) or "pad" (Swin's zero tokens); see `Window`.
        qkv_bias: adds a bias to query, key and value.
        relative_position_bias: adds Swin's learned bias by distance.
        impl: see `localmix.kernels`.

    Source: section 2.1 of the paper; Swin Transformer, section 3.2.

    >>> import torch
    >>> WindowAttention(8, num_heads=2, window_size=3, shift=1)(torch.rand(2, 5, 6, 8)).shape
    torch.Size([2, 5, 6, 8])
    """

    connectivity: Window
    source: DotProduct

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        window_size: Size = 7,
        shift: Size = 0,
        border: str = "cut",
        qkv_bias: bool = True,
        relative_position_bias: bool = True,
        impl: str = "auto",
    ) -> None:
        arguments.positive("dim", dim)
        connectivity = Window(window_size, shift, border)
        source = DotProduct(
            dim,
            num_heads=num_heads,
            span=window_size,
            qkv_bias=qkv_bias,
            relative_position_bias=relative_position_bias,
        )
        super().__init__(dim, connectivity, source, output_projection(dim))
        self.impl = impl

    def mix(self, x: Tensor) -> Tensor:
        return attend_in_windows(self, x)


class NeighborhoodAttention(Mixer):
    """Neighborhood attention: sliding and clamped, own weights at each position, shared within a head, dot products.

    Args:
        dim: channels C.
        num_heads: heads; channels within a head share their weights.
        kernel_size, dilation: of the neighborhood [positions].
        qkv_bias: adds a bias to query, key and value.
        relative_position_bias: adds a learned bias by distance.
        impl: see `localmix.kernels`.

    Source: section 2.1 of the paper; Neighborhood Attention Transformer, section 3.

    >>> import torch
    >>> NeighborhoodAttention(8, num_heads=2, kernel_size=3)(torch.rand(2, 5, 6, 8)).shape
    torch.Size([2, 5, 6, 8])
    """

    connectivity: Sliding
    source: DotProduct

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        kernel_size: Size = 7,
        dilation: Size = 1,
        qkv_bias: bool = True,
        relative_position_bias: bool = True,
        impl: str = "auto",
    ) -> None:
        arguments.positive("dim", dim)
        connectivity = Sliding(kernel_size, dilation, border="clamp")
        source = DotProduct(
            dim,
            num_heads=num_heads,
            span=kernel_size,
            qkv_bias=qkv_bias,
            relative_position_bias=relative_position_bias,
        )
        super().__init__(dim, connectivity, source, output_projection(dim))
        self.impl = impl

    def mix(self, x: Tensor) -> Tensor:
        return attend_to_neighborhood(self, x)


def attend_in_windows(mixer: Any, x: Tensor) -> Tensor:
    """The attention of a mixer of windows whose source is a `DotProduct`, and its output projection."""
    window_size, shift = mixer.connectivity.window_size, mixer.connectivity.shift_at(x.shape[1], x.shape[2])
    query, key, value = mixer.source.project(x)
    bias = mixer.source.window_bias(window_size)
    y = kernels.window_attention(query, key, value, window_size=window_size, shift=shift, bias=bias, impl=mixer.impl)
    return mixer.output(y.flatten(3))


def attend_to_neighborhood(mixer: Any, x: Tensor) -> Tensor:
    """The same of a mixer that slides."""
    kernel_size, dilation = mixer.connectivity.kernel_size, mixer.connectivity.dilation
    query, key, value = mixer.source.project(x)
    bias = mixer.source.relative_position_bias_table
    y = kernels.neighborhood_attention(
        query, key, value, kernel_size=kernel_size, dilation=dilation, bias=bias, impl=mixer.impl
    )
    return mixer.output(y.flatten(3))


def output_projection(dim: int) -> nn.Linear:
    """The linear map behind an attention, with Swin's start."""
    projection = nn.Linear(dim, dim)
    nn.init.trunc_normal_(projection.weight, std=0.02)
    nn.init.zeros_(projection.bias)
    return projection
