"""The effective receptive field: which pixels a position of a stage really depends on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from localmix.arguments import positive

SHARES = (0.5, 0.95)
"""Of the energy, whose radii are reported."""


@dataclass(frozen=True)
class ReceptiveField:
    """Energy of the gradient of one position of a stage.

    Args:
        energy: [H, W], of each pixel as a share of the whole, mean over the images.
        centre: y, x of the position's middle [pixels].
        radius: for each of `SHARES` the radius of the circle around the centre that holds that share [pixels].
    """

    energy: np.ndarray
    centre: tuple[float, float]
    radius: dict[float, float]


def receptive_fields(
    net: nn.Module,
    images: Sequence[Tensor],
    *,
    stages: Sequence[int] | None = None,
    position: tuple[float, float] = (0.5, 0.5),
    num_probes: int = 8,
) -> dict[int, ReceptiveField]:
    """The effective receptive field of a position, at the output of stages.

        energy[u] = sum over c, a of (d y[p, c] / d x[u, a])^2

    with pixel u, channel a of the image x, and channel c of the position p of the stage's output y. The sum over c is
    estimated: for signs s drawn at random, the mean over draws of (d sum_c s[c] y[p, c] / d x[u, a])^2 tends to it.
    Each image's energy is divided by its sum, so that all count alike.

    Args:
        net: any network of timm with `forward_intermediates`, in evaluation mode.
        images: each [C, H, W], as the network takes them, all of one size.
        stages: from 0; all by default.
        position: x, y as shares of width and height; the position of the map that covers that pixel is taken.
        num_probes: draws of signs; they are the same in each call.

    Raises:
        ValueError: a network without maps of stages, no such stage, or images that it does not take.

    Source: Luo et al., Understanding the Effective Receptive Field in Deep Convolutional Neural Networks, section 2.
    """
    positive("num_probes", num_probes)
    if not images:
        raise ValueError("images: expected one or more, got none")
    random = torch.Generator().manual_seed(0)
    energies: dict[int, Tensor] = {}
    centres: dict[int, tuple[float, float]] = {}
    for image in images:
        x = image[None].detach().clone().requires_grad_()
        with torch.enable_grad():
            maps = _maps(net, x)
            for stage in range(len(maps)) if stages is None else stages:
                if not 0 <= stage < len(maps):
                    raise ValueError(f"stages: expected at most {len(maps)}, got {stage + 1}")
                row, column, centres[stage] = _place(net, stage, maps[stage], x, position)
                y = maps[stage][0, :, row, column]
                energy = torch.zeros(x.shape[2:], dtype=torch.float64)
                for _ in range(num_probes):
                    signs = (torch.randint(2, y.shape, generator=random) * 2 - 1).to(y)
                    (slope,) = torch.autograd.grad((signs * y).sum(), x, retain_graph=True)
                    energy += slope[0].double().square().sum(0).cpu()
                # a position that no pixel reaches has no energy, and no radius
                share = energy / (energy.sum() or 1.0) / len(images)
                energies[stage] = energies.get(stage, torch.zeros_like(share)) + share
    return {
        stage: ReceptiveField(energy.numpy(), centres[stage], radii(energy.numpy(), centres[stage]))
        for stage, energy in energies.items()
    }


def radii(energy: np.ndarray, centre: tuple[float, float]) -> dict[float, float]:
    """Radius of the circle that holds each of `SHARES` of the energy, from the centre to middles of pixels [pixels].

    >>> radii(np.array([[0.25, 0.5, 0.25]]), (0.5, 1.5))
    {0.5: 0.0, 0.95: 1.0}
    """
    rows, columns = np.indices(energy.shape) + 0.5
    distance = np.hypot(rows - centre[0], columns - centre[1]).ravel()
    order = np.argsort(distance, kind="stable")
    held = np.cumsum(energy.ravel()[order])
    if not held[-1] > 0:
        return dict.fromkeys(SHARES, float("nan"))
    # rounding must not ask for the last pixel
    return {share: float(distance[order][np.searchsorted(held, share * held[-1] * (1 - 1e-12))]) for share in SHARES}


def num_stages(net: nn.Module, image: Tensor) -> int:
    """How many stages of a network give maps, of an image [C, H, W]."""
    with torch.no_grad():
        return len(_maps(net, image[None]))


def _maps(net: nn.Module, x: Tensor) -> list[Tensor]:
    """Maps [1, C, h, w] behind the stages."""
    forward: Any = getattr(net, "forward_intermediates", None)
    if forward is None:
        raise ValueError(f"model: expected a network with forward_intermediates, as timm has it, got {type(net)}")
    try:
        maps = forward(x, output_fmt="NCHW", intermediates_only=True)
    except AssertionError as error:
        size = " x ".join(map(str, x.shape[2:]))
        raise ValueError(f"images: the network takes none of {size} pixels: {error}") from error
    return [y for y in maps if y.ndim == 4]


def _place(
    net: nn.Module, stage: int, y: Tensor, x: Tensor, position: tuple[float, float]
) -> tuple[int, int, tuple[float, float]]:
    """Row and column of the position that covers a pixel, and the middle of what it covers."""
    places, middles = [], []
    for size, pixels, share in zip(y.shape[2:], x.shape[2:], (position[1], position[0]), strict=True):
        step = reduction(net, stage, size, pixels)
        place = min(int(share * pixels / step), size - 1)
        places.append(place)
        middles.append((place + 0.5) * step)
    return places[0], places[1], (middles[0], middles[1])


def reduction(net: nn.Module, stage: int, size: int, pixels: int) -> float:
    """Pixels that a position of a stage's map stands for, along one axis: as the network says, if it fits the map."""
    info: Any = getattr(net, "feature_info", None)
    info = getattr(info, "info", info)  # timm has lists, and objects around lists
    step = info[stage].get("reduction") if info and 0 <= stage < len(info) else None
    return step if step and -(-pixels // step) == size else pixels / size
