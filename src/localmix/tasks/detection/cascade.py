"""The cascade of Cascade Mask R-CNN: three stages, each trained on and applied to the boxes of the one in front."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, BoxCoder, Matcher
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image, generalized_box_iou_loss

from localmix.tasks.detection.cascade_heads import BoxHead, MaskHead, PyramidAlign
from localmix.tasks.detection.instance_masks import mask_loss
from localmix.tasks.detection.targets import Target


@dataclass(frozen=True)
class Stage:
    """What differs between the stages.

    Args:
        iou: a box with an IoU of so much or more with an object is that object.
        deviations: of the offsets of boxes, by which they are normalised: x, y, width, height.
        weight: of the losses.
    """

    iou: float
    deviations: tuple[float, float, float, float]
    weight: float

    @property
    def coder(self) -> BoxCoder:
        """Offsets to boxes."""
        x, y, width, height = self.deviations
        return BoxCoder((1 / x, 1 / y, 1 / width, 1 / height))


STAGES = (
    Stage(0.5, (0.1, 0.1, 0.2, 0.2), 1.0),
    Stage(0.6, (0.05, 0.05, 0.1, 0.1), 0.5),
    Stage(0.7, (0.033, 0.033, 0.067, 0.067), 0.25),
)


@dataclass(frozen=True)
class Sample:
    """The boxes of an image that a stage is trained on.

    Args:
        boxes: [N, 4] [pixels].
        labels: [N], 0 for the ground.
        matched: index of the object of each box, [N]; anything where the label is 0.
        added: whether the box is an object's own, put among the proposals, [N].
    """

    boxes: Tensor
    labels: Tensor
    matched: Tensor
    added: Tensor


class Cascade(nn.Module):
    """Stages of box heads and mask heads: regions to detections or, in training, to losses.

    Args:
        channels: of the maps.
        strides: of the levels that regions are taken from [pixels].
        num_classes: without the ground.
        stages: see `Stage`.
        num_samples: boxes of an image that a stage is trained on, a quarter of them objects where there are so many.
        giou_weight: of the loss 1 - GIoU of a box.
        min_score: of a detection.
        nms_iou: of two detections of one class, the lower one is dropped from here.
        max_detections: of an image.
    """

    def __init__(
        self,
        channels: int,
        strides: tuple[int, ...],
        num_classes: int,
        *,
        stages: tuple[Stage, ...] = STAGES,
        num_samples: int = 512,
        giou_weight: float = 10.0,
        min_score: float = 0.05,
        nms_iou: float = 0.5,
        max_detections: int = 100,
    ) -> None:
        super().__init__()
        self.stages, self.giou_weight = stages, giou_weight
        self.min_score, self.nms_iou, self.max_detections = min_score, nms_iou, max_detections
        self.sampler = BalancedPositiveNegativeSampler(num_samples, 0.25)
        self.box_align, self.mask_align = PyramidAlign(7, strides), PyramidAlign(14, strides)
        self.box_heads = nn.ModuleList(BoxHead(channels, num_classes) for _ in stages)
        self.mask_heads = nn.ModuleList(MaskHead(channels, num_classes) for _ in stages)

    def forward(
        self,
        maps: list[Tensor],
        proposals: list[Tensor],
        sizes: list[tuple[int, int]],
        targets: list[Target] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Detections of each image, with masks as the heads see them, [n, 28, 28]; or, in training, the losses."""
        if self.training:
            if targets is None:
                raise ValueError("targets: expected those of each image in training, got None")
            return [], self.losses(maps, proposals, sizes, targets)
        return self.detections(maps, proposals, sizes), {}

    def losses(
        self, maps: list[Tensor], proposals: list[Tensor], sizes: list[tuple[int, int]], targets: list[Target]
    ) -> dict[str, Tensor]:
        """Weighted losses of each stage: "loss_classifier_0", "loss_box_reg_0", "loss_mask_0", ..."""
        losses, boxes = {}, proposals
        for index, stage in enumerate(self.stages):
            samples = [self.sample(stage, box, target) for box, target in zip(boxes, targets, strict=True)]
            boxes = [sample.boxes for sample in samples]
            labels = torch.cat([sample.labels for sample in samples])
            truth = torch.cat([t["boxes"][s.matched[s.labels > 0]] for s, t in zip(samples, targets, strict=True)])
            logits, offsets = self.box_heads[index](self.box_align(maps, boxes))
            losses[f"loss_classifier_{index}"] = stage.weight * F.cross_entropy(logits, labels)
            losses[f"loss_box_reg_{index}"] = stage.weight * self.box_loss(stage, offsets, boxes, labels, truth)
            losses[f"loss_mask_{index}"] = stage.weight * self.mask_loss(index, maps, samples, targets)
            # an object is looked for with its own offsets, and ground with those of what it resembles most
            classes = torch.where(labels > 0, labels - 1, logits[:, 1:].argmax(1))
            refined = self.refine(stage, offsets, boxes, classes, sizes)
            boxes = [box[~sample.added] for box, sample in zip(refined, samples, strict=True)]
        return losses

    @torch.no_grad()
    def sample(self, stage: Stage, boxes: Tensor, target: Target) -> Sample:
        """Draws the boxes that a stage is trained on, from proposals and the objects themselves."""
        truth = target["boxes"].to(boxes.dtype)
        added = torch.arange(len(boxes) + len(truth), device=boxes.device) >= len(boxes)
        boxes = torch.cat([boxes, truth])
        matched = torch.full_like(added, -1, dtype=torch.long)
        labels = torch.zeros_like(matched)
        if len(truth):
            matched = Matcher(stage.iou, stage.iou)(box_iou(truth, boxes))
            labels = torch.where(matched >= 0, target["labels"][matched.clamp(min=0)], 0)
        (objects,), (ground,) = self.sampler([labels])
        chosen = torch.where(objects | ground)[0]
        return Sample(boxes[chosen], labels[chosen], matched[chosen], added[chosen])

    def box_loss(self, stage: Stage, offsets: Tensor, boxes: list[Tensor], labels: Tensor, truth: Tensor) -> Tensor:
        """Weighted 1 - GIoU of the boxes of objects with `truth`, summed, over the number of all boxes."""
        rows = torch.where(labels > 0)[0]
        decoded = stage.coder.decode_single(offsets[rows, labels[rows] - 1], torch.cat(boxes)[rows])
        total = generalized_box_iou_loss(decoded, truth.to(decoded.dtype), reduction="sum")
        return self.giou_weight * total / len(labels)

    def mask_loss(self, index: int, maps: list[Tensor], samples: list[Sample], targets: list[Target]) -> Tensor:
        """Binary cross entropy of the mask of an object's own class, the mean over objects and cells."""
        rows = [torch.where(sample.labels > 0)[0] for sample in samples]
        boxes = [sample.boxes[row] for sample, row in zip(samples, rows, strict=True)]
        matched = [sample.matched[row] for sample, row in zip(samples, rows, strict=True)]
        labels = torch.cat([sample.labels[row] for sample, row in zip(samples, rows, strict=True)])
        logits = self.mask_heads[index](self.mask_align(maps, boxes))
        return mask_loss(logits, labels - 1, [target["masks"] for target in targets], matched, boxes)

    @torch.no_grad()
    def refine(
        self, stage: Stage, offsets: Tensor, boxes: list[Tensor], classes: Tensor, sizes: list[tuple[int, int]]
    ) -> list[Tensor]:
        """The boxes moved by the offsets of the given classes (from 0), cut at the border of the image."""
        own = offsets[torch.arange(len(classes), device=classes.device), classes]
        decoded = stage.coder.decode_single(own, torch.cat(boxes)).split([len(box) for box in boxes])
        return [clip_boxes_to_image(box, size) for box, size in zip(decoded, sizes, strict=True)]

    def detections(
        self, maps: list[Tensor], boxes: list[Tensor], sizes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """By the mean of the classifiers' logits, the boxes of the last stage and the mean of the heads' masks."""
        votes: list[Tensor] = []
        for index, stage in enumerate(self.stages):
            logits, offsets = self.box_heads[index](self.box_align(maps, boxes))
            votes.append(logits)
            if index < len(self.stages) - 1:
                boxes = self.refine(stage, offsets, boxes, logits[:, 1:].argmax(1), sizes)
        counts = [len(box) for box in boxes]
        decoded = self.stages[-1].coder.decode_single(offsets.flatten(1), torch.cat(boxes)).view(offsets.shape)
        scores = torch.stack(votes).mean(0).softmax(1)[:, 1:]
        found = [self.select(*image) for image in zip(scores.split(counts), decoded.split(counts), sizes, strict=True)]
        aligned = self.mask_align(maps, [detection["boxes"] for detection in found])
        labels = torch.cat([detection["labels"] for detection in found])
        rows = torch.arange(len(labels), device=labels.device)
        masks = torch.stack([head(aligned)[rows, labels - 1].sigmoid() for head in self.mask_heads]).mean(0)
        for detection, mask in zip(found, masks.split([len(detection["labels"]) for detection in found]), strict=True):
            detection["masks"] = mask
        return found

    def select(self, scores: Tensor, boxes: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        """The detections of an image, best first: scores [N, num_classes], boxes [N, num_classes, 4]."""
        boxes = clip_boxes_to_image(boxes, size)
        rows, classes = torch.where(scores > self.min_score)
        scores, boxes = scores[rows, classes], boxes[rows, classes]
        keep = batched_nms(boxes, scores, classes, self.nms_iou)[: self.max_detections]
        return {"boxes": boxes[keep], "labels": classes[keep] + 1, "scores": scores[keep]}
