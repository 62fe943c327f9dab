"""A map cut into windows and put together again."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

Pair = tuple[int, int]


def to_windows(t: Tensor, window_size: Pair, shift: Pair) -> Tensor:
    """[B, H, W, *, *] to [B, nh, nw, wh, ww, *, *], zero in slots outside of the map."""
    (top, bottom), (left, right) = (
        _margins(t.shape[1], window_size[0], shift[0]),
        _margins(t.shape[2], window_size[1], shift[1]),
    )
    t = _pad(t, (left, right, top, bottom))
    batch, height, width, *inner = t.shape
    t = t.reshape(batch, height // window_size[0], window_size[0], width // window_size[1], window_size[1], *inner)
    return t.transpose(2, 3)


def from_windows(t: Tensor, size: Pair, shift: Pair) -> Tensor:
    """[B, nh, nw, wh, ww, *, *] to [B, H, W, *, *]."""
    batch, rows, columns, *window_size = t.shape[:5]
    t = t.transpose(2, 3).reshape(batch, rows * window_size[0], columns * window_size[1], *t.shape[5:])
    (top, bottom), (left, right) = (
        _margins(size[0], window_size[0], shift[0]),
        _margins(size[1], window_size[1], shift[1]),
    )
    # negative padding and not a slice: a slice would fix the size of the map in an exported graph
    return _pad(t, (-left, -right, -top, -bottom))


def _margins(length: int, window: int, shift: int) -> Pair:
    """Empty slots before and behind an axis of the map."""
    before = (window - shift) % window
    return before, (before + length + window - 1) // window * window - before - length


def _pad(t: Tensor, margins: tuple[int, int, int, int]) -> Tensor:
    if all(isinstance(margin, int) and margin == 0 for margin in margins):
        return t
    return F.pad(t, (0, 0, 0, 0, *margins))
