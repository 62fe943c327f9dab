"""The paper as data: the three axes along which local mixers differ, and where each mixer stands on them.

    y[i, c] = sum over j in N(i) of  w[i, j, c] * x[j, c]

No channel mixes with another, and position i sees only its neighborhood N(i). Mixers differ in which positions connect,
over what the weights are shared, and how the weights are computed. A test reads this table against the Jacobians of
the layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Connectivity(Enum):
    """Axis 1: which positions connect."""

    SLIDING_ZERO = "sliding, zero border"
    SLIDING_CLAMPED = "sliding, clamped border"
    WINDOW = "window"


class Positions(Enum):
    """Axis 2a: sharing of weights over positions."""

    ALL = "all positions"
    WINDOWS = "all windows"
    NONE = "none"


class Channels(Enum):
    """Axis 2b: sharing of weights over channels."""

    NONE = "none"
    GROUP = "within a group"
    HEAD = "within a head"


class Dynamics(Enum):
    """Axis 3: where the weights come from."""

    STATIC = "a parameter"
    HOMOGENEOUS = "a two-layer map of the globally pooled feature"
    MIXTURE = "a mixture of parameters that the globally pooled feature chooses"
    INHOMOGENEOUS = "a two-layer map of the feature at the position"
    DOT_PRODUCT = "softmax of dot products of the position with its neighborhood"

    @property
    def is_dynamic(self) -> bool:
        return self is not Dynamics.STATIC


@dataclass(frozen=True)
class MixerRow:
    """One mixer: its place on the axes, and where its code is.

    `function` names it in `localmix.functional` and `localmix.kernels`, `layer` in `localmix.layers`, and `network` is
    the stem of its networks in `localmix.models`. `weight` is the shape of its weights in the one equation.
    """

    title: str
    connectivity: Connectivity
    sharing_positions: Positions
    sharing_channels: Channels
    dynamics: Dynamics
    weight: str
    equation: str
    function: str
    layer: str
    network: str


MIXERS: dict[str, MixerRow] = {
    row.function: row
    for row in (
        MixerRow(
            title="depth-wise convolution",
            connectivity=Connectivity.SLIDING_ZERO,
            sharing_positions=Positions.ALL,
            sharing_channels=Channels.NONE,
            dynamics=Dynamics.STATIC,
            weight="[1, 1, 1, C, K]",
            equation="y[i,c] = sum_k w[c,k] x[i+k,c]",
            function="depthwise_convolution",
            layer="DepthwiseConv",
            network="dwnet",
        ),
        MixerRow(
            title="homogeneous dynamic convolution",
            connectivity=Connectivity.SLIDING_ZERO,
            sharing_positions=Positions.ALL,
            sharing_channels=Channels.NONE,
            dynamics=Dynamics.HOMOGENEOUS,
            weight="[B, 1, 1, C, K]",
            equation="y[i,c] = sum_k w[c,k] x[i+k,c],  w = W2 relu(bn(W1 mean_j x[j]))",
            function="homogeneous_convolution",
            layer="HomogeneousDynamicConv",
            network="dynamic_dwnet",
        ),
        MixerRow(
            title="inhomogeneous dynamic convolution",
            connectivity=Connectivity.SLIDING_ZERO,
            sharing_positions=Positions.NONE,
            sharing_channels=Channels.GROUP,
            dynamics=Dynamics.INHOMOGENEOUS,
            weight="[B, H, W, G, K]",
            equation="y[i,c] = sum_k w[i,g(c),k] x[i+k,c],  w[i] = W2 relu(bn(W1 x[i]))",
            function="inhomogeneous_convolution",
            layer="InhomogeneousDynamicConv",
            network="i_dynamic_dwnet",
        ),
        MixerRow(
            title="window attention",
            connectivity=Connectivity.WINDOW,
            sharing_positions=Positions.NONE,
            sharing_channels=Channels.HEAD,
            dynamics=Dynamics.DOT_PRODUCT,
            weight="[B, H, W, heads, N]",
            equation="y[i,c] = sum_{j in window(i)} softmax_j(q[i].k[j] / sqrt(D) + b[i,j]) v[j,c]",
            function="window_attention",
            layer="WindowAttention",
            network="localswin",
        ),
        MixerRow(
            title="neighborhood attention",
            connectivity=Connectivity.SLIDING_CLAMPED,
            sharing_positions=Positions.NONE,
            sharing_channels=Channels.HEAD,
            dynamics=Dynamics.DOT_PRODUCT,
            weight="[B, H, W, heads, K]",
            equation="y[i,c] = sum_{j in N(i)} softmax_j(q[i].k[j] / sqrt(D) + b[j-i]) v[j,c]",
            function="neighborhood_attention",
            layer="NeighborhoodAttention",
            network="localnat",
        ),
        MixerRow(
            title="local MLP",
            connectivity=Connectivity.WINDOW,
            sharing_positions=Positions.WINDOWS,
            sharing_channels=Channels.GROUP,
            dynamics=Dynamics.STATIC,
            weight="[1, H, W, G, N]",
            equation="y[i,c] = sum_{j in window(i)} w[g(c),slot(i),slot(j)] x[j,c] + b[g(c),slot(i)]",
            function="local_mlp",
            layer="LocalMLP",
            network="localmlp",
        ),
    )
}
"""The six mixers by the name of their function."""
