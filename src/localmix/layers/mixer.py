"""A connectivity plus a source of weights: the layer of the paper in general."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from localmix import arguments
from localmix.functional import aggregate
from localmix.layers.connectivity import Sliding, Window


class Mixer(nn.Module):
    """Any mixer, by the definition: y = output(aggregate(value(x), weight(x), neighborhood) + bias).

    Args:
        dim: channels C.
        connectivity: which positions connect.
        source: where the weights come from; see `localmix.layers.source`.
        output: what follows the sum, such as the output projection of an attention; nothing if not given.

    Shapes: [B, H, W, C] -> [B, H, W, C].

    Raises:
        ValueError: an input that is not [B, H, W, dim].

    >>> import torch
    >>> from localmix.layers import InhomogeneousKernel
    >>> pooled = Mixer(8, Sliding(3, border="clamp"), InhomogeneousKernel(8, num_groups=2, num_taps=9))
    >>> pooled(torch.rand(1, 5, 6, 8)).shape
    torch.Size([1, 5, 6, 8])
    """

    bias: nn.Parameter | None

    def __init__(
        self, dim: int, connectivity: Sliding | Window, source: nn.Module, output: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.dim = arguments.positive("dim", dim)
        self.connectivity = connectivity
        self.source = source
        self.output = nn.Identity() if output is None else output
        self.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        return self._bordered(x, self.mix)

    def definition(self, x: Tensor) -> Tensor:
        """The same by the equation, whatever fast operator `forward` calls."""
        return self._bordered(x, lambda padded: Mixer.mix(self, padded))

    def mix(self, x: Tensor) -> Tensor:
        """The mixer on a map that the border has been added to."""
        value, weight = self.source(x, self.connectivity)
        y = aggregate(value, weight, self.connectivity.neighborhood(x.shape[1], x.shape[2], x.device))
        offset = self.offset(x.shape[1], x.shape[2])
        return self.output(y if offset is None else y + offset)

    def offset(self, height: int, width: int) -> Tensor | None:
        """What is added to the sum: the bias, which broadcasts to [B, H, W, C]."""
        return self.bias

    def _bordered(self, x: Tensor, mix: Callable[[Tensor], Tensor]) -> Tensor:
        arguments.tensor("x", x, "B H W C")
        arguments.sizes("x", x, ((None,), (None,), (None,), (self.dim,)), lambda: f"[B, H, W, {self.dim}]")
        return self.connectivity.unpad(mix(self.connectivity.pad(x)), x.shape[1], x.shape[2])
