"""DWNet: Swin's hierarchy with a convolution in the place of attention; static, dynamic, inhomogeneous dynamic.

The local MLP stands in the same block: it too is a layer of given weights between two pointwise convolutions.

Source: section 3 of the paper.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from timm.layers import DropPath
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from localmix.arguments import Size, pair, positive
from localmix.layers import DepthwiseConv, HomogeneousDynamicConv, InhomogeneousDynamicConv, LocalMLP
from localmix.layers.activation import relu
from localmix.layers.channels_last import Pointwise, batch_norm
from localmix.models.hierarchy import Hierarchy, missing, pad
from localmix.models.mlp import Mlp
from localmix.models.registry import NUM_GROUPS, build, pretrained_cfg


class DWNetBlock(nn.Module):
    """Pointwise, mixer, pointwise, each with a batch norm behind it; then batch norm and MLP. [B, H, W, C] -> same.

    Another `norm` of channels-last maps may take the place of the batch norms.

    y = x + bn(W2 relu(bn(mixer(relu(bn(W1 x))))))
    z = y + mlp(bn(y))

    Args:
        pad_to: the first line sees the map padded with zeros, below and on the right, to a multiple of this; 1: as it
            is. The authors' detectors and segmenters pad to multiples of the kernel.
    """

    def __init__(
        self,
        dim: int,
        mixer: nn.Module,
        *,
        mlp_ratio: float = 4.0,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
        pad_to: int = 1,
    ) -> None:
        super().__init__()
        self.pad_to = positive("pad_to", pad_to)
        self.conv1 = Pointwise(dim, dim, bias=False)
        self.norm1: nn.Module = norm(dim)
        self.mixer = mixer
        self.norm2: nn.Module = norm(dim)
        self.conv2 = Pointwise(dim, dim, bias=False)
        self.norm3: nn.Module = norm(dim)
        self.drop_path1 = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm4: nn.Module = norm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=proj_drop)
        self.drop_path2 = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = x
        if self.pad_to > 1:
            bottom, right = (missing(size, self.pad_to) for size in x.shape[1:3])
            y = pad(x, (0, 0, 0, right, 0, bottom))
        y = relu(batch_norm(self.norm1, self.conv1(y)), self.conv1, self.norm1)
        y = relu(batch_norm(self.norm2, self.mixer(y)), self.mixer, self.norm2)
        y = batch_norm(self.norm3, self.conv2(y))
        if self.pad_to > 1:
            # not a slice, whose strides an exported graph would take for those of a map that is padded, at any size
            y = pad(y, (0, 0, 0, -right, 0, -bottom))
        x = x + self.drop_path1(y)
        return x + self.drop_path2(self.mlp(batch_norm(self.norm4, x)))


def _dwnet(
    name: str,
    pretrained: bool,
    layer: Callable[..., nn.Module],
    /,
    *,
    kernel_size: Size = 7,
    pad_to: int = 1,
    impl: str = "auto",
    **kwargs: Any,
) -> Hierarchy:
    """The network with that layer, which slides, in every block."""

    def mixer(dim: int, stage: int, index: int) -> nn.Module:
        return layer(dim, kernel_size=kernel_size, impl=impl)

    return build(name, mixer, partial(DWNetBlock, pad_to=pad_to), pretrained, **kwargs)


def _i_dynamic(name: str, pretrained: bool, *, num_groups: int | None = None, **kwargs: Any) -> Hierarchy:
    groups = NUM_GROUPS[name.rsplit("_", 1)[1]] if num_groups is None else num_groups
    return _dwnet(name, pretrained, partial(InhomogeneousDynamicConv, num_groups=groups), **kwargs)


def _local_mlp(
    name: str,
    pretrained: bool,
    *,
    window_size: Size = 7,
    num_groups: int | None = None,
    impl: str = "auto",
    **kwargs: Any,
) -> Hierarchy:
    groups = NUM_GROUPS[name.rsplit("_", 1)[1]] if num_groups is None else num_groups
    height, width = pair("window_size", window_size)

    def mixer(dim: int, stage: int, index: int) -> nn.Module:
        shift = (height // 2, width // 2) if index % 2 else 0
        return LocalMLP(dim, num_groups=groups, window_size=window_size, shift=shift, impl=impl)

    return build(name, mixer, DWNetBlock, pretrained, **kwargs)


default_cfgs = generate_default_cfgs(
    {
        f"{stem}_{size}": pretrained_cfg(f"{stem}_{size}")
        for stem, sizes in {
            "dwnet": ("nano", "tiny", "small", "base"),
            "dynamic_dwnet": ("nano", "tiny", "small", "base"),
            "i_dynamic_dwnet": ("nano", "tiny", "small", "base"),
            "localmlp": ("nano", "tiny"),
        }.items()
        for size in sizes
    }
)


@register_model
def dwnet_nano(pretrained: bool = False, **kwargs: Any) -> Hierarchy:
    """DWNet for images of 28 to 64 pixels."""
    return _dwnet("dwnet_nano", pretrained, DepthwiseConv, **kwargs)


@register_model
def dwnet_tiny(pretrained: bool = False, **kwargs: Any) -> Hierarchy:
    """DWNet-T: 7x7 depth-wise convolution, 24.17M parameters."""
    return _dwnet("dwnet_tiny", pretrained, DepthwiseConv, **kwargs)


@register_model
def dwnet_small(pretrained: bool = False, **kwargs: Any) -> Hierarchy:
    """DWNet with the width and depth of Swin-S."""
    return _dwnet("dwnet_small", pretrained, DepthwiseConv, **kwargs)


@register_model
def dwnet_base(pretrained: bool = False, **kwargs: Any) -> Hierarchy:
    """DWNet-B: 7x7 depth-wise convolution, 74.35M parameters."""
    return _dwnet("dwnet_base", pretrained, DepthwiseConv, **kwargs)


@register_model
def dynamic_dwnet_nano(pretrained: bool = False, **kwargs: Any) -> Hierarchy:
    """Dynamic DWNet for images of 28 to 64 pixels."""
    return _dwnet("dynamic_dwnet_nano", pretrained, HomogeneousDynamicConv, **kwargs)


@register_model
def dynamic_dwnet_tiny(pretrained: bool = False, **kwargs: Any) -> Hierarchy:
    """Dynamic DWNet-T: homogeneous dynamic convolution, 51.13M parameters."""
    return _dwnet("dynamic_dwnet_tiny", pretrained, HomogeneousDynamicConv, **kwargs)


@register_model
def dynamic_dwnet_small(pretrained: bool = False, **kwargs: Any) -> Hierarchy:
    """Dynamic DWNet with the width and depth of Swin-S."""
    return _dwnet("dynamic_dwnet_small", pretrained, HomogeneousDynamicConv, **kwargs)


@register_model
def dynamic_dwnet_base(pretrained: bool = False, **kwargs: Any) -> Hierarchy:
    """Dynamic DWNet-B: homogeneous dynamic convolution, 161.60M parameters."""
    return _dwnet("dynamic_dwnet_base", pretrained, HomogeneousDynamicConv, **kwargs)


@register_model
def i_dynamic_dwnet_nano(pretrained: bool = False, **kwargs: Any) -> Hierarchy:
    """Inhomogeneous dynamic DWNet for images of 28 to 64 pixels."""
    return _i_dynamic("i_dynamic_dwnet_nano", pretrained, **kwargs)


@register_model
def i_dynamic_dwnet_tiny(pretrained: bool = False, **kwargs: Any) -> Hierarchy:
    """Inhomogeneous dynamic DWNet-T: 26.24M parameters."""
    return _i_dynamic("i_dynamic_dwnet_tiny", pretrained, **kwargs)


@register_model
def i_dynamic_dwnet_small(pretrained: bool = False, **kwargs: Any) -> Hierarchy:
    """Inhomogeneous dynamic DWNet with the width and depth of Swin-S."""
    return _i_dynamic("i_dynamic_dwnet_small", pretrained, **kwargs)


@register_model
def i_dynamic_dwnet_base(pretrained: bool = False, **kwargs: Any) -> Hierarchy:
    """Inhomogeneous dynamic DWNet-B: 80.25M parameters."""
    return _i_dynamic("i_dynamic_dwnet_base", pretrained, **kwargs)


@register_model
def localmlp_nano(pretrained: bool = False, **kwargs: Any) -> Hierarchy:
    """Local MLP (static local attention) for images of 28 to 64 pixels."""
    return _local_mlp("localmlp_nano", pretrained, **kwargs)


@register_model
def localmlp_tiny(pretrained: bool = False, **kwargs: Any) -> Hierarchy:
    """Local MLP (static local attention) in the block of DWNet-T, windows shifted in every second block."""
    return _local_mlp("localmlp_tiny", pretrained, **kwargs)
