"""Which positions of a map attention sees, as the Triton kernels want to know it: tiles, keys and sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from localmix.kernels import gathered_attention
from localmix.kernels.triton import tuning

Pair = tuple[int, int]


class Windows(gathered_attention.Windows):
    """Positions see the window that holds them."""

    def arguments(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Of the kernels: empty slots before the map, size and dilation."""
        top, left = ((size - shift) % size for size, shift in zip(self.size, self.shift, strict=True))
        return top, left, *self.size, 1, 1

    def as_windows(self, shape: Sequence[int]) -> Windows:
        """They are windows already."""
        return self

    def bias_of_slots(self, bias: Tensor, shape: Sequence[int]) -> Tensor:
        """[heads, slots, slots]: that is the bias."""
        return bias

    def tile(self, shape: Sequence[int], positions: int) -> Pair:
        """A tile is a window, however many blocks of positions that is."""
        return self.size

    def tiles(self, shape: Sequence[int], tile: Pair) -> Pair:
        """Rows and columns of windows."""
        before = self.arguments(shape)[:2]
        rows, columns = (tuning.cdiv(b + n, t) for b, n, t in zip(before, shape[1:3], tile, strict=True))
        return rows, columns

    def keys(self, shape: Sequence[int], tile: Pair) -> int:
        """The most that a tile sees."""
        return math.prod(tile)

    def columns(self) -> int:
        """Of a query in the gradient of the bias: keys of the window."""
        return math.prod(self.size)

    def gradient_of_slots(self, of_slots: Tensor, shape: Sequence[int]) -> Tensor:
        """From that of slots: that is the bias."""
        return of_slots

    def gradient_of_bias(self, of_columns: Tensor) -> Tensor:
        """From sums [shares, queries of a tile, heads, columns]: over the shares."""
        return of_columns.sum(0).transpose(0, 1).contiguous()


class Neighborhoods(gathered_attention.Neighborhoods):
    """Positions see the kernel around them, which stops at the border."""

    def _residues(self, shape: Sequence[int]) -> Pair:
        """Classes of positions a dilation apart; of a dilation that is larger than the map as many as positions."""
        rows, columns = map(min, self.dilation, shape[1:3])
        return rows, columns

    def _longest(self, shape: Sequence[int]) -> Pair:
        """The most steps that a residue has."""
        rows, columns = self._residues(shape)
        return tuning.cdiv(shape[1], rows), tuning.cdiv(shape[2], columns)

    def arguments(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Of the kernels: empty slots before the map, size and dilation."""
        return 0, 0, *self.size, *self._residues(shape)

    def as_windows(self, shape: Sequence[int]) -> Windows | None:
        """The map as one window, if every position sees all of it."""
        height, width = shape[1:3]
        if self._residues(shape) != (1, 1) or height > self.size[0] or width > self.size[1]:
            return None
        return Windows((height, width), (0, 0))

    def bias_of_slots(self, bias: Tensor, shape: Sequence[int]) -> Tensor:
        """That of the map as one window, [heads, slots, slots], from one of distances."""
        for axis, (length, size) in enumerate(zip(shape[1:3], self.size, strict=True), 1):
            # distances of the keys from the last query, from the one before it, ...
            bias = bias.narrow(axis, size - length, 2 * length - 1).unfold(axis, length, 1)
        return bias.flip(1, 2).flatten(3).flatten(1, 2)

    def tile(self, shape: Sequence[int], positions: int) -> Pair:
        """About as wide as high, so that the queries of a tile see much the same keys."""
        height, width = map(tuning.next_power_of_2, self._longest(shape))
        rows = min(positions // min(2 ** (positions.bit_length() // 2), width), height)
        return rows, min(positions // rows, width)

    def tiles(self, shape: Sequence[int], tile: Pair) -> Pair:
        """Rows and columns of tiles, of all residues."""
        rows, columns = (
            residues * tuning.cdiv(length, t)
            for residues, length, t in zip(self._residues(shape), self._longest(shape), tile, strict=True)
        )
        return rows, columns

    def keys(self, shape: Sequence[int], tile: Pair) -> int:
        """The most that a tile sees."""
        return math.prod(
            min(t + size - 1, length) for t, size, length in zip(tile, self.size, self._longest(shape), strict=True)
        )

    def columns(self) -> int:
        """Of a query in the gradient of the bias: distances."""
        return math.prod(self._distances())

    def _distances(self) -> Pair:
        rows, columns = (2 * size - 1 for size in self.size)
        return rows, columns

    def gradient_of_slots(self, of_slots: Tensor, shape: Sequence[int]) -> Tensor:
        """From that of the map as one window, over pairs of the same distance.

        With a border as wide as the map, key `i + d` is at distance `d - reach` of query `i`: they are the diagonals.
        """
        (height, width), reach = shape[1:3], [length - 1 for length in shape[1:3]]
        above, beside = reach
        of_pairs = of_slots.unflatten(2, (height, width)).unflatten(1, (height, width))
        of_pairs = F.pad(of_pairs, (beside, beside, above, above))
        head, query_h, query_w, key_h, key_w = of_pairs.stride()
        diagonals = of_pairs.as_strided(
            (*of_pairs.shape[:3], 2 * above + 1, 2 * beside + 1), (head, query_h + key_h, query_w + key_w, key_h, key_w)
        )
        # kernels that are larger than the map have distances that no pair has
        top, left = (size - 1 - r for size, r in zip(self.size, reach, strict=True))
        return F.pad(diagonals.sum((1, 2)), (left, left, top, top))

    def gradient_of_bias(self, of_columns: Tensor) -> Tensor:
        """From sums [shares, queries of a tile, heads, columns]: over shares and queries."""
        return of_columns.flatten(0, 1).sum(0).unflatten(1, self._distances())


Geometry = Windows | Neighborhoods
