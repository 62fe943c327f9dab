"""The labelled images that a network is evaluated on, and which of its outputs each of their classes is."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import Tensor

from localmix.tasks.classification.class_index import some
from localmix.tasks.classification.data import load_images
from localmix.tasks.classification.folders import (
    VALIDATION_FOLDERS,
    Announce,
    ImageFiles,
    hold_out,
    read_split,
    read_tree,
)
from localmix.tasks.classification.loading import DecodedImages, LabelledImages, Pairs, StoredImages
from localmix.tasks.classification.shard_reading import is_shards

SPLITS = ("validation", "test")


@dataclass(frozen=True)
class Split:
    """Images with labels, and what a reader of the results must know about them.

    Args:
        name: of the data.
        classes: their names for people.
        folders: what their folders are called; the same names where they lie in none.
        pairs: (image, label).
        fingerprint: of the images.
        in_memory: whether no files have to be decoded.
    """

    name: str
    classes: list[str]
    folders: list[str]
    pairs: Pairs = field(repr=False)
    fingerprint: str
    in_memory: bool = False


def load_split(
    data: str, split: str, *, data_root: str | None = None, download: bool = False, announce: Announce = print
) -> Split:
    """Find the images of a split; none is decoded.

    "validation" are the images that training validates on; of a folder that has no images for training, those in
    `DIR/val` or `DIR/validation`. "test" are those in `DIR/test`, or in a folder of class folders all of them. A data
    set of another kind has one split beside its training images, which is both.

    Raises:
        ValueError: names the argument, what was expected and what came.
    """
    root = Path(data)
    if root.is_dir() and not is_shards(data):
        return _of_tree(root, split, announce)
    images = load_images(data, data_root=data_root, download=download, check=False, announce=announce)
    if split == "test":
        announce(f"data: {images.name} has no test images of its own; these are the ones that training validates on")
    classes = images.classes
    return Split(images.name, classes, classes, _pairs(images.validation), images.fingerprint, images.in_memory)


def _of_tree(root: Path, split: str, announce: Announce) -> Split:
    folder = _folder(root, split)
    if folder is not None:
        files, titles = read_split(root, folder)
    else:
        tree = read_tree(root)
        tree = tree if tree.validation else hold_out(tree)
        for notice in tree.notices:
            announce(notice)
        files, titles = tree.validation, tree.names
    names = [name for class_folder in titles for name in files[class_folder]]
    labels = [label for label, class_folder in enumerate(titles) for _ in files[class_folder]]
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{name} {(root / name).stat().st_size}\n".encode(errors="surrogateescape"))
    pairs = ImageFiles(root, names, labels)
    return Split(str(root.resolve()), list(titles.values()), list(titles), pairs, digest.hexdigest())


def _folder(root: Path, split: str) -> Path | None:
    """The folder whose images are the split; None where it is to be found as for training."""
    if split == "test":
        if (root / "test").is_dir():
            return root / "test"
        inner = [name for name in ("train", *VALIDATION_FOLDERS) if (root / name).is_dir()]
        if inner:
            raise ValueError(f"data: expected test images in {root}/test, found the folders {inner} only")
        return root
    validation = [root / name for name in VALIDATION_FOLDERS[:2] if (root / name).is_dir()]
    return validation[0] if validation and not (root / "train").is_dir() else None


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
    split: Split, known: Sequence[str] | None, num_outputs: int, announce: Announce
) -> tuple[list[int], list[str]]:
    """The output of a network for each class of a split, and the names of all its outputs.

    By the names of the classes or of their folders: the network must know every class; it may know more. A network
    without names is one of ImageNet if it has as many outputs as a set of ImageNet classes and all classes are WordNet
    ids among those. Else the classes are taken in their order, if there are as many of them as outputs, and a line says
    so.

    Args:
        split: the images.
        known: names in the order of the outputs; None if the network does not say.
        num_outputs: of the network.
        announce: receives the line.

    Raises:
        ValueError: the classes are not those of the network.
    """
    ids = imagenet_ids(num_outputs) if known is None else None
    for names in (known, ids):
        for classes in (split.classes, split.folders):
            if names is not None and set(classes) <= set(names):
                outputs = {name: number for number, name in enumerate(names)}
                return [outputs[name] for name in classes], list(names)
    if known is not None:
        foreign = [name for name in split.classes if name not in set(known)]
        raise ValueError(
            f"data: expected classes that the network knows ({some(known)}), "
            f"got {len(foreign)} of {len(split.classes)} that it does not: {some(foreign)}"
        )
    if len(split.classes) != num_outputs:
        among = "" if ids is None else " or WordNet ids among those of ImageNet"
        raise ValueError(
            f"data: expected {num_outputs} classes as the network has outputs{among}, got {len(split.classes)}: "
            f"{some(split.classes)}"
        )
    announce(
        f"data: the network does not name its {num_outputs} classes; they are taken in the order of the data, from "
        f"{split.classes[0]!r} to {split.classes[-1]!r}"
    )
    return list(range(num_outputs)), split.classes


def imagenet_ids(num_classes: int) -> list[str] | None:
    """WordNet ids in the order of the outputs of a network with so many ImageNet classes; None if there is no such."""
    subset = infer_imagenet_subset({"num_classes": num_classes})
    return None if subset is None else list(ImageNetInfo(subset).label_names())


def readable(names: Sequence[str]) -> list[str]:
    """WordNet ids with what they mean; other names as they are.

    >>> readable(["n01440764", "n03888257"]), readable(["shoe"])
    (['tench (n01440764)', 'parachute (n03888257)'], ['shoe'])
    """
    if not all(re.fullmatch(r"n\d{8}", name) for name in names):
        return list(names)
    info = ImageNetInfo("imagenet-22k")

    def title(name: str) -> str:
        try:
            return f"{info.label_name_to_description(name).split(',')[0]} ({name})"
        except KeyError:
            return name

    return [title(name) for name in names]
