"""The operators of `localmix.kernels` at the sizes that networks call them with, and the work that each call is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from localmix import functional
from localmix.reports.benchmarks.limits import Work
from localmix.testing import output_and_gradients

Tensors = dict[str, Tensor]
Shape = tuple[int, int, int]

STAGES: dict[int, Shape] = {1: (56, 56, 96), 2: (28, 28, 192), 3: (14, 14, 384), 4: (7, 7, 768)}
"""H, W, C of the maps of the tiny networks at 224 pixels."""
KERNEL = 7
"""Taps along each axis, and the side of a window, in the networks."""
NUM_GROUPS = 32
"""Groups of the inhomogeneous convolutions."""
HEAD_DIM = 32
"""Channels of a head, and of a group of the local MLP."""
REDUCTION = 4
"""Channels over hidden features of the projected convolution."""
SHIFTED = "window_attention_shifted"
"""Window attention with shifted windows, beside the operators of the package."""


@dataclass(frozen=True)
class Problem:
    """One operator with one set of tensors.

    `name` is that of the operator, or `SHIFTED`; `shape` is B, H, W, C. `batched` names the tensors that have an entry
    for each image. `kernel_size` is the side of the kernel or window. `gradient` is that of the output.
    """

    name: str
    operator: str
    shape: tuple[int, int, int, int]
    tensors: Tensors
    options: dict[str, Any]
    batched: tuple[str, ...]
    kernel_size: int
    gradient: Tensor

    @property
    def first(self) -> Tensor:
        """The tensor that stands for all: its device and dtype choose the implementation."""
        return next(iter(self.tensors.values()))

    @property
    def device(self) -> str:
        """Where it is."""
        return self.first.device.type

    @property
    def dtype(self) -> torch.dtype:
        """Of its tensors."""
        return self.first.dtype

    def work(self, direction: str) -> Work:
        """Bytes and multiply-adds that the call cannot avoid.

        Taps outside of the map are not counted. The backward pass reads the gradient of the output and the inputs, and
        writes the gradients of the inputs; weights that a softmax or a projection makes are made again.
        """
        inputs, output = sum(t.nbytes for t in self.tensors.values()), self.gradient.nbytes
        num_bytes = inputs + output if direction == "forward" else 2 * inputs + output
        return Work(num_bytes, *_MACS[self.operator][direction](self))

    @cached_property
    def products(self) -> int:
        """Multiply-adds of the one equation: one for each connection and channel."""
        batch, height, width, channels = self.shape
        size = (height, width, self.kernel_size)
        if self.operator in ("window_attention", "local_mlp"):
            neighborhood = functional.window(*size, shift=self.options["shift"])
        else:
            border = "clamp" if self.operator == "neighborhood_attention" else "zero"
            neighborhood = functional.sliding(*size, border=border)
        return batch * int((neighborhood >= 0).sum()) * channels

    @cached_property
    def projected(self) -> int:
        """Multiply-adds that make the weights of the projected convolution."""
        return self.shape[0] * self.shape[1] * self.shape[2] * self.tensors["projection"].numel()

    @cached_property
    def expected(self) -> tuple[Tensors, Tensors]:
        """Output and gradients of the last image by the definition: in float64, and in the dtype of the tensors.

        Of one image, because the definition gathers all K inputs of each position.
        """
        tensors = {name: t[-1:] if name in self.batched else t for name, t in self.tensors.items()}
        exact = {name: t.double() for name, t in tensors.items()}
        definition, gradient = getattr(functional, self.operator), self.gradient[-1:]
        return (
            output_and_gradients(definition, exact, self.options, gradient.double()),
            output_and_gradients(definition, tensors, self.options, gradient),
        )


def problem(
    name: str,
    shape: Shape,
    *,
    batch: int,
    kernel_size: int = KERNEL,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    bias: bool = True,
) -> Problem:
    """The operator `name` (or `SHIFTED`) on maps [batch, *shape], with random tensors.

    `bias` gives attention its bias; the other operators have theirs always.
    """
    operator = "window_attention" if name == SHIFTED else name
    sizes, options, batched = _SIZES[operator](batch, *shape, kernel_size)
    if operator.endswith("attention") and not bias:
        del sizes["bias"]
    if name == SHIFTED:
        options["shift"] = kernel_size // 2
    generator = torch.Generator(device).manual_seed(0)

    def draw(size: tuple[int, ...]) -> Tensor:
        return torch.randn(size, generator=generator, device=device).to(dtype)

    tensors = {name: draw(size) for name, size in sizes.items()}
    output = next(iter(sizes.values()))
    return Problem(name, operator, (batch, *shape), tensors, options, batched, kernel_size, draw(output))


def cases(names: Sequence[str], shapes: Sequence[Shape], kernel_size: int = KERNEL) -> list[tuple[str, Shape]]:
    """Each of those with each shape; windows are shifted only where there is more than one."""
    return [(name, shape) for name in names for shape in shapes if name != SHIFTED or max(shape[:2]) > kernel_size]


Sizes = tuple[dict[str, tuple[int, ...]], dict[str, Any], tuple[str, ...]]


def _depthwise(batch: int, height: int, width: int, channels: int, kernel: int) -> Sizes:
    sizes = {"x": (batch, height, width, channels), "weight": (channels, kernel, kernel), "bias": (channels,)}
    return sizes, {}, ("x",)


def _homogeneous(batch: int, height: int, width: int, channels: int, kernel: int) -> Sizes:
    sizes = {"x": (batch, height, width, channels), "weight": (batch, channels, kernel, kernel), "bias": (channels,)}
    return sizes, {}, ("x", "weight")


def _inhomogeneous(batch: int, height: int, width: int, channels: int, kernel: int) -> Sizes:
    x = (batch, height, width, channels)
    return {"x": x, "weight": (*x[:3], NUM_GROUPS, kernel**2)}, {"kernel_size": kernel}, ("x", "weight")


def _projected(batch: int, height: int, width: int, channels: int, kernel: int) -> Sizes:
    x, rows, hidden = (batch, height, width, channels), NUM_GROUPS * kernel**2, channels // REDUCTION
    sizes = {"x": x, "hidden": (*x[:3], hidden), "projection": (rows, hidden), "projection_bias": (rows,)}
    return sizes, {"kernel_size": kernel, "num_groups": NUM_GROUPS}, ("x", "hidden")


def _window_attention(batch: int, height: int, width: int, channels: int, kernel: int) -> Sizes:
    qkv, slots = (batch, height, width, channels // HEAD_DIM, HEAD_DIM), kernel**2
    sizes = {"query": qkv, "key": qkv, "value": qkv, "bias": (qkv[3], slots, slots)}
    return sizes, {"window_size": kernel, "shift": 0}, ("query", "key", "value")


def _neighborhood_attention(batch: int, height: int, width: int, channels: int, kernel: int) -> Sizes:
    qkv, distances = (batch, height, width, channels // HEAD_DIM, HEAD_DIM), 2 * kernel - 1
    sizes = {"query": qkv, "key": qkv, "value": qkv, "bias": (qkv[3], distances, distances)}
    return sizes, {"kernel_size": kernel}, ("query", "key", "value")


def _local_mlp(batch: int, height: int, width: int, channels: int, kernel: int) -> Sizes:
    groups, slots = channels // HEAD_DIM, kernel**2
    sizes = {"x": (batch, height, width, channels), "weight": (groups, slots, slots), "bias": (groups, slots)}
    return sizes, {"window_size": kernel, "shift": 0}, ("x",)


_SIZES = {
    "depthwise_convolution": _depthwise,
    "homogeneous_convolution": _homogeneous,
    "inhomogeneous_convolution": _inhomogeneous,
    "projected_inhomogeneous_convolution": _projected,
    "window_attention": _window_attention,
    "neighborhood_attention": _neighborhood_attention,
    "local_mlp": _local_mlp,
}
NAMES = (*list(_SIZES)[:5], SHIFTED, *list(_SIZES)[5:])
"""What can be benchmarked."""

# Matrix and vector multiply-adds. A gradient for each of the two factors of a product is two more products; attention
# makes its weights again, so five in all.
_CONVOLUTION = {"forward": lambda p: (0, p.products), "backward": lambda p: (0, 2 * p.products)}
_ATTENTION = {"forward": lambda p: (2 * p.products, 0), "backward": lambda p: (5 * p.products, 0)}
_MACS = {
    "depthwise_convolution": _CONVOLUTION,
    "homogeneous_convolution": _CONVOLUTION,
    "inhomogeneous_convolution": _CONVOLUTION,
    "projected_inhomogeneous_convolution": {
        "forward": lambda p: (p.projected, p.products),
        "backward": lambda p: (3 * p.projected, 2 * p.products),
    },
    "window_attention": _ATTENTION,
    "neighborhood_attention": _ATTENTION,
    "local_mlp": {"forward": lambda p: (p.products, 0), "backward": lambda p: (2 * p.products, 0)},
}
DIRECTIONS = ("forward", "backward")
