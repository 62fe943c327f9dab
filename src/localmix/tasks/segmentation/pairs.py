"""Images with their label maps in folders, found and checked before anything is trained on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from localmix.tasks.classification.parallel import cpu_cores
from localmix.tasks.images import EXTENSIONS, read_image
from localmix.tasks.segmentation.labels import IGNORED, Labelling, read_label_map

IMAGE_FOLDERS = ("images", "image")
LABEL_FOLDERS = ("annotations", "labels", "label", "masks")
SPLITS = {"train": ("train", "training"), "validation": ("val", "validation"), "test": ("test", "testing")}
"""Names of the folders of each split."""
AT_MOST = 50
"""Problems that are written out."""

Track = Callable[[Iterable[Any], str, int], Iterable[Any]]
"""Hands an iterable on while it shows progress: (iterable, what is being done, how many)."""


@dataclass(frozen=True)
class LabelledScenes:
    """Pairs (RGB image, label map int32 [H, W]) by their index, read when they are asked for."""

    pairs: list[tuple[Path, Path]]
    labelling: Labelling

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Image.Image, np.ndarray]:
        image, labels = self.pairs[index]
        return read_image(image, channels=3), read_label_map(labels, self.labelling)


def scenes(
    images: Path,
    labels: Path,
    labelling: Labelling,
    *,
    check: bool = True,
    track: Track = lambda iterable, what, count: iterable,
) -> LabelledScenes:
    """The images of a folder and those below it, each with the label map of its name in another folder.

    Args:
        images: folder of images.
        labels: folder of label maps; `a/b.jpg` belongs to `a/b.png`.
        labelling: what the values of the label maps mean.
        check: read every file now. The names are always checked.
        track: shows progress while files are read.

    Raises:
        ValueError: lists all that is wrong: images without a label map and the other way round, names that are there
            twice, files that cannot be decoded, sizes that differ, values of no class, or no pixel that is not void.
    """
    problems: list[str] = []
    found = {kind: _by_name(folder, problems) for kind, folder in (("image", images), ("label map", labels))}
    for kind, other in (("image", "label map"), ("label map", "image")):
        problems += [f"{path}: no {other}" for name, path in found[kind].items() if name not in found[other]]
    pairs = [(path, found["label map"][name]) for name, path in found["image"].items() if name in found["label map"]]
    if not pairs and not problems:
        problems.append(f"{images}: no images")
    if check:
        with ThreadPoolExecutor(cpu_cores()) as pool:
            checked = list(track(pool.map(lambda pair: _checked(*pair, labelling), pairs), "check", len(pairs)))
        problems += [problem for some, _ in checked for problem in some]
        if pairs and not problems and not any(labelled for _, labelled in checked):
            problems.append(f"{labels}: all pixels are void")
    if problems:
        more = [f"and {len(problems) - AT_MOST} more"] if len(problems) > AT_MOST else []
        number = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        title = f"data: expected images with label maps in {images} and {labels}, found {number}:"
        raise ValueError("\n  ".join([title, *problems[:AT_MOST], *more]))
    return LabelledScenes(pairs, labelling)


def splits(
    root: Path, labelling: Labelling, *, wanted: Sequence[str] | None = None, **options: Any
) -> dict[str, LabelledScenes]:
    """The splits of a data set, "train", "validation" and "test".

    It is laid out as `images/SPLIT` beside `annotations/SPLIT` (CamVid, ADE20K), or as `SPLIT/image` beside
    `SPLIT/label`; folders may have the other names in `IMAGE_FOLDERS`, `LABEL_FOLDERS` and `SPLITS`.

    Args:
        root: folder of the data set.
        labelling: what the values of the label maps mean.
        wanted: names of those that are needed; no file of another is read. By default those that are there.
        options: as `scenes` has them.

    Raises:
        ValueError: there is no such layout, one that is wanted is missing, or as `scenes`, for all of them at once.
    """
    root = Path(root)
    there = {
        split: folders
        for split, names in SPLITS.items()
        if (folders := next((pair for name in names if (pair := _folders(root, name))), None))
    }
    if not there:
        raise ValueError(
            f"data: expected {root}/images/train beside {root}/annotations/train, or {root}/train/image beside "
            f"{root}/train/label, found neither"
        )
    missing = [] if wanted is None else [split for split in wanted if split not in there]
    if missing:
        raise ValueError(f"data: expected {' and '.join(missing)} images in {root}, found {', '.join(there)} only")
    found, problems = {}, []
    for split in there if wanted is None else wanted:
        try:
            found[split] = scenes(*there[split], labelling, **options)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("\n".join(problems))
    return found


def _folders(root: Path, split: str) -> tuple[Path, Path] | None:
    """The folders of the images and of the label maps of a split."""
    for place in (lambda name: root / name / split, lambda name: root / split / name):
        images, labels = (
            next((place(name) for name in names if place(name).is_dir()), None)
            for names in (IMAGE_FOLDERS, LABEL_FOLDERS)
        )
        if images and labels:
            return images, labels
    return None


def _by_name(folder: Path, problems: list[str]) -> dict[str, Path]:
    """Image files by their path in the folder, without its suffix."""
    if not folder.is_dir():
        problems.append(f"{folder}: no such folder")
        return {}
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        below = path.relative_to(folder)
        if path.suffix.lower() in EXTENSIONS and not any(part.startswith(".") for part in below.parts):
            name = below.with_suffix("").as_posix()
            if name in files:
                problems.append(f"{path}: {files[name].name} has the same name")
            files.setdefault(name, path)
    return files


def _checked(image: Path, labels: Path, labelling: Labelling) -> tuple[list[str], bool]:
    """What is wrong with a pair, and whether any of its pixels has a class."""
    problems, sizes, labelled = [], [], False
    try:
        sizes.append(read_image(image, channels=3).size)
    except ValueError as error:
        problems.append(str(error))
    try:
        stored = read_label_map(labels, labelling)
        sizes.append(stored.shape[::-1])
        labelled = bool((stored != IGNORED).any())
    except ValueError as error:
        problems.append(str(error))
    if len(sizes) == 2 and sizes[0] != sizes[1]:
        (width, height), (labels_width, labels_height) = sizes
        problems.append(
            f"{labels}: expected the size of its image, {width}x{height}, got {labels_width}x{labels_height}"
        )
    return problems, labelled
