"""The figure of a benchmark: time over the floor of each operator, or images per second of each network."""

from __future__ import annotations

from math import ceil
from typing import IO, Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from localmix.reports.benchmarks.report import setting
from localmix.reports.figure import COLOURS

Row = dict[str, Any]
MARKERS = ("o", "D")
"""Of the first and the second direction."""


def draw(results: dict[str, Any], file: IO[bytes]) -> None:
    """Draw the rows of results.json as a PNG."""
    rows = [row for row in results["rows"] if row["ms"]]
    if results["kind"] == "operators":
        panel, series, value, x_label = "name", _map, "over_floor", "time over the floor"
    else:
        panel, series, value, x_label = "direction", _mode, "images_per_second", "images per second"
    panels = list(dict.fromkeys(row[panel] for row in rows))
    names = list(dict.fromkeys(map(series, rows)))
    directions = list(dict.fromkeys(row["direction"] for row in rows)) if panel == "name" else []
    tallest = max((len({_line(row) for row in rows if row[panel] == name}) for name in panels), default=1)
    columns = min(2, max(1, len(panels)))
    height = ceil(len(panels) / columns) * (0.8 + 0.26 * tallest)
    figure = Figure(figsize=(11, 1.6 + height), dpi=150, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    grid = figure.subplots(ceil(len(panels) / columns) or 1, columns, squeeze=False).flatten()
    for axes, name in zip(grid, panels, strict=False):
        _dots(axes, [row for row in rows if row[panel] == name], value, series, names, directions)
        axes.set_title(name.replace("_", " "), fontsize=10, loc="left")
        axes.set_xlabel(x_label, fontsize=8)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    hardware = results["environment"]["hardware"]
    where = hardware["gpu"] or f"{hardware['threads']} threads of {hardware['cpu']}"
    figure.suptitle(f"{where}, {setting(results)}", fontsize=12, fontweight="bold")
    figure.legend(handles=_legend(names, directions), loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    canvas.print_png(file)


def _dots(axes: Axes, rows: list[Row], value: str, series: Any, names: list[str], directions: list[str]) -> None:
    """A line for each implementation; filled marks are ours."""
    lines = list(dict.fromkeys(map(_line, rows)))
    for row in rows:
        number = directions.index(row["direction"]) if directions else 0
        place = names.index(series(row))
        colour = COLOURS[place % len(COLOURS)]
        axes.plot(
            row[value],
            lines.index(_line(row)) + 0.12 * (2 * number - len(directions[1:])),
            marker=MARKERS[number],
            markersize=_size(place, len(names)),
            color=colour,
            markerfacecolor=colour if row["is_ours"] else "white",
            markeredgewidth=1.3,
        )
    axes.set_yticks(range(len(lines)), lines, fontsize=8)
    ours = {_line(row) for row in rows if row["is_ours"]}
    for label in axes.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() in ours else "normal")
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.set_xscale("log")
    if value == "over_floor":
        axes.axvline(1, color="#555555", linewidth=1)
    # also where less than a decade is shown, which has one power of ten
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _line(row: Row) -> str:
    return row["implementation"] if row["label"] == row["implementation"] else row["name"]


def _map(row: Row) -> str:
    return " × ".join(map(str, row["shape"][1:]))


def _mode(row: Row) -> str:
    return row["implementation"]


def _size(place: int, count: int) -> float:
    """Of the marks of one of several series, for whoever sees no colours [points]."""
    return 6.0 if count == 1 else 8.0 - 5.0 * place / (count - 1)


def _legend(names: list[str], directions: list[str]) -> list[Line2D]:
    style: dict[str, Any] = {"linestyle": "none"}
    grey: dict[str, Any] = {**style, "color": "#555555", "markersize": 6, "markeredgewidth": 1.3}
    return [
        *(
            Line2D(
                [],
                [],
                marker="s",
                markersize=_size(i, len(names)),
                color=COLOURS[i % len(COLOURS)],
                label=name,
                **style,
            )
            for i, name in enumerate(names)
        ),
        *(Line2D([], [], marker=MARKERS[i], label=name, **grey) for i, name in enumerate(directions)),
        Line2D([], [], marker="o", label="localmix", **grey),
        Line2D([], [], marker="o", markerfacecolor="white", label="others", **grey),
    ]
