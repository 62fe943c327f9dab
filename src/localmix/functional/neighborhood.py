"""Axis 1, sparse connectivity: which inputs each position is connected to, as an index tensor [H, W, K].

A neighborhood is the product of two axes: what row `i` sees times what column `j` sees. So each function here works
out one axis, [size, taps], and `_product` joins the two.
"""

from __future__ import annotations

import torch
from torch import Tensor

from localmix import arguments
from localmix.arguments import Size

NO_INPUT = -1
"""The index of a tap that reads nothing: it counts as zero, and a softmax leaves it out."""


def sliding(
    height: int,
    width: int,
    kernel_size: Size,
    *,
    dilation: Size = 1,
    border: str = "zero",
    device: torch.device | str | None = None,
) -> Tensor:
    """Neighborhood of a kernel that slides over the map, as in a convolution.

    With `border="zero"` position i reads i + d * t - (d * (k - 1)) // 2 for the taps t = 0 ... k - 1, and taps outside
    of the map read nothing: PyTorch's `padding="same"`, even kernels included. With `border="clamp"` the kernel stops
    at the border instead of leaving the map, so that every position reads k inputs: it begins at
    clamp(i - k // 2, 0, size - k), counted among the positions that are d apart (NATTEN's rule). A map smaller than
    the kernel is then taken whole.

    Args:
        height, width: size of the map [positions].
        kernel_size: taps kh, kw of each axis [positions]; an int counts for both.
        dilation: distance d between taps [positions].
        border: "zero" or "clamp".
        device: where the result lies.

    Returns:
        int64 [H, W, K] with K = kh * kw, row-major over the taps: indices into the flattened map, or `NO_INPUT`.

    Raises:
        ValueError: a size below 1 or an unknown border.

    Source: section 2 of the paper (depth-wise convolution); Neighborhood Attention Transformer, section 3 (clamp).

    >>> sliding(1, 4, (1, 3))[0]
    tensor([[-1,  0,  1],
            [ 0,  1,  2],
            [ 1,  2,  3],
            [ 2,  3, -1]])
    >>> sliding(1, 4, (1, 3), border="clamp")[0]
    tensor([[0, 1, 2],
            [0, 1, 2],
            [1, 2, 3],
            [1, 2, 3]])
    """
    kernel, dilations = arguments.pair("kernel_size", kernel_size), arguments.pair("dilation", dilation)
    arguments.choice("border", border, ("zero", "clamp"))
    height, width = arguments.pair("height, width", (height, width))
    axis = _sliding_zero if border == "zero" else _sliding_clamp
    rows = axis(height, kernel[0], dilations[0], device)
    columns = axis(width, kernel[1], dilations[1], device)
    return _product(rows, columns, width)


def window(
    height: int, width: int, window_size: Size, *, shift: Size = 0, device: torch.device | str | None = None
) -> Tensor:
    """Neighborhood of windows that tile the map: each position reads all slots of the window that holds it.

    Windows begin at `shift`, `shift + window_size`, ...; the strip before `shift` and what remains at the end are cut
    windows, whose slots outside of the map read nothing.

    Args:
        height, width: size of the map [positions].
        window_size: slots of each axis [positions]; an int counts for both.
        shift: where the first whole window begins, 0 <= shift < window_size [positions].
        device: where the result lies.

    Returns:
        int64 [H, W, K] with K = window height * window width, row-major over the slots: indices into the flattened
        map, or `NO_INPUT`.

    Raises:
        ValueError: a size below 1, or a shift outside of its range.

    Source: section 2 of the paper (local attention); Swin Transformer, section 3.2 (shift).

    >>> window(1, 5, (1, 2), shift=(0, 1))[0]
    tensor([[-1,  0],
            [ 1,  2],
            [ 1,  2],
            [ 3,  4],
            [ 3,  4]])
    """
    size = arguments.pair("window_size", window_size)
    shifts = arguments.shift_of_window(shift, size)
    height, width = arguments.pair("height, width", (height, width))
    rows = _window(height, size[0], shifts[0], device)
    columns = _window(width, size[1], shifts[1], device)
    return _product(rows, columns, width)


def window_slot(
    height: int, width: int, window_size: Size, *, shift: Size = 0, device: torch.device | str | None = None
) -> Tensor:
    """Slot of its window that each position sits in, row-major: int64 [H, W], so `window(...)[p, slot(p)] == p`."""
    size = arguments.pair("window_size", window_size)
    shifts = arguments.shift_of_window(shift, size)
    rows = (torch.arange(height, device=device) - shifts[0]) % size[0]
    columns = (torch.arange(width, device=device) - shifts[1]) % size[1]
    return rows[:, None] * size[1] + columns


def relative_position(
    height: int, width: int, kernel_size: Size, *, dilation: Size = 1, device: torch.device | str | None = None
) -> tuple[Tensor, Tensor]:
    """Row and column distances from each position to its taps in a clamped neighborhood, in steps of `dilation`.

    Returns:
        Two int64 tensors that broadcast to [H, W, kh, kw]; -(k - 1) <= distance <= k - 1.
    """
    kernel, dilations = arguments.pair("kernel_size", kernel_size), arguments.pair("dilation", dilation)
    rows, columns = (
        _clamp_start(size, k, d, device)[:, None] + torch.arange(k, device=device) - _step(size, d, device)[:, None]
        for size, k, d in zip((height, width), kernel, dilations, strict=True)
    )
    return rows[:, None, :, None], columns[None, :, None, :]


def _sliding_zero(size: int, kernel: int, dilation: int, device: torch.device | str | None) -> Tensor:
    first = torch.arange(size, device=device) - (dilation * (kernel - 1)) // 2
    index = first[:, None] + dilation * torch.arange(kernel, device=device)
    return torch.where((index >= 0) & (index < size), index, NO_INPUT)


def _sliding_clamp(size: int, kernel: int, dilation: int, device: torch.device | str | None) -> Tensor:
    step = _clamp_start(size, kernel, dilation, device)[:, None] + torch.arange(kernel, device=device)
    index = step * dilation + (torch.arange(size, device=device) % dilation)[:, None]
    return torch.where(index < size, index, NO_INPUT)


def _window(size: int, window: int, shift: int, device: torch.device | str | None) -> Tensor:
    position = torch.arange(size, device=device)
    index = (position - (position - shift) % window)[:, None] + torch.arange(window, device=device)
    return torch.where((index >= 0) & (index < size), index, NO_INPUT)


def _step(size: int, dilation: int, device: torch.device | str | None) -> Tensor:
    """Rank of each position among those of the same residue modulo `dilation`."""
    return torch.arange(size, device=device) // dilation


def _clamp_start(size: int, kernel: int, dilation: int, device: torch.device | str | None) -> Tensor:
    """First tap of each position under the clamped border, counted among the positions of its residue."""
    residue = torch.arange(size, device=device) % dilation
    length = (size - residue + dilation - 1) // dilation
    start = (_step(size, dilation, device) - kernel // 2).clamp(min=0)
    return torch.minimum(start, (length - kernel).clamp(min=0))


def _product(rows: Tensor, columns: Tensor, width: int) -> Tensor:
    row, column = rows[:, None, :, None], columns[None, :, None, :]
    index = torch.where((row == NO_INPUT) | (column == NO_INPUT), NO_INPUT, row * width + column)
    return index.flatten(2)
