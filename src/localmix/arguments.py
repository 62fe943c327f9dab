"""Checks of the arguments of public operators: done once, at the public edge, before any work.

Every error is a `ValueError` (or `TypeError` for a wrong kind of object) that names the argument, what was expected
and what came.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

Size: TypeAlias = int | tuple[int, int]


def pair(name: str, value: Size, *, minimum: int = 1) -> tuple[int, int]:
    """`value` as (height, width): an int counts for both axes."""
    height, width = value if type(value) is tuple and len(value) == 2 else (value, value)
    if type(height) is int and type(width) is int and height >= minimum and width >= minimum:
        return height, width  # before all that only an error needs: it took as long as a small kernel
    items = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(items) != 2 or not all(_is_integer(item) for item in items):
        raise ValueError(f"{name}: expected an int or a pair of ints (height, width), got {value!r}")
    if any(isinstance(item, int) and item < minimum for item in items):
        raise ValueError(f"{name}: expected at least {minimum}, got {value!r}")
    return items[0], items[1]


def positive(name: str, value: int) -> int:
    """`value`, which must be an int of at least 1."""
    if not _is_integer(value) or value < 1:
        raise ValueError(f"{name}: expected an int of at least 1, got {value!r}")
    return value


def not_negative(name: str, value: float) -> float:
    """`value`, which must be a finite number of at least 0."""
    if not 0 <= value < math.inf:
        raise ValueError(f"{name}: expected at least 0, got {value}")
    return value


def seed(name: str, value: int) -> int:
    """`value`, which must be an int that every generator takes."""
    if not _is_integer(value) or not 0 <= value < 2**63:
        raise ValueError(f"{name}: expected an int of at least 0 and below 2**63, got {value!r}")
    return value


def share(name: str, value: float) -> float:
    """`value`, which must be at least 0 and below 1."""
    if not 0 <= value < 1:
        raise ValueError(f"{name}: expected at least 0 and below 1, got {value}")
    return value


def divides(name: str, count: int, of: str, total: int) -> int:
    """`count`, which must be positive and divide `total`."""
    positive(name, count)
    if total % count:
        raise ValueError(f"{name}: expected a divisor of {of} = {total}, got {count}")
    return count


def choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    """`value`, which must be one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def existing_file(name: str, path: Path) -> Path:
    """`path`, which must be that of a file.

    Raises:
        FileNotFoundError: nothing is there.
        IsADirectoryError: a folder is there.
    """
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, f"{name}: expected a file, found nothing", str(path))
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, f"{name}: expected a file, found a folder", str(path))
    return path


def existing_folder(name: str, path: Path, what: str) -> Path:
    """`path`, which must be that of a folder; `what` says of what.

    Raises:
        ValueError: nothing is there, or a file.
    """
    if not path.is_dir():
        there = "is a file" if path.exists() else "does not exist"
        raise ValueError(f"{name}: expected a folder {what}, got {path}, which {there}")
    return path


def shift_of_window(shift: Size, window_size: tuple[int, int]) -> tuple[int, int]:
    """`shift` as a pair, each at least 0 and smaller than the window."""
    pairs = pair("shift", shift, minimum=0)
    for s, size in zip(pairs, window_size, strict=True):
        if isinstance(s, int) and s >= size:
            raise ValueError(f"shift: expected less than window_size = {window_size}, got {shift!r}")
    return pairs


def tensor(name: str, value: Tensor, shape: str, *, like: Tensor | None = None) -> Tensor:
    """`value`, which must be a floating tensor with the rank of `shape` (such as "B H W C"), of the kind of `like`."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor [{shape.replace(' ', ', ')}], got {type(value).__name__}")
    if value.ndim != shape.count(" ") + 1:
        raise ValueError(f"{name}: expected [{shape.replace(' ', ', ')}], got shape {tuple(value.shape)}")
    for size in value.shape[1:] if shape[0] == "B" else value.shape:
        if size < 1:
            raise ValueError(f"{name}: expected sizes of at least 1 (only B may be 0), got shape {tuple(value.shape)}")
    if not value.is_floating_point():
        raise ValueError(f"{name}: expected a floating point tensor, got {value.dtype}")
    if like is not None:
        if value.dtype != like.dtype:
            raise ValueError(f"{name}: expected dtype {like.dtype} as the first argument has, got {value.dtype}")
        if value.device != like.device:
            raise ValueError(f"{name}: expected device {like.device} as the first argument is on, got {value.device}")
    return value


def sizes(name: str, value: Tensor, expected: tuple[tuple[Any, ...], ...], meaning: Callable[[], str]) -> None:
    """Each axis of `value` must have one of the sizes that `expected` lists for it; None stands for any.

    `meaning` says it in words. It is called for an error alone: a size that is written down is a fixed one to
    `torch.compile`, which would compile again for every other.
    """
    for size, allowed in zip(value.shape, expected, strict=True):
        # not `size in allowed`, of which PyTorch 2.11 compiles a wrong answer for sizes that are left open
        if not any(one is None or size == one for one in allowed):
            raise ValueError(f"{name}: expected {meaning()}, got shape {tuple(value.shape)}")


_WITH_AUTOCAST = frozenset(
    name for name in ("cpu", "cuda", "hpu", "mps", "mtia", "xla", "xpu") if torch.amp.is_autocast_available(name)
)
"""Devices that know autocast; asked once, since torch.compile of PyTorch 2.11 cannot follow the question."""


def autocast(*tensors: Tensor | None) -> tuple[Any, ...]:
    """The tensors in the dtype that an enclosing `torch.autocast` asks of matrix products; unchanged outside of one.

    A mixer under autocast meets float32 features and weights that a linear map has just made in bfloat16. As autocast
    itself does, float64 is left alone.
    """
    first = tensors[0]
    device_type = first.device.type if isinstance(first, Tensor) else None
    if device_type not in _WITH_AUTOCAST or not torch.is_autocast_enabled(device_type):
        return tensors
    dtype = torch.get_autocast_dtype(device_type)
    return tuple(
        t.to(dtype) if isinstance(t, Tensor) and t.is_floating_point() and t.dtype != torch.float64 else t
        for t in tensors
    )


def depthwise_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: Size) -> tuple[int, int]:
    """Checks the arguments of `depthwise_convolution`; gives dilation as a pair."""
    tensor("x", x, "B H W C")
    tensor("weight", weight, "C kh kw", like=x)
    channels = x.shape[3]
    sizes("weight", weight, ((channels,), (None,), (None,)), lambda: f"[C, kh, kw] with C = {channels} as in x")
    _bias(bias, x)
    return pair("dilation", dilation)


def homogeneous_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: Size) -> tuple[int, int]:
    """Checks the arguments of `homogeneous_convolution`; gives dilation as a pair."""
    tensor("x", x, "B H W C")
    tensor("weight", weight, "B C kh kw", like=x)
    batch, channels = x.shape[0], x.shape[3]
    expected = ((batch,), (channels,), (None,), (None,))
    sizes("weight", weight, expected, lambda: f"[B, C, kh, kw] with B = {batch} and C = {channels} as in x")
    _bias(bias, x)
    return pair("dilation", dilation)


def inhomogeneous_convolution(
    x: Tensor, weight: Tensor, kernel_size: Size, dilation: Size
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Checks the arguments of `inhomogeneous_convolution`; gives kernel size and dilation as pairs."""
    kernel, dilations = pair("kernel_size", kernel_size), pair("dilation", dilation)
    tensor("x", x, "B H W C")
    tensor("weight", weight, "B H W G K", like=x)
    batch, height, width, channels = x.shape
    taps = kernel[0] * kernel[1]

    def expected() -> str:
        shape = f"[{batch}, {height}, {width}, G, {taps}]"
        return f"[B, H, W, G, K] = {shape} for x {tuple(x.shape)} and kernel {kernel}"

    sizes("weight", weight, ((batch,), (height,), (width,), (None,), (taps,)), expected)
    divides("weight", weight.shape[3], "C", channels)
    return kernel, dilations


def neighborhood_products(
    query: Tensor, key: Tensor, num_groups: int, kernel_size: Size, dilation: Size
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Checks the arguments of `neighborhood_products`; gives kernel size and dilation as pairs."""
    tensor("query", query, "B H W C")
    tensor("key", key, "B H W C", like=query)
    sizes("key", key, tuple((size,) for size in query.shape), lambda: f"the shape of query, {tuple(query.shape)}")
    divides("num_groups", num_groups, "C", query.shape[3])
    return pair("kernel_size", kernel_size), pair("dilation", dilation)


def projected_inhomogeneous_convolution(
    x: Tensor,
    hidden: Tensor,
    projection: Tensor,
    projection_bias: Tensor | None,
    kernel_size: Size,
    num_groups: int,
    dilation: Size,
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Checks the arguments of `projected_inhomogeneous_convolution`; gives kernel size and dilation as pairs."""
    kernel, dilations = pair("kernel_size", kernel_size), pair("dilation", dilation)
    tensor("x", x, "B H W C")
    divides("num_groups", num_groups, "C", x.shape[3])
    tensor("hidden", hidden, "B H W R", like=x)
    batch, height, width = x.shape[:3]
    rows, rank = num_groups * kernel[0] * kernel[1], hidden.shape[3]
    expected = ((batch,), (height,), (width,), (None,))
    sizes("hidden", hidden, expected, lambda: f"[B, H, W, R] with [B, H, W] = {[batch, height, width]} as in x")
    tensor("projection", projection, "G*K R", like=x)
    shape = ((rows,), (rank,))
    sizes(
        "projection",
        projection,
        shape,
        lambda: f"[G * K, R] = {[rows, rank]} for {num_groups} groups and kernel {kernel}",
    )
    if projection_bias is not None:
        tensor("projection_bias", projection_bias, "G*K", like=x)
        sizes("projection_bias", projection_bias, ((rows,),), lambda: f"[G * K] = [{rows}]")
    return kernel, dilations


def attention(query: Tensor, key: Tensor, value: Tensor) -> None:
    """Checks query, key and value of an attention."""
    tensor("query", query, "B H W heads D")
    for name, other in (("key", key), ("value", value)):
        tensor(name, other, "B H W heads D", like=query)
        if other.shape != query.shape:
            raise ValueError(
                f"{name}: expected the shape of query, {tuple(query.shape)}, got shape {tuple(other.shape)}"
            )


def attention_bias(bias: Tensor | None, query: Tensor, shape: tuple[int, int], meaning: str) -> None:
    """Checks the bias of an attention: [heads, *shape]."""
    if bias is not None:
        tensor("bias", bias, "heads N M", like=query)
        heads = query.shape[3]
        expected = ((heads,), (shape[0],), (shape[1],))
        sizes("bias", bias, expected, lambda: f"{meaning} = [{heads}, {shape[0]}, {shape[1]}]")


def local_mlp(
    x: Tensor, weight: Tensor, bias: Tensor | None, window_size: Size, shift: Size
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Checks the arguments of `local_mlp`; gives window size and shift as pairs."""
    window = pair("window_size", window_size)
    shifts = shift_of_window(shift, window)
    slots = window[0] * window[1]
    tensor("x", x, "B H W C")
    tensor("weight", weight, "G N N", like=x)
    expected = ((None,), (slots,), (slots,))
    sizes("weight", weight, expected, lambda: f"[G, N, N] with N = {slots} slots of window {window}")
    divides("weight", weight.shape[0], "C", x.shape[3])
    if bias is not None:
        tensor("bias", bias, "G N", like=x)
        groups = weight.shape[0]
        sizes("bias", bias, ((groups,), (slots,)), lambda: f"[G, N] = [{groups}, {slots}]")
    return window, shifts


def aggregate(x: Tensor, weight: Tensor, neighborhood: Tensor) -> None:
    """Checks the arguments of `aggregate`."""
    tensor("x", x, "B H W C")
    tensor("weight", weight, "B H W G K", like=x)
    batch, height, width, channels = x.shape
    if not isinstance(neighborhood, Tensor) or neighborhood.ndim != 3 or neighborhood.dtype != torch.int64:
        raise ValueError(f"neighborhood: expected an int64 tensor [H, W, K], got {_describe(neighborhood)}")
    taps = neighborhood.shape[2]
    expected = ((height,), (width,), (None,))
    sizes("neighborhood", neighborhood, expected, lambda: f"[H, W, K] with [{height}, {width}] as in x")
    expected = ((batch, 1), (height, 1), (width, 1), (None,), (taps,))
    words = "[B|1, H|1, W|1, G, K] with B, H, W ="
    sizes("weight", weight, expected, lambda: f"{words} {batch}, {height}, {width} and K = {taps}")
    divides("weight", weight.shape[3], "C", channels)
    watched = torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0  # with no numbers to look at
    if neighborhood.device.type == "cpu" and not watched and neighborhood.numel():
        low, high = int(neighborhood.min()), int(neighborhood.max())
        if low < -1 or high >= height * width:
            raise ValueError(
                f"neighborhood: expected indices from -1 (no input) to {height * width - 1}, got {low} to {high}"
            )


def _is_integer(value: object) -> bool:
    if isinstance(value, Tensor):
        return torch.jit.is_tracing() and value.ndim == 0  # what a size is in torch.jit.trace
    return isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)


def _bias(bias: Tensor | None, x: Tensor) -> None:
    if bias is not None:
        tensor("bias", bias, "C", like=x)
        sizes("bias", bias, ((x.shape[3],),), lambda: f"[C] = [{x.shape[3]}]")


def _describe(value: object) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
