"""Draws what the paper claims: six mixers, one equation, six patterns of connection weights.

Each panel is the matrix w[i, j] of one channel on a small map: row i is an output position, column j an input position,
white is no connection and the colour is the weight, by its rank among those of the panel: equal colours are equal
weights. The matrices are Jacobians of the real layers, with random parameters and a random map.

    python examples/connection_matrices.py docs/figures/mixers.png
"""

from __future__ import annotations

import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

from localmix import layers
from localmix.axes import MIXERS
from localmix.reports.explanation.jacobian import connection_matrix, ranks

SIDE, DIM = 6, 8


def mixers() -> dict[str, layers.Mixer]:
    """One layer of each kind, with a kernel or window of 3 x 3."""
    return {
        "depthwise_convolution": layers.DepthwiseConv(DIM, kernel_size=3),
        "homogeneous_convolution": layers.HomogeneousDynamicConv(DIM, kernel_size=3),
        "inhomogeneous_convolution": layers.InhomogeneousDynamicConv(DIM, kernel_size=3, num_groups=2),
        "window_attention": layers.WindowAttention(DIM, window_size=3, num_heads=2),
        "neighborhood_attention": layers.NeighborhoodAttention(DIM, kernel_size=3, num_heads=2),
        "local_mlp": layers.LocalMLP(DIM, window_size=3, num_groups=2),
    }


def main(path: str) -> None:
    """Draws the six panels into `path`."""
    torch.manual_seed(3)
    x = torch.randn(2, SIDE, SIDE, DIM)
    figure, axes = plt.subplots(2, 3, figsize=(11.5, 9.4), layout="constrained")
    figure.get_layout_engine().set(hspace=0.06, wspace=0.06)
    figure.suptitle(r"One equation, six mixers:   $y[i,c] = \sum_{j \in N(i)}\ w[i,j,c]\; x[j,c]$", fontsize=15, y=1.04)
    colours = matplotlib.colormaps["viridis"].with_extremes(bad="white")
    for panel, (name, mixer) in zip(axes.flat, mixers().items(), strict=True):
        row = MIXERS[name]
        for parameter in mixer.source.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5 * 2)
        matrix = connection_matrix(mixer.eval(), x[:1]).numpy()
        panel.imshow(ranks(matrix), cmap=colours, interpolation="nearest")
        panel.set_title(row.title, fontsize=11.5, fontweight="bold")
        panel.set_xticks([])
        panel.set_yticks([])
        panel.set_xlabel(
            f"connects: {row.connectivity.value}\n"
            f"shared over positions: {row.sharing_positions.value}\n"
            f"shared over channels: {row.sharing_channels.value}\n"
            f"from {row.dynamics.value.replace(' of the position with its neighborhood', '')}",
            fontsize=9.5,
        )
    axes[0, 0].set_ylabel("output position i", fontsize=9)
    axes[1, 0].set_ylabel("output position i", fontsize=9)
    figure.savefig(path, dpi=100, bbox_inches="tight")
    print(f"wrote {path}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "mixers.png")
