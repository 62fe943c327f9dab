"""What a detector costs, counted as papers on detection count it."""

from __future__ import annotations

from torch import Tensor, nn

from localmix.arguments import Size
from localmix.reports.cost import Cost, cost
from localmix.tasks.detection.cascade_mask_rcnn import CascadeMaskRCNN

IMAGE_SIZE = (1280, 800)


class _Counted(nn.Module):
    """Runs each part of a detector once, on as many regions as it will see, and leaves out how they are found."""

    def __init__(self, detector: CascadeMaskRCNN, num_boxes: int, num_masks: int) -> None:
        super().__init__()
        self.detector, self.num_boxes, self.num_masks = detector, num_boxes, num_masks

    def forward(self, image: Tensor) -> None:
        maps = list(self.detector.backbone(image).values())
        self.detector.rpn.head(maps)
        heads = self.detector.roi_heads
        for head in heads.box_heads:
            size = heads.box_align.output_size
            head(maps[0].new_empty(self.num_boxes, maps[0].shape[1], size, size))
        for head in heads.mask_heads:
            size = heads.mask_align.output_size
            head(maps[0].new_empty(self.num_masks, maps[0].shape[1], size, size))


def detector_cost(
    detector: CascadeMaskRCNN, image_size: Size = IMAGE_SIZE, *, num_boxes: int = 1000, num_masks: int = 100
) -> Cost:
    """Parameters and multiply-adds of a detector for one image, as `cost` counts them.

    By the convention of mmdetection, from which the figures of the papers are: an image of 1280 x 800, 1000 proposals
    through every box head and 100 through every mask head.

    >>> import torch
    >>> from localmix.tasks.detection.cascade_mask_rcnn import cascade_mask_rcnn
    >>> with torch.device("meta"):
    ...     detector = cascade_mask_rcnn("dwnet_tiny")
    >>> round(detector_cost(detector).macs / 1e9)
    725
    """
    channels = detector.backbone.in_chans
    model = _Counted(detector, num_boxes, num_masks)
    return cost(model, image_size, in_chans=channels)
