"""How much the weights of a layer vary over positions, channels and images: its place on the axes, measured."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from localmix.functional import NO_INPUT
from localmix.reports.explanation.weights import Used


@dataclass(frozen=True)
class Variation:
    """Shares of the variance of a layer's weights, each in 0..1, and how large that variance is.

    Args:
        positions: 0 if and only if all positions have the same weights.
        channels: 0 if and only if all channels have the same weights.
        images: 0 if and only if all images have the same weights; None if that cannot be seen: of one image, or of
            images of several sizes.
        spread: the variance over the mean square of the weights: 0 if all kernels are the same one.
    """

    positions: float
    channels: float
    images: float | None
    spread: float


class Variance:
    """Gathers the weights of one layer, image by image.

    With w[b, p, g, k] the weight of tap k for image b, position p and group of channels g:

        V         = mean_k Var_{b,p,g}(w)
        positions = mean_{b,g,k} Var_p(w) / V
        channels  = mean_{b,p,k} Var_g(w) / V
        images    = mean_{p,g,k} Var_b(w) / V
        spread    = V / mean_{b,p,g,k}(w^2)

    Each is the mean variance along one axis while the others stand still, as a share of the variance around the mean
    kernel: the total effects of a variance decomposition. By the law of total variance each lies in 0..1. What varies
    along two axes together counts for both, so they sum to one or more. Scaling the weights changes nothing.

    Taps are the layer's own: offsets of what slides, slots of a window. Those that read nothing, or padding, are left
    out; a tap counts for as many positions as have it. Variances are those of the population, over the images given.
    Where V = 0 all shares are 0.

    Source: Homma and Saltelli, Importance measures in global sensitivity analysis of nonlinear models (total effects).
    """

    def __init__(self) -> None:
        self.num_images = 0
        self.one_size = True
        self.along_positions = self.along_channels = self.squares = 0.0
        self.total = Moments()
        self.over_images = Moments()
        self._shape: tuple[int, ...] | None = None

    def add(self, used: Used) -> None:
        """Count the images of one forward pass."""
        weight = used.weight.detach().double().cpu()
        weight = weight.expand(used.inputs.shape[0], -1, -1, -1, -1)
        has, inside = self._present(used)
        if weight.shape[1:3] == (1, 1):
            # one kernel for all positions: so it stands, once, and counts for those that have its taps
            times = has.sum((0, 1)).double()[None]
            weight = weight.flatten(1, 2)
        else:
            times = has[inside].double()
            weight = weight[:, inside]
        self.one_size &= self._shape in (None, weight.shape[1:])
        self._shape = weight.shape[1:]
        for image in weight:  # [P, G, K], times [P, K]
            self._add_image(image, times)

    @staticmethod
    def _present(used: Used) -> tuple[Tensor, Tensor]:
        """Which positions have which taps, bool [H', W', K], and which positions are not padding, bool [H', W']."""
        inside = (used.place != NO_INPUT).cpu()
        taps = used.neighborhood.cpu()
        # the last one answers for NO_INPUT
        reads = torch.cat([inside.flatten(), torch.tensor([False])])[taps]
        return reads & inside[..., None], inside

    def _add_image(self, weight: Tensor, times: Tensor) -> None:
        self.num_images += 1
        positions, groups, taps = weight.shape
        each = times[:, None].expand(positions, groups, taps)
        within = Moments()
        within.add(weight, each, 0)
        self.along_positions += within.squared_deviation.sum().item()
        between = Moments()
        between.add(weight, each, 1)
        self.along_channels += between.squared_deviation.sum().item()
        self.squares += (weight.square() * each).sum().item()
        self.total.add(weight.flatten(0, 1), each.flatten(0, 1), 0)
        if self.one_size:
            self.over_images.add(weight[None], each[None], 0)

    def result(self) -> Variation:
        """What was gathered.

        Raises:
            ValueError: nothing was.
        """
        if not self.num_images:
            raise ValueError("images: expected one or more, got none")
        whole = self.total.squared_deviation.sum().item()

        def share(part: float) -> float:
            return min(part / whole, 1.0) if whole > 0 else 0.0

        seen = self.one_size and self.num_images > 1
        return Variation(
            share(self.along_positions),
            share(self.along_channels),
            share(self.over_images.squared_deviation.sum().item()) if seen else None,
            min(whole / self.squares, 1.0) if self.squares > 0 else 0.0,
        )


class Moments:
    """Count, mean and summed squared deviation of numbers that come in parts; equal numbers deviate by exactly zero."""

    def __init__(self) -> None:
        self.count = self.mean = self.squared_deviation = torch.zeros((), dtype=torch.float64)

    def add(self, numbers: Tensor, times: Tensor, dim: int) -> None:
        """Count `numbers` along `dim`, each so many times."""
        count = times.sum(dim)
        # deviations are taken from the first number that counts: so they are exactly zero where all are equal
        first = (times > 0).int().argmax(dim, keepdim=True)
        origin = numbers.gather(dim, first).squeeze(dim)
        away = torch.where(times > 0, numbers - origin.unsqueeze(dim), 0.0)
        mean = (away * times).sum(dim) / count.clamp(min=1)
        squared = (away - mean.unsqueeze(dim)).square().mul(times).sum(dim)
        self._merge(count, origin + mean, squared)

    def _merge(self, count: Tensor, mean: Tensor, squared: Tensor) -> None:
        both = self.count + count
        step = torch.where(self.count > 0, mean - self.mean, 0.0)
        weighed = step * count / both.clamp(min=1)
        self.squared_deviation = self.squared_deviation + squared + step * weighed * self.count
        self.mean = torch.where(self.count > 0, self.mean + weighed, mean)
        self.count = both
