"""A network of localmix as the backbone of torchvision's Faster R-CNN: feature maps into a feature pyramid.

python examples/backbone.py localswin_nano
"""

from __future__ import annotations

import sys

import timm
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

import localmix.models  # noqa: F401 -- registers the networks with timm


class Pyramid(nn.Module):
    """The four maps of a network as a feature pyramid of five levels."""

    def __init__(self, name: str, out_channels: int = 64) -> None:
        super().__init__()
        self.body = timm.create_model(name, features_only=True)
        self.pyramid = FeaturePyramidNetwork(self.body.feature_info.channels(), out_channels, LastLevelMaxPool())
        self.out_channels = out_channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """[B, 3, H, W] to maps by the name of their level."""
        return self.pyramid({str(level): x for level, x in enumerate(self.body(images))})


def detector(name: str, num_classes: int) -> FasterRCNN:
    """Faster R-CNN on that backbone; class 0 is the background."""
    sizes = tuple((size,) for size in (8, 16, 32, 64, 128))
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    return FasterRCNN(Pyramid(name), num_classes, rpn_anchor_generator=anchors, min_size=96, max_size=160)


if __name__ == "__main__":
    net = detector(sys.argv[1] if len(sys.argv) > 1 else "dwnet_nano", num_classes=3).eval()
    with torch.no_grad():
        (prediction,) = net([torch.rand(3, 120, 150)])
    print({key: tuple(value.shape) for key, value in prediction.items()})
