"""Weights laid over the image: what a position took from where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle

from localmix.reports.explanation.grid import SMALL, bare, grid, layout, pixels, png

FREE, SHARES = "RdBu_r", "viridis"
"""Colours of weights that may be negative, centred at zero, and of weights that sum to one: both for all eyes."""
OPACITY = 0.75


@dataclass(frozen=True)
class Laid:
    """The weights of one position of one layer.

    Args:
        weight: [H, W] of the layer's map, NaN where the position does not look.
        place: row and column of the position.
        step: pixels that a position of the map stands for, down and across.
        is_normalised: the weights are shares.
    """

    weight: np.ndarray
    place: tuple[int, int]
    step: tuple[float, float]
    is_normalised: bool

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom of where the position looks [pixels]."""
        rows, columns = np.nonzero(~np.isnan(self.weight))
        return (
            columns.min() * self.step[1],
            rows.min() * self.step[0],
            (columns.max() + 1) * self.step[1],
            (rows.max() + 1) * self.step[0],
        )

    @property
    def largest(self) -> float:
        """The largest weight by its size."""
        return float(np.nanmax(np.abs(self.weight)))

    def facts(self) -> dict[str, Any]:
        """For results: the weights, row by row over the box that the position looks at [pixels]; null outside."""
        rows, columns = np.nonzero(~np.isnan(self.weight))
        within = self.weight[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        return {
            "map": list(self.weight.shape),
            "row": self.place[0],
            "column": self.place[1],
            "box": [float(side) for side in self.box],
            "normalised": self.is_normalised,
            "weight": [[float(value) for value in line] for line in within],
        }


def draw(
    pictures: Sequence[np.ndarray],
    columns: Sequence[str],
    rows: Sequence[tuple[str, Sequence[Laid]]],
    pixel: tuple[float, float],
    *,
    title: str,
    note: str,
) -> bytes:
    """A PNG: a row for each layer, with the whole image in front and a panel for each network.

    Args:
        pictures: what each network sees, uint8 [H, W, 3].
        columns: what each network is called.
        rows: name of each layer, and its weights in each network.
        pixel: x, y of the position.
    """
    figure, axes = grid(
        [name for name, _ in rows], ["*the image\nx, y [pixels]", *columns], title=title, note=note, foot=0.85
    )
    height, width = pictures[0].shape[:2]
    for number, (line, (_, laid)) in enumerate(zip(axes, rows, strict=True), 1):
        box = _around(laid, width, height)
        _whole(line[0], pictures[0], pixel, box)
        pixels(line[0], height, width, left=True, bottom=number == len(rows))
        for panel, picture, weights in zip(line[1:], pictures, laid, strict=True):
            _panel(panel, picture, weights, box)
    kinds = {weights.is_normalised for _, laid in rows for weights in laid}
    bars = [
        (FREE, (-1.0, 1.0), ("−max", "0", "+max"), "free weights")
        if not normalised
        else (SHARES, (0.0, 1.0), ("0", "", "max"), "softmax weights")
        for normalised in sorted(kinds)
    ]
    for index, (colours, limits, labels, name) in enumerate(bars):
        mappable = ScalarMappable(Normalize(*limits), colormaps[colours])
        middle = (index + 0.5) / len(bars)
        place = figure.add_axes((middle - 0.14, 0.42 / figure.get_figheight(), 0.28, 0.11 / figure.get_figheight()))
        place.set_in_layout(False)
        ticks = [limits[0], (limits[0] + limits[1]) / 2, limits[1]]
        bar: Any = figure.colorbar(mappable, cax=place, orientation="horizontal", ticks=ticks)
        bar.set_ticklabels(labels, fontsize=SMALL)
        bar.solids.set_alpha(OPACITY)
        place.set_title(f"{name}; max stands below each panel", fontsize=SMALL, pad=3)
    layout(figure, rect=(0, 0.85 / figure.get_figheight(), 1, 1 - 0.85 / figure.get_figheight()))
    return png(figure)


def _whole(panel: Axes, picture: np.ndarray, pixel: tuple[float, float], box: tuple[float, ...]) -> None:
    height, width = picture.shape[:2]
    panel.imshow(picture, extent=(0, width, height, 0), interpolation="nearest")
    left, top, right, bottom = box
    for colour, thickness in (("white", 2.4), ("#D55E00", 1.2)):
        panel.add_patch(
            Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=thickness)
        )
        panel.plot(*pixel, marker="+", color=colour, markersize=7, markeredgewidth=thickness)
    panel.set_xlim(0, width)
    panel.set_ylim(height, 0)


def _panel(panel: Axes, picture: np.ndarray, laid: Laid, box: tuple[float, ...]) -> None:
    height, width = picture.shape[:2]
    # paler than it is, so that colours are told apart on dark places too
    grey = 255 - (255 - picture.mean(2)) * 0.42
    panel.imshow(grey, cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0), interpolation="nearest")
    top = laid.largest or 1.0
    colours, low = (SHARES, 0.0) if laid.is_normalised else (FREE, -top)
    rows, columns = laid.weight.shape
    extent = (0, columns * laid.step[1], rows * laid.step[0], 0)
    panel.imshow(
        np.ma.masked_invalid(laid.weight),
        cmap=colours,
        vmin=low,
        vmax=top,
        extent=extent,
        interpolation="nearest",
        alpha=OPACITY,
    )
    left, upper, right, lower = laid.box
    panel.add_patch(Rectangle((left, upper), right - left, lower - upper, fill=False, edgecolor="black", linewidth=0.8))
    row, column = laid.place
    corner = (column * laid.step[1], row * laid.step[0])
    for colour, thickness in (("white", 2.4), ("black", 1.1)):
        panel.add_patch(
            Rectangle(corner, laid.step[1], laid.step[0], fill=False, edgecolor=colour, linewidth=thickness)
        )
    panel.set_xlim(box[0], box[2])
    panel.set_ylim(box[3], box[1])
    bare(panel)
    panel.set_xlabel(f"max {laid.largest:.2g}", fontsize=SMALL - 1, labelpad=2)


def _around(laid: Sequence[Laid], width: int, height: int) -> tuple[float, float, float, float]:
    """A square that holds where all of them look, and a margin, as far as there is an image or a map."""
    boxes = np.array([weights.box for weights in laid])
    margin = max(max(weights.step) for weights in laid)
    left, top = boxes[:, :2].min(0) - margin
    right, bottom = boxes[:, 2:].max(0) + margin
    side = max(right - left, bottom - top)
    # a map may reach beyond the image, which the patches do not divide
    x = _slide((left + right) / 2, side, max(width, right - margin))
    y = _slide((top + bottom) / 2, side, max(height, bottom - margin))
    return x[0], y[0], x[1], y[1]


def _slide(middle: float, side: float, size: float) -> tuple[float, float]:
    """An interval of that length around `middle`, moved into 0 ... size, or the whole of it."""
    if side >= size:
        return 0.0, size
    start = min(max(middle - side / 2, 0), size - side)
    return start, start + side
