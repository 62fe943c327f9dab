"""The weights that mixers really used in a forward pass, layer by layer and position by position."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from localmix.functional import NO_INPUT
from localmix.layers import Mixer


@dataclass(frozen=True)
class Used:
    """What one mixer used in one forward pass.

        result = unpad(output(aggregate(value, weight, neighborhood) + offset))

    Args:
        name: of the layer in its network.
        mixer: the layer.
        inputs: the map that it was given, [B, H, W, C].
        result: the map that it gave, [B, H, W, C].
        value: what was mixed, [B, H', W', C]; H' = H unless the layer pads its map.
        weight: [B|1, H'|1, W'|1, G, K].
        neighborhood: int64 [H', W', K].
        place: int64 [H', W'], the position of the map that stands there; `NO_INPUT` for padding.
    """

    name: str
    mixer: Mixer
    inputs: Tensor
    result: Tensor
    value: Tensor
    weight: Tensor
    neighborhood: Tensor
    place: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """H, W of the map [positions]."""
        return self.inputs.shape[1], self.inputs.shape[2]

    @property
    def num_groups(self) -> int:
        """G: groups of channels with weights of their own."""
        return self.weight.shape[3]

    @property
    def is_normalised(self) -> bool:
        """Whether the weights of each position are shares: none is negative and they sum to one."""
        sums = self.weight.sum(-1)
        return bool((self.weight >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3)

    def at(self, row: int, column: int, image: int = 0) -> tuple[Tensor, Tensor]:
        """The weights [G, K] of one position, and the position of the map that each tap reads: int64 [K].

        Positions are counted row by row; a tap that reads nothing, or padding, has `NO_INPUT`.

        Raises:
            ValueError: a position outside of the map.
        """
        height, width = self.size
        if not (0 <= row < height and 0 <= column < width):
            raise ValueError(f"position: expected one within a map of {height} x {width}, got {row}, {column}")
        (i,), (j,) = torch.nonzero(self.place == row * width + column, as_tuple=True)
        weight = self.weight.expand(-1, *self.place.shape, -1, -1)
        taps = self.neighborhood[i, j]
        places = torch.where(taps == NO_INPUT, NO_INPUT, self.place.flatten()[taps])
        return weight[image if weight.shape[0] > 1 else 0, i, j], places

    def on_map(self, row: int, column: int, group: int | None = None, image: int = 0) -> Tensor:
        """The weights of one position, each where it reads: [H, W], NaN where the position does not look.

        Args:
            group: of channels; None for the mean over the groups.
        """
        weight, places = self.at(row, column, image)
        chosen = weight.mean(0) if group is None else weight[group]
        reads = places != NO_INPUT
        laid = torch.full((self.size[0] * self.size[1],), torch.nan, dtype=weight.dtype, device=weight.device)
        laid[places[reads]] = chosen[reads]
        return laid.view(self.size)


def mixers(net: nn.Module) -> dict[str, Mixer]:
    """The local mixers of a network by their names, in the order of `named_modules`."""
    return {name: module for name, module in net.named_modules() if isinstance(module, Mixer)}


@contextmanager
def watch(
    net: nn.Module, visit: Callable[[Used], Any], names: Collection[str] | None = None
) -> Generator[None, None, None]:
    """Calls `visit` with what each mixer (of those names) uses, in each forward pass within the context.

    The weights are worked out by the layer's own source from the map that reached it. They are seen by `visit` alone:
    networks write over maps that they need no more, so what is to outlive the visit has to be copied.
    """

    def hook(name: str) -> Callable[..., None]:
        def look(mixer: Any, inputs: tuple[Tensor], result: Tensor) -> None:
            visit(used(name, mixer, inputs[0], result))

        return look

    handles = [
        mixer.register_forward_hook(hook(name)) for name, mixer in mixers(net).items() if names is None or name in names
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def used(name: str, mixer: Mixer, inputs: Tensor, result: Tensor) -> Used:
    """What `mixer` used to make `result` of `inputs`."""
    with torch.no_grad():
        padded = mixer.connectivity.pad(inputs)
        value, weight = mixer.source(padded, mixer.connectivity)
        neighborhood = mixer.connectivity.neighborhood(padded.shape[1], padded.shape[2], inputs.device)
    return Used(name, mixer, inputs, result, value, weight, neighborhood, places(mixer, *inputs.shape[1:3], inputs))


def places(mixer: Mixer, height: int, width: int, like: Tensor) -> Tensor:
    """Which position of a map stands where once the layer has padded it: int64 [H', W']."""
    # counted from one, since the zeros that are padded must be none of them
    index = torch.arange(1, height * width + 1, device=like.device).view(1, height, width, 1)
    return mixer.connectivity.pad(index)[0, :, :, 0] - 1
