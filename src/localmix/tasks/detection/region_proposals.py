"""Region proposals as Cascade Mask R-CNN has them: torchvision's network, with anchors of one scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

SCALE = 8
RATIOS = (0.5, 1.0, 2.0)


class Anchors(nn.Module):
    """Boxes of three ratios, by default of one scale, around the corner of each cell of each level.

    An anchor of a level has the area (scale * stride)^2 and the ratio height / width r. Its centre is stride * (column,
    row). Coordinates are float32 whatever the maps are: bfloat16 would round them to several pixels.

    Args:
        strides: of the levels [pixels].
        scales: side of a square anchor over the stride.

    Shapes: images, maps of the levels [B, C, h, w] -> for each image [sum of 3 scales h w, 4], (x0, y0, x1, y1) in
    pixels.
    """

    def __init__(self, strides: tuple[int, ...], scales: tuple[float, ...] = (SCALE,)) -> None:
        super().__init__()
        self.strides, self.scales = strides, scales

    def num_anchors_per_location(self) -> list[int]:
        return [len(RATIOS) * len(self.scales)] * len(self.strides)

    def forward(self, images: ImageList, maps: list[Tensor]) -> list[Tensor]:
        levels = []
        for stride, m in zip(self.strides, maps, strict=True):
            y = stride * torch.arange(m.shape[2], device=m.device, dtype=torch.float32)
            x = stride * torch.arange(m.shape[3], device=m.device, dtype=torch.float32)
            y, x = torch.meshgrid(y, x, indexing="ij")
            side = torch.tensor(self.scales, device=m.device) * (stride / 2)
            height = (torch.tensor(RATIOS, device=m.device).sqrt()[:, None] * side).flatten()
            width = side.repeat(len(RATIOS)) ** 2 / height
            half = torch.stack([-width, -height, width, height], 1)
            levels.append((torch.stack([x, y, x, y], 2)[:, :, None] + half).view(-1, 4))
        return [torch.cat(levels)] * len(images.image_sizes)


class _Head(RPNHead):
    """Its predictions as float32, for proposals that are exact to a pixel under autocast."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, deltas = super().forward(x)
        return [m.float() for m in logits], [m.float() for m in deltas]


class AnchorMatcher(Matcher):
    """torchvision's, but that an object which no anchor overlaps by `best_from` or more gets no anchor by force.

    torchvision gives every object its best anchors, however bad: to one that none overlaps, all of them. Here, as in
    mmdetection, an object's best anchors are of that object even where they overlap another one more.

    Args:
        object_from: an anchor is an object from this IoU on.
        ground_below: and ground below this one; neither between them.
        best_from: least IoU of an object's best anchors to be that object.
    """

    def __init__(self, object_from: float = 0.7, ground_below: float = 0.3, best_from: float = 0.3) -> None:
        super().__init__(object_from, ground_below, allow_low_quality_matches=True)
        self.best_from = best_from

    def set_low_quality_matches_(self, matches: Tensor, all_matches: Tensor, match_quality_matrix: Tensor) -> None:
        best = match_quality_matrix.max(1, keepdim=True).values
        is_best = (match_quality_matrix == best) & (best >= self.best_from)
        # of two objects, the later one
        last = torch.where(is_best, torch.arange(len(best), device=best.device)[:, None], -1).max(0).values
        matches.copy_(torch.where(last >= 0, last, matches))


class RegionProposals(RegionProposalNetwork):
    """Proposals and, in training, their losses "loss_objectness" and "loss_rpn_box_reg".

    An anchor is an object at an IoU of 0.7 or more, or where it is the best of an object with 0.3 or more, and ground
    below 0.3. Anchors that reach beyond the image are not trained on (unless all do). 256 anchors of an image count,
    half of them objects where there are so many. Proposals are what NMS at 0.7 in each level leaves.

    Args:
        channels: of the maps.
        strides: of the levels [pixels].
        num_proposals: of an image in training and in test; NMS looks at so many of each level, too.
        anchor_scale: side of a square anchor over the stride. An object much smaller than the finest anchors is
            hardly found: of less than half their side, no anchor is that object.

    Raises:
        ValueError: names the argument, what was expected and what came.
    """

    def __init__(
        self,
        channels: int,
        strides: tuple[int, ...],
        *,
        num_proposals: Sequence[int] = (2000, 1000),
        anchor_scale: float = SCALE,
    ) -> None:
        if len(num_proposals) != 2 or any(not isinstance(number, int) or number < 1 for number in num_proposals):
            raise ValueError(f"num_proposals: expected two ints of at least 1, got {num_proposals}")
        if not anchor_scale > 0:
            raise ValueError(f"anchor_scale: expected a number above 0, got {anchor_scale!r}")
        anchors: Any = Anchors(strides, (anchor_scale,))
        top = dict(zip(("training", "testing"), num_proposals, strict=True))
        super().__init__(
            anchors,
            _Head(channels, len(RATIOS)),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n=top,
            post_nms_top_n=top,
            nms_thresh=0.7,
        )
        matcher: Any = AnchorMatcher()
        self.proposal_matcher = matcher

    def forward(
        self, images: ImageList, features: dict[str, Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        if targets is not None:
            sizes = [torch.tensor(size) for size in images.image_sizes]
            targets = [{"boxes": target["boxes"], "size": size} for target, size in zip(targets, sizes, strict=True)]
        return super().forward(images, features, targets)

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """For each image: 1 object, 0 ground, -1 neither, for each anchor; and its box of the ground truth."""
        labels, boxes = [], []
        for all_anchors, target in zip(anchors, targets, strict=True):
            height, width = target["size"].tolist()
            x0, y0, x1, y1 = all_anchors.unbind(1)
            inside = (x0 >= 0) & (y0 >= 0) & (x1 < width) & (y1 < height)
            if not inside.any():
                inside = torch.ones_like(inside)
            (label,), (box,) = super().assign_targets_to_anchors([all_anchors[inside]], [target])
            labels.append(label.new_full(inside.shape, -1).masked_scatter(inside, label))
            boxes.append(all_anchors.clone().masked_scatter(inside[:, None], box.to(all_anchors.dtype)))
        return labels, boxes
