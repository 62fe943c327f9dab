"""The connections of a mixer as a matrix: the Jacobian of the layer, its weights held."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from localmix import arguments
from localmix.layers import Mixer


class Held(nn.Module):
    """A source whose weights are those of one map, whatever map it is given; that one is the values.

    It answers for the sources of `localmix.layers`, so that a layer runs the operator that it always runs.
    """

    source: Any

    def __init__(self, source: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.source, self.x = source, x

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.source, name)

    def kernels(self, values: Tensor) -> Tensor:
        """As `HomogeneousKernel.kernels`."""
        return self.source.kernels(self.x)

    def matrices(self, values: Tensor) -> Tensor:
        """As `SharedSource.matrices`."""
        return self.source.matrices(self.x)

    def hidden(self, values: Tensor) -> Tensor:
        """As `InhomogeneousKernel.hidden`."""
        return self.source.hidden(self.x)

    def project(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `DotProduct.project`."""
        query, key, _ = self.source.project(self.x)
        return query, key, values.reshape(query.shape)

    def forward(self, values: Tensor, connectivity: Any) -> tuple[Tensor, Tensor]:
        return values, self.source(self.x, connectivity)[1]


def held(mixer: Mixer, x: Tensor) -> Mixer:
    """The layer as a linear function of the values: with the weights of x [B, H, W, C], nothing behind the sum."""
    layer = copy.deepcopy(mixer)
    layer.source, layer.output = Held(layer.source, mixer.connectivity.pad(x).detach()), nn.Identity()
    return layer


def connection_matrix(mixer: Mixer, x: Tensor, channel: int = 0) -> Tensor:
    """The weights that a mixer connects the positions of a map with, in one channel.

        matrix[i, j] = d y[i, c] / d v[j, c]

    where y is what the layer sums up and v the values that it sums, its weights held at those that x gives. It is
    measured: the layer runs as it does in its network, and is differentiated.

    Args:
        mixer: the layer.
        x: one map, [1, H, W, C].
        channel: c.

    Returns:
        [H * W, H * W]: output position, input position, counted row by row; NaN where nothing connects the two.

    Raises:
        ValueError: x is not one map of the layer's channels, or has no such channel.

    >>> from localmix.layers import DepthwiseConv
    >>> connection_matrix(DepthwiseConv(1, kernel_size=(1, 3)), torch.randn(1, 1, 4, 1)).isnan().int()
    tensor([[0, 0, 1, 1],
            [0, 0, 0, 1],
            [1, 0, 0, 0],
            [1, 1, 0, 0]], dtype=torch.int32)
    """
    arguments.tensor("x", x, "1 H W C")
    arguments.sizes("x", x, ((1,), (None,), (None,), (mixer.dim,)), lambda: f"[1, H, W, {mixer.dim}]")
    if not 0 <= channel < mixer.dim:
        raise ValueError(f"channel: expected one of 0 ... {mixer.dim - 1}, got {channel}")
    with torch.enable_grad():
        values = torch.zeros_like(x).requires_grad_()  # of a linear function any will do
        y = held(mixer, x)(values)[0, :, :, channel].flatten()
        rows = [torch.autograd.grad(unit, values, retain_graph=True)[0][0, :, :, channel].flatten() for unit in y]
    matrix = torch.stack(rows)
    return torch.where(matrix == 0, torch.nan, matrix)


def ranks(matrix: np.ndarray) -> np.ndarray:
    """Each weight's rank among the distinct weights of the matrix, from 0 to 1; NaN stays NaN.

    So equal weights are equal, and all others differ however small they are.

    >>> ranks(np.array([[-3.0, np.nan], [0.5, -3.0]])).tolist()
    [[0.0, nan], [1.0, 0.0]]
    """
    connected = ~np.isnan(matrix)
    ranked = np.full(matrix.shape, np.nan)
    if connected.any():
        weights = matrix[connected]
        # a Jacobian repeats a shared weight up to rounding
        places = np.unique((weights / np.abs(weights).max()).round(6), return_inverse=True)[1].reshape(-1)
        ranked[connected] = places / max(places.max(), 1)
    return ranked
