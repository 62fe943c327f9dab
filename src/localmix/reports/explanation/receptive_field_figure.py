"""Effective receptive fields as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.patches import Circle

from localmix.reports.explanation.grid import SMALL, grid, pixels, png
from localmix.reports.explanation.receptive_field import ReceptiveField

RANGE = 1e-4
"""Energies below this share of the largest are drawn alike."""
LINES: dict[float, Any] = {0.5: "-", 0.95: (0, (4, 2))}


def draw(
    columns: Sequence[str],
    rows: Sequence[tuple[str, Sequence[ReceptiveField | None]]],
    *,
    title: str,
    note: str,
) -> bytes:
    """A PNG: a row for each stage, a panel for each network; None where a network has no such stage."""
    figure, axes = grid([name for name, _ in rows], columns, title=title, note=note)
    for number, (line, (_, fields)) in enumerate(zip(axes, rows, strict=True), 1):
        for panel, field in zip(line, fields, strict=True):
            if field is None:
                panel.set_axis_off()
                continue
            height, width = field.energy.shape
            top = field.energy.max() or 1.0
            picture = panel.imshow(
                np.clip(field.energy / top, RANGE, 1),
                cmap="cividis",
                norm=LogNorm(RANGE, 1),
                extent=(0, width, height, 0),
                interpolation="nearest",
            )
            bottom = number == len(rows)
            pixels(panel, height, width, left=panel is line[0], bottom=bottom)
            for share, radius in field.radius.items():
                style = LINES[share]
                for colour, thickness in (("black", 2.2), ("white", 1.2)):
                    circle = Circle(field.centre[::-1], radius, fill=False, edgecolor=colour, linewidth=thickness)
                    circle.set_linestyle(style)
                    panel.add_patch(circle)
            words = ", ".join(f"{share:.0%}: {radius:.0f} px" for share, radius in field.radius.items())
            panel.set_xlabel(f"x [pixels]\n{words}" if bottom else words, fontsize=SMALL - 1, labelpad=2)
    for (name, _), panel in zip(rows, axes[:, 0], strict=True):
        panel.set_ylabel(f"{name}\ny [pixels]", fontsize=SMALL, labelpad=0)
    bar = figure.colorbar(picture, ax=axes, orientation="horizontal", shrink=0.3, aspect=30, pad=0.02)
    bar.ax.tick_params(labelsize=SMALL - 1)
    bar.set_label("gradient energy over its largest", fontsize=SMALL)
    return png(figure)
