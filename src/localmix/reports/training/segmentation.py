"""What `localmix fit` has to know of segmentation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from jsonargparse import Namespace

from localmix.arguments import existing_folder
from localmix.reports.training.kinds import Kind
from localmix.tasks.segmentation.data import Scenes, load_scenes
from localmix.tasks.segmentation.labels import find_labelling
from localmix.tasks.segmentation.task import Segmentation


@dataclass
class DataOptions:
    """Labelled scenes and how they are shown.

    Args:
        root: folder with images/train beside annotations/train, or train/image beside train/label, and the same for
            val; other names of these folders are known too.
        classes: camvid, ade20k, or scenes (of `localmix scenes`); by default a line for each in ROOT/classes.txt.
        first: stored value of the first class, where ROOT/classes.txt names the classes.
        void: stored values that count nowhere, likewise.
        check: read every file before anything is trained, and list all that is wrong at once.
        size: side of the square crops for training [pixels].
        short_side: shorter side of the images, in training at scale 1, and in validation [pixels]; by default size.
        scale: least and largest factor of that side in training.
        largest_share: of one class among the labelled pixels of a crop.
        distort: whether brightness, contrast, saturation and hue vary.
        batch_size: images of a batch in each process.
        workers: processes that load images, for each training process; by default its share of the cores for a GPU.
        steps_per_epoch: from one validation to the next; by default a pass through the images.
    """

    root: str = "scenes"
    classes: str | None = None
    first: int = 0
    void: list[int] = field(default_factory=lambda: [255])
    check: bool = True
    size: int = 512
    short_side: int | None = None
    scale: list[float] = field(default_factory=lambda: [0.5, 2.0])
    largest_share: float = 0.75
    distort: bool = True
    batch_size: int = 2
    workers: int | None = None
    steps_per_epoch: int | None = None


def load(data: Namespace, say: Callable[[str], None]) -> Scenes:
    """The scenes that the settings name, shown as they say."""
    root = existing_folder("data.root", Path(data.root), "of images and label maps")
    if len(data.scale) != 2:
        raise ValueError(f"data.scale: expected two factors, got {data.scale}")
    options = ("size", "short_side", "scale", "largest_share", "distort", "check")
    labelling = find_labelling(data.classes, root, first=data.first, void=tuple(data.void))
    return load_scenes(root, labelling, **{name: data[name] for name in options})


KIND = Kind(
    Segmentation,
    given_by_data=frozenset({"classes", "colours", "first", "void", "short_side", "mean", "std"}),
    data_options=DataOptions,
    load=load,
    validation_batch_size=1,
)
