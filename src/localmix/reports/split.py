"""The labelled images that a network is evaluated on, and which of its outputs each of their classes is."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import Tensor

from localmix.tasks.data import VALIDATION_FOLDERS, Announce, ImageFiles, load_images
from localmix.tasks.data import _class_files as class_files
from localmix.tasks.loading import DecodedImages, LabelledImages, Pairs, StoredImages

SPLITS = ("validation", "test")


@dataclass(frozen=True)
class Split:
    """Images with labels, and what a reader of the results must know about them."""

    name: str
    classes: list[str]
    pairs: Pairs = field(repr=False)
    fingerprint: str
    in_memory: bool = False


def load_split(
    data: str, split: str, *, data_root: str | None = None, download: bool = False, announce: Announce = print
) -> Split:
    """Find the images of a split.

    "validation" are the images that training validates on; of a folder that has no images for training, those in
    `DIR/val/CLASS/*` or `DIR/validation/CLASS/*`. "test" are those in `DIR/test/CLASS/*`, or in a folder of class
    folders all of them. A data set of another kind has one split beside its training images, which is both.

    Raises:
        ValueError: names the argument, what was expected and what came.
    """
    root = Path(data)
    folder = _folder(root, split) if root.is_dir() else None
    if folder is not None:
        return _of_folder(folder)
    images = load_images(data, data_root=data_root, download=download, announce=announce)
    if split == "test":
        announce(f"data: {images.name} has no test images of its own; these are the ones that training validates on")
    return Split(images.name, images.classes, _pairs(images.validation), images.fingerprint, images.in_memory)


def _folder(root: Path, split: str) -> Path | None:
    """The folder whose class folders are the split; None where it is to be found as for training."""
    if split == "test":
        if (root / "test").is_dir():
            return root / "test"
        inner = [name for name in ("train", *VALIDATION_FOLDERS) if (root / name).is_dir()]
        if inner:
            raise ValueError(f"data: expected test images in {root}/test, found the folders {inner} only")
        return root
    validation = [root / name for name in VALIDATION_FOLDERS[:2] if (root / name).is_dir()]
    return validation[0] if validation and not (root / "train").is_dir() else None


def _of_folder(folder: Path) -> Split:
    files = class_files(folder)
    classes = sorted(files)
    paths = [path for name in classes for path in files[name]]
    labels = [label for label, name in enumerate(classes) for _ in files[name]]
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode(errors="surrogateescape"))
    return Split(str(folder.resolve()), classes, ImageFiles(paths, labels), digest.hexdigest())


class StoredPairs:
    """Pairs (image, label) of images that lie in memory, uint8 [N, C, H, W]."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        pixels = self.images[index]
        array = pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)
        return Image.fromarray(array.numpy()), int(self.labels[index])


def _pairs(images: LabelledImages) -> Pairs:
    if isinstance(images, StoredImages):
        return StoredPairs(images.images, images.labels)
    if isinstance(images, DecodedImages):
        return images.images
    raise ValueError(f"data: expected images in memory or in files, got {type(images).__name__}")


def matched(
    classes: Sequence[str], known: Sequence[str] | None, num_outputs: int, announce: Announce
) -> tuple[list[int], list[str]]:
    """The output of a network for each class of some data, and the names of all its outputs.

    By name: every class must be one that the network knows; it may know more. A network without names is one of
    ImageNet if it has as many outputs as a set of ImageNet classes and all `classes` are WordNet ids among those. Else
    the classes are taken in their order, if there are as many of them as outputs, and a line says so.

    Args:
        classes: of the data.
        known: of the network in the order of its outputs; None if it does not say.

    Raises:
        ValueError: the classes are not those of the network.
    """
    if known is None:
        known = imagenet_ids(num_outputs)
        if known is None or not set(classes) <= set(known):
            if len(classes) != num_outputs:
                among = "" if known is None else " or WordNet ids among those of ImageNet"
                raise ValueError(
                    f"data: expected {num_outputs} classes as the network has outputs{among}, got {len(classes)}: "
                    f"{_some(classes)}"
                )
            announce(
                f"data: the network does not name its {num_outputs} classes; they are taken in the order of the data, "
                f"{_some(classes)}"
            )
            return list(range(num_outputs)), list(classes)
    index = {name: number for number, name in enumerate(known)}
    foreign = [name for name in classes if name not in index]
    if foreign:
        raise ValueError(
            f"data: expected classes that the network knows ({_some(known)}), "
            f"got {len(foreign)} of {len(classes)} that it does not: {_some(foreign)}"
        )
    return [index[name] for name in classes], list(known)


def imagenet_ids(num_classes: int) -> list[str] | None:
    """WordNet ids in the order of the outputs of a network with so many ImageNet classes; None if there is no such."""
    subset = infer_imagenet_subset({"num_classes": num_classes})
    return None if subset is None else list(ImageNetInfo(subset).label_names())


def _some(names: Sequence[str]) -> str:
    more = f", ... ({len(names)})" if len(names) > 5 else ""
    return ", ".join(map(repr, names[:5])) + more
