"""How a map is cut into windows, and into the tiles whose queries see much the same keys."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Pair = tuple[int, int]


def trim(window_size: Pair, shift: Pair, size: Pair, by_slot: tuple[Tensor | None, ...]) -> tuple[Pair, list[Any]]:
    """The window without slots that no position of the map can be in, and the tensors [G, N] or [G, N, N] for it.

    Those of a window that is larger than the map and begins with it; where a size is left open all slots stay.
    """
    trimmed = tuple(
        length if isinstance(length, int) and s == 0 and length < window else window
        for window, s, length in zip(window_size, shift, size, strict=True)
    )
    height, width = trimmed
    if (height, width) == window_size:
        return window_size, list(by_slot)
    results = []
    for t in by_slot:
        if t is not None:
            for axis in range(1, t.ndim):
                t = t.unflatten(axis, window_size).narrow(axis, 0, height).narrow(axis + 1, 0, width)
                t = t.flatten(axis, axis + 1)
        results.append(t)
    return (height, width), results


class Grid(NamedTuple):
    """One axis of a map cut into windows: `count` windows of `size`, the map begins after `before` empty slots."""

    count: int
    size: int
    before: int
    after: int

    @property
    def is_whole(self) -> bool:
        """No window is known to be cut: false too where the size of the map is left open."""
        return isinstance(self.after, int) and isinstance(self.before, int) and self.before == 0 and self.after == 0

    def inside(self, like: Tensor) -> Tensor:
        """bool [count, size]: slots that hold a position of the map."""
        total = self.count * self.size
        slot = torch.arange(total, device=like.device)
        return ((slot >= self.before) & (slot < total - self.after)).view(self.count, self.size)


def grid(length: int, size: int, shift: int) -> Grid:
    before = (size - shift) % size
    count = (before + length + size - 1) // size
    return Grid(count, size, before, count * size - before - length)


def to_windows(t: Tensor, rows: Grid, columns: Grid) -> Tensor:
    """[B, H, W, *, *] to [B, nh, wh, nw, ww, *, *], zero outside of the map."""
    if not (rows.is_whole and columns.is_whole):
        t = F.pad(t, (0, 0, 0, 0, columns.before, columns.after, rows.before, rows.after))
    batch, _, _, *inner = t.shape
    return t.reshape(batch, rows.count, rows.size, columns.count, columns.size, *inner)


def from_windows(t: Tensor, rows: Grid, columns: Grid) -> Tensor:
    """[B, nh, wh, nw, ww, *, *] to [B, H, W, *, *]."""
    t = t.reshape(t.shape[0], rows.count * rows.size, columns.count * columns.size, *t.shape[5:])
    if rows.is_whole and columns.is_whole:
        return t
    # negative padding and not a slice: a slice would fix the size of the map in an exported graph
    return F.pad(t, (0, 0, 0, 0, -columns.before, -columns.after, -rows.before, -rows.after))


class Tiles(NamedTuple):
    """One axis of a map cut into tiles of queries, each with the strip of keys that its queries can see.

    Positions that are `dilation` apart belong together; n tiles in all, T queries and S keys in each.
    """

    queries: Tensor  # [n, T] position of each query
    keys: Tensor  # [n, S] position of each key
    allowed: Tensor  # [n, T, S] whether the key is in the neighborhood of the query
    distance: Tensor  # [n, T, S] step from query to key plus kernel - 1, the index of a bias
    slot: Tensor  # [size] where each position is among the n * T queries


def tiles_of(size: int, kernel: int, dilation: int, device: torch.device) -> Tiles:
    longest = (size + dilation - 1) // dilation
    length = (size - torch.arange(dilation, device=device) + dilation - 1) // dilation  # of each residue
    is_open = not isinstance(longest, int)
    # of an axis that is left open no minimum: PyTorch calculates long with what depends on one
    tile = kernel if is_open else min(longest, kernel)
    count = (longest + tile - 1) // tile
    strip = torch.sym_min(longest, tile + kernel - 1) if is_open else min(longest, tile + kernel - 1)
    if is_open:  # a graph would hold for one tile only if it is traced with one
        count = torch.sym_max(count, 2)

    # [n, 1] each, residues outside and tiles inside; not `repeat_interleave`, which ONNX gets wrong for an open count
    length = length[:, None].expand(-1, count).reshape(-1, 1)
    residue = torch.arange(dilation, device=device)[:, None].expand(-1, count).reshape(-1, 1)
    first = (torch.arange(count, device=device) * tile).expand(dilation, -1).reshape(-1, 1)
    query = first + torch.arange(tile, device=device)
    key = torch.minimum((first - kernel // 2).clamp(min=0), (length - strip).clamp(min=0))
    key = key + torch.arange(strip, device=device)
    start = torch.minimum((query - kernel // 2).clamp(min=0), (length - kernel).clamp(min=0))

    step, begin = key[:, None, :], start[:, :, None]
    allowed = (step >= begin) & (step < begin + kernel) & (step < length[:, :, None])
    # a query behind the end is thrown away; it sees all keys so that its softmax stays finite
    allowed = allowed | (query >= length)[:, :, None]
    distance = (step - query[:, :, None] + kernel - 1).clamp(0, 2 * kernel - 2)
    position = torch.arange(size, device=device)
    return Tiles(
        queries=(query * dilation + residue).clamp(max=size - 1),
        keys=(key * dilation + residue).clamp(max=size - 1),
        allowed=allowed,
        distance=distance,
        slot=position % dilation * (count * tile) + position // dilation,
    )
