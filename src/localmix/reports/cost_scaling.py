"""`localmix cost --scaling`: how the cost of each mixer grows with its kernel, the map and the channels."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import IO, Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

from localmix import layers
from localmix.arguments import positive
from localmix.axes import MIXERS
from localmix.reports.benchmarks.rows import known, known_device, threads_of_cpu
from localmix.reports.benchmarks.timing import take_turns
from localmix.reports.cost import cost
from localmix.reports.environment import command, commit, environment
from localmix.reports.figure import COLOURS
from localmix.reports.progress import Display
from localmix.reports.results import write_json
from localmix.tasks.engine.output import output_folder
from localmix.writing import write_atomically

BASE = {"kernel": 7, "side": 56, "channels": 96}
"""What stays while one of them grows: the first stage of the tiny networks at 224 pixels."""
GROWTH = {"kernel": (3, 5, 7, 9, 11), "side": (14, 28, 56, 112), "channels": (96, 192, 384, 768)}
LABELS = {
    "kernel": "side of kernel or window [positions]",
    "side": "side of the map [positions]",
    "channels": "channels",
}
HEAD_DIM, NUM_GROUPS = 32, 32
"""Channels of a head; groups of the inhomogeneous convolution and the local MLP."""
QUANTITIES = {
    "macs": ("multiply-adds of one image [millions]", 1e-6),
    "ms": ("time of a forward pass, batch {batch_size} [ms]", 1.0),
}

_MAKE: dict[str, Callable[[int, int], nn.Module]] = {
    "depthwise_convolution": lambda c, k: layers.DepthwiseConv(c, kernel_size=k),
    "homogeneous_convolution": lambda c, k: layers.HomogeneousDynamicConv(c, kernel_size=k),
    "inhomogeneous_convolution": lambda c, k: layers.InhomogeneousDynamicConv(c, num_groups=NUM_GROUPS, kernel_size=k),
    "window_attention": lambda c, k: layers.WindowAttention(c, num_heads=c // HEAD_DIM, window_size=k),
    "neighborhood_attention": lambda c, k: layers.NeighborhoodAttention(c, num_heads=c // HEAD_DIM, kernel_size=k),
    "local_mlp": lambda c, k: layers.LocalMLP(c, num_groups=NUM_GROUPS, window_size=k),
}
# where lines coincide the marker of each is seen within that of the one beneath
_STYLES = (("o", 11, "-"), ("s", 7, "-"), ("D", 6, "-"), ("^", 11, "-"), ("v", 7, (0, (4, 2))), ("x", 6, (0, (1, 2))))


class _OnImage(nn.Module):
    """A mixer as a network: an image is its map."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.mixer(image.permute(0, 2, 3, 1))


def scaling(
    *,
    mixers: Sequence[str] | None = None,
    batch_size: int = 2,
    timed: bool = False,
    device: str = "auto",
    threads: int | None = None,
    rounds: int = 5,
    output: Path | str | None = None,
) -> dict[str, Any]:
    """Let one of kernel, map and channels grow at a time, and fit cost = a * size ** exponent.

    Args:
        mixers: names in `localmix.axes.MIXERS`; by default all.
        batch_size: images that time is of; multiply-adds are those of one image.
        timed: whether the forward pass is timed, too.
        device: "auto", "cpu" or "cuda": where it is timed.
        threads: of the CPU.
        rounds: timed turns of each.
        output: folder to write results.json and figure.png into; nothing is written if None.

    Returns:
        The content of results.json.

    Raises:
        ValueError: an argument is wrong; names it.
    """
    names = [known("mixers", name, MIXERS) for name in dict.fromkeys(MIXERS if mixers is None else mixers)]
    positive("batch_size", batch_size)
    positive("rounds", rounds)
    if output is not None:
        output_folder(output)
    device = known_device(device)
    with Display() as display, threads_of_cpu(threads):
        points = [
            {"axis": axis, **BASE, axis: size} for axis, sizes in GROWTH.items() for size in sizes
        ]  # fmt: skip
        rows = []
        for point in display.track(points, "sizes", len(points)):
            times = _times(names, point, batch_size, device, rounds) if timed else {}
            rows += [
                {"mixer": name, **point, "macs": _macs(name, point), "ms": times.get(name)} for name in names
            ]  # fmt: skip
    results = {
        "kind": "scaling",
        "unit": "MACs of one image; exponent e of the least squares fit of a * size ** e to their logarithms",
        "rows": rows,
        "exponents": {
            quantity: {name: {axis: _exponent(rows, name, axis, quantity) for axis in GROWTH} for name in names}
            for quantity in (QUANTITIES if timed else ("macs",))
        },
        "settings": {
            "base": BASE,
            "head_dim": HEAD_DIM,
            "num_groups": NUM_GROUPS,
            "batch_size": batch_size,
            "rounds": rounds,
            "timed": timed,
        },
        "environment": environment(device),
        "command": command(),
        "commit": commit(),
    }
    _print(results)
    if output is not None:
        output = Path(output)
        write_atomically(output / "figure.png", lambda file: draw(results, file))
        write_json(output / "results.json", results)
        print(f"{output}: results.json, figure.png")
    return results


def fit(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The exponent e of the power a * size ** e that is nearest to the values on logarithmic axes.

    >>> round(fit([1, 2, 4], [3, 12, 48]), 6)
    2.0
    """
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def _macs(name: str, point: dict[str, Any]) -> int:
    with torch.device("meta"):
        mixer = _OnImage(_MAKE[name](point["channels"], point["kernel"]))
    return cost(mixer, point["side"], in_chans=point["channels"]).macs


def _times(names: Sequence[str], point: dict[str, Any], batch: int, device: str, rounds: int) -> dict[str, float]:
    """Milliseconds of a forward pass in evaluation, by mixer, which take turns."""
    x = torch.rand(batch, point["side"], point["side"], point["channels"], device=device)
    nets = {name: _MAKE[name](point["channels"], point["kernel"]).to(device).eval() for name in names}
    with torch.inference_mode():
        times = take_turns({name: lambda net=net: net(x) for name, net in nets.items()}, rounds=rounds, seconds=0.01)
    return {name: 1e3 * median(values) for name, values in times.items()}


def _exponent(rows: Sequence[dict[str, Any]], name: str, axis: str, quantity: str) -> float:
    own = [row for row in rows if (row["mixer"], row["axis"]) == (name, axis)]
    return fit([row[axis] for row in own], [row[quantity] for row in own])


def _print(results: dict[str, Any]) -> None:
    console = Console(file=sys.stdout)
    if not console.is_terminal:
        console = Console(file=sys.stdout, width=200)
    for quantity, exponents in results["exponents"].items():
        of = "MACs" if quantity == "macs" else "time"
        table = Table(title=f"exponents of {of}: how it grows with", box=box.SIMPLE_HEAD, title_justify="left")
        table.add_column("mixer", no_wrap=True)
        for axis in GROWTH:
            table.add_column(LABELS[axis].partition(" [")[0], justify="right")
        for name, by_axis in exponents.items():
            table.add_row(MIXERS[name].title, *(f"{by_axis[axis]:.2f}" for axis in GROWTH))
        console.print(table)


def draw(results: dict[str, Any], file: IO[bytes]) -> None:
    """The rows on logarithmic axes, a row of panels for each quantity, with the exponents."""
    quantities = list(results["exponents"])
    figure = Figure(figsize=(11, 0.9 + 4.1 * len(quantities)), dpi=150, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(len(quantities), len(GROWTH), squeeze=False, sharey="row")
    names = list(results["exponents"]["macs"])
    for row, quantity in zip(panels, quantities, strict=True):
        label, scale = QUANTITIES[quantity]
        for axes, axis in zip(row, GROWTH, strict=True):
            for name in names:
                own = [r for r in results["rows"] if (r["mixer"], r["axis"]) == (name, axis)]
                axes.plot([r[axis] for r in own], [scale * r[quantity] for r in own], **_style(name))
            _finish(axes, axis, results["exponents"][quantity])
        row[0].set_ylabel(label.format(**results["settings"]))
    base = ", ".join(
        f"{LABELS[axis].partition(' [')[0]} {size}" for axis, size in results["settings"]["base"].items()
    )  # fmt: skip
    figure.suptitle(f"What else stays: {base}", fontsize=10)
    handles = [Line2D([], [], label=MIXERS[name].title, **_style(name)) for name in names]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    canvas.print_png(file)


def _style(name: str) -> dict[str, Any]:
    number = list(MIXERS).index(name)
    marker, size, line = _STYLES[number]
    return {
        "color": COLOURS[number],
        "marker": marker,
        "markersize": size,
        "markerfacecolor": "none",
        "markeredgewidth": 1.6,
        "linestyle": line,
        "linewidth": 1.4,
    }


def _finish(axes: Axes, axis: str, exponents: dict[str, dict[str, float]]) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(LABELS[axis])
    axes.xaxis.set_major_locator(FixedLocator(GROWTH[axis]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    handles = []
    for name, by_axis in exponents.items():
        style: dict[str, Any] = {**_style(name), "linestyle": "none", "markersize": 6}
        handles.append(Line2D([], [], label=f"{by_axis[axis]:.2f}", **style))
    axes.legend(handles=handles, title="exponent", loc="best", fontsize=8, title_fontsize=8, framealpha=0.9)
