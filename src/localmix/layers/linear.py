"""Linear maps for inference on a CPU, by oneDNN where PyTorch itself takes a slower library."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from localmix.kernels import native
from localmix.registration import is_watched

_LEAST_PRODUCTS = 2**20
"""With fewer multiply-adds the way to oneDNN takes longer than the map."""


class Linear(nn.Linear):
    """`nn.Linear`, which for inference in float32 on AMD's processors goes by oneDNN.

    PyTorch multiplies float32 by Intel's MKL. On an EPYC with AVX-512 that takes 1.0 to 1.5 times as long, at the sizes
    of the tiny networks. With gradients, under autocast and where a compiler or another tool looks on, it is
    `nn.Linear` as ever.
    """

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        if self._goes_by_onednn(input):
            return _multiply(input, self.weight, self.bias)
        return super().forward(input)

    def _goes_by_onednn(self, x: Tensor) -> bool:
        return (
            not torch.is_grad_enabled()
            and isinstance(x, Tensor)
            and not is_watched((x, self.weight, self.bias))  # a compiler would stop at the questions that follow
            and x.dtype == self.weight.dtype == torch.float32
            and x.numel() * self.out_features >= _LEAST_PRODUCTS
            and x.device.type == self.weight.device.type == "cpu"
            and is_faster()
            and not torch.is_autocast_enabled("cpu")
        )


def is_faster() -> bool:
    """Whether oneDNN is known to be, on this processor."""
    return native.is_amd() and torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
