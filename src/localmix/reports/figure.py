"""The figure of a comparison: accuracy against multiply-adds and against images per second."""

from __future__ import annotations

from collections.abc import Iterator
from math import cos, radians, sin
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator
from matplotlib.transforms import Bbox

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
"""Okabe and Ito's palette, which colour-blind readers can tell apart."""
MARKERS = {"sliding": "o", "window": "s"}
OFF_THE_AXES = "D"
"""Marker of a net that does not stand on the axes of the paper."""
LABEL_SIZE = 9.0


def draw(rows: list[dict[str, Any]], path: Path, *, title: str, note: str) -> None:
    """Draw the rows of results.json into a PNG; error bars are standard deviations over seeds."""
    figure = Figure(figsize=(10.5, 5.2), dpi=150, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    panels = (
        (left, "macs", "multiply-adds per image [millions]", 1e-6),
        (right, "inference_images_per_second", "inference throughput [images/s]", 1.0),
    )
    for axes, key, label, scale in panels:
        _scatter(axes, [row[key] * scale for row in rows], rows)
        axes.set_xlabel(label)
    left.set_ylabel("top-1 accuracy [%]")
    left.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    figure.suptitle(title, fontsize=12, fontweight="bold")
    entries = _legend(rows)
    columns = 4 if len(entries["labels"]) <= 4 else 3
    legend = figure.legend(**entries, loc="outside lower center", ncols=columns, frameon=False, title=note)
    legend.get_title().set(fontsize=8, color="#555555")
    canvas.draw()
    # The layout is final now: labels are placed in pixels and must not move it.
    figure.set_layout_engine("none")
    for axes, key, _, scale in panels:
        _label(axes, canvas, [row[key] * scale for row in rows], rows)
    figure.savefig(path, dpi=figure.dpi)


def _scatter(axes: Axes, x: list[float], rows: list[dict[str, Any]]) -> None:
    for index, (position, row) in enumerate(zip(x, rows, strict=True)):
        colour = COLOURS[index % len(COLOURS)]
        axes.errorbar(
            position,
            100 * row["top1_mean"],
            yerr=None if row["top1_std"] is None else 100 * row["top1_std"],
            fmt=_marker(row),
            markersize=9,
            color=colour,
            markerfacecolor="white" if row["dynamics"] == "static" else colour,
            markeredgewidth=1.8,
            capsize=3,
            elinewidth=1.2,
        )
    axes.set_xscale("log")
    axes.set_xlim(min(x) / 1.5, max(x) * 1.5)
    axes.margins(y=0.2)
    axes.xaxis.set_major_locator(FixedLocator(_round_numbers(*axes.get_xlim())))
    axes.xaxis.set_minor_locator(FixedLocator([]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _label(axes: Axes, canvas: FigureCanvasAgg, x: list[float], rows: list[dict[str, Any]]) -> None:
    """Write each net's name beside its point, at the nearest place where nothing else is."""
    points, taken = [], []
    for position, row in zip(x, rows, strict=True):
        top1, spread = 100 * row["top1_mean"], 100 * (row["top1_std"] or 0.0)
        (px, py), (_, low), (_, high) = axes.transData.transform(
            [(position, top1), (position, top1 - spread), (position, top1 + spread)]
        )
        points.append((px, py))
        taken.append(Bbox.from_extents(px - 13, min(low, py - 13), px + 13, max(high, py + 13)))
    inside = axes.get_window_extent()
    for index, ((px, py), row) in enumerate(zip(points, rows, strict=True)):
        text = axes.text(0, 0, _two_lines(row["title"]), transform=None, ha="center", va="center", fontsize=LABEL_SIZE)
        text.set_color(_darker(COLOURS[index % len(COLOURS)]))
        size = text.get_window_extent(canvas.get_renderer())
        places = [place for place in _around(px, py, size.width, size.height) if _contains(inside, place)]
        place = min(places, key=lambda p: sum(_overlap(p, other) for other in taken), default=size)
        text.set_position(((place.x0 + place.x1) / 2, (place.y0 + place.y1) / 2))
        taken.append(place)


def _around(x: float, y: float, width: float, height: float) -> Iterator[Bbox]:
    """Boxes of that size around a point, the nearest first; beside it before above and below [pixels]."""
    for gap in (15, 26, 40, 58, 80):
        for degrees in (0, 180, 90, 270, *range(15, 360, 15)):
            right, up = cos(radians(degrees)), sin(radians(degrees))
            left, bottom = x + right * (gap + width / 2) - width / 2, y + up * (gap + height / 2) - height / 2
            yield Bbox.from_bounds(left, bottom, width, height)


def _overlap(a: Bbox, b: Bbox) -> float:
    return max(0.0, min(a.x1, b.x1) - max(a.x0, b.x0)) * max(0.0, min(a.y1, b.y1) - max(a.y0, b.y0))


def _contains(outer: Bbox, inner: Bbox) -> bool:
    return outer.x0 <= inner.x0 and inner.x1 <= outer.x1 and outer.y0 <= inner.y0 and inner.y1 <= outer.y1


def _two_lines(title: str) -> str:
    """Break a long title at the space nearest to its middle."""
    spaces = [i for i, letter in enumerate(title) if letter == " "]
    if len(title) < 16 or not spaces:
        return title
    middle = min(spaces, key=lambda i: abs(i - len(title) / 2))
    return f"{title[:middle]}\n{title[middle + 1 :]}"


def _darker(colour: str) -> tuple[float, float, float]:
    red, green, blue = to_rgb(colour)
    return 0.7 * red, 0.7 * green, 0.7 * blue


def _marker(row: dict[str, Any]) -> str:
    return MARKERS.get(str(row["connectivity"]).split(",")[0], OFF_THE_AXES)


def _legend(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What shape and filling mean: the axes of the paper; of a net that is not on them they say that alone."""
    used = {_marker(row) for row in rows}
    names = {marker: name for name, marker in MARKERS.items() if marker in used}
    style: dict[str, Any] = {"color": "#555555", "linestyle": "none", "markersize": 8, "markeredgewidth": 1.5}
    half, full, empty = (
        [Line2D([], [], marker=marker, fillstyle=fill, markerfacecoloralt="white", **style) for marker in names]
        for fill in ("left", "full", "none")
    )
    entries: list[tuple[Any, str]] = [(h, f"{name} neighborhood") for h, name in zip(half, names.values(), strict=True)]
    if names:
        entries += [(tuple(full), "weights computed from the input"), (tuple(empty), "weights are parameters")]
    if OFF_THE_AXES in used:
        entries.append((Line2D([], [], marker=OFF_THE_AXES, **style), "not one of the mixers"))
    handles, labels = zip(*entries, strict=True)
    return {"handles": handles, "labels": labels, "handler_map": {tuple: HandlerTuple(ndivide=None)}}


def _round_numbers(low: float, high: float) -> list[float]:
    """Ticks of a logarithmic axis, at least 3 of them where it is short."""
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.2, 1.5, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9)):
        ticks = [s * 10.0**e for e in range(-6, 13) for s in steps if low <= s * 10.0**e <= high]
        if len(ticks) >= 3:
            return ticks
    return ticks
