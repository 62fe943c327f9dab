"""A mixer of your own: by the definition, by a fast operator, in the networks of the paper and in every command.

    python examples/own_mixer.py                                                    # builds it and checks it
    python examples/own_mixer.py compare --models gaussian_nano dwnet_nano          # any command of localmix
    python examples/own_mixer.py fit --model.name gaussian_nano --data.root DIR

What follows the file is what follows `localmix`; the network is known to it because this file registers it.
"""

from __future__ import annotations

import sys
from typing import Any

import timm
import torch
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from localmix import kernels
from localmix.cli import main
from localmix.layers import Mixer, Sliding
from localmix.models import DWNetBlock, Hierarchy
from localmix.models.registry import build, pretrained_cfg


class Gaussian(nn.Module):
    """A source of weights: a Gaussian around the position, whose width each group of channels learns."""

    squares: Tensor

    def __init__(self, *, num_groups: int, kernel_size: int) -> None:
        super().__init__()
        self.log_width = nn.Parameter(torch.zeros(num_groups))
        offset = torch.arange(kernel_size) - kernel_size // 2
        self.register_buffer("squares", (offset[:, None] ** 2 + offset**2).flatten().float(), persistent=False)

    def kernels(self) -> Tensor:
        """[G, K], positive and of sum one."""
        return (-self.squares / (2 * self.log_width[:, None].exp() ** 2)).softmax(-1)

    def forward(self, x: Tensor, connectivity: Sliding) -> tuple[Tensor, Tensor]:
        """What is mixed, and the weight of the equation: [B|1, H|1, W|1, G, K], here static and shared by positions."""
        return x, self.kernels()[None, None, None]


class GaussianConv(Mixer):
    """That source with a kernel that slides. Without `mix` it would be computed by the definition."""

    connectivity: Sliding
    source: Gaussian

    def __init__(self, dim: int, *, num_groups: int, kernel_size: int = 7) -> None:
        super().__init__(dim, Sliding(kernel_size), Gaussian(num_groups=num_groups, kernel_size=kernel_size))

    def mix(self, x: Tensor) -> Tensor:
        """The same by the operator that takes weights of this shape."""
        of_groups = self.source.kernels()
        per_channel = of_groups.repeat_interleave(self.dim // len(of_groups), 0)
        return kernels.depthwise_convolution(x, per_channel.unflatten(1, self.connectivity.kernel_size))


default_cfgs = generate_default_cfgs({"gaussian_nano": pretrained_cfg("gaussian_nano")})


@register_model
def gaussian_nano(pretrained: bool = False, **kwargs: Any) -> Hierarchy:
    """The skeleton of `dwnet_nano` around it; the last word of the name is the size: nano, tiny, small or base."""
    return build(
        "gaussian_nano", lambda dim, stage, index: GaussianConv(dim, num_groups=8), DWNetBlock, pretrained, **kwargs
    )


def check() -> None:
    """The operator gives what the equation gives, in values and gradients; and the network runs."""
    mixer, x = GaussianConv(24, num_groups=8), torch.randn(2, 9, 14, 24)
    results = []
    for way in (mixer, mixer.definition):
        y = way(x)
        results.append((y, *torch.autograd.grad(y.square().sum(), mixer.source.log_width)))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
    print("output and gradient are those of the equation")
    net = timm.create_model("gaussian_nano", num_classes=10).eval()
    parameters, logits = sum(p.numel() for p in net.parameters()), net(torch.randn(1, 3, 64, 64))
    print(f"gaussian_nano: {parameters:,} parameters, logits {tuple(logits.shape)}")


# Commands that train several nets do so in processes of their own, which import this file.
if __name__ == "__main__":
    if sys.argv[1:]:
        sys.exit(main())
    check()
