"""Local MLP: static local attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from localmix import arguments, kernels
from localmix.arguments import Size
from localmix.functional.neighborhood import window_slot
from localmix.layers.connectivity import Window
from localmix.layers.mixer import Mixer
from localmix.layers.source import StaticWindow


class LocalMLP(Mixer):
    """Local MLP: windows, own weights at each slot that all windows share, shared in groups of channels, static.

    Args:
        dim: channels C.
        num_groups: G; channels within a group share their weights.
        window_size: of the windows [positions].
        shift: where the first whole window begins [positions]; an axis that one window covers is not shifted.
        bias: adds a bias per group and slot.
        impl: see `localmix.kernels`.

    Source: section 3 of the paper, local MLP.

    >>> LocalMLP(8, num_groups=2, window_size=3, shift=1)(torch.rand(2, 5, 6, 8)).shape
    torch.Size([2, 5, 6, 8])
    """

    connectivity: Window
    source: StaticWindow

    def __init__(
        self,
        dim: int,
        *,
        num_groups: int,
        window_size: Size = 7,
        shift: Size = 0,
        bias: bool = True,
        impl: str = "auto",
    ) -> None:
        arguments.positive("dim", dim)
        arguments.divides("num_groups", num_groups, "dim", dim)
        connectivity = Window(window_size, shift)
        super().__init__(dim, connectivity, StaticWindow(num_groups, window_size=window_size))
        self.impl = impl
        if bias:
            bound = connectivity.num_taps**-0.5
            self.bias = nn.Parameter(torch.empty(num_groups, connectivity.num_taps).uniform_(-bound, bound))

    def mix(self, x: Tensor) -> Tensor:
        window_size, shift = self.connectivity.window_size, self.connectivity.shift_at(x.shape[1], x.shape[2])
        weight = self.source.weight
        return kernels.local_mlp(x, weight, self.bias, window_size=window_size, shift=shift, impl=self.impl)

    def offset(self, height: int, width: int) -> Tensor | None:
        return None if self.bias is None else bias_of_positions(self.bias, self.connectivity, self.dim, height, width)


def bias_of_positions(bias: Tensor, connectivity: Window, dim: int, height: int, width: int) -> Tensor:
    """A bias by group and slot, [G, N], at the positions of a map: [H, W, C]."""
    shift = connectivity.shift_at(height, width)
    slot = window_slot(height, width, connectivity.window_size, shift=shift, device=bias.device)
    return bias[:, slot].permute(1, 2, 0).repeat_interleave(dim // bias.shape[0], dim=2)
