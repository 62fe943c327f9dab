"""The equation and its six mixers, as definitions in plain PyTorch.

Any device and dtype, differentiable twice, channels-last. They gather K inputs for every position, so they are the
specification and never the fast path: for speed call the same names in `localmix.kernels`.
"""

from localmix.functional.aggregate import aggregate
from localmix.functional.mixers import (
    depthwise_convolution,
    homogeneous_convolution,
    inhomogeneous_convolution,
    local_mlp,
    neighborhood_attention,
    projected_inhomogeneous_convolution,
    window_attention,
)
from localmix.functional.neighborhood import NO_INPUT, sliding, window
from localmix.functional.weight import neighborhood_products, relative_position_bias

__all__ = [
    "NO_INPUT",
    "aggregate",
    "depthwise_convolution",
    "homogeneous_convolution",
    "inhomogeneous_convolution",
    "local_mlp",
    "neighborhood_attention",
    "neighborhood_products",
    "projected_inhomogeneous_convolution",
    "relative_position_bias",
    "sliding",
    "window",
    "window_attention",
]
