"""A backbone of timm as the feature pyramid that detectors look at."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from localmix.models import DWNetBlock, Hierarchy, create_model


class FeaturePyramid(nn.Module):
    """Four maps of a backbone, a norm on each where the backbone leaves them without, and a pyramid of five levels.

    The nets of this library end their stages with a residual sum, so each map is normed: with a batch norm behind
    depth-wise convolutions, with a layer norm behind attention and local MLPs, as the official detectors do. Nets
    of timm are taken as they are. The fifth level is every second position of the fourth.

    Args:
        backbone: name of a network that timm knows, with four feature maps or more, of which the last four are used. It
            has to take images of any size, as those of this library do.
        out_channels: of every level.
        in_chans: channels of the image.
        backbone_kwargs: further arguments of the network, such as `drop_path_rate`.

    Attributes:
        out_channels: as given.
        strides: of the five levels [pixels].

    Shapes: images [B, in_chans, H, W] -> {"0": [B, out_channels, h, w], ..., "3": ..., "pool": ...}, finest first.

    Raises:
        ValueError: the network is unknown, or has less than four maps, each half the one in front.
    """

    def __init__(
        self,
        backbone: str,
        *,
        out_channels: int = 256,
        in_chans: int = 3,
        backbone_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        options = {"in_chans": in_chans, **(backbone_kwargs or {})}
        try:
            self.body: Any = create_model(backbone, features_only=True, out_indices=(-4, -3, -2, -1), **options)
        except (AssertionError, IndexError, RuntimeError) as error:
            raise ValueError(f"backbone: expected a network with feature maps, four or more, got {backbone}") from error
        self.channels: list[int] = self.body.feature_info.channels()
        strides = self.body.feature_info.reduction()
        if any(coarse != 2 * fine for fine, coarse in pairwise(strides)):
            raise ValueError(
                f"backbone: expected each map to be half the one in front, {backbone} has strides {strides}"
            )
        self.strides: tuple[int, ...] = (*strides, 2 * strides[-1])
        self.channels_last = str(getattr(self.body, "output_fmt", "")).endswith("NHWC")
        norm = _norm(self.body)
        self.norms = nn.ModuleList(norm(channels) for channels in self.channels)
        self.in_chans, self.out_channels = in_chans, out_channels
        self.fpn = FeaturePyramidNetwork(self.channels, out_channels, extra_blocks=LastLevelMaxPool())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.body(images)
        if self.channels_last:
            maps = [m.permute(0, 3, 1, 2) for m in maps]
        return self.fpn({str(level): norm(m) for level, (norm, m) in enumerate(zip(self.norms, maps, strict=True))})

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Less memory for more time in the backbone, as the networks have it."""
        for module in self.body.modules():
            if isinstance(module, Hierarchy):
                module.set_grad_checkpointing(enable)


def _norm(body: nn.Module) -> Any:
    """What makes the norm of a map of that backbone."""
    if not any(isinstance(module, Hierarchy) for module in body.modules()):
        return nn.Identity
    return nn.BatchNorm2d if any(isinstance(module, DWNetBlock) for module in body.modules()) else LayerNorm2d
