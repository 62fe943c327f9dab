"""What is published of a detector: one file of weights that knows its net, and what it is good for."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from localmix.models import Hierarchy
from localmix.reports.evaluation.detector import Detector, load_detector
from localmix.reports.evaluation.published import WEIGHTS
from localmix.reports.publishing.card import Content, Rows, measured, with_mixer
from localmix.reports.publishing.publication import Publication, chosen, write_config
from localmix.tasks.detection.checkpoints import save_detector
from localmix.tasks.detection.coco_scores import NAMES

MEASURED = {
    f"{kind}_{name.lower()}": (f"{kind} {name.replace('_', ' ')}", lambda value: f"{100 * value:.1f}")
    for kind in ("box", "mask")
    for name in NAMES
}
"""Columns of metrics.csv: their names and forms for people."""
TITLES = {"cascade_mask_rcnn": "Cascade Mask R-CNN", "mask_rcnn": "Mask R-CNN", "retinanet": "RetinaNet"}


def publication(checkpoint: Path, weights: str | None) -> Publication:
    """That of a checkpoint; raises as `load_detector` does."""
    detector = load_detector(checkpoint, weights)
    return Publication(
        detector.name, detector.source, "detection", partial(_save, detector), partial(_content, detector)
    )


def arguments(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `detectors.detector` behind the two names, of the arguments of `Detection`."""
    # what is there already is not fetched, and chance is for training
    backbone = {name: value for name, value in (facts["model_kwargs"] or {}).items() if name != "pretrained"}
    options: dict[str, Any] = {"num_classes": len(facts["classes"])}
    options |= {name: facts[name] for name in ("channels", "min_size", "max_size")}
    options |= {"backbone_kwargs": backbone} if backbone else {}
    return options | dict(facts["detector_kwargs"] or {})


def _save(detector: Detector, folder: Path, license: str) -> None:
    facts = detector.facts
    what = {
        "name": facts["detector"],
        "backbone": facts["model"],
        "options": arguments(facts),
        "classes": detector.classes,
    }
    save_detector(folder / WEIGHTS, detector.net.state_dict(), source="localmix", **what)
    write_config(folder, {"task": "detection", "detector": what.pop("name"), **what, "license": license})


def _content(detector: Detector, columns: Mapping[str, float]) -> Content:
    facts = detector.facts
    return Content(
        library="localmix",
        pipeline="object-detection",
        what=_what(detector),
        use=_use,
        source=detector.source,
        settings=chosen(facts, "model", "classes", "detector"),
        noted=detector.run or None,
        measured=measured(columns, detector.source["weights"], MEASURED),
        rows=_rows,
        ours=isinstance(detector.net.backbone.network, Hierarchy),
    )


def _what(detector: Detector) -> str:
    facts, root = detector.facts, detector.settings.get("data.root")
    parameters = sum(p.numel() for p in detector.net.parameters())
    return (
        f"{TITLES[facts['detector']]} on {with_mixer(facts['model'])}, a detector "
        f"{'of boxes and masks' if detector.masks else 'of boxes'} with {parameters / 1e6:,.2f} M parameters and "
        f"{len(detector.classes)} classes{f', trained on {Path(root).name}' if root else ''}. It scales images to a "
        f"shorter side of {facts['min_size']} pixels and a longer one of at most {facts['max_size']}."
    )


def _use(folder: str) -> str:
    return f"""from localmix.reports.evaluation.detector import load_detector
from localmix.tasks.images import read_image, to_tensor

detector = load_detector("{folder}")
found = detector(to_tensor(read_image("photo.jpg", channels=3)))  # "boxes", "labels" and "scores", best first
for label, score, box in zip(*(found[name].tolist() for name in ("labels", "scores", "boxes"))):
    if score >= 0.5:
        print(detector.classes[label - 1], round(score, 2), [round(x) for x in box])"""


def _rows(results: Mapping[str, Any]) -> Rows:
    rows = [
        (f"{kind} {name.replace('_', ' ')}", f"{100 * value:.1f}")
        for kind in ("box", "mask")
        for name, value in results[kind].items()
        if value is not None
    ]
    return [*rows, ("images", f"{results['images']:,}")]
