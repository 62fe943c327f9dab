"""A converted checkpoint against mmdetection's detectors, written anew from its weights: one image, one box at a time.

The classes stand before the ground there. What the backbone computes is compared in tests/models/test_parity.py.
"""

import runpy
from math import log
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import roi_align

from localmix.tasks.detection.checkpoints import convert_official
from localmix.tasks.detection.detectors import detector

official_checkpoint = runpy.run_path(str(Path(__file__).with_name("test_checkpoints.py")))["official_checkpoint"]
DEVIATIONS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))
STRIDES = (4, 8, 16, 32, 64)
NUM_PROPOSALS = 40
"""1000 there; few, for the test to be fast, and for some of each class to be among the detections."""


def decode(box, offset, deviations, size):
    dx, dy, dw, dh = np.asarray(offset, dtype=np.float64) * deviations
    dw, dh = np.clip([dw, dh], -log(1000 / 16), log(1000 / 16))
    width, height = box[2] - box[0], box[3] - box[1]
    x, y = (box[0] + box[2]) / 2 + dx * width, (box[1] + box[3]) / 2 + dy * height
    width, height = width * np.exp(dw), height * np.exp(dh)
    corners = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    return np.clip(corners, 0, [size[1], size[0], size[1], size[0]])


def suppressed(boxes, scores, iou):
    """Indices that greedy suppression leaves, best first."""
    left, order = [], list(np.argsort(-scores, kind="stable"))
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    while order:
        best, *order = order
        left.append(best)
        rest = boxes[order]
        width = (np.minimum(rest[:, 2], boxes[best, 2]) - np.maximum(rest[:, 0], boxes[best, 0])).clip(0)
        height = (np.minimum(rest[:, 3], boxes[best, 3]) - np.maximum(rest[:, 1], boxes[best, 1])).clip(0)
        both = width * height
        order = [
            index for index, a, b in zip(order, both, areas[order], strict=True) if a <= iou * (areas[best] + b - a)
        ]
    return left


class Official:
    """mmdetection's detector behind the backbone, of its weights."""

    def __init__(self, weights, name):
        self.weights = weights
        self.stages = (".0", ".1", ".2") if name == "cascade_mask_rcnn" else ("",)

    def conv(self, x, name, padding=0):
        return F.conv2d(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"), padding=padding)

    def linear(self, x, name):
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def neck(self, maps):
        laterals = [self.conv(m, f"neck.lateral_convs.{level}.conv") for level, m in enumerate(maps)]
        for level in (3, 2, 1):
            laterals[level - 1] += F.interpolate(laterals[level], laterals[level - 1].shape[2:], mode="nearest")
        levels = [self.conv(m, f"neck.fpn_convs.{level}.conv", 1) for level, m in enumerate(laterals)]
        return [*levels, F.max_pool2d(levels[-1], 1, stride=2)]

    def proposals(self, levels, size):
        boxes, scores = [], []
        for stride, level in zip(STRIDES, levels, strict=True):
            x = self.conv(level, "rpn_head.rpn_conv", 1).relu()
            score = self.conv(x, "rpn_head.rpn_cls").sigmoid()[0].permute(1, 2, 0).flatten().numpy()
            offsets = self.conv(x, "rpn_head.rpn_reg")[0].permute(1, 2, 0).reshape(-1, 4).numpy()
            anchors = [
                (column * stride - w / 2, row * stride - h / 2, column * stride + w / 2, row * stride + h / 2)
                for row in range(level.shape[2])
                for column in range(level.shape[3])
                for w, h in ((8 * stride / r**0.5, 8 * stride * r**0.5) for r in (0.5, 1, 2))
            ]
            best = np.argsort(-score, kind="stable")[:NUM_PROPOSALS]
            found = np.stack([decode(anchors[i], offsets[i], (1, 1, 1, 1), size) for i in best])
            assert (found[:, 2:] - found[:, :2]).min() > 0.1
            kept = suppressed(found, score[best], 0.7)
            boxes.append(found[kept])
            scores.append(score[best][kept])
        order = np.argsort(-np.concatenate(scores), kind="stable")[:NUM_PROPOSALS]
        return np.concatenate(boxes)[order]

    def regions(self, levels, boxes, cells):
        found = []
        for box in boxes:
            side = np.sqrt((box[2] - box[0]) * (box[3] - box[1]))
            level = int(np.clip(np.floor(np.log2(side / 56 + 1e-6)), 0, 3))
            region = torch.tensor([[0, *box]], dtype=torch.float32)
            found.append(roi_align(levels[level], region, cells, 1 / STRIDES[level], 0, aligned=True))
        return torch.cat(found)

    def box_head(self, x, stage):
        head = f"roi_head.bbox_head{stage}"
        for index in range(4 if len(self.stages) == 3 else 0):
            conv = f"{head}.shared_convs.{index}"
            parts = (self.weights[f"{conv}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
            x = F.batch_norm(self.conv(x, f"{conv}.conv", 1), *parts, eps=1e-5).relu()
        x = x.flatten(1)
        for index in range(1 if len(self.stages) == 3 else 2):
            x = self.linear(x, f"{head}.shared_fcs.{index}").relu()
        return self.linear(x, f"{head}.fc_cls"), self.linear(x, f"{head}.fc_reg")

    def mask_head(self, x, stage):
        head = f"roi_head.mask_head{stage}"
        for index in range(4):
            x = self.conv(x, f"{head}.convs.{index}.conv", 1).relu()
        up = f"{head}.upsample"
        x = F.conv_transpose2d(x, self.weights[f"{up}.weight"], self.weights[f"{up}.bias"], stride=2).relu()
        return self.conv(x, f"{head}.conv_logits").sigmoid()

    def __call__(self, maps, size, original):
        """Boxes, classes from 0, scores and masks of an image of `size`, in the `original` one."""
        levels = self.neck(maps)
        boxes, votes = self.proposals(levels, size), []
        for stage, deviations in zip(self.stages, DEVIATIONS, strict=False):
            logits, offsets = self.box_head(self.regions(levels, boxes, 7), stage)
            votes.append(logits)
            offsets = offsets.view(len(boxes), -1, 4).numpy()
            if stage != self.stages[-1]:
                own = logits[:, :-1].argmax(1).tolist()
                boxes = np.stack([decode(box, offsets[i, own[i]], deviations, size) for i, box in enumerate(boxes)])
        scores = (sum(votes) / len(votes)).softmax(1)[:, :-1].numpy()
        scale = np.array([original[1] / size[1], original[0] / size[0]] * 2)
        found = []
        for label in range(scores.shape[1]):
            rows = np.flatnonzero(scores[:, label] > 0.05)
            decoded = np.array([decode(boxes[i], offsets[i, label], deviations, size) for i in rows]).reshape(-1, 4)
            for kept in suppressed(decoded * scale, scores[rows, label], 0.5):
                found.append((scores[rows[kept], label], label, decoded[kept]))
        found = sorted(found, key=lambda item: -item[0])[:100]
        labels, inside = [item[1] for item in found], np.stack([item[2] for item in found])
        regions = self.regions(levels, inside, 14)
        masks = sum(self.mask_head(regions, stage) for stage in self.stages) / len(self.stages)
        masks = torch.stack(
            [pasted(mask[label], box, original) for mask, label, box in zip(masks, labels, inside * scale, strict=True)]
        )
        return inside * scale, labels, [item[0] for item in found], masks


def pasted(mask, box, size):
    x0, y0, x1, y1 = box
    x = (torch.arange(size[1]) + 0.5 - x0) / (x1 - x0) * 2 - 1
    y = (torch.arange(size[0]) + 0.5 - y0) / (y1 - y0) * 2 - 1
    grid = torch.stack(torch.broadcast_tensors(x[None, :], y[:, None]), 2)[None].float()
    return F.grid_sample(mask[None, None], grid, align_corners=False)[0, 0]


@pytest.mark.parametrize("name", ["cascade_mask_rcnn", "mask_rcnn"])
@torch.no_grad()
def test_a_converted_detector_finds_what_mmdetection_does(name):
    torch.manual_seed(0)
    weights = official_checkpoint(name, patch=4)
    for part in ("weight", "bias"):
        # no box lies outside the image: torchvision drops it, there it stays, of no area
        weights[f"rpn_head.rpn_reg.{part}"] *= 0.05
    for key in (key for key in weights if key.endswith("fc_cls.weight")):
        # regions are to be of several classes
        weights[key] *= 0.1
    net = detector(
        name,
        "dwnet_nano",
        channels=16,
        num_classes=5,
        min_size=96,
        max_size=128,
        backbone_kwargs={"patch_size": 4},
        num_proposals=(2000, NUM_PROPOSALS),
    ).eval()
    net.load_state_dict(convert_official(weights, net))
    image, seen = torch.rand(3, 70, 101), {}
    hook = net.backbone.fpn.register_forward_pre_hook(lambda module, inputs: seen.update(inputs[0]))
    (found,) = net([image])
    hook.remove()
    size = (89, 128)
    boxes, labels, scores, masks = Official(weights, name)(list(seen.values()), size, (70, 101))
    assert 20 < len(scores) <= 100 and len(set(labels)) > 2
    assert len(found["scores"]) == len(scores)
    assert found["labels"].tolist() == [label + 1 for label in labels]
    np.testing.assert_allclose(found["scores"], scores, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["boxes"], boxes, rtol=1e-4, atol=1e-2)
    assert (found["masks"][:, 0] - masks).abs().max() < 1e-3
    assert masks.max() > 0.6
