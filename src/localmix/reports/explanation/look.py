"""One network looks at the images once: what its layers used is gathered on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from localmix.reports.explanation.jacobian import connection_matrix
from localmix.reports.explanation.receptive_field import reduction
from localmix.reports.explanation.selection import Position, group_of, shares
from localmix.reports.explanation.subjects import Subject
from localmix.reports.explanation.variation import Variance, Variation
from localmix.reports.explanation.weights import Used, mixers, watch
from localmix.reports.explanation.weights_figure import Laid

NUM_SPANS = 2
"""Sides of the maps of connection matrices, in kernels or windows: two show how windows part."""


@dataclass
class Look:
    """What was gathered.

    Args:
        laid: weights by image, position (both by number), group and layer.
        sizes: H, W of each layer's map of the first image.
        matrices: connection matrix of each layer, for the middle of its map of the first image.
        matrix_sizes: H, W of that middle.
        variations: of every mixer of the network.
    """

    laid: dict[tuple[int, int, str | int, str], Laid] = field(default_factory=dict)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    matrices: dict[str, np.ndarray] = field(default_factory=dict)
    matrix_sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    variations: dict[str, Variation] = field(default_factory=dict)


def look(
    subject: Subject,
    seen: Sequence[Tensor],
    names: Sequence[str],
    positions: Sequence[Position],
    groups: Sequence[str | int],
    draw: int,
) -> Look:
    """Run the network on what it sees of each image, and gather what its layers use.

    Args:
        seen: uint8 [C, H, W] of each image.
        names: of the layers whose weights and connections are wanted.
        positions, groups: of which the weights are wanted.
        draw: number of images whose weights are wanted; all count for the variation.

    Raises:
        ValueError: a position outside of an image, or a group that a layer does not have.
    """
    net = subject.trained.net
    gathered = Look()
    layers = mixers(net)
    variances = {name: Variance() for name in layers}
    middles: dict[str, Tensor] = {}

    for index, pixels in enumerate(seen):

        def visit(used: Used, index: int = index, pixels: Tensor = pixels) -> None:
            variances[used.name].add(used)
            if used.name not in names:
                return
            if index == 0:
                gathered.sizes[used.name] = used.size
                middles[used.name] = middle(used)
            if index < draw:
                for number, position in enumerate(positions):
                    place = shares(position, *pixels.shape[1:])
                    for group in groups:
                        laid = lay(subject, used, pixels, place, group)
                        gathered.laid[index, number, group, used.name] = laid

        with watch(net, visit):
            subject.run(pixels)
    for name, x in middles.items():
        gathered.matrix_sizes[name] = (x.shape[1], x.shape[2])
        gathered.matrices[name] = connection_matrix(layers[name], x).numpy()
    gathered.variations = {name: variance.result() for name, variance in variances.items()}
    return gathered


def lay(subject: Subject, used: Used, pixels: Tensor, position: tuple[float, float], group: str | int) -> Laid:
    """The weights of the position that covers a pixel, x and y given as shares of the image."""
    steps, place = [], []
    for size, side, share in zip(used.size, pixels.shape[1:], (position[1], position[0]), strict=True):
        step = reduction(subject.trained.net, _stage(used.name), size, side)
        steps.append(step)
        place.append(min(int(share * side / step), size - 1))
    chosen = group_of(group, used.num_groups, f"{used.name} of {subject.label}")
    weight = used.on_map(place[0], place[1], chosen).numpy()
    return Laid(weight, (place[0], place[1]), (steps[0], steps[1]), used.is_normalised)


def middle(used: Used) -> Tensor:
    """The middle of the map that a layer saw: as large as two kernels or windows side by side, or the whole."""
    connectivity = used.mixer.connectivity
    spans = getattr(connectivity, "window_size", None) or getattr(connectivity, "kernel_size", (7, 7))
    x = used.inputs
    for axis, span in zip((1, 2), spans, strict=True):
        length = min(x.shape[axis], NUM_SPANS * span)
        x = x.narrow(axis, (x.shape[axis] - length) // 2, length)
    return x.detach().clone()


def _stage(name: str) -> int:
    """Number of the stage that a layer of a hierarchy lies in, by its name."""
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "stages" and len(parts) > 1 and parts[1].isdigit() else -1
