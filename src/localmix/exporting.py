"""Whether a graph is being exported: it then holds PyTorch's own operators, and sizes may be left open."""

from __future__ import annotations

import torch


def is_exporting() -> bool:
    """Whether `torch.export` is at work.

    The flag behind `torch.compiler.is_exporting`, which PyTorch 2.11 takes for true in every function that it compiles.
    """
    return torch.compiler._is_exporting_flag
