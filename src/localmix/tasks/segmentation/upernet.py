"""UPerNet on four maps of a backbone, as mmsegmentation has it, with an auxiliary head for training.

The modules of the heads have mmsegmentation's names, so that its checkpoints fit (see `checkpoints`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from localmix.arguments import choice, positive
from localmix.models import create_model
from localmix.tasks.backbone import OnBackbone, norm_of_maps

FEATURE_NORMS = ("layer", "batch", "none")
NUM_MAPS = 4


def upernet(
    backbone: str,
    *,
    num_classes: int = 150,
    in_chans: int = 3,
    pretrained: bool = False,
    feature_norm: str | None = None,
    channels: int = 512,
    pool_sizes: tuple[int, ...] = (1, 2, 3, 6),
    auxiliary_channels: int = 256,
    dropout: float = 0.1,
    **backbone_options: Any,
) -> UPerNet:
    """UPerNet on the last four maps of a network that timm knows.

    Args:
        backbone: name of the network.
        num_classes: outputs at each pixel.
        in_chans: channels of the image.
        pretrained: whether the backbone starts from the weights that timm has for it.
        feature_norm: norm on each map of the backbone: "layer", "batch" or "none". By default as official code has
            it: batch norm behind the blocks of DWNets; layer norm on other nets that normalise layers, such as Swin,
            whose maps are sums that no norm has seen; none on the rest, such as ResNets.
        channels: of the decoder.
        pool_sizes: sides of the grids that the last map is averaged over.
        auxiliary_channels: of the auxiliary head, on the third map.
        dropout: share of channels that is dropped in front of each classifier.
        backbone_options: further arguments of the network, such as `drop_path_rate` (0.3 in the paper).

    Raises:
        ValueError: names the argument, what was expected and what came.

    >>> net = upernet("dwnet_nano", num_classes=5, channels=32).eval()
    >>> net(torch.zeros(1, 3, 97, 61)).shape
    torch.Size([1, 5, 97, 61])
    """
    for name, value in (
        ("num_classes", num_classes),
        ("channels", channels),
        ("auxiliary_channels", auxiliary_channels),
    ):
        positive(name, value)
    try:
        net: Any = create_model(
            backbone,
            pretrained=pretrained,
            in_chans=in_chans,
            features_only=True,
            out_indices=tuple(range(-NUM_MAPS, 0)),
            **backbone_options,
        )
    except (AssertionError, RuntimeError, AttributeError) as error:
        raise ValueError(
            f"backbone: expected a network with {NUM_MAPS} feature maps, got {backbone!r}: {error}"
        ) from error
    dims = list(net.feature_info.channels())
    kind = norm_of_maps(net) if feature_norm is None else choice("feature_norm", feature_norm, FEATURE_NORMS)
    return UPerNet(
        net,
        [FeatureNorm(kind, dim) for dim in dims],
        UPerHead(dims, channels, num_classes, pool_sizes=pool_sizes, dropout=dropout),
        FCNHead(dims[2], auxiliary_channels, num_classes, dropout=dropout),
    )


class UPerNet(OnBackbone):
    """A backbone, a norm on each of its maps, the decoder, and the auxiliary head.

    Image [B, in_chans, H, W] -> logits [B, num_classes, H, W] in evaluation. In training a pair: those, and the logits
    of the auxiliary head, of the same shape. They are float32 under autocast, too.
    """

    def __init__(
        self,
        backbone: nn.Module,
        feature_norms: Sequence[nn.Module],
        decode_head: UPerHead,
        auxiliary_head: FCNHead,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.feature_norms = nn.ModuleList(feature_norms)
        self.decode_head = decode_head
        self.auxiliary_head = auxiliary_head

    @property
    def num_classes(self) -> int:
        """Outputs at each pixel."""
        return self.decode_head.conv_seg.out_channels

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """Which parameters belong to its classes, as timm says it of its nets."""
        return {"classifier": ("decode_head.conv_seg", "auxiliary_head.conv_seg")}

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        size = image.shape[2:]
        maps = self.backbone(image)
        if getattr(self.backbone, "output_fmt", "NCHW") == "NHWC":
            maps = [x.permute(0, 3, 1, 2) for x in maps]
        maps = [norm(x) for norm, x in zip(self.feature_norms, maps, strict=True)]
        logits = resize(self.decode_head(maps), size)
        return (logits, resize(self.auxiliary_head(maps[2]), size)) if self.training else logits


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """[B, C, h, w] to [B, C, *size], bilinear, corners not aligned."""
    return x if x.shape[2:] == tuple(size) else F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)


class FeatureNorm(nn.Module):
    """A norm on a map [B, C, H, W]: over the channels of a position ("layer"), of each channel ("batch"), or none."""

    def __init__(self, kind: str, dim: int) -> None:
        super().__init__()
        self.norm = {"layer": nn.LayerNorm, "batch": nn.BatchNorm2d, "none": nn.Identity}[kind](dim)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.norm, nn.LayerNorm):
            return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.norm(x)


class ConvNormReLU(nn.Module):
    """A convolution without bias that keeps the size, batch norm, ReLU."""

    def __init__(self, in_dim: int, dim: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_dim, dim, kernel_size, padding=kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(dim)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class UPerHead(nn.Module):
    """Pyramid pooling of the last map, a feature pyramid down to the first, all of its levels fused there.

    Source: Xiao et al., Unified Perceptual Parsing for Scene Understanding, ECCV 2018.

    Args:
        dims: channels of the maps, finest first.
        dim: channels of the decoder.
        num_classes: outputs at each position.
        pool_sizes: sides of the grids that the last map is averaged over.
        dropout: share of channels that is dropped in front of the classifier.

    Shapes: maps [B, dims[i], h_i, w_i] -> logits [B, num_classes, h_0, w_0].
    """

    def __init__(
        self, dims: Sequence[int], dim: int, num_classes: int, *, pool_sizes: Sequence[int], dropout: float
    ) -> None:
        super().__init__()
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(size), ConvNormReLU(dims[-1], dim, 1)) for size in pool_sizes
        )
        self.bottleneck = ConvNormReLU(dims[-1] + len(pool_sizes) * dim, dim, 3)
        self.lateral_convs = nn.ModuleList(ConvNormReLU(in_dim, dim, 1) for in_dim in dims[:-1])
        self.fpn_convs = nn.ModuleList(ConvNormReLU(dim, dim, 3) for _ in dims[:-1])
        self.fpn_bottleneck = ConvNormReLU(len(dims) * dim, dim, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = _classifier(dim, num_classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        pooled = [resize(pool(maps[-1]), maps[-1].shape[2:]) for pool in self.psp_modules]
        levels = [self.bottleneck(torch.cat([maps[-1], *pooled], dim=1))]
        for lateral, x in zip(reversed(self.lateral_convs), reversed(maps[:-1]), strict=True):
            levels.insert(0, lateral(x) + resize(levels[0], x.shape[2:]))
        outputs = [*(conv(x) for conv, x in zip(self.fpn_convs, levels[:-1], strict=True)), levels[-1]]
        fused = self.fpn_bottleneck(torch.cat([resize(x, levels[0].shape[2:]) for x in outputs], dim=1))
        return _exact(self.conv_seg(self.dropout(fused)))


class FCNHead(nn.Module):
    """A 3x3 convolution and a classifier at each position: [B, in_dim, h, w] -> [B, num_classes, h, w]."""

    def __init__(self, in_dim: int, dim: int, num_classes: int, *, dropout: float) -> None:
        super().__init__()
        self.convs = nn.Sequential(ConvNormReLU(in_dim, dim, 3))
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = _classifier(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return _exact(self.conv_seg(self.dropout(self.convs(x))))


def _exact(logits: Tensor) -> Tensor:
    """In float32 or finer, also under autocast.

    Enlarged 16 times, a logit has a gradient that is summed over 1024 pixels, which a GPU does in the type of the map.
    """
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _classifier(dim: int, num_classes: int) -> nn.Conv2d:
    classifier = nn.Conv2d(dim, num_classes, 1)
    nn.init.normal_(classifier.weight, std=0.01)
    nn.init.zeros_(classifier.bias)  # ty: ignore[invalid-argument-type] -- it has one
    return classifier
