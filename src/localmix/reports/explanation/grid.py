"""The grid that the pictures of several networks share: a column for each network, a row for each layer."""

from __future__ import annotations

import io
import re
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
    rows: Sequence[str], columns: Sequence[str], *, title: str, note: str, foot: float = 0.0
) -> tuple[Figure, np.ndarray]:
    """A figure and its axes [row, column], each row and column with its name.

    In the name of a column, lines that begin with * are bold.

    Args:
        foot: place for a colour bar below [inches].
    """
    count = len(columns)
    # few panels are larger, so that the title finds its place
    side = max(PANEL, min(2.6, 6.2 / count))
    heads = [name.split("\n") for name in columns]
    lines = max(map(len, heads))
    figure = Figure(
        figsize=(side * count + 0.6, (side + 0.3) * len(rows) + 0.16 * lines + 0.6 + foot),
        dpi=150,
        layout="constrained",
    )
    layout(figure, w_pad=0.03, h_pad=0.04, wspace=0.02, hspace=0.02)
    axes = figure.subplots(len(rows), count, squeeze=False)
    # the empty lines hold the place of the note
    figure.suptitle(f"{title}\n", fontsize=NORMAL + 1.5, fontweight="bold")
    figure.text(0.5, 1 - 0.27 / figure.get_figheight(), note, ha="center", va="top", fontsize=SMALL, color="#444444")
    for head, panel in zip(heads, axes[0], strict=True):
        # a title of one style holds the place of lines of two
        panel.set_title("\n".join(["x"] * lines), fontsize=SMALL, alpha=0)
        for number, line in enumerate(head):
            above = 6 + (lines - 1 - number) * SMALL * 1.25
            panel.annotate(
                line.lstrip("*"),
                (0.5, 1),
                (0, above),
                xycoords="axes fraction",
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=SMALL,
                fontweight="bold" if line.startswith("*") else "normal",
                annotation_clip=False,
            )
    for name, panel in zip(rows, axes[:, 0], strict=True):
        panel.set_ylabel(name, fontsize=SMALL)
    return figure, axes


def layout(figure: Figure, **settings: Any) -> None:
    """Settings of the constrained layout."""
    engine: Any = figure.get_layout_engine()
    engine.set(**settings)


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


def pixels(panel: Axes, height: int, width: int, *, left: bool, bottom: bool) -> None:
    """Ticks at the ends of an image, named where the panel stands at the left or at the bottom of the grid."""
    panel.set_xticks([0, width], labels=None if bottom else ["", ""])
    panel.set_yticks([0, height], labels=None if left else ["", ""])
    panel.tick_params(labelsize=SMALL - 1, length=2, pad=2)


def heading(name: str, title: str, is_random: bool) -> str:
    """What a column is called: lines of which those that begin with * are bold.

    >>> heading("i_dynamic_dwnet_nano", "local MLP", True).splitlines()
    ['*i_dynamic_dwnet_', '*nano', 'local MLP', 'random weights']
    """
    names = [f"*{line}" for line in wrapped(name, 18)]
    return "\n".join([*names, *wrapped(title, 20), *(["random weights"] if is_random else [])])


def wrapped(text: str, length: int) -> list[str]:
    """Lines of that length, parted behind spaces, underscores and slashes; a longer part is a line of its own.

    >>> wrapped("sliding7/shared-positions/static", 20)
    ['sliding7/', 'shared-positions/', 'static']
    """
    lines: list[str] = []
    for part in re.findall(r"[^ _/]*[ _/]|[^ _/]+", text):
        if lines and len((lines[-1] + part).rstrip()) <= length:
            lines[-1] += part
        else:
            lines.append(part)
    return [line.rstrip() for line in lines]
