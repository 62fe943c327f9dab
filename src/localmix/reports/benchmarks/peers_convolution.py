"""Convolutions as users have them without localmix."""

from __future__ import annotations

from dataclasses import replace
from types import MethodType

import torch.nn.functional as F
from torch import Tensor, nn

from localmix import kernels
from localmix.layers import InhomogeneousDynamicConv
from localmix.reports.benchmarks.contenders import Contender
from localmix.reports.benchmarks.problems import Problem, Tensors


def conv2d(problem: Problem) -> Contender:
    """PyTorch's convolution with a group for each channel, on maps [B, C, H, W]."""

    def prepare(x: Tensor, weight: Tensor, bias: Tensor) -> Tensors:
        return {"x": _channels_first(x), "weight": weight[:, None], "bias": bias}

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=len(weight))

    return Contender("", run, prepare, _channels_last)


def conv2d_channels_last(problem: Problem) -> Contender:
    """The same on maps whose memory is [B, H, W, C]."""

    def prepare(x: Tensor, weight: Tensor, bias: Tensor) -> Tensors:
        return {"x": x.movedim(-1, 1), "weight": weight[:, None], "bias": bias}

    return replace(conv2d(problem), prepare=prepare)


def grouped_conv2d(problem: Problem) -> Contender:
    """All images side by side as channels of one."""

    def prepare(x: Tensor, weight: Tensor, bias: Tensor) -> Tensors:
        return {"x": _channels_first(x), "weight": weight, "bias": bias}

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        kernels, image = weight.flatten(0, 1)[:, None], x.flatten(0, 1)[None]
        y = F.conv2d(image, kernels, padding=weight.shape[-1] // 2, groups=len(kernels))
        return y.view(x.shape) + bias[:, None, None]

    return Contender("", run, prepare, _channels_last)


def _maps_of_weights(x: Tensor, weight: Tensor) -> Tensors:
    """The weights as [B, G, K, H, W], as a convolution leaves them."""
    return {"x": _channels_first(x), "weight": weight.permute(0, 3, 4, 1, 2).contiguous()}


def _unfolded(x: Tensor, weight: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    groups, taps = weight.shape[1:3]
    columns = F.unfold(x, round(taps**0.5), padding=round(taps**0.5) // 2)
    columns = columns.view(batch, groups, channels // groups, taps, height, width)
    return (columns * weight[:, :, None]).sum(3).flatten(1, 2)


def unfold(problem: Problem) -> Contender:
    """The official code without its CUDA kernel."""
    return Contender("", _unfolded, _maps_of_weights, _channels_last)


def shifted_sum(problem: Problem) -> Contender:
    """One product with the shifted map for each tap."""

    def run(x: Tensor, weight: Tensor) -> Tensor:
        (height, width), (groups, taps) = x.shape[2:], weight.shape[1:3]
        kernel = round(taps**0.5)
        padded = F.pad(x, [kernel // 2] * 4).unflatten(1, (groups, -1))
        products = (
            padded[..., row : row + height, column : column + width] * weight[:, :, None, row * kernel + column]
            for row in range(kernel)
            for column in range(kernel)
        )
        y = next(products)
        for product in products:
            y = y + product
        return y.flatten(1, 2)

    return Contender("", run, _maps_of_weights, _channels_last)


def _predicted(hidden: Tensor, projection: Tensor, bias: Tensor, num_groups: int) -> Tensor:
    """Weights [B, G, K, H, W] by a pointwise convolution, as in the official code."""
    return F.conv2d(hidden, projection[:, :, None, None], bias).unflatten(1, (num_groups, -1))


def projected_unfold(problem: Problem) -> Contender:
    """The official code without its CUDA kernel."""

    def prepare(x: Tensor, hidden: Tensor, **parameters: Tensor) -> Tensors:
        return {"x": _channels_first(x), "hidden": _channels_first(hidden), **parameters}

    def run(x: Tensor, hidden: Tensor, projection: Tensor, projection_bias: Tensor) -> Tensor:
        weight = _predicted(hidden, projection, projection_bias, problem.options["num_groups"])
        return _unfolded(x, weight)

    return Contender("", run, prepare, _channels_last)


def predict_then_apply(problem: Problem) -> Contender:
    """One matrix product for the whole batch, then the operator of localmix that takes given weights."""
    groups, kernel = problem.options["num_groups"], problem.options["kernel_size"]

    def prepare(x: Tensor, hidden: Tensor, projection: Tensor, projection_bias: Tensor) -> Tensors:
        # groups innermost, which the kernels read fastest
        projection, projection_bias = (
            t.unflatten(0, (groups, -1)).transpose(0, 1).flatten(0, 1) for t in (projection, projection_bias)
        )
        return {"x": x, "hidden": hidden, "projection": projection, "projection_bias": projection_bias}

    def run(x: Tensor, hidden: Tensor, projection: Tensor, projection_bias: Tensor) -> Tensor:
        weight = F.linear(hidden, projection, projection_bias).unflatten(3, (-1, groups)).transpose(3, 4)
        return kernels.inhomogeneous_convolution(x, weight, kernel_size=kernel)

    return Contender("", run, prepare)


def official(net: nn.Module) -> nn.Module:
    """`net`, its inhomogeneous convolutions now computed the official way: weights written to memory, then unfold."""

    def mix(self: InhomogeneousDynamicConv, x: Tensor) -> Tensor:
        expand, hidden = self.source.expand, self.source.hidden(x).movedim(-1, 1)
        weight = _predicted(hidden, expand.weight, expand.bias, self.source.num_groups)
        return _channels_last(_unfolded(x.movedim(-1, 1), weight))

    for module in net.modules():
        if isinstance(module, InhomogeneousDynamicConv):
            module.mix = MethodType(mix, module)
    return net


def _channels_first(t: Tensor) -> Tensor:
    return t.movedim(-1, 1).contiguous()


def _channels_last(t: Tensor) -> Tensor:
    return t.movedim(1, -1)
