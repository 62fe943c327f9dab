"""Depth-wise convolution and its two dynamic variants."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from localmix import arguments, kernels
from localmix.arguments import Size
from localmix.layers.channels_last import is_plain
from localmix.layers.connectivity import Sliding
from localmix.layers.mixer import Mixer
from localmix.layers.source import HomogeneousKernel, InhomogeneousKernel, StaticKernel


class DepthwiseConv(Mixer):
    """Depth-wise convolution: sliding, weights shared over positions, one kernel per channel, static.

    Args:
        dim: channels C.
        kernel_size, dilation: of the kernel [positions].
        bias: adds a bias per channel.
        impl: see `localmix.kernels`.

    Source: section 2.2 of the paper.

    >>> DepthwiseConv(8, kernel_size=3)(torch.rand(2, 5, 6, 8)).shape
    torch.Size([2, 5, 6, 8])
    """

    connectivity: Sliding
    source: StaticKernel

    def __init__(
        self, dim: int, *, kernel_size: Size = 7, dilation: Size = 1, bias: bool = True, impl: str = "auto"
    ) -> None:
        arguments.positive("dim", dim)
        connectivity = Sliding(kernel_size, dilation)
        super().__init__(dim, connectivity, StaticKernel(dim, kernel_size=kernel_size))
        self.impl = impl
        if bias:
            bound = connectivity.num_taps**-0.5
            self.bias = nn.Parameter(torch.empty(dim).uniform_(-bound, bound))

    def mix(self, x: Tensor) -> Tensor:
        dilation = self.connectivity.dilation
        return kernels.depthwise_convolution(x, self.source.weight, self.bias, dilation=dilation, impl=self.impl)


class HomogeneousDynamicConv(Mixer):
    """Homogeneous dynamic convolution: sliding, shared over positions, one kernel per channel, made from the image.

    Args:
        dim: channels C.
        kernel_size, dilation: of the kernel [positions].
        reduction: C over the hidden channels of the map from pooled feature to kernels.
        bias: adds a bias per channel.
        impl: see `localmix.kernels`.

    In training mode its batch norm sees one value per image, so a batch holds at least two.

    Source: section 2.3 of the paper, D-DW.

    >>> HomogeneousDynamicConv(8, kernel_size=3)(torch.rand(2, 5, 6, 8)).shape
    torch.Size([2, 5, 6, 8])
    """

    connectivity: Sliding
    source: HomogeneousKernel

    def __init__(
        self,
        dim: int,
        *,
        kernel_size: Size = 7,
        dilation: Size = 1,
        reduction: int = 4,
        bias: bool = True,
        impl: str = "auto",
    ) -> None:
        arguments.positive("dim", dim)
        source = HomogeneousKernel(dim, kernel_size=kernel_size, reduction=reduction)
        super().__init__(dim, Sliding(kernel_size, dilation), source)
        self.impl = impl
        if bias:
            self.bias = nn.Parameter(torch.zeros(dim))

    def mix(self, x: Tensor) -> Tensor:
        dilation = self.connectivity.dilation
        weight = self.source.kernels(x)
        return kernels.homogeneous_convolution(x, weight, self.bias, dilation=dilation, impl=self.impl)


class InhomogeneousDynamicConv(Mixer):
    """Inhomogeneous dynamic convolution: sliding, own weights at each position, shared in groups of channels.

    Args:
        dim: channels C.
        num_groups: G; channels within a group share their weights.
        kernel_size, dilation: of the kernel [positions].
        reduction: C over the hidden channels of the map from feature to kernel.
        impl: see `localmix.kernels`.

    Source: section 2.3 of the paper, I-D-DW.

    >>> InhomogeneousDynamicConv(8, num_groups=2, kernel_size=3)(torch.rand(2, 5, 6, 8)).shape
    torch.Size([2, 5, 6, 8])
    """

    connectivity: Sliding
    source: InhomogeneousKernel

    def __init__(
        self,
        dim: int,
        *,
        num_groups: int,
        kernel_size: Size = 7,
        dilation: Size = 1,
        reduction: int = 4,
        impl: str = "auto",
    ) -> None:
        arguments.positive("dim", dim)
        connectivity = Sliding(kernel_size, dilation)
        source = InhomogeneousKernel(dim, num_groups=num_groups, num_taps=connectivity.num_taps, reduction=reduction)
        super().__init__(dim, connectivity, source)
        self.impl = impl

    def mix(self, x: Tensor) -> Tensor:
        return convolve_projected(self, x)


def convolve_projected(mixer: Any, x: Tensor) -> Tensor:
    """The convolution of a mixer whose source is an `InhomogeneousKernel`.

    Weights are made inside of the operator if `expand` is a plain linear map. Where it is another module, such as one
    with an adapter, or has hooks, it is called: all weights are in memory then.
    """
    hidden, expand = mixer.source.hidden(x), mixer.source.expand
    sizes = {"kernel_size": mixer.connectivity.kernel_size, "dilation": mixer.connectivity.dilation}
    if is_plain(expand):
        weight, bias, groups = expand.weight, expand.bias, mixer.source.num_groups
        return kernels.projected_inhomogeneous_convolution(
            x, hidden, weight, bias, num_groups=groups, **sizes, impl=mixer.impl
        )
    weight = expand(hidden).unflatten(3, (mixer.source.num_groups, -1))  # [B, H, W, G, K]
    return kernels.inhomogeneous_convolution(x, weight, **sizes, impl=mixer.impl)
