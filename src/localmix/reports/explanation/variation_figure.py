"""Where the layers of networks stand on the axes, as curves over the depth."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from localmix.reports.explanation.grid import png
from localmix.reports.explanation.variation import Variation
from localmix.reports.figure import COLOURS

PANELS = (
    ("positions", "over positions", "axis 2: 0 = shared by all positions"),
    ("channels", "over channels", "axis 2: 0 = shared by all channels"),
    ("images", "over images", "axis 3: 0 = static"),
)
MARKERS = "osD^vPX*"


def draw(names: Sequence[str], layers: Sequence[Sequence[Variation]], *, title: str) -> bytes:
    """A PNG: the three shares of each layer, a line for each network."""
    # so many names fit side by side
    beside = max(1, min(3, len(names), 150 // (max(map(len, names)) + 10)))
    rows = -(-len(names) // beside)
    figure = Figure(figsize=(11, 3.7 + 0.22 * rows), dpi=150, layout="constrained")
    panels = figure.subplots(1, 3, sharex=True, sharey=True)
    handles = []
    for number, (name, variations) in enumerate(zip(names, layers, strict=True)):
        style = {
            "color": COLOURS[number % len(COLOURS)],
            "marker": MARKERS[number % len(MARKERS)],
            "markerfacecolor": "white",
            # lines that lie upon one another, as those at zero do, are seen through one another
            "markersize": 9.5 - min(number, 6),
            "linewidth": 1.5,
            "clip_on": False,
            "zorder": 3 + number,
        }
        for panel, (key, _, _) in zip(panels, PANELS, strict=True):
            depths = range(1, len(variations) + 1)
            shares = [getattr(variation, key) for variation in variations]
            if None not in shares:
                (line,) = panel.plot(depths, shares, label=name, **style)
                if panel is panels[0]:
                    handles.append(line)
    for panel, (key, name, meaning) in zip(panels, PANELS, strict=True):
        panel.set_title(f"{name}\n{meaning}", fontsize=10)
        panel.set_xlabel("mixer, from the image to the head", fontsize=9)
        panel.set_ylim(-0.03, 1.03)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.tick_params(labelsize=9)
        panel.grid(color="#DDDDDD", linewidth=0.6)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        if all(getattr(variation, key) is None for variations in layers for variation in variations):
            panel.text(
                0.5, 0.5, "needs two images of one size", transform=panel.transAxes, ha="center", color="#555555"
            )
    panels[0].set_ylabel("share of the weights' variance", fontsize=9)
    figure.suptitle(title, fontsize=11.5, fontweight="bold")
    figure.legend(handles=handles, loc="outside lower center", ncols=beside, frameon=False, fontsize=9)
    return png(figure)
