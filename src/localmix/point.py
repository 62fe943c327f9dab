"""A point of the space that the paper's axes span, as plain data with a name that parses back.

A mixer is a choice on each axis. Its name says them in the order of the axes:

    CONNECTIVITY / POSITIONS / CHANNELS / WEIGHTS [/ softmax | / free]

    CONNECTIVITY  slidingSIZE [-dilationSIZE]  |  windowSIZE [-shiftSIZE] [-pad]
    POSITIONS     shared-positions  |  shared-windows[SIZE]  |  unshared-positions
    CHANNELS      unshared-channels  |  groupsN  |  groupsN,N,N,N  |  shared-channels
    WEIGHTS       static  |  homogeneous  |  mixtureN  |  inhomogeneous  |  dot-product
    SIZE          N  |  NxN  (height x width)
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from localmix.axes import Connectivity, Dynamics, Positions

Pair = tuple[int, int]

_WEIGHTS = {
    "static": Dynamics.STATIC,
    "homogeneous": Dynamics.HOMOGENEOUS,
    "mixture": Dynamics.MIXTURE,
    "inhomogeneous": Dynamics.INHOMOGENEOUS,
    "dot-product": Dynamics.DOT_PRODUCT,
}
_POSITIONS = {
    "shared-positions": Positions.ALL,
    "shared-windows": Positions.WINDOWS,
    "unshared-positions": Positions.NONE,
}
_SIZE = r"(\d+(?:x\d+)?)"
_GRAMMAR = {
    "connectivity": (
        re.compile(rf"(sliding){_SIZE}(?:-dilation{_SIZE})?|(window){_SIZE}(?:-shift{_SIZE})?(-pad)?"),
        "such as sliding7, sliding7x5-dilation2, window7 or window7-shift3-pad",
    ),
    "positions": (
        re.compile(rf"(shared-positions|unshared-positions)|(shared-windows){_SIZE}?"),
        "shared-positions, shared-windows (of a sliding kernel shared-windows14) or unshared-positions",
    ),
    "channels": (
        re.compile(r"unshared-channels|shared-channels|groups(\d+(?:,\d+)*)"),
        "unshared-channels, shared-channels, groups32, or groups3,6,12,24 for the stages of a network",
    ),
    "weights": (
        re.compile(r"(static|homogeneous|inhomogeneous|dot-product)|(mixture)(\d+)"),
        "static, homogeneous, inhomogeneous, dot-product, or a mixture such as mixture4",
    ),
    "normalisation": (re.compile("softmax|free"), "softmax, free (of dot products), or nothing"),
}


@dataclass(frozen=True)
class Point:
    """A mixer as its place on the three axes.

    Args:
        connectivity: axis 1. A sliding kernel has a zero border, but under the softmax of dot products a clamped one.
        size: of the kernel or window [positions].
        positions: axis 2a. `ALL`: a weight depends on the offset from output to input alone, also in windows.
            `WINDOWS`: it depends on where the output lies in its window; a sliding kernel needs a `period` for that.
        num_groups: axis 2b. Channels of a group share their weights; None shares nothing, 1 everything; a tuple has a
            number for each stage of a network.
        weights: axis 3.
        dilation: distance between the taps of a sliding kernel [positions].
        shift: where the first whole window begins [positions]; in networks it holds in every second block.
        pad: windows at the border are filled with zero tokens that take part in the softmax, as in Swin.
        period: size of the windows that share the weights of a sliding kernel [positions]. On maps that are no larger,
            every position has weights of its own.
        num_kernels: of a mixture; 0 for all other weights.
        softmax: the weights of a position are positive and sum to one over its taps, those outside of the map included.
        free: dot products are the weights as they are; without it a softmax is taken of them.

    Raises:
        ValueError: no such mixer; says why.

    >>> point = Point.parse("window7-shift3/shared-windows/groups32/static")
    >>> point.connectivity, point.num_groups, point.name
    (<Connectivity.WINDOW: 'window'>, 32, 'window7-shift3/shared-windows/groups32/static')
    >>> Point.parse("sliding7/shared-positions/groups3/dot-product")
    Traceback (most recent call last):
        ...
    ValueError: positions: expected unshared-positions for dot-product weights, which belong to a pair of positions \
and change with both, got shared-positions
    """

    connectivity: Connectivity
    size: Pair
    positions: Positions
    num_groups: int | tuple[int, ...] | None
    weights: Dynamics
    dilation: Pair = (1, 1)
    shift: Pair = (0, 0)
    pad: bool = False
    period: Pair | None = None
    num_kernels: int = 0
    softmax: bool = False
    free: bool = False

    def __post_init__(self) -> None:
        for name, lowest in (("size", 1), ("dilation", 1), ("shift", 0), ("period", 1)):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, _pair(name, value, lowest))
        if isinstance(self.num_groups, (tuple, list)):
            groups = tuple(self.num_groups)
            object.__setattr__(self, "num_groups", groups[0] if len(groups) == 1 else groups)
        counts: Any = self.num_groups if isinstance(self.num_groups, tuple) else (self.num_groups,)
        if self.num_groups is not None and not (counts and all(_is_int(n) and n >= 1 for n in counts)):
            raise ValueError(f"num_groups: expected None, or ints of at least 1, got {self.num_groups!r}")
        self._check_connectivity()
        self._check_sharing()
        self._check_weights()

    def _check_connectivity(self) -> None:
        if self.connectivity is Connectivity.WINDOW:
            if self.dilation != (1, 1):
                raise ValueError(
                    f"dilation: expected none for windows, whose positions are side by side, got {self.dilation}"
                )
            if any(s >= n for s, n in zip(self.shift, self.size, strict=True)):
                raise ValueError(f"shift: expected less than the window of {self.size}, got {self.shift}")
            if self.pad and not self.attends:
                raise ValueError(
                    f"pad: expected none for {self.kind_of_weights}: zero tokens are there to take part in the softmax "
                    "of dot products, without one there is nothing that they should change"
                )
            return
        if self.shift != (0, 0):
            raise ValueError(f"shift: expected none for a sliding kernel, which has no windows, got {self.shift}")
        if self.pad:
            raise ValueError("pad: expected none for a sliding kernel, whose border follows from its weights")
        expected = sliding(self.weights, self.free)
        if self.connectivity is not expected:
            raise ValueError(
                f"connectivity: expected '{expected.value}' for {self.kind_of_weights} (a softmax over inputs "
                f"keeps to the map, other weights multiply zeros behind the border), got '{self.connectivity.value}'"
            )

    def _check_sharing(self) -> None:
        got = next(name for name, value in _POSITIONS.items() if value is self.positions)
        needed, why = {
            Dynamics.DOT_PRODUCT: ((Positions.NONE,), "which belong to a pair of positions and change with both"),
            Dynamics.INHOMOGENEOUS: ((Positions.NONE,), "which are made of the feature at each position"),
        }.get(
            self.weights,
            (
                (Positions.ALL, Positions.WINDOWS),
                "of which there is one set, whatever the size of the map; own weights at each position of maps up to "
                "a size are shared-windows of that size",
            ),
        )
        if self.positions not in needed:
            expected = " or ".join(name for name, value in _POSITIONS.items() if value in needed)
            raise ValueError(f"positions: expected {expected} for {self.weights_name} weights, {why}, got {got}")
        if (self.period is not None) != (self.positions is Positions.WINDOWS and self.is_sliding):
            if self.period is None:
                raise ValueError("period: expected the size of the windows that share a sliding kernel, got None")
            raise ValueError(
                "period: expected none but for a sliding kernel that windows share (a window is its own), "
                f"got {self.period}"
            )

    def _check_weights(self) -> None:
        if (self.weights is Dynamics.MIXTURE) != (self.num_kernels != 0) or not _is_int(self.num_kernels):
            expected = "an int of at least 1" if self.weights is Dynamics.MIXTURE else "0 but for a mixture"
            raise ValueError(f"num_kernels: expected {expected}, got {self.num_kernels!r}")
        if self.num_kernels < 0:
            raise ValueError(f"num_kernels: expected an int of at least 1, got {self.num_kernels!r}")
        if self.free and self.weights is not Dynamics.DOT_PRODUCT:
            raise ValueError(f"free: expected none for {self.weights_name} weights, which are free without a softmax")
        if self.softmax and self.weights is Dynamics.DOT_PRODUCT:
            raise ValueError("softmax: expected none for dot-product weights, which are one already unless free")
        if self.softmax and self.positions is Positions.ALL and not self.is_sliding:
            raise ValueError(
                "softmax: expected none for windows whose positions share weights: each position of a window has other "
                "offsets in it, so that the sums, and with them the weights, would not be the same"
            )

    @classmethod
    def parse(cls, name: str) -> Point:
        """The point of that name.

        Raises:
            ValueError: not a name, or the name of no mixer; says what is wrong.
        """
        parts = name.split("/") if isinstance(name, str) else []
        if len(parts) not in (4, 5):
            raise ValueError(
                "point: expected connectivity/positions/channels/weights, such as "
                f"'sliding7/shared-positions/unshared-channels/static', got {name!r}"
            )
        found = []
        for part, (axis, (pattern, expected)) in zip(parts, _GRAMMAR.items(), strict=False):
            match = pattern.fullmatch(part)
            if match is None:
                raise ValueError(f"{axis}: expected {expected}, got {part!r} in {name!r}")
            found.append(match)
        slides, kernel, dilation, _, window, shift, pad = found[0].groups()
        shared, by_windows, period = found[1].groups()
        plain, mixture, num_kernels = found[3].groups()
        weights, end = _WEIGHTS[plain or mixture], parts[4] if len(parts) == 5 else None
        return cls(
            connectivity=sliding(weights, end == "free") if slides else Connectivity.WINDOW,
            size=_size(kernel or window),
            positions=_POSITIONS[shared or by_windows],
            num_groups=_groups(parts[2]),
            weights=weights,
            dilation=_size(dilation or "1"),
            shift=_size(shift or "0"),
            pad=bool(pad),
            period=_size(period) if period else None,
            num_kernels=_kernels(num_kernels) if mixture else 0,
            softmax=end == "softmax",
            free=end == "free",
        )

    @property
    def name(self) -> str:
        """The name that parses back to this point."""
        connectivity = f"{'sliding' if self.is_sliding else 'window'}{_text(self.size)}"
        if self.dilation != (1, 1):
            connectivity += f"-dilation{_text(self.dilation)}"
        if self.shift != (0, 0):
            connectivity += f"-shift{_text(self.shift)}"
        if self.pad:
            connectivity += "-pad"
        positions = next(name for name, value in _POSITIONS.items() if value is self.positions)
        if self.period is not None:
            positions += _text(self.period)
        if self.num_groups is None or self.num_groups == 1:
            channels = "unshared-channels" if self.num_groups is None else "shared-channels"
        else:
            counts = self.num_groups if isinstance(self.num_groups, tuple) else (self.num_groups,)
            channels = "groups" + ",".join(map(str, counts))
        weights = self.weights_name + (str(self.num_kernels) if self.num_kernels else "")
        ends = [word for word, holds in (("softmax", self.softmax), ("free", self.free)) if holds]
        return "/".join([connectivity, positions, channels, weights, *ends])

    def __str__(self) -> str:
        return self.name

    @property
    def is_sliding(self) -> bool:
        """A kernel that slides, and no windows."""
        return self.connectivity is not Connectivity.WINDOW

    @property
    def attends(self) -> bool:
        """The weights are a softmax of dot products."""
        return self.weights is Dynamics.DOT_PRODUCT and not self.free

    @property
    def kind_of_weights(self) -> str:
        """The weights in words."""
        return f"{'free ' if self.free else ''}{self.weights_name} weights"

    @property
    def weights_name(self) -> str:
        """What the name calls the weights."""
        return next(name for name, value in _WEIGHTS.items() if value is self.weights)

    def in_block(self, stage: int, index: int) -> Point:
        """The point in a block of a network: the groups of its stage, and its shift in every second block.

        Raises:
            ValueError: no number of groups for that stage.

        >>> Point.parse("window7-shift3/unshared-positions/groups3,6,12,24/dot-product").in_block(1, 0).name
        'window7/unshared-positions/groups6/dot-product'
        """
        groups = self.num_groups
        if isinstance(groups, tuple):
            if stage >= len(groups):
                raise ValueError(f"num_groups: expected a number for each stage, also for stage {stage}, got {groups}")
            groups = groups[stage]
        return replace(self, num_groups=groups, shift=self.shift if index % 2 else (0, 0))


def sliding(weights: Dynamics, free: bool = False) -> Connectivity:
    """What a kernel that slides does at the border of the map, under such weights."""
    attends = weights is Dynamics.DOT_PRODUCT and not free
    return Connectivity.SLIDING_CLAMPED if attends else Connectivity.SLIDING_ZERO


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _pair(name: str, value: Any, lowest: int) -> Pair:
    items = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(items) != 2 or not all(_is_int(item) and item >= lowest for item in items):
        raise ValueError(
            f"{name}: expected an int or a pair of ints (height, width) of at least {lowest}, got {value!r}"
        )
    return items[0], items[1]


def _size(text: str) -> Pair:
    first, _, second = text.partition("x")
    return int(first), int(second or first)


def _text(size: Pair) -> str:
    return str(size[0]) if size[0] == size[1] else f"{size[0]}x{size[1]}"


def _groups(part: str) -> int | tuple[int, ...] | None:
    if not part.startswith("groups"):
        return None if part == "unshared-channels" else 1
    counts = tuple(map(int, part.removeprefix("groups").split(",")))
    return counts[0] if len(counts) == 1 else counts


def _kernels(text: str) -> int:
    if int(text) < 1:
        raise ValueError(f"num_kernels: expected an int of at least 1, got {text}")
    return int(text)


MIXER_POINTS: dict[str, Point] = {
    function: Point.parse(name)
    for function, name in {
        "depthwise_convolution": "sliding7/shared-positions/unshared-channels/static",
        "homogeneous_convolution": "sliding7/shared-positions/unshared-channels/homogeneous",
        "inhomogeneous_convolution": "sliding7/unshared-positions/groups32/inhomogeneous",
        "window_attention": "window7-shift3-pad/unshared-positions/groups3,6,12,24/dot-product",
        "neighborhood_attention": "sliding7/unshared-positions/groups3,6,12,24/dot-product",
        "local_mlp": "window7-shift3/shared-windows/groups32/static",
    }.items()
}
"""The six mixers as their tiny networks have them, by the name of their function; the nano ones have groups8."""
