"""The picture of a confusion matrix, for a handful of classes and for a thousand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

NAMED = 32
"""So many classes are named at the axes; of more, the numbers are, and the pairs most often confused stand beside."""
NUMBERED = 16
"""Of so many classes each cell says its share."""
OTHER = "another class"


def draw(
    confusion: Sequence[tuple[int, int, int]], names: Sequence[str], file: IO[bytes], *, title: str, note: str
) -> None:
    """Draw (label, prediction, images) as a PNG: the share of each label's images that got a prediction.

    Only classes that have images get a row and a column; predictions of others, and answers that are not finite (-1),
    are summed in a last column.
    """
    present = sorted({label for label, _, _ in confusion})
    shares = _shares(confusion, present)
    labels = [names[label] for label in present]
    large = len(present) > NAMED
    side = 11.0 if large else max(4.0, 0.42 * len(present) + 1.0)
    figure = Figure(figsize=(side + (5.5 if large else 2.8), side + 0.9), dpi=150, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    grid = figure.subplots(1, 2 if large else 1, squeeze=False, width_ratios=(3, 1) if large else None)[0]
    axes = grid[0]
    # small shares are what is to be seen, and of many classes in a pixel each: a power brings them out
    norm = PowerNorm(0.2 if large else 0.4, 0, 100)
    picture = axes.imshow(100 * shares, cmap="Blues", norm=norm, interpolation="nearest")
    axes.set_xlabel("prediction")
    axes.set_ylabel("label")
    if large:
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(10, integer=True))
        _pairs(grid[1], confusion, names)
    else:
        columns = [*labels, OTHER][: shares.shape[1]]
        axes.set_xticks(
            range(len(columns)), [_short(n) for n in columns], rotation=60, ha="right", rotation_mode="anchor"
        )
        axes.set_yticks(range(len(labels)), [_short(name) for name in labels])
        axes.tick_params(labelsize=8)
    if len(present) <= NUMBERED:
        _numbers(axes, shares)
    bar = figure.colorbar(picture, ax=axes, ticks=[0, 1, 5, 20, 50, 100], fraction=0.046, pad=0.02)
    bar.set_label("% of the images of the label")
    figure.suptitle(f"{title}: {note}", fontsize=12, fontweight="bold")
    canvas.print_png(file)


def _shares(confusion: Sequence[tuple[int, int, int]], present: Sequence[int]) -> np.ndarray:
    place = {label: index for index, label in enumerate(present)}
    counts = np.zeros((len(present), len(present) + 1))
    for label, guess, number in confusion:
        counts[place[label], place.get(guess, len(present))] += number
    counts = counts if counts[:, -1].any() else counts[:, :-1]
    return counts / counts.sum(axis=1, keepdims=True)


def _numbers(axes: Axes, shares: np.ndarray) -> None:
    for (row, column), share in np.ndenumerate(shares):
        if share:
            # as the cells are coloured: dark from about a quarter on
            colour = "white" if share > 0.25 else "black"
            text = f"{100 * share:.0f}" if share >= 0.01 else "<1"
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)


def _pairs(axes: Axes, confusion: Sequence[tuple[int, int, int]], names: Sequence[str], count: int = 25) -> None:
    """The pairs that are confused most often, in images."""
    mistakes = [row for row in confusion if row[0] != row[1] and row[1] >= 0]
    worst = sorted(mistakes, key=lambda row: (-row[2], row[0], row[1]))[:count]
    axes.barh(range(len(worst)), [number for _, _, number in worst], color="#9ECAE1", height=0.8)
    for place, (label, guess, number) in enumerate(worst):
        text = f" {number}  {_short(names[label])} → {_short(names[guess])}"
        axes.text(0, place, text, va="center", fontsize=7)
    axes.set_ylim(max(count, 1) - 0.5, -0.5)
    axes.set_title("most often confused [images]", fontsize=9, loc="left")
    axes.set_axis_off()


def _short(name: str, length: int = 24) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"
