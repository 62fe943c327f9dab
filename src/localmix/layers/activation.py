"""Activations that reuse the memory of their input where no gradient is asked for and no hook has seen it.

A fresh tensor of some megabytes costs the CPU more in page faults than the activation itself.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from localmix.kernels import native
from localmix.registration import has_hooks, is_watched


def may_overwrite(*made_by: nn.Module) -> bool:
    """Whether the result of these modules, which nothing else needs, may be overwritten.

    A hook may have kept it: it would find the activation in its place.
    """
    return not torch.is_grad_enabled() and not has_hooks(*made_by)


def relu(x: Tensor, *made_by: nn.Module) -> Tensor:
    """ReLU of the result of modules that nothing else needs."""
    return F.relu(x, inplace=may_overwrite(*made_by))


def gelu(x: Tensor, act: nn.GELU, *made_by: nn.Module) -> Tensor:
    """`act` of the result of modules that nothing else needs."""
    if not may_overwrite(*made_by, act):
        return act(x)
    if act.approximate == "none" and _is_for_kernels(x):
        native.gelu_(x)
        return x
    return torch.ops.aten.gelu_(x, approximate=act.approximate)


def _is_for_kernels(x: Tensor) -> bool:
    return not is_watched((x,)) and x.is_contiguous() and native.refusal(x, named=False) is None
