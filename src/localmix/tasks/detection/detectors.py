"""The detectors by name: the paper's, and torchvision's Mask R-CNN and RetinaNet on the same backbones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torchvision
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss

from localmix.arguments import choice, positive
from localmix.tasks.detection.cascade_heads import PyramidAlign
from localmix.tasks.detection.cascade_mask_rcnn import CascadeMaskRCNN
from localmix.tasks.detection.feature_pyramid import FeaturePyramid, OnPyramid
from localmix.tasks.detection.instance_masks import mask_loss
from localmix.tasks.detection.region_proposals import RATIOS, SCALE, Anchors, RegionProposals
from localmix.tasks.detection.resizing import Resizing
from localmix.tasks.detection.targets import Target, check_targets

DETECTORS = ("cascade_mask_rcnn", "mask_rcnn", "retinanet")
OPTIONS = {
    "cascade_mask_rcnn": (
        "num_proposals",
        "anchor_scale",
        "stages",
        "num_samples",
        "giou_weight",
        "min_score",
        "nms_iou",
        "max_detections",
    ),
    "mask_rcnn": (
        "num_proposals",
        "anchor_scale",
        "box_score_thresh",
        "box_nms_thresh",
        "box_detections_per_img",
        "box_fg_iou_thresh",
        "box_bg_iou_thresh",
        "box_batch_size_per_image",
        "box_positive_fraction",
        "bbox_reg_weights",
    ),
    "retinanet": (
        "score_thresh",
        "nms_thresh",
        "detections_per_img",
        "fg_iou_thresh",
        "bg_iou_thresh",
        "topk_candidates",
    ),
}
"""Further arguments of each. torchvision ignores those that it does not know, so here they are refused."""
OCTAVE = (4.0, 4 * 2 ** (1 / 3), 4 * 2 ** (2 / 3))
"""Scales of RetinaNet's anchors: three in an octave."""


def detector(
    name: str,
    backbone: str,
    *,
    num_classes: int = 80,
    channels: int = 256,
    in_chans: int = 3,
    backbone_kwargs: dict[str, Any] | None = None,
    min_size: int | tuple[int, ...] = 800,
    max_size: int = 1333,
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN,
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD,
    resize_in_training: bool = True,
    **options: Any,
) -> CascadeMaskRCNN | MaskRCNN | RetinaNet:
    """A detector by its name, on a backbone that timm knows.

    All are called as `CascadeMaskRCNN` is; RetinaNet knows no masks.

    Args:
        name: "cascade_mask_rcnn", the paper's; "mask_rcnn" or "retinanet", which are torchvision's.
        backbone: name that timm knows.
        num_classes: without the ground.
        channels: of the pyramid; of the heads as well.
        in_chans: channels of the images.
        backbone_kwargs: further arguments of the backbone, such as `drop_path_rate` or `pretrained`.
        min_size: shorter side that images are scaled to [pixels], see `Resizing`.
        max_size: what the longer side is at most [pixels].
        mean: of the channels.
        std: of the channels.
        resize_in_training: whether training images are resized, too.
        options: among `OPTIONS` of the name: `num_proposals` and `anchor_scale`, see `RegionProposals`, and arguments
            of `Cascade` or of torchvision's class.

    Raises:
        ValueError: names the argument, what was expected and what came.
    """
    choice("name", name, DETECTORS)
    for option in options:
        if option not in OPTIONS[name]:
            raise ValueError(f"{option}: expected one of the arguments of {name}, {', '.join(OPTIONS[name])}")
    positive("num_classes", num_classes)
    pyramid = FeaturePyramid(
        backbone,
        out_channels=positive("channels", channels),
        num_maps=3 if name == "retinanet" else 4,
        in_chans=in_chans,
        backbone_kwargs=backbone_kwargs,
    )
    sizes: dict[str, Any] = {"min_size": min_size, "max_size": max_size, "mean": mean, "std": std}
    kind = {"cascade_mask_rcnn": CascadeMaskRCNN, "mask_rcnn": MaskRCNN, "retinanet": RetinaNet}[name]
    return kind(pyramid, num_classes, resize_in_training=resize_in_training, **sizes, **options)


class MaskRCNN(OnPyramid, torchvision.models.detection.MaskRCNN):
    """torchvision's Mask R-CNN, with the proposals and the alignment of `CascadeMaskRCNN`, called as that one is."""

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
        **options: Any,
    ) -> None:
        channels = backbone.out_channels
        torchvision.models.detection.MaskRCNN.__init__(
            self,
            backbone,
            box_head=TwoMLPHead(channels * 7 * 7, 4 * channels),
            box_predictor=_Predictor(4 * channels, 1 + num_classes),
            mask_head=MaskRCNNHeads(channels, (channels,) * 4, 1),
            mask_predictor=MaskRCNNPredictor(channels, channels, 1 + num_classes),
            **options,
        )
        self.num_classes = num_classes
        self.rpn = RegionProposals(channels, backbone.strides, num_proposals=num_proposals, anchor_scale=anchor_scale)
        levels: Any = backbone.strides[:-1]
        self.roi_heads.box_roi_pool, self.roi_heads.mask_roi_pool = _Align(7, levels), _Align(14, levels)
        self.roi_heads.__class__ = _Heads  # torchvision makes them itself; they keep their parts
        self.transform = Resizing(min_size, max_size, mean, std, in_training=resize_in_training)

    def forward(self, images: list[Tensor], targets: list[Target] | None = None) -> Any:
        if not self.training:
            return super().forward(images)
        return super().forward(images, check_targets(images, targets, self.num_classes))


class RetinaNet(OnPyramid, torchvision.models.detection.RetinaNet):
    """torchvision's RetinaNet on strides from 8 on, called as `CascadeMaskRCNN` is; it knows no masks."""

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
        **options: Any,
    ) -> None:
        head = _Head(backbone.out_channels, len(RATIOS) * len(OCTAVE), num_classes)
        torchvision.models.detection.RetinaNet.__init__(
            self, backbone, num_classes, head=head, **{"detections_per_img": 100, **options}
        )
        self.num_classes = num_classes
        anchors: Any = Anchors(backbone.strides, OCTAVE)
        self.anchor_generator = anchors
        self.transform = Resizing(min_size, max_size, mean, std, in_training=resize_in_training)

    def forward(self, images: list[Tensor], targets: list[Target] | None = None) -> Any:
        # its classes count from 0: there is no ground
        if self.training:
            targets = check_targets(images, targets, self.num_classes, masks=False)
            return super().forward(images, [{**target, "labels": target["labels"] - 1} for target in targets])
        return [{**found, "labels": found["labels"] + 1} for found in super().forward(images)]


class _Heads(RoIHeads):
    """torchvision's, with masks to learn from that lie where `paste_masks` puts what was learned.

    torchvision's own lie half a pixel of the image off, up and to the left.
    """

    def forward(self, features: Any, proposals: Any, image_shapes: Any, targets: Any = None) -> Any:
        if not self.training:
            return super().forward(features, proposals, image_shapes)
        proposals, matched, labels, offsets = self.select_training_samples(proposals, targets)
        pooled = self.box_roi_pool(features, proposals, image_shapes)
        classifier, box_reg = fastrcnn_loss(*self.box_predictor(self.box_head(pooled)), labels, offsets)
        rows = [torch.where(label > 0)[0] for label in labels]
        boxes, objects, classes = (
            [values[row] for values, row in zip(column, rows, strict=True)] for column in (proposals, matched, labels)
        )
        heads: Any = self
        logits = heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(features, boxes, image_shapes)))
        masks = mask_loss(logits, torch.cat(classes), [target["masks"] for target in targets], objects, boxes)
        return [], {"loss_classifier": classifier, "loss_box_reg": box_reg, "loss_mask": masks}


class _Align(PyramidAlign):
    """As torchvision's heads call it."""

    def forward(self, maps: Any, boxes: list[Tensor], sizes: list[tuple[int, int]] | None = None) -> Tensor:
        return super().forward([maps[str(level)] for level in range(len(self.strides))], boxes)


class _Predictor(FastRCNNPredictor):
    """In float32, for boxes that are exact to a pixel under autocast."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, offsets = super().forward(x)
        return scores.float(), offsets.float()


class _Head(RetinaNetHead):
    """In float32, for boxes that are exact to a pixel under autocast."""

    def forward(self, x: list[Tensor]) -> dict[str, Tensor]:
        return {name: value.float() for name, value in super().forward(x).items()}
