"""The two parts of a convolutional block that PyTorch has for channels-first maps only."""

from __future__ import annotations

from torch import Tensor, nn

from localmix.layers.linear import Linear
from localmix.registration import has_hooks


class Pointwise(nn.Linear):
    """1x1 convolution of a channels-last map, with the initialisation of `nn.Conv2d`.

    A class of its own so that the networks can tell it from their linear layers, which start from a truncated normal.
    """


def is_plain(module: nn.Module) -> bool:
    """Whether a module is no more than its weight and bias: a linear map, parametrised or not, that nobody looks at."""
    forward = type(module).forward
    is_linear = forward is nn.Linear.forward or forward is Linear.forward
    return is_linear and "forward" not in vars(module) and not has_hooks(module)


def batch_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """Applies a channels-first norm such as `nn.BatchNorm2d` to a channels-last map; no copy is made.

    The norm stays PyTorch's own class, so that `nn.SyncBatchNorm.convert_sync_batchnorm` can replace it. It sees each
    position as an image of one pixel: the strides are then known to an exported graph whatever the size of the map.
    Running statistics tell what is channels-first, for a frozen norm is a class of torchvision's and no subclass. What
    stands for a norm that was folded takes a channels-last map as it is.
    """
    if not hasattr(norm, "running_mean"):
        return norm(x)
    pixels = x.flatten(0, 2)[:, None, None].permute(0, 3, 1, 2)  # [B * H * W, C, 1, 1]
    return norm(pixels).permute(0, 2, 3, 1).reshape(x.shape)
