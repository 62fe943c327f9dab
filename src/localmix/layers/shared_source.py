"""Sources of weights that positions share, in all forms of sharing: what `LocalMixer` is composed of.

Every such source makes matrices [B|1, G, N, K], and `Sharing` says what they are to the positions of a map.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from localmix.axes import Positions
from localmix.functional import weight as weights
from localmix.layers.connectivity import Sliding, Window
from localmix.layers.source import HomogeneousKernel, InhomogeneousKernel
from localmix.point import Point


@dataclass(frozen=True)
class Sharing:
    """How positions share the matrices [B|1, G, *shape] of a source, and whether a softmax runs over the taps.

    All positions of a map: a kernel, [G, kh, kw]. All positions of windows: by offset, [G, 2 wh - 1, 2 ww - 1].
    Windows: by the slot of the output, [G, N, K], whose taps are the slots of its window, or the kernel around it.
    """

    point: Point

    @property
    def shape(self) -> tuple[int, int]:
        height, width = self.point.size
        taps = height * width
        if self.point.positions is Positions.WINDOWS:
            return math.prod(self.point.period or self.point.size), taps
        return (height, width) if self.point.is_sliding else (2 * height - 1, 2 * width - 1)

    @property
    def num_taps(self) -> int:
        """Weights that are summed for an output."""
        return math.prod(self.point.size)

    def normalised(self, kernels: Tensor) -> Tensor:
        """[B|1, G, *shape] after the softmax over the taps, if there is one."""
        if not self.point.softmax:
            return kernels
        if self.point.positions is Positions.WINDOWS:
            return kernels.softmax(-1)
        return kernels.flatten(2).softmax(-1).view(kernels.shape)

    def by_slot(self, kernels: Tensor) -> Tensor:
        """What windows share: [B|1, G, *shape] to [B|1, G, N, K]."""
        return kernels if self.point.positions is Positions.WINDOWS else weights.by_offset(kernels, self.point.size)

    def by_position(self, kernels: Tensor, x: Tensor, connectivity: Sliding | Window) -> Tensor:
        """[B|1, G, *shape] to the weight of the equation for x, [B|1, H|1, W|1, G, K]."""
        if self.point.is_sliding and self.point.period is None:
            return weights.homogeneous(kernels)
        height, width = x.shape[1:3]
        period: tuple[int, int] = self.point.period or self.point.size
        shift = connectivity.shift_at(height, width) if isinstance(connectivity, Window) else 0
        return weights.shared_by_windows(self.by_slot(kernels), height, width, period, shift=shift)


class SharedSource(nn.Module, ABC):
    """source(x, connectivity) -> x, weight, for a source of `matrices`: [B|1, G, *sharing.shape] of x."""

    sharing: Sharing

    @abstractmethod
    def matrices(self, x: Tensor) -> Tensor: ...

    def forward(self, x: Tensor, connectivity: Sliding | Window) -> tuple[Tensor, Tensor]:
        return x, self.sharing.by_position(self.sharing.normalised(self.matrices(x)), x, connectivity)


class SharedStatic(SharedSource):
    """A parameter."""

    def __init__(self, num_groups: int, sharing: Sharing) -> None:
        super().__init__()
        self.sharing = sharing
        self.weight = nn.Parameter(torch.empty(num_groups, *sharing.shape))
        _start(self.weight, sharing)

    def matrices(self, x: Tensor) -> Tensor:
        return self.weight[None]


class SharedHomogeneous(SharedSource, HomogeneousKernel):
    """A two-layer map of the globally pooled feature."""

    def __init__(self, dim: int, num_groups: int, sharing: Sharing, *, reduction: int) -> None:
        super().__init__(dim, kernel_size=sharing.shape, num_groups=num_groups, reduction=reduction)
        self.sharing = sharing

    def matrices(self, x: Tensor) -> Tensor:
        return self.kernels(x)


class Mixture(SharedSource):
    """M parameters, added up with weights that a softmax gives each image: w = sum_m softmax_m(S mean_j x[j]) w[m].

    Source: conditionally parameterised convolution, dynamic convolution (attention over kernels).
    """

    def __init__(self, dim: int, num_groups: int, sharing: Sharing, *, num_kernels: int) -> None:
        super().__init__()
        self.sharing = sharing
        self.weight = nn.Parameter(torch.empty(num_kernels, num_groups, *sharing.shape))
        _start(self.weight, sharing)
        self.select = nn.Linear(dim, num_kernels)
        nn.init.trunc_normal_(self.select.weight, std=0.02)
        nn.init.zeros_(self.select.bias)

    def matrices(self, x: Tensor) -> Tensor:
        share = self.select(x.mean((1, 2))).softmax(-1)  # [B, M]
        return (share @ self.weight.flatten(1).to(share.dtype)).unflatten(1, self.weight.shape[1:])


class NormalisedInhomogeneousKernel(InhomogeneousKernel):
    """`InhomogeneousKernel` with a softmax over the taps."""

    def kernels(self, x: Tensor) -> Tensor:
        """[B, H, W, G, K]."""
        return self.expand(self.hidden(x)).unflatten(3, (self.num_groups, -1)).softmax(-1)

    def forward(self, x: Tensor, connectivity: Sliding | Window) -> tuple[Tensor, Tensor]:
        return x, self.kernels(x)


def _start(weight: Tensor, sharing: Sharing) -> None:
    """The start of `nn.Conv2d` and `nn.Linear`: uniform within one over the square root of what is summed."""
    bound = sharing.num_taps**-0.5
    nn.init.uniform_(weight, -bound, bound)
