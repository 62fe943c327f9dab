"""The sections of the page: each draws its pictures, and gives its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from localmix.reports.explanation import matrix_figure, receptive_field_figure, variation_figure, weights_figure
from localmix.reports.explanation.grid import heading
from localmix.reports.explanation.look import Look
from localmix.reports.explanation.page import Page
from localmix.reports.explanation.receptive_field import ReceptiveField, num_stages, receptive_fields
from localmix.reports.explanation.selection import Position, Row, shares, spread_stages, stage_numbers
from localmix.reports.explanation.subjects import Subject, picture
from localmix.writing import write_atomically

Facts = list[dict[str, Any]]


@dataclass(frozen=True)
class Shown:
    """What the sections tell of.

    Args:
        nets: side by side.
        files: the images.
        sizes: H, W of what all networks see of each [pixels].
        seen: that, uint8 [C, H, W], by label of the network.
        rows: the layers.
        looks: what each network used, by its label.
        positions: x, y.
        groups: of channels.
        draw: number of images whose weights are drawn.
    """

    nets: Sequence[Subject]
    files: Sequence[Path]
    sizes: Sequence[tuple[int, int]]
    seen: dict[str, list[Tensor]]
    rows: Sequence[Row]
    looks: dict[str, Look]
    positions: Sequence[Position]
    groups: Sequence[str | int]
    draw: int

    @property
    def heads(self) -> list[str]:
        """What the columns are called; a point of the space of mixers says itself what it is."""
        return [heading(n.label, "" if "/" in n.trained.name else n.title, n.is_random) for n in self.nets]

    def where(self, position: Position, image: int) -> tuple[tuple[float, float], str]:
        """x, y of a position [pixels], and the pixel that it lies in in words."""
        height, width = self.sizes[image]
        x, y = shares(position, height, width)
        x, y = x * width, y * height
        # not rounded: the middle of pixel 113 lies at 113.5
        column, row = min(int(x), width - 1), min(int(y), height - 1)
        return (x, y), f"x = {column}, y = {row} of {width} × {height} pixels"


class Sheet:
    """A folder of pictures, and the page that shows them."""

    def __init__(self, folder: Path, title: str) -> None:
        self.folder, self.page = folder, Page(title)
        self.names: list[str] = []

    def add(self, name: str, description: str, png: bytes) -> None:
        """Write a picture, and show it."""
        write_atomically(self.folder / name, lambda file: file.write(png))
        self.page.picture(png, description)
        self.names.append(name)


def networks(sheet: Sheet, nets: Sequence[Subject]) -> None:
    """Which networks, and plainly which of them are not trained."""
    sheet.page.heading("Networks")
    sheet.page.table([{"network": n.label, "mixer": n.title or None, "weights": n.origin} for n in nets])
    untrained = [net.label for net in nets if net.is_random]
    if untrained:
        sheet.page.text(
            f"Random weights, as before training: {', '.join(untrained)}. What is shown of them says what such a "
            "layer can do, not what training makes of it.",
            warning=True,
        )


def weights(sheet: Sheet, shown: Shown) -> Facts:
    """Weights laid over the first images."""
    sheet.page.heading("Weights of positions")
    sheet.page.text(
        "What the position at the cross took from where, in the very pass through the network. The frame is the window "
        "or the neighborhood, the small frame the position itself. The part of the image that is shown has an orange "
        "frame."
    )
    facts = []
    first = shown.looks[shown.nets[0].label]
    labels = [f"{row.label}\nmap {' × '.join(map(str, first.sizes[row.names[0]]))}" for row in shown.rows]
    for index, file in enumerate(shown.files[: shown.draw]):
        pictures = [picture(shown.seen[net.label][index]) for net in shown.nets]
        for number, position in enumerate(shown.positions):
            pixel, where = shown.where(position, index)
            for group in shown.groups:
                laid = []
                for row in shown.rows:
                    panels = []
                    for net, name in zip(shown.nets, row.names, strict=True):
                        one = shown.looks[net.label].laid[index, number, group, name]
                        panels.append(one)
                        about = {"image": str(file), "position": list(position), "group": group}
                        facts.append({**about, "model": net.label, "layer": name, **one.facts()})
                    laid.append(panels)
                of = "mean over the groups of channels" if group == "mean" else f"group {group} of channels"
                note = f"{file.name}, {where}; {of}"
                png = weights_figure.draw(
                    pictures,
                    shown.heads,
                    list(zip(labels, laid, strict=True)),
                    pixel,
                    title="Weights that a position used",
                    note=note,
                )
                sheet.add(f"weights_{index + 1}_{number + 1}_{group}.png", f"weights of a position: {note}", png)
    return facts


def connections(sheet: Sheet, shown: Shown) -> Facts:
    """Connection matrices of layers."""
    sheet.page.heading("Connections of layers")
    sheet.page.text(
        "Which positions of a small map connect, in one channel: the Jacobian of the layer, measured with its weights "
        "held at those that the middle of the map gives which it saw. White: no connection. Equal colours: equal "
        "weights."
    )
    rows, facts = [], []
    for row in shown.rows:
        matrices = []
        for net, name in zip(shown.nets, row.names, strict=True):
            seen = shown.looks[net.label]
            matrices.append(seen.matrices[name])
            connected = int((~np.isnan(seen.matrices[name])).sum())
            facts.append(
                {"model": net.label, "layer": name, "map": list(seen.matrix_sizes[name]), "connections": connected}
            )
        rows.append((row.label, matrices))
    note = f"Jacobians of the layers in channel 0, in the middle of their maps of {shown.files[0].name}"
    png = matrix_figure.draw(
        shown.heads, rows, title="Which positions connect, and which weights are equal", note=f"{note}; white: none"
    )
    sheet.add("connections.png", note, png)
    return facts


def receptive_field(sheet: Sheet, shown: Shown, layers: Sequence[str | int] | None, num_probes: int) -> Facts:
    """Effective receptive fields of the stages, at the first position."""
    sheet.page.heading("Effective receptive fields")
    used = [index for index, size in enumerate(shown.sizes) if size == shown.sizes[0]]
    place = shares(shown.positions[0], *shown.sizes[0])
    columns: list[list[tuple[int, ReceptiveField]]] = []
    for net in shown.nets:
        views = [net.normalise(shown.seen[net.label][index]) for index in used]
        stages = stage_numbers(layers) or spread_stages(num_stages(net.trained.net, views[0]))
        fields = receptive_fields(net.trained.net, views, stages=stages, position=place, num_probes=num_probes)
        columns.append([(stage, fields[stage]) for stage in stages])
    rows = []
    for index in range(max(map(len, columns))):
        numbers = {column[index][0] + 1 for column in columns if index < len(column)}
        label = f"stage{'s' if len(numbers) > 1 else ''} {', '.join(map(str, sorted(numbers)))}"
        rows.append((label, [column[index][1] if index < len(column) else None for column in columns]))
    _, where = shown.where(shown.positions[0], 0)
    over = f"mean over {len(used)} images" if len(used) > 1 else shown.files[0].name
    sheet.page.text(
        f"Energy of the gradient of a stage's output at {where} with respect to the pixels ({over}). The circles hold "
        "50% (solid) and 95% (dashed) of it."
    )
    note = f"at {where}; {over}; circles hold 50% (solid) and 95% (dashed) of the energy"
    png = receptive_field_figure.draw(shown.heads, rows, title="Effective receptive field", note=note)
    sheet.add("receptive_field.png", f"effective receptive fields {note}", png)
    facts = []
    for net, column in zip(shown.nets, columns, strict=True):
        for stage, field in column:
            radius = {f"radius_{100 * share:.0f}": pixels for share, pixels in field.radius.items()}
            facts.append(
                {"model": net.label, "stage": stage + 1, "images": len(used), "centre": list(field.centre), **radius}
            )
    keys = {
        "model": "network",
        "stage": "stage",
        "radius_50": "50% within [pixels]",
        "radius_95": "95% within [pixels]",
    }
    sheet.page.table([{title: row[key] for key, title in keys.items()} for row in facts])
    return facts


def variation(sheet: Sheet, shown: Shown) -> Facts:
    """How much the weights of every mixer vary."""
    sheet.page.heading("Variation of the weights")
    sheet.page.text(
        "Shares of the variance of a layer's weights: over positions, over groups of channels, over images, each while "
        "the others stand still. 0: shared, or static. What varies along two together counts for both. Spread: that "
        "variance over the mean square of the weights."
    )
    count = len(shown.files)
    if count < 2:
        sheet.page.text("Of one image the share of the images cannot be seen; give two or more.")
    variations = [shown.looks[net.label].variations for net in shown.nets]
    png = variation_figure.draw(
        [f"{net.label}{' (random weights)' if net.is_random else ''}" for net in shown.nets],
        [list(layers.values()) for layers in variations],
        title=f"How much the weights of each layer vary ({count} image{'s' if count > 1 else ''})",
    )
    sheet.add("variation.png", "shares of the variance of the weights, layer by layer", png)
    facts = [
        {"model": net.label, "layer": name, **asdict(numbers)}
        for net, layers in zip(shown.nets, variations, strict=True)
        for name, numbers in layers.items()
    ]
    sheet.page.table(facts)
    return facts
