"""`localmix curves`: loss, accuracy and learning rate of runs in one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from localmix.arguments import positive
from localmix.reports.figure import COLOURS
from localmix.reports.metrics import Metrics, read_metrics, short_names
from localmix.tasks.engine.output import output_file
from localmix.writing import write_atomically

PARTS = 50
"""A thick line is smoothed over this share of the steps of its run."""
SCORES = {"top1": "top-1", "miou": "mIoU", "box_ap": "box AP", "mask_ap": "mask AP"}
"""What a validation finds, `val_*` and `val_ema_*`, of one task or another, and how it is called."""
MARKERS = "osD^vPX*"
"""Of the runs, for whoever sees no colours."""
POINTS = 2000
"""So many of a run's steps are drawn; of more, the least and the largest of each stretch."""


def curves(runs: Sequence[Path | str], output: Path | str = "curves.png", *, smooth: int | None = None) -> str:
    """Draw the runs in some folders, which may be under way, as a PNG; returns what was done.

    Args:
        runs: folders with metrics.csv.
        output: the picture, replaced as a whole.
        smooth: steps that a point of a thick line is the mean of; by default a 50th of the run.

    Raises:
        ValueError: a folder has no metrics; names it.
    """
    if smooth is not None:
        positive("smooth", smooth)
    folders = list({Path(run).resolve(): Path(run) for run in runs}.values())
    if not folders:
        raise ValueError("runs: expected one or more folders, got none")
    output = output_file(output, ".png")
    metrics = [read_metrics(folder) for folder in folders]
    empty = [str(folder) for folder, m in zip(folders, metrics, strict=True) if not len(m.points("loss")[0])]
    if len(empty) == len(folders):
        raise ValueError(f"runs: expected a step at least, found none yet in {', '.join(empty)}")
    names = short_names(folders)
    write_atomically(output, lambda file: draw(dict(zip(names, metrics, strict=True)), file, smooth=smooth))
    waiting = f"; no step yet in {', '.join(empty)}" if empty else ""
    return f"{output}: {len(folders)} run{'s' if len(folders) > 1 else ''}{waiting}"


def draw(runs: dict[str, Metrics], file: IO[bytes], *, smooth: int | None = None) -> None:
    """Draw runs by their names."""
    rows = -(-len(runs) // 4)
    figure = Figure(figsize=(13, 4.6 + 0.25 * rows), dpi=150, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    loss, accuracy, rate = figure.subplots(1, 3, width_ratios=(5, 5, 3), sharex=True)
    handles, drawn = [], set()
    for number, (name, metrics) in enumerate(runs.items()):
        colour, style = COLOURS[number % len(COLOURS)], ("-", (0, (5, 1.5)))[number // len(COLOURS) % 2]
        mark: dict[str, Any] = {"marker": MARKERS[number % len(MARKERS)], "markersize": 5.5}
        # a mark in each tenth of a panel, at places of its own for each run
        apart: dict[str, Any] = {**mark, "markevery": (0.1 * number / len(runs), 0.1)}
        handles.append(Line2D([], [], color=colour, linestyle=style, linewidth=2.2, label=name, **mark))
        steps, losses = metrics.points("loss")
        # beneath all thick lines, and the more runs there are the paler
        loss.plot(*_outline(steps, losses), color=colour, alpha=max(0.06, 0.3 / len(runs)), linewidth=0.6, zorder=1)
        window = smooth or max(1, len(losses) // PARTS)
        loss.plot(*_outline(steps, moving_mean(losses, window)), color=colour, linestyle=style, linewidth=1.8, **apart)
        for axes, column, scale, line in (
            (loss, "val_loss", 1, ":"),
            *((accuracy, f"val_{score}", 100, style) for score in SCORES),
            *((accuracy, f"val_ema_{score}", 100, ":") for score in SCORES),
        ):
            steps, values = metrics.points(column)
            if len(steps):
                drawn.add(column)
                # few points are shown as such, many are a line
                marks = mark if len(steps) <= 15 else apart
                face = "white" if line == ":" else colour
                axes.plot(
                    steps, scale * values, color=colour, linestyle=line, linewidth=1.3, markerfacecolor=face, **marks
                )
        rate.plot(*metrics.points("lr"), color=colour, linestyle=style, linewidth=1.5)
    _finish(loss, "loss" + (" (dotted: validation)" if "val_loss" in drawn else ""))
    scores = [title for score, title in SCORES.items() if {f"val_{score}", f"val_ema_{score}"} & drawn]
    averaged = " (dotted: moving average)" if any(name.startswith("val_ema_") for name in drawn) else ""
    _finish(accuracy, f"validation {' and '.join(scores or ['score'])} [%]{averaged}")
    _finish(rate, "learning rate")
    if not drawn - {"val_loss"}:
        accuracy.text(0.5, 0.5, "no validation yet", transform=accuracy.transAxes, ha="center", color="#777777")
        accuracy.set_yticks([])
    _scale(loss)
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(runs)), frameon=False, fontsize=9)
    canvas.print_png(file)


def moving_mean(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of the `window` values around each, of fewer at the ends.

    >>> moving_mean(np.array([1.0, 2.0, 6.0, 7.0]), 3).tolist()
    [1.5, 3.0, 5.0, 6.5]
    """
    sums = np.concatenate([[0.0], np.cumsum(values)])
    first = np.maximum(np.arange(len(values)) - (window - 1) // 2, 0)
    last = np.minimum(np.arange(len(values)) + window // 2 + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)


def _outline(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `POINTS` points that look like all of them."""
    stretch = -(-2 * len(values) // POINTS)
    if stretch <= 2:
        return steps, values
    starts = np.arange(0, len(values), stretch)
    extremes = np.stack([np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)], axis=1)
    return np.repeat(steps[starts], 2), extremes.reshape(-1)


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel("step", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.tick_params(labelsize=8)
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _scale(axes: Axes) -> None:
    """The range of the smoothed losses, on a logarithmic axis if it is more than a decade: noise may leave it."""
    values = np.concatenate([line.get_ydata() for line in axes.lines if line.get_alpha() is None])
    low, high = values.min(), values.max()
    if low <= 0 or high <= 10 * low:
        margin = 0.08 * (high - low) or 1.0
        axes.set_ylim(low - margin, high + margin)
        return
    axes.set_yscale("log")
    axes.set_ylim(low / 1.3, high * 1.3)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
