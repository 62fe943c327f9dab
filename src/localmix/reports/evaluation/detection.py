"""`localmix validate` and `localmix test` of a detector: COCO's scores of what it finds."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from PIL import Image

from localmix.arguments import choice, not_negative
from localmix.reports.benchmarks.rows import known_device
from localmix.reports.environment import command, commit, environment
from localmix.reports.evaluation.detector import Detector, load_detector
from localmix.reports.evaluation.outcome import PRECISIONS, computed_in
from localmix.reports.progress import Display
from localmix.reports.results import write_json
from localmix.tasks.detection.coco import CocoImages
from localmix.tasks.detection.coco_scores import CocoScores, Scores
from localmix.tasks.detection.data import split_of
from localmix.tasks.detection.drawing import draw, sheet
from localmix.tasks.detection.samples import ValidationImages
from localmix.tasks.engine.batches import loader
from localmix.tasks.engine.output import output_folder
from localmix.tasks.engine.workers import default_workers
from localmix.writing import write_atomically

PICTURES = 6
"""Images that are drawn."""
DRAWN_FROM = 0.3
"""Least score of what is drawn."""


def evaluate(
    model: Path | str,
    *,
    split: str = "validation",
    data: str | None = None,
    weights: str | None = None,
    workers: int | None = None,
    device: str = "auto",
    precision: str = "float32",
    output: Path | str | None = None,
) -> dict[str, Any]:
    """Evaluate a detector on a data set in COCO's format; print the scores, and write them if asked.

    Args:
        model, weights: see `localmix.reports.evaluation.detector.load_detector`.
        split: "validation", those that a run was validated on or instances_val*.json; or "test", instances_test*.json.
        data: folder of the data set; by default that of the run.
        workers: processes that decode images; by default see `localmix.tasks.engine.workers.default_workers`.
        device: "auto", "cpu" or "cuda".
        precision: "float32" or "bfloat16" (by autocast).
        output: folder for results.json, detections.json as COCO's server takes it, per_class.csv and pictures.png.

    Returns:
        The content of results.json.

    Raises:
        ValueError: an argument is wrong; names it.
    """
    choice("precision", precision, tuple(PRECISIONS))
    if workers is not None:
        not_negative("workers", workers)
    if output is not None:
        output_folder(output)
    device = known_device(device)
    detector = load_detector(model, weights)
    images, root = _images(detector, split, data)
    detector.net.to(device)
    workers = default_workers(device=device) if workers is None else workers
    batches = loader(ValidationImages(images), 1, seed=None, workers=workers, pin_memory=device == "cuda")
    scores = CocoScores(images, masks=detector.masks)
    with Display() as display, computed_in(precision, device):
        for (index,), (image,) in display.track(batches, split, len(images)):
            scores.update([index], [detector(image.to(device))])
    found = scores.compute()
    results = {
        "kind": "detection",
        "split": split,
        "box": found.box,
        "mask": found.mask,
        "images": len(images),
        "detections": len(scores.results),
        "per_class": _per_class(found),
        "model": {
            "name": detector.name,
            "parameters": sum(p.numel() for p in detector.net.parameters()),
            "classes": len(detector.classes),
            **detector.source,
        },
        "data": {"name": str(root), "fingerprint": images.digest},
        "settings": {"precision": precision},
        "environment": environment(device),
        "command": command(),
        "commit": commit(),
    }
    try:
        print(f"{detector.name} on {Path(root).name}, {split}: {len(images):,} images\n\n{found.table()}", flush=True)
    finally:  # also where nobody reads on, such as head
        if output is not None:
            _write(Path(output), results, scores)
            with computed_in(precision, device):
                pictures = _pictures(detector, images, device)
            write_atomically(Path(output) / "pictures.png", lambda file: pictures.save(file, "PNG"))
            # the last, so that where it is everything is
            write_json(Path(output) / "results.json", results)
            print(f"{output}: results.json, detections.json, per_class.csv, pictures.png")
    return results


def _images(detector: Detector, split: str, data: str | None) -> tuple[CocoImages, str]:
    """The images of a split, whose categories have to be those of the detector, and where they are."""
    settings = detector.settings
    root = data or settings.get("data.root")
    if root is None:
        raise ValueError("data: expected a folder in COCO's format, got none, and the model names none")
    name, folder = "test" if split == "test" else "val", None
    if data is None and split == "validation":
        name, folder = settings["data.validation"], settings["data.validation_images"]
    images = CocoImages(*split_of(Path(root), name, folder))
    # a converted checkpoint may not say what its classes are called
    numbered = detector.classes == [str(1 + index) for index in range(len(detector.classes))]
    if images.classes != detector.classes and not (numbered and len(images.classes) == len(detector.classes)):
        raise ValueError(
            f"data: expected the {len(detector.classes)} categories of the detector, {_some(detector.classes)}, got "
            f"{len(images.classes)}, {_some(images.classes)}"
        )
    return images, root


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _per_class(scores: Scores) -> list[dict[str, Any]]:
    return [
        {"class": name, "objects": number, "box_ap": box, "mask_ap": mask}
        for name, (number, box, mask) in scores.classes.items()
    ]


def _write(folder: Path, results: dict[str, Any], scores: CocoScores) -> None:
    scores.write(folder / "detections.json")
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(results["per_class"][0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(results["per_class"])
    write_atomically(folder / "per_class.csv", lambda file: file.write(text.getvalue().encode()))


def _pictures(detector: Detector, images: CocoImages, device: str) -> Image.Image:
    """Some images of a split, spread over it, with what was found."""
    samples, count = ValidationImages(images), min(PICTURES, len(images))
    drawn = []
    for number in range(count):
        index = (2 * number + 1) * len(images) // (2 * count)
        _, (pixels,) = samples[None, 0, [index]]
        found = {name: value.cpu() for name, value in detector(pixels.to(device)).items()}
        drawn.append(draw(images.read(index), found, detector.classes, min_score=DRAWN_FROM))
    return sheet(drawn)
