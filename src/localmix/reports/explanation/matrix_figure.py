"""Connection matrices of layers: which positions connect, and which weights are equal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps

from localmix.reports.explanation.grid import SMALL, bare, grid, png
from localmix.reports.explanation.jacobian import ranks


def draw(columns: Sequence[str], rows: Sequence[tuple[str, Sequence[np.ndarray]]], *, title: str, note: str) -> bytes:
    """A PNG: a row for each layer, a panel for each network.

    Args:
        columns: what each network is called.
        rows: name of each layer, and its matrix in each network: NaN where nothing connects.
    """
    figure, axes = grid([name for name, _ in rows], columns, title=title, note=note)
    colours = colormaps["viridis"].with_extremes(bad="white")
    for line, (_, matrices) in zip(axes, rows, strict=True):
        for panel, matrix in zip(line, matrices, strict=True):
            picture = panel.imshow(ranks(matrix), cmap=colours, vmin=0, vmax=1, interpolation="nearest")
            bare(panel)
    for panel in axes[-1]:
        panel.set_xlabel("input position j", fontsize=SMALL - 1)
    for (name, _), panel in zip(rows, axes[:, 0], strict=True):
        panel.set_ylabel(f"{name}\noutput position i", fontsize=SMALL)
    bar = figure.colorbar(picture, ax=axes, orientation="horizontal", ticks=[0, 1], shrink=0.3, aspect=30, pad=0.02)
    bar.set_ticklabels(["lowest", "highest"], fontsize=SMALL)
    bar.set_label("weight, by its rank in the panel", fontsize=SMALL)
    return png(figure)
