"""Activations that reuse the memory of their input where no gradient is asked for.

A fresh tensor of some megabytes costs the CPU more in page faults than the activation itself.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def relu(x: Tensor) -> Tensor:
    """ReLU of a tensor that nothing else needs: it is overwritten where no gradient is asked for."""
    return F.relu(x, inplace=not torch.is_grad_enabled())


class GELU(nn.GELU):
    """GELU of a tensor that nothing else needs: it is overwritten where no gradient is asked for."""

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x) if torch.is_grad_enabled() else torch.ops.aten.gelu_(x)
