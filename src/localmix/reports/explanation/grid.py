"""The grid that the pictures of several networks share: a column for each network, a row for each layer."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

PANEL = 1.75
"""Width of a panel [inches]; six of them and the text beside them fill a page."""
SMALL, NORMAL = 9.0, 10.0
"""Sizes of type [points]."""


def grid(
    rows: Sequence[str], columns: Sequence[str], *, title: str, note: str, foot: float = 0.0, **options: Any
) -> tuple[Figure, np.ndarray]:
    """A figure and its axes [row, column], each row and column with its name.

    Args:
        foot: place for a colour bar below [inches].
        options: of `Figure.subplots`.
    """
    count = len(columns)
    # few panels are larger, so that the title finds its place
    side = max(PANEL, min(2.6, 6.2 / count))
    lines = 1 + max(name.count("\n") for name in columns) + note.count("\n") + 2
    figure = Figure(
        figsize=(side * count + 0.6, (side + 0.25) * len(rows) + 0.19 * lines + 0.35 + foot),
        dpi=150,
        layout="constrained",
    )
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.04, wspace=0.02, hspace=0.02)  # ty: ignore[unresolved-attribute]
    axes = figure.subplots(len(rows), count, squeeze=False, **options)
    figure.suptitle(f"{title}\n", fontsize=NORMAL + 1.5, fontweight="bold")
    # the empty line of the title holds its place
    figure.text(0.5, 1 - 0.33 / figure.get_figheight(), note, ha="center", va="top", fontsize=SMALL, color="#444444")
    for name, panel in zip(columns, axes[0], strict=True):
        head, _, rest = name.partition("\n")
        panel.set_title(rest or head, fontsize=SMALL)
        if rest:
            panel.annotate(
                head,
                (0.5, 1),
                (0, 6 + (rest.count("\n") + 1) * SMALL * 1.2),
                xycoords="axes fraction",
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=SMALL,
                fontweight="bold",
            )
    for name, panel in zip(rows, axes[:, 0], strict=True):
        panel.set_ylabel(name, fontsize=SMALL)
    return figure, axes


def bare(panel: Axes) -> None:
    """No ticks, a thin frame."""
    panel.set_xticks([])
    panel.set_yticks([])
    for spine in panel.spines.values():
        spine.set(linewidth=0.6, color="#666666")


def png(figure: Figure) -> bytes:
    """The figure as the content of a file."""
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file)
    return file.getvalue()


def two_lines(name: str, title: str, is_random: bool) -> str:
    """Name of a column: the network, and below it what its mixers are and whether it is untrained."""
    words, lines, line = title.split(), [], ""
    for word in words:
        if line and len(line) + len(word) > 16:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    return "\n".join(filter(None, [name, *lines, line, "random weights" if is_random else ""]))
