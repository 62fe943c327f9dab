"""Cascade Mask R-CNN, the paper's detector, on any backbone: torchvision's parts, and a cascade of three stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from localmix import arguments
from localmix.tasks.detection.cascade import Cascade
from localmix.tasks.detection.feature_pyramid import FeaturePyramid, OnPyramid
from localmix.tasks.detection.region_proposals import SCALE, RegionProposals
from localmix.tasks.detection.resizing import Resizing
from localmix.tasks.detection.targets import check_targets


class CascadeMaskRCNN(OnPyramid):
    """Objects in images: boxes, classes and masks. It is called as torchvision's detectors are.

    Shapes: a list of images [C, H, W], values in 0..1, of any sizes. In training also targets, for each image

        boxes   [n, 4]     (x0, y0, x1, y1) [pixels], x0 < x1 and y0 < y1; n may be 0
        labels  [n]        1 to num_classes
        masks   [n, H, W]  uint8 or bool

    and the losses come back, by their names, weighted: their sum is what to minimise. Otherwise, for each image, best
    first, at most 100: "boxes" [n, 4], "labels" [n], "scores" [n] and "masks" [n, 1, H, W], a probability at each
    pixel.

    Raises:
        ValueError: targets that do not fit the images, with what is wrong.
    """

    def __init__(
        self,
        backbone: FeaturePyramid,
        num_classes: int,
        *,
        min_size: int | tuple[int, ...] = 800,
        max_size: int = 1333,
        mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN,
        std: tuple[float, ...] = IMAGENET_DEFAULT_STD,
        resize_in_training: bool = True,
        num_proposals: Sequence[int] = (2000, 1000),
        anchor_scale: float = SCALE,
        **cascade: Any,
    ) -> None:
        super().__init__()
        self.num_classes = arguments.positive("num_classes", num_classes)
        self.transform = Resizing(min_size, max_size, mean, std, in_training=resize_in_training)
        self.backbone = backbone
        self.rpn = RegionProposals(
            backbone.out_channels, backbone.strides, num_proposals=num_proposals, anchor_scale=anchor_scale
        )
        self.roi_heads = Cascade(backbone.out_channels, backbone.strides[:-1], num_classes, **cascade)

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        if self.training:
            targets = check_targets(images, targets, self.num_classes)
        batch, targets = self.transform(images, targets if self.training else None)
        maps = self.backbone(batch.tensors)
        proposals, losses = self.rpn(batch, maps, targets)
        if self.training:
            proposals = [
                box if len(box) else _whole(size, box) for box, size in zip(proposals, batch.image_sizes, strict=True)
            ]
        # regions are taken from four levels: the fifth is there for proposals
        levels = list(maps.values())[:-1]
        detections, more = self.roi_heads(levels, proposals, batch.image_sizes, targets)
        if self.training:
            return {**losses, **more}
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        return self.transform.postprocess(detections, batch.image_sizes, sizes)


def cascade_mask_rcnn(
    backbone: str,
    *,
    num_classes: int = 80,
    channels: int = 256,
    in_chans: int = 3,
    backbone_kwargs: dict[str, Any] | None = None,
    min_size: int | tuple[int, ...] = 800,
    max_size: int = 1333,
    **options: Any,
) -> CascadeMaskRCNN:
    """The detector of the paper on a backbone of its, or any of timm that `FeaturePyramid` takes.

    Args:
        backbone: name that timm knows.
        num_classes: without the ground; 80 for COCO.
        channels: of the pyramid and the heads.
        in_chans: channels of the images.
        backbone_kwargs: further arguments of the backbone, such as `drop_path_rate` or `pretrained`.
        min_size: shorter side that images are scaled to [pixels]; of several, one is drawn for each image in training,
            and the last counts in test.
        max_size: what the longer side is at most [pixels].
        options: `mean` and `std` of the channels, `resize_in_training` (see `Resizing`), `num_proposals` and
            `anchor_scale` (see `RegionProposals`), and those of `Cascade`.

    >>> import torch
    >>> with torch.device("meta"):
    ...     net = cascade_mask_rcnn("dwnet_tiny")
    >>> round(sum(p.numel() for p in net.parameters()) / 1e6)
    82
    """
    pyramid = FeaturePyramid(backbone, out_channels=channels, in_chans=in_chans, backbone_kwargs=backbone_kwargs)
    return CascadeMaskRCNN(pyramid, num_classes, min_size=min_size, max_size=max_size, **options)


def _whole(size: tuple[int, int], like: Tensor) -> Tensor:
    """The image as the one proposal, where no proposal is left."""
    return like.new_tensor([[0, 0, size[1], size[0]]])
