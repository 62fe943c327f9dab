"""Who asks for PyTorch's own operators: an export, whose sizes may be left open, and transforms of functions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C._functorch import TransformType, is_legacy_batchedtensor
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters
from torch.autograd import forward_ad


def is_exporting() -> bool:
    """Whether `torch.export` is at work.

    The flag behind `torch.compiler.is_exporting`, which PyTorch 2.11 takes for true in every function that it compiles.
    """
    return torch.compiler._is_exporting_flag


def has_forward_derivatives() -> bool:
    """Whether forward derivatives are being taken (`torch.func.jvp`, `torch.autograd.forward_ad`).

    A registered operator has none; where nothing requires a gradient, PyTorch would silently lose them.
    """
    return not torch.compiler.is_compiling() and forward_ad._current_level >= 0


def is_vectorised(*gradients: Tensor) -> bool:
    """Whether `torch.func.vmap` is at work, or one of these gradients is many at once.

    `torch.autograd.grad(is_grads_batched=True)` has a vmap of its own, which is seen by its tensors alone.
    """
    if torch.compiler.is_compiling():
        return False
    if any(is_legacy_batchedtensor(gradient) for gradient in gradients):
        return True
    if not torch._C._are_functorch_transforms_active():
        return False
    return any(transform.key() == TransformType.Vmap for transform in retrieve_all_functorch_interpreters())


def reason_for_plain_operators() -> str | None:
    """Why a call must consist of PyTorch's own operators; None if it may use kernels, which have only gradients."""
    if is_exporting():
        return "an exported graph holds PyTorch's own operators"
    if torch.compiler.is_compiling():
        return None
    if has_forward_derivatives():
        return "it has no forward derivatives"
    if torch._C._are_functorch_transforms_active():
        return "torch.func transforms PyTorch's own operators"
    return None
