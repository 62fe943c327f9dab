"""The six mixers as modules [B, H, W, C] -> [B, H, W, C], and the two parts each is composed of.

A mixer is a connectivity (`Sliding`, `Window`) plus a source of weights (`StaticKernel`, `HomogeneousKernel`,
`InhomogeneousKernel`, `StaticWindow`, `DotProduct`, `FreeDotProduct`). `Mixer` computes any such pair by the
definition; the six named layers are six pairs with a fast operator of their own, and `LocalMixer` is any of them by its
name.
"""

from localmix.layers.attention import NeighborhoodAttention, WindowAttention
from localmix.layers.connectivity import Sliding, Window
from localmix.layers.convolution import DepthwiseConv, HomogeneousDynamicConv, InhomogeneousDynamicConv
from localmix.layers.local_mixer import LocalMixer
from localmix.layers.local_mlp import LocalMLP
from localmix.layers.mixer import Mixer
from localmix.layers.shared_source import Mixture
from localmix.layers.source import (
    DotProduct,
    FreeDotProduct,
    HomogeneousKernel,
    InhomogeneousKernel,
    StaticKernel,
    StaticWindow,
)
from localmix.layers.squeeze_excitation import SqueezeExcitation

__all__ = [
    "DepthwiseConv",
    "DotProduct",
    "FreeDotProduct",
    "HomogeneousDynamicConv",
    "HomogeneousKernel",
    "InhomogeneousDynamicConv",
    "InhomogeneousKernel",
    "LocalMLP",
    "LocalMixer",
    "Mixer",
    "Mixture",
    "NeighborhoodAttention",
    "Sliding",
    "SqueezeExcitation",
    "StaticKernel",
    "StaticWindow",
    "Window",
    "WindowAttention",
]
