"""Every point of the paper's space as one layer, each with the fast operator that computes it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from localmix import arguments, kernels
from localmix.axes import Dynamics, Positions
from localmix.layers.attention import attend_in_windows, attend_to_neighborhood, output_projection
from localmix.layers.connectivity import Sliding, Window
from localmix.layers.convolution import convolve_projected
from localmix.layers.local_mlp import bias_of_positions
from localmix.layers.mixer import Mixer
from localmix.layers.shared_source import (
    Mixture,
    NormalisedInhomogeneousKernel,
    SharedHomogeneous,
    SharedStatic,
    Sharing,
)
from localmix.layers.source import DotProduct, FreeDotProduct, InhomogeneousKernel
from localmix.layers.windows import mix_by_products, mix_each_window
from localmix.point import Point


class LocalMixer(Mixer):
    """The mixer at a point of the three axes: connectivity, sharing over positions and channels, weights.

        y[i, c] = sum over j in N(i) of  w[i, j, c] * x[j, c]

    The six named layers are six of its points, with the same parameters. `operator` says which operator of
    `localmix.kernels` computes it; `definition` computes the same by the equation.

    Args:
        dim: channels C.
        point: see `localmix.point.Point`; its number of groups divides C.
        reduction: C over the hidden channels of a map that makes weights; at most C counts.
        impl: see `localmix.kernels`.

    Shapes: [B, H, W, C] -> [B, H, W, C], at any size.

    Raises:
        ValueError: groups that do not divide C, or a number of groups for each stage of a network.

    Source: sections 2 and 3 of the paper.

    >>> mixer = LocalMixer.from_name("sliding7/shared-positions/groups32/homogeneous", dim=96)
    >>> mixer.operator, mixer(torch.rand(2, 9, 14, 96)).shape
    ('homogeneous_convolution', torch.Size([2, 9, 14, 96]))
    """

    connectivity: Any  # Sliding or Window, and a source of weights: which ones the route of the point knows
    source: Any

    def __init__(self, dim: int, point: Point, *, reduction: int = 4, impl: str = "auto") -> None:
        arguments.positive("dim", dim)
        arguments.positive("reduction", reduction)
        if not isinstance(point, Point):
            raise TypeError(f"point: expected a Point (a name is parsed by Point.parse), got {type(point).__name__}")
        if isinstance(point.num_groups, tuple):
            raise ValueError(
                f"num_groups: expected one number for a layer, got {point.num_groups}: point.in_block(stage, index) "
                "takes that of a stage"
            )
        groups = dim if point.num_groups is None else arguments.divides("num_groups", point.num_groups, "dim", dim)
        connectivity = _connectivity(point)
        source = _source(dim, groups, point, connectivity, min(reduction, dim))
        projects = point.weights is Dynamics.DOT_PRODUCT
        super().__init__(dim, connectivity, source, output_projection(dim) if projects else None)
        self.point = point
        self.num_groups = groups
        self.impl = impl
        self.bias = _bias(dim, groups, point)
        self._operator, self._mix = _route(point)

    @classmethod
    def from_name(cls, name: str, *, dim: int, reduction: int = 4, impl: str = "auto") -> LocalMixer:
        """The mixer of that name.

        Raises:
            ValueError: not the name of a mixer; says why.
        """
        return cls(dim, Point.parse(name), reduction=reduction, impl=impl)

    @property
    def name(self) -> str:
        """The name that `from_name` takes."""
        return self.point.name

    @property
    def operator(self) -> str:
        """Name of the operator in `localmix.kernels` that computes this mixer."""
        return self._operator

    def extra_repr(self) -> str:
        return f"{self.dim}, {self.name}"

    def mix(self, x: Tensor) -> Tensor:
        # operators of which images are channels or groups would have none; the reference is the equation itself
        if x.shape[0] == 0 or kernels.choose(self._operator, self.impl, x) == "reference":
            return Mixer.mix(self, x)
        return self._mix(self, x)

    def offset(self, height: int, width: int) -> Tensor | None:
        if self.bias is None or self.bias.ndim == 1:
            return self.bias
        return bias_of_positions(self.bias, self.connectivity, self.dim, height, width)


def _connectivity(point: Point) -> Sliding | Window:
    if not point.is_sliding:
        return Window(point.size, point.shift, "pad" if point.pad else "cut")
    return Sliding(point.size, point.dilation, "clamp" if point.attends else "zero")


def _source(dim: int, groups: int, point: Point, connectivity: Sliding | Window, reduction: int) -> nn.Module:
    sharing = Sharing(point)
    if point.weights is Dynamics.STATIC:
        return SharedStatic(groups, sharing)
    if point.weights is Dynamics.HOMOGENEOUS:
        return SharedHomogeneous(dim, groups, sharing, reduction=reduction)
    if point.weights is Dynamics.MIXTURE:
        return Mixture(dim, groups, sharing, num_kernels=point.num_kernels)
    if point.weights is Dynamics.INHOMOGENEOUS:
        kind = NormalisedInhomogeneousKernel if point.softmax else InhomogeneousKernel
        return kind(dim, num_groups=groups, num_taps=sharing.num_taps, reduction=reduction)
    if point.free:
        return FreeDotProduct(dim, num_heads=groups, connectivity=connectivity)
    return DotProduct(dim, num_heads=groups, span=point.size)


def _bias(dim: int, groups: int, point: Point) -> nn.Parameter | None:
    """As the named layers: per channel, by group and slot where windows share weights, none beside own weights."""
    if point.positions is Positions.NONE:
        return None
    by_slot = not point.is_sliding and point.positions is Positions.WINDOWS
    shape = (groups, math.prod(point.size)) if by_slot else (dim,)
    if point.weights is not Dynamics.STATIC:
        return nn.Parameter(torch.zeros(shape))
    bound = math.prod(point.size) ** -0.5
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))


# How each kind of point is computed. Where a mixer is not itself one of the operators, it is one of them seen from
# another side: images or windows take the place of groups, so that nothing is repeated for them.


def _route(point: Point) -> tuple[str, Callable[[LocalMixer, Tensor], Tensor]]:
    """Name of the operator, and the function that calls it."""
    static = point.weights is Dynamics.STATIC
    if point.free:
        if point.is_sliding:
            return "inhomogeneous_convolution", _convolve_by_products
        return "local_mlp", _mix_windows_by_products
    if point.weights is Dynamics.DOT_PRODUCT:
        if point.is_sliding:
            return "neighborhood_attention", attend_to_neighborhood
        return "window_attention", attend_in_windows
    if point.weights is Dynamics.INHOMOGENEOUS:
        if not point.is_sliding:
            return "local_mlp", _mix_each_window
        if point.softmax:
            return "inhomogeneous_convolution", _convolve_by_position
        return "projected_inhomogeneous_convolution", convolve_projected
    if not point.is_sliding:
        return "local_mlp", _mix_windows if static else _mix_windows_of_each_image
    if point.positions is Positions.WINDOWS:
        return "inhomogeneous_convolution", _convolve_by_slot if static else _convolve_by_position
    if static:
        return "depthwise_convolution", _convolve
    return "homogeneous_convolution", _convolve_each_image


def _convolve(mixer: LocalMixer, x: Tensor) -> Tensor:
    weight = _per_channel(mixer, x)[0]
    return kernels.depthwise_convolution(x, weight, mixer.bias, dilation=mixer.connectivity.dilation, impl=mixer.impl)


def _convolve_each_image(mixer: LocalMixer, x: Tensor) -> Tensor:
    weight = _per_channel(mixer, x)
    return kernels.homogeneous_convolution(x, weight, mixer.bias, dilation=mixer.connectivity.dilation, impl=mixer.impl)


def _convolve_by_position(mixer: LocalMixer, x: Tensor) -> Tensor:
    _, weight = mixer.source(x, mixer.connectivity)  # [B, H, W, G, K]
    y = kernels.inhomogeneous_convolution(
        x, weight, kernel_size=mixer.connectivity.kernel_size, dilation=mixer.connectivity.dilation, impl=mixer.impl
    )
    return _with_bias(mixer, y)


def _convolve_by_slot(mixer: LocalMixer, x: Tensor) -> Tensor:
    """Static weights of each position: the images are channels of a group, [1, H, W, G * B * D]."""
    batch, channels = x.shape[0], x.shape[3]
    _, weight = mixer.source(x, mixer.connectivity)  # [1, H, W, G, K]
    side_by_side = x.unflatten(3, (mixer.num_groups, -1)).permute(1, 2, 3, 0, 4).flatten(2)[None]
    y = kernels.inhomogeneous_convolution(
        side_by_side,
        weight,
        kernel_size=mixer.connectivity.kernel_size,
        dilation=mixer.connectivity.dilation,
        impl=mixer.impl,
    )
    y = y[0].unflatten(2, (mixer.num_groups, batch, channels // mixer.num_groups)).permute(3, 0, 1, 2, 4).flatten(3)
    return _with_bias(mixer, y)


def _mix_windows(mixer: LocalMixer, x: Tensor) -> Tensor:
    by_slot = mixer.bias is not None and mixer.bias.ndim == 2
    shift = mixer.connectivity.shift_at(x.shape[1], x.shape[2])
    y = kernels.local_mlp(
        x,
        _by_slot(mixer, x)[0],
        mixer.bias if by_slot else None,
        window_size=mixer.connectivity.window_size,
        shift=shift,
        impl=mixer.impl,
    )
    return y if by_slot else _with_bias(mixer, y)


def _mix_windows_of_each_image(mixer: LocalMixer, x: Tensor) -> Tensor:
    """Weights of each image: the groups of all images are groups of one, [1, H, W, B * G * D]."""
    batch, height, width, channels = x.shape
    weight = _by_slot(mixer, x).flatten(0, 1)  # [B * G, N, N]
    side_by_side = x.permute(1, 2, 0, 3).flatten(2)[None]
    y = kernels.local_mlp(
        side_by_side,
        weight,
        window_size=mixer.connectivity.window_size,
        shift=mixer.connectivity.shift_at(height, width),
        impl=mixer.impl,
    )
    y = y[0].unflatten(2, (batch, channels)).permute(2, 0, 1, 3)
    return _with_bias(mixer, y)


def _mix_each_window(mixer: LocalMixer, x: Tensor) -> Tensor:
    _, weight = mixer.source(x, mixer.connectivity)  # [B, H, W, G, N]
    x, weight = arguments.autocast(x, weight)
    return mix_each_window(
        x,
        weight,
        window_size=mixer.connectivity.window_size,
        shift=mixer.connectivity.shift_at(x.shape[1], x.shape[2]),
        impl=mixer.impl,
    )


def _convolve_by_products(mixer: LocalMixer, x: Tensor) -> Tensor:
    query, key, value = (t.flatten(3) for t in mixer.source.project(x))
    sizes = {"kernel_size": mixer.connectivity.kernel_size, "dilation": mixer.connectivity.dilation}
    weight = kernels.neighborhood_products(
        query * mixer.source.scale, key, num_groups=mixer.num_groups, **sizes, impl=mixer.impl
    )
    weight = weight + mixer.source.by_offset.flatten(1).to(weight.dtype)
    return mixer.output(kernels.inhomogeneous_convolution(value, weight, **sizes, impl=mixer.impl))


def _mix_windows_by_products(mixer: LocalMixer, x: Tensor) -> Tensor:
    window_size = mixer.connectivity.window_size
    bias = mixer.source.window_bias(window_size)
    query, key, value, bias = arguments.autocast(*mixer.source.project(x), bias)
    y = mix_by_products(
        query,
        key,
        value,
        bias,
        scale=mixer.source.scale,
        window_size=window_size,
        shift=mixer.connectivity.shift_at(x.shape[1], x.shape[2]),
        impl=mixer.impl,
    )
    return mixer.output(y.flatten(3))


def _with_bias(mixer: LocalMixer, y: Tensor) -> Tensor:
    offset = mixer.offset(y.shape[1], y.shape[2])
    return y if offset is None else y + offset.to(y.dtype)


def _per_channel(mixer: LocalMixer, x: Tensor) -> Tensor:
    """Kernels of every channel: [B|1, C, kh, kw]."""
    source = mixer.source
    of_groups = source.sharing.normalised(source.matrices(x))
    return of_groups if mixer.num_groups == mixer.dim else of_groups.repeat_interleave(mixer.dim // mixer.num_groups, 1)


def _by_slot(mixer: LocalMixer, x: Tensor) -> Tensor:
    """[B|1, G, N, N]."""
    sharing = mixer.source.sharing
    return sharing.by_slot(sharing.normalised(mixer.source.matrices(x)))
