"""Swin's block around an attention: window attention (Swin itself) and neighborhood attention in the same skeleton."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.layers import DropPath
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from localmix.arguments import Size, pair
from localmix.layers import NeighborhoodAttention, WindowAttention
from localmix.layers.channels_last import batch_norm
from localmix.models.hierarchy import Hierarchy
from localmix.models.mlp import Mlp
from localmix.models.registry import NUM_HEADS, SIZES, build, pretrained_cfg


class SwinBlock(nn.Module):
    """Layer norm and mixer, layer norm and MLP, each around a residual. [B, H, W, C] -> same.

    A batch norm may take the place of the layer norms.

    y = x + mixer(ln(x))
    z = y + mlp(ln(y))
    """

    def __init__(
        self,
        dim: int,
        mixer: nn.Module,
        *,
        mlp_ratio: float = 4.0,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
    ) -> None:
        super().__init__()
        self.norm1: nn.Module = norm(dim)
        self.mixer = mixer
        self.drop_path1 = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2: nn.Module = norm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=proj_drop)
        self.drop_path2 = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.mixer(batch_norm(self.norm1, x)))
        return x + self.drop_path2(self.mlp(batch_norm(self.norm2, x)))


def _heads(name: str, num_heads: tuple[int, ...] | None, options: dict[str, Any]) -> tuple[int, ...]:
    """Heads of each stage: those of the size of the network if none are given."""
    size = name.rsplit("_", 1)[1]
    stages = len(options.get("depths", SIZES[size]["depths"]))
    heads = NUM_HEADS[size] if num_heads is None else num_heads
    if not isinstance(heads, (tuple, list)) or len(heads) < stages:
        raise ValueError(f"num_heads: expected a number for each of the {stages} stages, got {heads!r}")
    return tuple(heads)


def _localswin(
    name: str,
    pretrained: bool,
    *,
    window_size: Size = 7,
    border: str = "pad",
    num_heads: tuple[int, ...] | None = None,
    impl: str = "auto",
    **kwargs: Any,
) -> Hierarchy:
    heads = _heads(name, num_heads, kwargs)
    height, width = pair("window_size", window_size)

    def mixer(dim: int, stage: int, index: int) -> nn.Module:
        shift = (height // 2, width // 2) if index % 2 else 0
        return WindowAttention(
            dim, num_heads=heads[stage], window_size=window_size, shift=shift, border=border, impl=impl
        )

    return build(name, mixer, SwinBlock, pretrained, **kwargs)


def _localnat(
    name: str,
    pretrained: bool,
    *,
    kernel_size: Size = 7,
    num_heads: tuple[int, ...] | None = None,
    impl: str = "auto",
    **kwargs: Any,
) -> Hierarchy:
    heads = _heads(name, num_heads, kwargs)

    def mixer(dim: int, stage: int, index: int) -> nn.Module:
        return NeighborhoodAttention(dim, num_heads=heads[stage], kernel_size=kernel_size, impl=impl)

    return build(name, mixer, SwinBlock, pretrained, **kwargs)


default_cfgs = generate_default_cfgs(
    {
        f"{stem}_{size}": pretrained_cfg(f"{stem}_{size}")
        for stem, sizes in {"localswin": ("nano", "tiny", "small", "base"), "localnat": ("nano", "tiny")}.items()
        for size in sizes
    }
)


@register_model
def localswin_nano(pretrained: bool = False, **kwargs: Any) -> Hierarchy:
    """Swin for images of 28 to 64 pixels."""
    return _localswin("localswin_nano", pretrained, **kwargs)


@register_model
def localswin_tiny(pretrained: bool = False, **kwargs: Any) -> Hierarchy:
    """Swin-T at any input size: 28.29M parameters."""
    return _localswin("localswin_tiny", pretrained, **kwargs)


@register_model
def localswin_small(pretrained: bool = False, **kwargs: Any) -> Hierarchy:
    """Swin-S at any input size."""
    return _localswin("localswin_small", pretrained, **kwargs)


@register_model
def localswin_base(pretrained: bool = False, **kwargs: Any) -> Hierarchy:
    """Swin-B at any input size: 87.77M parameters."""
    return _localswin("localswin_base", pretrained, **kwargs)


@register_model
def localnat_nano(pretrained: bool = False, **kwargs: Any) -> Hierarchy:
    """Neighborhood attention in Swin's skeleton, for images of 28 to 64 pixels."""
    return _localnat("localnat_nano", pretrained, **kwargs)


@register_model
def localnat_tiny(pretrained: bool = False, **kwargs: Any) -> Hierarchy:
    """Neighborhood attention in the skeleton of Swin-T."""
    return _localnat("localnat_tiny", pretrained, **kwargs)
