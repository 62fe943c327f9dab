"""What a detector costs, counted as papers on detection count it."""

from __future__ import annotations

from torch import Tensor, nn

from localmix.arguments import Size
from localmix.reports.cost import Cost, cost
from localmix.tasks.detection.cascade_mask_rcnn import CascadeMaskRCNN

IMAGE_SIZE = (1280, 800)
IN_TEST, IN_TRAINING = (1000, 100), (512, 128)
"""Regions of an image through each box head and each mask head; in training at most a quarter of them are objects."""


class DetectorParts(nn.Module):
    """Runs each part of a detector once, on as many regions as it will see, and leaves out how they are found.

    Images [B, C, H, W] -> a list of what the parts give. The regions are zeros.
    """

    def __init__(
        self,
        detector: CascadeMaskRCNN,
        *,
        in_test: tuple[int, int] = IN_TEST,
        in_training: tuple[int, int] = IN_TRAINING,
    ) -> None:
        super().__init__()
        self.detector, self.in_test, self.in_training = detector, in_test, in_training
        self.in_chans = detector.backbone.in_chans

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = list(self.detector.backbone(images).values())
        logits, offsets = self.detector.rpn.head(maps)
        outputs = [*logits, *offsets]
        heads = self.detector.roi_heads
        num_boxes, num_masks = self.in_training if self.training else self.in_test
        for number, align, parts in (
            (num_boxes, heads.box_align, heads.box_heads),
            (num_masks, heads.mask_align, heads.mask_heads),
        ):
            size = align.output_size
            for head in parts:
                output = head(maps[0].new_zeros(len(images) * number, maps[0].shape[1], size, size))
                outputs += [output] if isinstance(output, Tensor) else output
        return outputs


def detector_cost(
    detector: CascadeMaskRCNN, img_size: Size = IMAGE_SIZE, *, num_boxes: int = 1000, num_masks: int = 100
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
    return cost(DetectorParts(detector, in_test=(num_boxes, num_masks)), img_size)
