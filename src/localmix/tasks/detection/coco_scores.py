"""COCO's average precision of boxes and masks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask as run_lengths
from torch import Tensor, distributed

from localmix.tasks.detection.coco import CocoImages, encode_mask
from localmix.writing import write_atomically

NAMES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")


@dataclass(frozen=True)
class Scores:
    """Average precision, 0 to 1; None where there is no object of the kind.

    Args:
        box: by `NAMES`: mean over IoUs from 0.50 to 0.95, at 0.50, at 0.75, and of small (below 32^2 pixels), medium
            and large (above 96^2 pixels) objects.
        mask: the same of masks; nothing where there were none to score.
        classes: of each class its number of objects without crowds, and AP of boxes and of masks.
    """

    box: dict[str, float | None]
    mask: dict[str, float | None]
    classes: dict[str, tuple[int, float | None, float | None]]

    def table(self) -> str:
        """All of it in Markdown, in per cent."""
        lines = ["| | " + " | ".join(NAMES) + " |", "|---" * (1 + len(NAMES)) + "|"]
        for kind, scores in (("box", self.box), ("mask", self.mask)):
            if scores:
                lines.append(f"| {kind} | " + " | ".join(_percent(scores[name]) for name in NAMES) + " |")
        lines += ["", "| class | objects | box AP | mask AP |", "|---|---|---|---|"]
        for name, (number, box, mask) in self.classes.items():
            lines.append(f"| {name} | {number} | {_percent(box)} | {_percent(mask)} |")
        return "\n".join(lines)


class CocoScores:
    """Collects detections of the images of a data set and scores them all.

    Detections that match crowds count neither for nor against; at most 100 of an image count. An image without
    detections is one in which nothing was found.

    Args:
        images: the data set.
        masks: whether the detections have masks.
        threshold: probability from which on a pixel belongs to an object.
    """

    def __init__(self, images: CocoImages, *, masks: bool = True, threshold: float = 0.5) -> None:
        self.images, self.masks, self.threshold = images, masks, threshold
        self.results: list[dict[str, Any]] = []

    def update(self, indices: list[int], detections: list[dict[str, Tensor]]) -> None:
        """Adds what was found in the images of these indices, in the format of torchvision's detectors."""
        for index, detection in zip(indices, detections, strict=True):
            image = self.images.images[index]["id"]
            found = [detection[name].tolist() for name in ("boxes", "scores", "labels")]
            results: list[dict[str, Any]] = [
                {
                    "image_id": image,
                    "category_id": self.images.category_ids[label - 1],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "score": score,
                }
                for (x0, y0, x1, y1), score, label in zip(*found, strict=True)
            ]
            if self.masks:
                masks = (detection["masks"][:, 0] >= self.threshold).cpu().numpy()
                for result, mask in zip(results, masks, strict=True):
                    encoded = encode_mask(mask, *mask.shape)
                    result["segmentation"] = {"size": list(encoded["size"]), "counts": _text(encoded["counts"])}
            self.results += results

    def compute_together(self) -> Scores:
        """The scores of what all processes have added, the same in each; an image that two have seen counts once."""
        if not distributed.is_initialized() or distributed.get_world_size() == 1:
            return self.compute()
        parts: list[Any] = [None] * distributed.get_world_size()
        first = distributed.get_rank() == 0
        distributed.gather_object(self.results, parts if first else None)
        scores: list[Any] = [self._merged(parts).compute() if first else None]
        distributed.broadcast_object_list(scores)
        return scores[0]

    def _merged(self, parts: list[list[dict[str, Any]]]) -> CocoScores:
        """All results in the order of the images, as one process would have them."""
        merged, seen = CocoScores(self.images, masks=self.masks), set()
        for part in parts:
            merged.results += [result for result in part if result["image_id"] not in seen]
            seen |= {result["image_id"] for result in part}
        merged.results.sort(key=lambda result: self.images.index[result["image_id"]])
        return merged

    def write(self, path: Path) -> None:
        """The results as COCO's json, as its server and other tools take them."""
        write_atomically(path, lambda file: file.write(json.dumps(self.results).encode()))

    def compute(self) -> Scores:
        """The scores of all that was added."""
        truth = COCO(self._truth())
        box, box_classes = _evaluate(truth, self.results, "bbox")
        counts = self.images.counts()
        mask, mask_classes = {}, [None] * len(counts)
        if self.masks:
            # without its box, a mask's size is that of the mask: small, medium or large
            masks = [{key: value for key, value in result.items() if key != "bbox"} for result in self.results]
            mask, mask_classes = _evaluate(truth, masks, "segm")
        classes = {
            name: (count, box_ap, mask_ap)
            for (name, count), box_ap, mask_ap in zip(counts.items(), box_classes, mask_classes, strict=True)
        }
        return Scores(box, mask, classes)

    def _truth(self) -> dict[str, Any]:
        """The annotations, numbered from 1: the matching takes the number 0 for none."""
        annotations = []
        for image, objects in zip(self.images.images, self.images.objects, strict=True):
            for item in objects:
                area = item.get("area")
                if area is None:
                    encoded = encode_mask(item["segmentation"], image["height"], image["width"])
                    area = float(run_lengths.area(encoded))
                crowd = item.get("iscrowd", 0)
                annotations.append({**item, "id": len(annotations) + 1, "area": area, "iscrowd": crowd})
        images = [{key: image[key] for key in ("id", "width", "height")} for image in self.images.images]
        names = zip(self.images.category_ids, self.images.classes, strict=True)
        categories = [{"id": category, "name": name} for category, name in names]
        return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def _evaluate(
    truth: COCO, results: list[dict[str, Any]], kind: Any
) -> tuple[dict[str, float | None], list[float | None]]:
    """Scores by `NAMES`, and AP of each category."""
    # `loadRes` of faster-coco-eval takes no empty list before 1.8
    empty = {**truth.dataset, "annotations": []}
    found = truth.loadRes([dict(result) for result in results]) if results else COCO(empty)
    evaluation = COCOeval_faster(truth, found, kind, print_function=lambda *_: None)
    evaluation.run()
    scores = {name: _known(value) for name, value in zip(NAMES, evaluation.stats, strict=False)}
    # [IoU, recall, category, area, detections]: all areas, as many detections as count
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    categories = [category[category > -1] for category in np.moveaxis(precision, 2, 0)]
    return scores, [float(category.mean()) if category.size else None for category in categories]


def _known(value: Any) -> float | None:
    return None if value < 0 else float(value)


def _text(counts: Any) -> str:
    return counts.decode() if isinstance(counts, bytes) else counts


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
