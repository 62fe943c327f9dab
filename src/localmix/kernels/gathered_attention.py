"""Attention with a copy of key and value for each tap, for the second derivatives of kernels that have none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Pair = tuple[int, int]


class Windows(NamedTuple):
    """Positions see the window that holds them."""

    size: Pair
    shift: Pair

    def taps(self, axis: int, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """[length, taps] of one axis: where each tap lies, on the map or not, and the index of its bias."""
        size, shift = self.size[axis], self.shift[axis]
        position, tap = torch.arange(length, device=device)[:, None], torch.arange(size, device=device)
        slot = (position - shift) % size
        return position - slot + tap, slot * size + tap

    def bias_by_axis(self, bias: Tensor) -> Tensor:
        """[heads, index of a row tap, index of a column tap]."""
        return bias.unflatten(2, self.size).unflatten(1, self.size).transpose(2, 3).flatten(3).flatten(1, 2)


class Neighborhoods(NamedTuple):
    """Positions see the kernel around them, which stops at the border."""

    size: Pair
    dilation: Pair

    def taps(self, axis: int, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """[length, taps] of one axis: where each tap lies, on the map or not, and the index of its bias."""
        size, dilation = self.size[axis], self.dilation[axis]
        position = torch.arange(length, device=device)[:, None]
        step, residue = position // dilation, position % dilation
        last = (length - residue + dilation - 1) // dilation - size
        start = torch.minimum((step - size // 2).clamp(min=0), last.clamp(min=0))
        tap = start + torch.arange(size, device=device)
        return tap * dilation + residue, (tap - step + size - 1).clamp(max=2 * size - 2)

    def bias_by_axis(self, bias: Tensor) -> Tensor:
        """[heads, index of a row tap, index of a column tap]."""
        return bias


def differentiable_gradients(
    gradient: Tensor,
    tensors: Sequence[Tensor | None],
    scale: float,
    seen: Windows | Neighborhoods,
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """The gradients of query, key, value and bias by operators that have second derivatives."""
    # views, since one tensor may be the query, the key and the value, or one be made of another
    query, key, value, bias = views = [None if t is None else t.view_as(t) for t in tensors]
    assert query is not None and key is not None and value is not None
    y = _attend(query, key, value, bias, scale, seen)
    wanted = [t for t, n in zip(views, needed, strict=True) if n and t is not None]
    gradients = iter(torch.autograd.grad(y, wanted, gradient, create_graph=True))
    return [next(gradients) if n else None for n in needed]


def _attend(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float, seen: Windows | Neighborhoods
) -> Tensor:
    height, width = query.shape[1:3]
    row, row_bias = seen.taps(0, height, query.device)
    column, column_bias = seen.taps(1, width, query.device)
    known = ((row >= 0) & (row < height))[:, None, :, None] & ((column >= 0) & (column < width))[None, :, None, :]
    row, column = row.clamp(0, height - 1)[:, None, :, None], column.clamp(0, width - 1)[None, :, None, :]
    logits = torch.einsum("bhwnd,bhwijnd->bnhwij", query, key[:, row, column]) * scale
    if bias is not None:
        by_axis = seen.bias_by_axis(bias)
        logits = logits + by_axis[:, row_bias[:, None, :, None], column_bias[None, :, None, :]]
    weight = logits.masked_fill(~known, -torch.inf).flatten(4).softmax(-1).view_as(logits)
    return torch.einsum("bnhwij,bhwijnd->bhwnd", weight, value[:, row, column])
