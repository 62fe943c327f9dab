"""Axis 1 as objects that a mixer holds: which positions connect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from localmix import arguments, functional
from localmix.arguments import Size
from localmix.exporting import is_exporting


@dataclass(frozen=True, init=False)
class Sliding:
    """A kernel that slides over the map; see `localmix.functional.sliding`."""

    kernel_size: tuple[int, int]
    dilation: tuple[int, int]
    border: str

    def __init__(self, kernel_size: Size = 7, dilation: Size = 1, border: str = "zero") -> None:
        object.__setattr__(self, "kernel_size", arguments.pair("kernel_size", kernel_size))
        object.__setattr__(self, "dilation", arguments.pair("dilation", dilation))
        object.__setattr__(self, "border", arguments.choice("border", border, ("zero", "clamp")))

    @property
    def num_taps(self) -> int:
        return self.kernel_size[0] * self.kernel_size[1]

    def neighborhood(self, height: int, width: int, device: torch.device) -> Tensor:
        return functional.sliding(
            height, width, self.kernel_size, dilation=self.dilation, border=self.border, device=device
        )

    def pad(self, x: Tensor) -> Tensor:
        return x

    def unpad(self, y: Tensor, height: int, width: int) -> Tensor:
        return y


@dataclass(frozen=True, init=False)
class Window:
    """Windows that tile the map; see `localmix.functional.window`.

    An axis that one window covers is not shifted: that would only sever positions from one another.

    With `border="cut"` windows at the border hold fewer positions. With `border="pad"` the map is padded with zero
    tokens that take part like any other, as in Swin: an axis longer than the window is filled up to a multiple of it.
    Shifted windows are then timm's, which rolls the map before it pads: the first rows come behind the last ones, and
    behind them the zeros.
    """

    window_size: tuple[int, int]
    shift: tuple[int, int]
    border: str

    def __init__(self, window_size: Size = 7, shift: Size = 0, border: str = "cut") -> None:
        object.__setattr__(self, "window_size", arguments.pair("window_size", window_size))
        object.__setattr__(self, "shift", arguments.shift_of_window(shift, self.window_size))
        object.__setattr__(self, "border", arguments.choice("border", border, ("cut", "pad")))

    @property
    def num_taps(self) -> int:
        return self.window_size[0] * self.window_size[1]

    def shift_at(self, height: int, width: int) -> tuple[int, int]:
        """The shift of each axis of a map of that size: none where one window covers the axis."""
        rows, columns = self._exceeded(height, width)
        return (self.shift[0] and self.shift[0] * rows, self.shift[1] and self.shift[1] * columns)

    def neighborhood(self, height: int, width: int, device: torch.device) -> Tensor:
        return functional.window(height, width, self.window_size, shift=self.shift_at(height, width), device=device)

    def pad(self, x: Tensor) -> Tensor:
        missing = self._missing(x.shape[1], x.shape[2])
        if _is_zero(*missing):
            return x
        shift = self.shift_at(x.shape[1], x.shape[2])
        x = _roll(x, (-shift[0], -shift[1]))
        x = F.pad(x, (0, 0, 0, missing[1], 0, missing[0]))
        return _roll(x, shift)

    def unpad(self, y: Tensor, height: int, width: int) -> Tensor:
        missing = self._missing(height, width)
        if _is_zero(*missing):
            return y
        shift = self.shift_at(height, width)
        y = _roll(y, (-shift[0], -shift[1]))
        y = F.pad(y, (0, 0, 0, -missing[1], 0, -missing[0]))
        return _roll(y, shift)

    def _missing(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns to add so that the window divides an axis longer than itself."""
        if self.border == "cut":
            return (0, 0)
        rows, columns = self._exceeded(height, width)
        return (-height % self.window_size[0] * rows, -width % self.window_size[1] * columns)

    def _exceeded(self, height: int, width: int) -> tuple[int, int]:
        """1 for each axis that is longer than the window, 0 for one that the window covers."""
        return _exceeds(height, self.window_size[0]), _exceeds(width, self.window_size[1])


def _exceeds(size: int, window: int) -> int:
    """1 if size > window, else 0; in an exported graph by arithmetic, for a branch would fix an open size there."""
    if not is_exporting() or isinstance(size, int):
        return 1 if size > window else 0
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # slow to import

    exceeds: Any = torch.sym_min(1, (size - 1) // window)
    return 1 if statically_known_true(size > window) else exceeds


def _is_zero(*sizes: int) -> bool:
    """All are known to be zero: false where a size is left open, without a branch that would fix it."""
    if not torch.compiler.is_compiling():
        return all(isinstance(size, int) and size == 0 for size in sizes)
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # slow to import

    return all(statically_known_true(size == 0) for size in sizes)


def _roll(x: Tensor, shift: tuple[int, int]) -> Tensor:
    if all(isinstance(s, int) for s in shift):
        return x if _is_zero(*shift) else x.roll(shift, (1, 2))
    for axis, s in zip((1, 2), shift, strict=True):  # a gather, for ONNX has no roll by a number that is open
        size = x.shape[axis]
        position = torch.arange(size, device=x.device) - s
        position = torch.where(position < 0, position + size, position)
        x = x.index_select(axis, torch.where(position < size, position, position - size))
    return x
