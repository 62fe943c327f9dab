"""The MLP of a block: timm's, which for inference on a CPU takes large maps in pieces."""

from __future__ import annotations

import timm.layers
import torch
from torch import Tensor, nn

from localmix.layers.activation import gelu
from localmix.registration import has_hooks, is_watched

_FRESH_BYTES = 2**25
"""Larger blocks of memory the C library gives back to the system at once: each call would meet pages that are not there
yet, which takes longer than the matrix product that fills them."""

_PIECE_BYTES = 2**24


class Mlp(timm.layers.Mlp):
    """y = fc2(act(fc1(x))) on the last axis, [..., C] -> [..., C].

    Without gradients on a CPU, where the hidden numbers are more than 32 MiB, some positions at a time: for 8 images of
    224 pixels the MLPs of the first stage of a tiny network then take half of their time. Not so under a compiler, an
    export or hooks of the layers, which see one call.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., C]."""
        num_pieces = self._num_pieces(x)
        if num_pieces == 1:
            return self._whole(x)
        positions = x.flatten(0, -2)
        pieces = positions.tensor_split(num_pieces)
        first = self._whole(pieces[0])
        y = first.new_empty(len(positions), first.shape[1])
        for piece, target in zip(pieces, y.tensor_split(num_pieces), strict=True):
            target.copy_(first if piece is pieces[0] else self._whole(piece))
        return y.unflatten(0, x.shape[:-1])

    def _whole(self, x: Tensor) -> Tensor:
        hidden = self.fc1(x)
        hidden = gelu(hidden, self.act, self.fc1) if type(self.act) is nn.GELU else self.act(hidden)
        return self.drop2(self.fc2(self.norm(self.drop1(hidden))))

    def _num_pieces(self, x: Tensor) -> int:
        if torch.is_grad_enabled() or self.training or is_watched((x,)) or x.device.type != "cpu":
            return 1
        if not isinstance(self.fc1, nn.Linear) or has_hooks(self.fc1, self.act, self.norm, self.fc2):
            return 1
        hidden = x.numel() // x.shape[-1] * self.fc1.out_features * x.element_size()
        return 1 if hidden <= _FRESH_BYTES else -(-hidden // _PIECE_BYTES)
