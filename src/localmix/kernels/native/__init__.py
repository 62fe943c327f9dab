"""CPU kernels in C++: weights that all positions share, weights of their own, and softmax of dot products; see csrc/.

They are compiled when the package is installed, if a compiler is there.
"""

from __future__ import annotations

from torch import Tensor

from localmix.exporting import reason_for_plain_operators
from localmix.kernels.native import library
from localmix.kernels.native.activation import gelu_
from localmix.kernels.native.library import MISSING, description, is_amd
from localmix.kernels.native.local_products import neighborhood_products
from localmix.kernels.native.local_weight import inhomogeneous_convolution, projected_inhomogeneous_convolution
from localmix.kernels.native.pairwise_weight import neighborhood_attention, window_attention
from localmix.kernels.native.shared_weight import depthwise_convolution, homogeneous_convolution
from localmix.kernels.native.window_weight import local_mlp

__all__ = [
    "MISSING",
    "depthwise_convolution",
    "description",
    "gelu_",
    "homogeneous_convolution",
    "inhomogeneous_convolution",
    "is_amd",
    "local_mlp",
    "neighborhood_attention",
    "neighborhood_products",
    "projected_inhomogeneous_convolution",
    "refusal",
    "window_attention",
]


def refusal(x: Tensor, named: bool) -> str | None:
    """Why the kernels cannot serve a call on x, named or not; None if they can."""
    if x.device.type != "cpu":
        return f"it runs on the CPU and x is on {x.device}"
    if x.dtype not in library.TYPES:
        return f"it has float32, bfloat16 and float16 and x has {x.dtype}"
    return reason_for_plain_operators() or library.MISSING
