"""What `localmix fit` has to know of detection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from jsonargparse import Namespace

from localmix.reports.training.kinds import Kind
from localmix.tasks.detection.data import CocoData, load_coco
from localmix.tasks.detection.task import Detection
from localmix.tasks.detection.views import CROP_FROM, CROP_SIZE, SIZES, DetectionViews


@dataclass
class DataOptions:
    """Images with objects and how they are shown.

    Args:
        root: folder with annotations/instances_train*.json and instances_val*.json beside the images, as COCO has it.
        train: the split to learn from, as its json file calls it, or a json file in ROOT.
        validation: the split to measure with, likewise.
        train_images: folder of its images in ROOT, if it is none that `localmix` finds.
        validation_images: likewise.
        empty: whether images without objects are trained on.
        batch_size: images of a batch in each process.
        workers: processes that load images, for each training process; by default its share of the cores for a GPU.
        augment: whether training images are scaled, cropped and mirrored by chance.
        sizes: of the shorter side, one of which is drawn; the last one is that in validation [pixels].
        max_size: what the longer side is at most [pixels].
        crop_from: of the shorter side in front of a crop, which half of the images get; none: no crops [pixels].
        crop_size: least and largest side of the crop [pixels].
        steps_per_epoch: from one validation to the next; by default a pass through the images.
    """

    root: str = "coco"
    train: str = "train"
    validation: str = "val"
    train_images: str | None = None
    validation_images: str | None = None
    empty: bool = False
    batch_size: int = 2
    workers: int | None = None
    augment: bool = True
    sizes: list[int] = field(default_factory=lambda: list(SIZES))
    max_size: int = 1333
    crop_from: list[int] = field(default_factory=lambda: list(CROP_FROM))
    crop_size: list[int] = field(default_factory=lambda: list(CROP_SIZE))
    steps_per_epoch: int | None = None


def load(data: Namespace, say: Callable[[str], None]) -> CocoData:
    """The images that the settings name, shown as they say."""
    if len(data.crop_size) != 2:
        raise ValueError(f"data.crop_size: expected two numbers, got {data.crop_size}")
    views = DetectionViews(
        sizes=data.sizes, max_size=data.max_size, crop_from=data.crop_from, crop_size=tuple(data.crop_size)
    )
    options = ("train", "validation", "train_images", "validation_images", "empty")
    return load_coco(Path(data.root), views, data.batch_size, **{name: data[name] for name in options})


KIND = Kind(
    Detection,
    given_by_data=frozenset({"classes", "min_size", "max_size"}),
    data_options=DataOptions,
    load=load,
    # an image is then seen as it is alone, whatever is beside it
    validation_batch_size=1,
)
