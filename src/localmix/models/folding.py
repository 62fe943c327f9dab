"""Batch norms folded into the linear maps around them, for inference."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from localmix.axes import Positions
from localmix.layers import DepthwiseConv, HomogeneousDynamicConv, LocalMixer, Mixer
from localmix.layers.channels_last import Pointwise
from localmix.layers.linear import Linear
from localmix.layers.source import HomogeneousKernel, InhomogeneousKernel
from localmix.models.dwnet import DWNetBlock


class Affine(nn.Module):
    """y = scale * x + shift per channel of [..., C]: a batch norm whose statistics stand still.

    For a norm behind a mixer that has no place for a factor per channel: a group of channels shares its weights, or a
    softmax runs over them.
    """

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(scale)
        self.shift = nn.Parameter(shift)

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift, x, self.scale)


def fold(model: nn.Module) -> nn.Module:
    """A copy of a network for inference, in which the batch norms of localmix are part of the maps around them.

    With the running statistics a batch norm is y = scale * x + shift per channel,

        scale = gamma / sqrt(variance + eps)        shift = beta - scale * mean

    which goes into the pointwise map, kernel, predictor of kernels or output projection in front of it, or into the MLP
    behind it; behind a mixer whose weights a group of channels shares, or a softmax normalises, it stays, as one
    multiply-add. Linear maps become ones that take the faster library on a CPU. The outputs are those of `model.eval()`
    up to rounding. Other modules, layer norms among them, are copied as they are.

    The copy is in evaluation mode; `model` is left as it is.

    Raises:
        TypeError: `model` is no module.

    >>> from localmix.models import create_model
    >>> net = create_model("dwnet_nano").eval()
    >>> folded, image = fold(net), torch.rand(1, 3, 28, 28)
    >>> bool((folded(image) - net(image)).abs().max() <= 1e-5 * net(image).abs().max())
    True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a module, got {type(model).__name__}")
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (HomogeneousKernel, InhomogeneousKernel)):
                module.norm = _into_map_before(module.reduce, module.norm)
        for module in model.modules():
            if isinstance(module, DWNetBlock):
                _fold_block(module)
    for module in model.modules():
        if type(module) in (nn.Linear, Pointwise):
            module.__class__ = Linear  # the same parameters and hooks under the same names
    return model


def _fold_block(block: DWNetBlock) -> None:
    block.norm1 = _into_map_before(block.conv1, block.norm1)
    block.norm2 = _into_mixer_before(block.mixer, block.norm2)
    block.norm3 = _into_map_before(block.conv2, block.norm3)
    block.norm4 = _into_map_behind(block.mlp.fc1, block.norm4)


def _into_map_before(linear: nn.Linear, norm: nn.Module) -> nn.Module:
    """scale * (W x + b) + shift."""
    if not _is_batch_norm(norm):
        return norm
    scale, shift = _scale_and_shift(norm)
    bias = shift if linear.bias is None else shift + scale * linear.bias.double()
    _set(linear, linear.weight.double() * scale[:, None], bias)
    return nn.Identity()


def _into_map_behind(linear: nn.Linear, norm: nn.Module) -> nn.Module:
    """W (scale * x + shift) + b."""
    if not _is_batch_norm(norm):
        return norm
    scale, shift = _scale_and_shift(norm)
    weight = linear.weight.double()
    bias = weight @ shift if linear.bias is None else weight @ shift + linear.bias.double()
    _set(linear, weight * scale, bias)
    return nn.Identity()


def _into_mixer_before(mixer: Any, norm: Any) -> nn.Module:
    if not _is_batch_norm(norm):
        return norm
    if isinstance(mixer, LocalMixer) and isinstance(mixer.output, nn.Linear):
        return _into_map_before(mixer.output, norm)
    scale, shift = _scale_and_shift(norm)
    if not _has_weights_of_each_channel(mixer):
        parameter = next(norm.parameters(), norm.running_mean)
        return Affine(scale.to(parameter), shift.to(parameter))
    if isinstance(mixer.source, HomogeneousKernel):
        expand = mixer.source.expand
        of_kernels = scale.repeat_interleave(expand.out_features // len(scale))  # [C * K]
        _set(expand, expand.weight.double() * of_kernels[:, None], expand.bias.double() * of_kernels)
    else:
        weight = mixer.source.weight  # [C, ., .], of a mixture [M, C, ., .]
        weight.copy_(weight.double() * scale[:, None, None])
    if mixer.bias is not None and mixer.bias.ndim == 2:  # by channel and slot of the window
        scale, shift = scale[:, None], shift[:, None]
    _set_bias(mixer, shift if mixer.bias is None else shift + scale * mixer.bias.double())
    return nn.Identity()


def _has_weights_of_each_channel(mixer: nn.Module) -> bool:
    """Numbers that the weights are linear in, for each channel its own, and a bias."""
    if isinstance(mixer, LocalMixer):
        point = mixer.point
        return mixer.num_groups == mixer.dim and not point.softmax and point.positions is not Positions.NONE
    return isinstance(mixer, (DepthwiseConv, HomogeneousDynamicConv))


def _is_batch_norm(norm: nn.Module) -> bool:
    """PyTorch's, or a frozen one, which is a class of torchvision's."""
    return hasattr(norm, "running_mean") and not isinstance(norm, nn.modules.instancenorm._InstanceNorm)


def _scale_and_shift(norm: Any) -> tuple[Tensor, Tensor]:
    """In float64, so that folding rounds once."""
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError(f"model: expected batch norms with running statistics, got {norm}")
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -scale * norm.running_mean.double()
    return scale, shift if norm.bias is None else shift + norm.bias.double()


def _set(linear: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    linear.weight.copy_(weight)
    _set_bias(linear, bias)


def _set_bias(module: nn.Linear | Mixer, bias: Tensor) -> None:
    if module.bias is None:
        like = next(module.parameters())
        module.bias = nn.Parameter(bias.to(like))
    else:
        module.bias.copy_(bias)
