"""A backbone of timm as the feature pyramid that detectors look at."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from localmix.models import create_model
from localmix.tasks.backbone import OnBackbone, norm_of_maps

NORMS: dict[str, type[nn.Module]] = {"batch": nn.BatchNorm2d, "layer": LayerNorm2d, "none": nn.Identity}


class FeaturePyramid(OnBackbone):
    """Maps of a backbone, a norm on each where the backbone leaves them without, and a pyramid of five levels.

    Where stages end with a residual sum each map is normed: with a batch norm behind the blocks of DWNets, with a layer
    norm on other nets that normalise layers, as the official detectors do; see `norm_of_maps`. Four maps make four
    levels, and the fifth is every second position of the fourth; three maps make three, on which two convolutions of
    stride 2 stand, as RetinaNet has them.

    Args:
        backbone: name of a network that timm knows, with so many feature maps or more, of which the last are used. It
            has to take images of any size, as those of this library do.
        out_channels: of every level.
        num_maps: 4, or 3.
        in_chans: channels of the image.
        backbone_kwargs: further arguments of the network, such as `drop_path_rate`.

    Attributes:
        out_channels: as given.
        strides: of the five levels [pixels].

    Shapes: images [B, in_chans, H, W] -> {"0": [B, out_channels, h, w], ..., "3": ..., "pool": ...}, finest first,
    or {"0", "1", "2", "p6", "p7"}.

    Raises:
        ValueError: the network is unknown, or has not so many maps, each half the one in front.
    """

    holder = "body"

    def __init__(
        self,
        backbone: str,
        *,
        out_channels: int = 256,
        num_maps: int = 4,
        in_chans: int = 3,
        backbone_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if num_maps not in (3, 4):
            raise ValueError(f"num_maps: expected 3 or 4, got {num_maps!r}")
        options = {"in_chans": in_chans, **(backbone_kwargs or {})}
        try:
            self.body: Any = create_model(
                backbone, features_only=True, out_indices=tuple(range(-num_maps, 0)), **options
            )
        except (AssertionError, IndexError, RuntimeError) as error:
            raise ValueError(
                f"backbone: expected a network with {num_maps} feature maps or more, got {backbone}"
            ) from error
        except (TypeError, ValueError) as error:
            if isinstance(error, ValueError) and not isinstance(error.__cause__, TypeError):
                raise  # an unknown network; one without such an argument comes of a TypeError
            raise ValueError(f"backbone_kwargs: expected arguments of {backbone}, got {options}: {error}") from error
        self.channels: list[int] = self.body.feature_info.channels()
        strides = self.body.feature_info.reduction()
        if any(coarse != 2 * fine for fine, coarse in pairwise(strides)):
            raise ValueError(
                f"backbone: expected each map to be half the one in front, {backbone} has strides {strides}"
            )
        top = range(1, 6 - num_maps)
        self.strides: tuple[int, ...] = (*strides, *(2**index * strides[-1] for index in top))
        self.channels_last = str(getattr(self.body, "output_fmt", "")).endswith("NHWC")
        norm = NORMS[norm_of_maps(self.body)]
        self.norms = nn.ModuleList(norm(channels) for channels in self.channels)
        self.in_chans, self.out_channels = in_chans, out_channels
        extra = LastLevelMaxPool() if num_maps == 4 else LastLevelP6P7(out_channels, out_channels)
        self.fpn = FeaturePyramidNetwork(self.channels, out_channels, extra_blocks=extra)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.body(images)
        if self.channels_last:
            maps = [m.permute(0, 3, 1, 2) for m in maps]
        return self.fpn({str(level): norm(m) for level, (norm, m) in enumerate(zip(self.norms, maps, strict=True))})


class OnPyramid(nn.Module):
    """A detector whose `backbone` is a `FeaturePyramid`, with what an optimiser and a run ask of a net."""

    backbone: FeaturePyramid

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """See `OnBackbone.set_grad_checkpointing`."""
        self.backbone.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """Parameters of two axes or more that are not to decay; those of one axis, norms and biases, never do."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}
