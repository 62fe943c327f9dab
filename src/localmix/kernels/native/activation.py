"""Activations that change numbers where they lie."""

from __future__ import annotations

from torch import Tensor

from localmix.kernels.native.library import TYPES, library, num_threads, pointer


def gelu_(x: Tensor) -> None:
    """x = x * Phi(x) in place, of dense numbers; neither gradients nor PyTorch's counter of versions see it.

    Off by 2.3e-7 of x at most in float32; PyTorch's by 2.6e-7.
    """
    library().localmix_gelu(pointer(x), TYPES[x.dtype], x.numel(), num_threads())
