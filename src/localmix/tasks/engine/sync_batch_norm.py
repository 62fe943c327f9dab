"""Batch norms whose mean and variance are those of the batches of all processes together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F


def synchronise(net: nn.Module, device: str) -> nn.Module:
    """The net with its batch norms synchronised, those of PyTorch on a GPU; the keys of its state stay."""
    if device != "cpu":
        return nn.SyncBatchNorm.convert_sync_batchnorm(net)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.__class__ = SyncBatchNorm
    return net


class SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """`nn.SyncBatchNorm`, which is for GPUs alone, for a CPU. [N, C, ...] -> same."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Any."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not distributed.is_initialized():
            return super().forward(input)
        y, mean, variance, count = _Normalise.apply(input, self.weight, self.bias, self.eps)
        if self.track_running_stats:
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            with torch.no_grad():
                self.num_batches_tracked += 1
                momentum = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(variance * (count / (count - 1)), momentum)
        return y


class _Normalise(torch.autograd.Function):
    """y = (x - m) / sqrt(v + eps) * weight + bias, m and v the mean and variance over all processes.

    With z = (x - m) / sqrt(v + eps) and the averages over all processes:

        dx = weight / sqrt(v + eps) * (dy - average(dy) - z * average(dy * z))
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        axes = [axis for axis in range(x.ndim) if axis != 1]
        number = x.numel() // x.shape[1]
        wide = x.double()
        sums = torch.cat([wide.sum(axes), wide.square().sum(axes), wide.new_tensor([number])])
        distributed.all_reduce(sums)
        count = sums[-1]
        mean, square = (sums[:-1] / count).chunk(2)
        variance = square - mean.square()
        dtype = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
        mean, variance, count = mean.to(dtype), variance.clamp_min(0).to(dtype), count.to(dtype)
        y = F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt(), count)
        ctx.mark_non_differentiable(mean, variance, count)
        return y, mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse, count = ctx.saved_tensors
        dy = gradients[0].to(mean.dtype)
        axes = [axis for axis in range(x.ndim) if axis != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        z = (x.to(mean.dtype) - mean.view(shape)) * inverse.view(shape)
        bias_gradient, weight_gradient = dy.sum(axes), (dy * z).sum(axes)
        sums = torch.cat([bias_gradient, weight_gradient]).double()
        distributed.all_reduce(sums)
        average, average_z = (sums / count).to(mean.dtype).chunk(2)
        dx = (dy - average.view(shape) - z * average_z.view(shape)) * inverse.view(shape)
        if weight is None:
            return dx.to(x.dtype), None, None, None
        dx = dx * weight.view(shape)
        return dx.to(x.dtype), weight_gradient.to(weight.dtype), bias_gradient.to(weight.dtype), None
