"""The figure of an ablation: a panel for each study, with the differences to its baseline and their intervals."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from textwrap import fill
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from localmix.reports.figure import COLOURS
from localmix.writing import write_atomically

KINDS: dict[bool | None, tuple[str, dict[str, Any]]] = {
    True: ("distinguishable from the baseline", {"marker": "o", "color": COLOURS[1]}),
    False: ("not distinguishable", {"marker": "o", "color": COLOURS[0], "markerfacecolor": "white"}),
    None: ("not tested", {"marker": "x", "color": "#555555"}),
}
"""What is said of a point, by whether it is distinguishable, and how it is drawn."""
WIDTH = 7.2
"""Of the figure [inches]: a page."""


def draw(results: dict[str, Any], path: Path, *, title: str, note: str) -> None:
    """Draw the studies of results.json into a PNG."""
    studies = results["studies"]
    columns = min(2, len(studies))
    rows = [studies[i : i + columns] for i in range(0, len(studies), columns)]
    heights = [max(len(study["points"]) for study in row) + 3.2 for row in rows]
    lines = fill(note, 130)
    height = 0.175 * sum(heights) + 0.12 * lines.count("\n") + 1.1
    figure = Figure(figsize=(WIDTH, height), dpi=200, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    grid = figure.subplots(len(rows), columns, squeeze=False, gridspec_kw={"height_ratios": heights})
    for axes, study in zip(grid.flat, studies, strict=False):
        _panel(axes, study)
    for axes in grid.flat[len(studies) :]:
        axes.set_visible(False)
    figure.suptitle(fill(title, 90), fontsize=9, fontweight="bold")
    drawn = {p["distinguishable"] for study in studies for p in study["points"] if p["label"] != study["baseline"]}
    handles = [
        Line2D([], [], label=label, linestyle="none", markersize=5, markeredgewidth=1.2, **style)
        for kind, (label, style) in KINDS.items()
        if kind in drawn
    ]
    handles.append(Line2D([], [], color="#555555", linewidth=1.0, linestyle=(0, (4, 2)), label="baseline"))
    legend = figure.legend(
        handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=8, title=lines, title_fontsize=6.5
    )
    legend.get_title().set(color="#555555", ha="center", multialignment="center")
    canvas.draw()
    png = BytesIO()
    figure.savefig(png, dpi=figure.dpi, format="png")
    write_atomically(path, lambda file: file.write(png.getvalue()))


def _panel(axes: Axes, study: dict[str, Any]) -> None:
    points = study["points"]
    for place, point in enumerate(points):
        if point["label"] == study["baseline"]:
            axes.plot(0, place, marker="|", markersize=9, color="#555555", markeredgewidth=1.6)
            continue
        middle = 100 * point["difference"]
        interval = point["difference_interval"]
        low, high = [100 * end for end in interval] if interval else (middle, middle)
        axes.errorbar(
            middle,
            place,
            xerr=[[middle - low], [high - middle]] if interval else None,
            linestyle="none",
            markersize=4.5,
            markeredgewidth=1.2,
            elinewidth=1.2,
            capsize=2.5,
            **KINDS[point["distinguishable"]][1],
        )
    axes.axvline(0, color="#555555", linewidth=1.0, linestyle=(0, (4, 2)), zorder=0)
    baseline = next(point for point in points if point["label"] == study["baseline"])
    axes.set_yticks(range(len(points)), [point["label"] for point in points], fontsize=7.5)
    axes.set_ylim(len(points) - 0.4, -0.6)
    axes.set_title(f"{study['title']}\nbaseline {100 * baseline['top1_mean']:.1f}%", fontsize=8, loc="left")
    axes.set_xlabel("difference in top-1 [percentage points]", fontsize=7.5)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}".replace("-", "−") if value else "0"))
    axes.tick_params(axis="x", labelsize=7.5)
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.08)
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
