"""Linear maps for inference on a CPU, by oneDNN on weights that lie as its kernels read them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from localmix.kernels import native
from localmix.registration import is_watched

_LEAST_PRODUCTS = 2**20
"""With fewer multiply-adds the way to oneDNN takes longer than the map."""


class _Packed(NamedTuple):
    """A weight as oneDNN's kernels read it, and what it was made of."""

    weight: Tensor
    source: Tensor
    """Shares the memory of the weight, which thus can't be given to another one."""
    version: int

    def is_of(self, weight: Tensor) -> bool:
        source = self.source
        return (
            self.version == weight._version
            and source.data_ptr() == weight.data_ptr()
            and source.dtype == weight.dtype
            and source.shape == weight.shape
        )


class Linear(nn.Linear):
    """`nn.Linear`, which for inference on a CPU goes by oneDNN: bfloat16, and float32 on AMD's processors.

    PyTorch hands oneDNN the weight as it lies, and float32 to Intel's MKL. On an EPYC with AVX-512, at the sizes of the
    tiny networks, that takes 1.1 to 1.2 times as long as oneDNN on a weight that it has packed.

    The packed weight is kept, beside the weight and as large. It is made anew after whatever PyTorch counts as a change
    of the weight: a step of an optimizer, `load_state_dict`, `copy_`, `to`. What is written in place into
    `weight.data` it does not count. With gradients, under autocast and where a compiler or another tool looks on, this
    is `nn.Linear` as ever.
    """

    _packed: _Packed | None = None

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        if self._goes_by_onednn(input):
            return _multiply(input, self._pack(), self.bias)
        return super().forward(input)

    def _goes_by_onednn(self, x: Tensor) -> bool:
        return (
            not torch.is_grad_enabled()
            and isinstance(x, Tensor)
            and not is_watched((x, self.weight, self.bias))  # a compiler would stop at the questions that follow
            and x.dtype == self.weight.dtype
            and x.numel() * self.out_features >= _LEAST_PRODUCTS
            and x.device.type == self.weight.device.type == "cpu"
            and is_faster(x.dtype)
            and not torch.is_autocast_enabled("cpu")
        )

    def _pack(self) -> Tensor:
        weight = self.weight
        if weight.is_inference() or "weight" not in self._parameters:  # no versions; or computed for each call
            return weight
        packed = self._packed
        if packed is None or not packed.is_of(weight):
            source = weight.detach()
            packed = self._packed = _Packed(torch.ops.mkldnn._reorder_linear_weight(source), source, weight._version)
        return packed.weight

    def _apply(self, *arguments: Any, **options: Any) -> Linear:
        self.__dict__.pop("_packed", None)
        return super()._apply(*arguments, **options)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_packed"}


def is_faster(dtype: torch.dtype) -> bool:
    """Whether oneDNN is known to be, on this processor."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return False
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32 and native.is_amd()


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
