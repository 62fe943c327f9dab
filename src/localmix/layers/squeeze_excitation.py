"""Squeeze-and-excitation: a factor per image and channel, on top of a mixer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from localmix import arguments
from localmix.layers.activation import relu
from localmix.layers.channels_last import Pointwise


class SqueezeExcitation(nn.Module):
    """y = x * sigmoid(W2 relu(W1 mean_i x[i] + b1) + b2), a factor per image and channel. [B, H, W, C] -> same.

    Args:
        dim: channels C.
        ratio: hidden channels over C; at least one is kept.

    Raises:
        ValueError: a ratio that is not above 0, or an input that is not [B, H, W, dim].

    Source: Squeeze-and-Excitation Networks, section 3.

    >>> SqueezeExcitation(8)(torch.rand(2, 5, 6, 8)).shape
    torch.Size([2, 5, 6, 8])
    """

    def __init__(self, dim: int, *, ratio: float = 0.25) -> None:
        super().__init__()
        self.dim = arguments.positive("dim", dim)
        if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not ratio > 0:
            raise ValueError(f"ratio: expected a number above 0, got {ratio!r}")
        hidden = max(1, int(dim * ratio))
        self.reduce = Pointwise(dim, hidden)
        self.expand = Pointwise(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        arguments.tensor("x", x, "B H W C")
        arguments.sizes("x", x, ((None,), (None,), (None,), (self.dim,)), lambda: f"[B, H, W, {self.dim}]")
        factor = torch.sigmoid(self.expand(relu(self.reduce(x.mean((1, 2), keepdim=True)), self.reduce)))
        return x * factor.to(x.dtype)
