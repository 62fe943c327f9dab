"""A data set in COCO's layout, as a run trains on it and measures with it."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localmix.arguments import existing_folder
from localmix.tasks.detection.coco import CocoImages
from localmix.tasks.detection.resizing import fitted
from localmix.tasks.detection.samples import TrainingImages, ValidationImages
from localmix.tasks.detection.views import DetectionViews

STRIDE = 32
"""Of which the sides of a batch are multiples, as torchvision pads it."""


@dataclass(frozen=True)
class CocoData:
    """Training and validation images with the same categories."""

    name: str
    train: TrainingImages
    validation: ValidationImages
    in_memory: bool = False

    @property
    def fingerprint(self) -> str:
        """Changes with the annotations, and with which images are trained on."""
        facts = (self.train.images.digest, self.validation.images.digest, str(len(self.train)))
        return hashlib.sha256("\n".join(facts).encode()).hexdigest()

    def arguments(self) -> dict[str, Any]:
        """Those of `Detection` that the data decide."""
        views = self.train.views
        return {"classes": self.train.images.classes, "min_size": views.sizes[-1], "max_size": views.max_size}

    def shapes(self, batch_size: int) -> dict[str, tuple[int, int, int, int]]:
        """B, C, H, W of a batch of images like the first one, at the largest size, by the setting that decides it."""
        views, entry = self.train.views, self.train.images.images[self.train.indices[0]]
        sides = fitted(entry["height"], entry["width"], max(views.sizes), views.max_size)
        height, width = (-(-side // STRIDE) * STRIDE for side in sides)
        return {"sizes": (batch_size, 3, height, width)}

    def __str__(self) -> str:
        return f"{self.name}, {len(self.train.images.classes)} classes"


def load_coco(
    root: Path,
    views: DetectionViews,
    batch_size: int,
    *,
    train: str = "train",
    validation: str = "val",
    train_images: str | None = None,
    validation_images: str | None = None,
    empty: bool = False,
) -> CocoData:
    """The data set in a folder, checked as a whole.

    Args:
        root: the folder.
        views: how training images are shown.
        batch_size: images of a batch of one process.
        train: a split or a json file, see `split_of`; likewise `validation`.
        train_images: folder of the images, if it is another; likewise `validation_images`.
        empty: whether images without objects are trained on.

    Raises:
        ValueError: with all that is wrong in the annotations of both, or their categories differ.
    """
    found, problems = [], []
    for name, folder in ((train, train_images), (validation, validation_images)):
        try:
            found.append(CocoImages(*split_of(root, name, folder)))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("\n".join(dict.fromkeys(problems)))
    first, second = found
    if (first.category_ids, first.classes) != (second.category_ids, second.classes):
        raise ValueError(
            f"data.validation: expected the {len(first.classes)} categories of {train}, got others in {validation}"
        )
    return CocoData(
        str(root.resolve()), TrainingImages(first, views, batch_size, empty=empty), ValidationImages(second)
    )


def split_of(root: Path, name: str, images: str | None = None) -> tuple[Path, Path]:
    """The json file and the folder of images of a split.

    Args:
        root: folder of the data set.
        name: "train" stands for annotations/instances_train.json or, with a year, instances_train2017.json, and images
            in train2017, images/train2017 or images; "FILE.json" for itself.
        images: folder of the images, in `root`, if it is another.

    Raises:
        ValueError: they are not there.
    """
    existing_folder("data.root", root, "with COCO's json files")
    if name.endswith(".json"):
        file = root / name
        split = file.stem.removeprefix("instances_")
        if not file.is_file():
            raise ValueError(f"data.root: expected a json file, there is none at {file}")
    else:
        pattern = re.compile(rf"instances_{re.escape(name)}\d*\.json")
        files = [file for file in sorted((root / "annotations").glob("*.json")) if pattern.fullmatch(file.name)]
        if len(files) != 1:
            got = ", ".join(file.name for file in files) or "none"
            expected = root / "annotations" / f"instances_{name}*.json"
            raise ValueError(f"data.root: expected one {expected}, * a year or nothing, got {got}")
        file, split = files[0], files[0].stem.removeprefix("instances_")
    places = [root / images] if images else [root / split, root / "images" / split, root / "images"]
    folder = next((place for place in places if place.is_dir()), None)
    if folder is None:
        raise ValueError(f"data.root: expected the images of {file.name} in {' or '.join(map(str, places))}")
    return file, folder
