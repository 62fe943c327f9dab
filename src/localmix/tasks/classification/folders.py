"""Image files in folders: class folders, a class index beside them, and ImageNet's own layout."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from localmix.arguments import existing_folder
from localmix.tasks.classification.class_index import CLASS_INDICES, read_class_index, some
from localmix.tasks.images import EXTENSIONS, read_image

VALIDATION_FOLDERS = ("val", "validation", "test")
SOLUTION = "LOC_val_solution.csv"
"""Kaggle's labels of ImageNet's validation images."""
KAGGLE_FOLDERS = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC")
IMAGENET_COUNTS = {"classes": 1_000, "training images": 1_281_167, "validation images": 50_000}

HELD_OUT = 0.2
"""Share of each class that is held out where a folder brings no validation images."""

Announce = Callable[[str], None]
Track = Callable[[Iterable[Any], str, int], Iterable[Any]]
"""Hands an iterable on while it shows progress: (iterable, what is being done, how many)."""
Files = dict[str, list[str]]
"""Paths of image files, relative to the root of their tree and sorted, by class folder."""


@dataclass(frozen=True)
class Tree:
    """The image files below `root` by split and class folder; `validation` is empty where there is none."""

    root: Path
    train_folder: Path
    validation_folder: Path | None
    train: Files = field(repr=False)
    validation: Files = field(repr=False)
    names: dict[str, str]
    """A name for people by class folder, in the order of the labels."""
    notices: list[str]
    """What the user should know about the tree, such as that ImageNet is not complete."""

    def items(self, files: Files) -> tuple[list[str], list[int]]:
        """Names and labels of `train` or `validation`, in the order of the labels."""
        names = [name for folder in self.names for name in files[folder]]
        return names, [label for label, folder in enumerate(self.names) for _ in files[folder]]


class ImageFiles:
    """Pairs (RGB image, label) read from files.

    The names lie in one block of bytes: a list of a million strings would be copied into every process that loads
    images, page by page, as soon as their references are counted there.

    Args:
        root: folder that the names are relative to.
        names: of the files.
        labels: of the files.
        at_least: see `read_image`.
    """

    def __init__(self, root: Path, names: Iterable[str], labels: Iterable[int], *, at_least: int | None = None) -> None:
        encoded = [os.fsencode(name) for name in names]
        self.root, self.at_least = root, at_least
        self.names = b"".join(encoded)
        self.ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        self.labels = np.fromiter(labels, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return read_image(self.path(index), channels=3, at_least=self.at_least), int(self.labels[index])

    def path(self, index: int) -> str:
        """Of the file of an image."""
        start = self.ends[index - 1] if index else 0
        return os.path.join(self.root, os.fsdecode(self.names[start : self.ends[index]]))

    @property
    def paths(self) -> list[Path]:
        """Of all files."""
        return [Path(self.path(index)) for index in range(len(self))]


def read_tree(root: Path) -> Tree:
    """List the image files of `root`, without opening them.

    Raises:
        ValueError: the folder has no class folders, an empty one, or others for validation than for training; or a
            file with the classes or labels does not fit the folders.
    """
    existing_folder("data", root, "of images")
    layout = next((root / folder for folder in KAGGLE_FOLDERS if (root / folder / "train").is_dir()), root)
    train_folder, validation_folder = _split_folders(layout)
    beside = _beside(root, layout)
    train = _class_files(root, train_folder)
    if len(train) < 2:
        raise ValueError(f"data: expected at least 2 class folders in {train_folder}, got {sorted(train)}")
    validation: Files = {}
    if validation_folder:
        validation = _labelled(root, validation_folder, beside)
        _refuse_difference(train.keys(), f"class folders in {train_folder}", validation.keys(), str(validation_folder))
    index = _class_index(beside)
    if index:
        names = read_class_index(index, train.keys())
        _refuse_difference(names.keys(), f"class folders in {index}", train.keys(), str(train_folder))
    else:
        names = {name: name for name in sorted(train)}
    notices = _imagenet_notices(root, train, validation, own_layout=layout.resolve().name == "CLS-LOC")
    return Tree(root, train_folder, validation_folder, train, validation, names, notices)


def read_split(root: Path, folder: Path) -> tuple[Files, dict[str, str]]:
    """List the image files of one split in `folder`, `root` or a folder in it, where the rest is not needed.

    It may lack some of the classes that a file with the classes lists.

    Returns:
        The files, and a name for people by class folder, in the order of the labels.

    Raises:
        ValueError: as `read_tree`.
    """
    beside = _beside(root, root)
    files = _labelled(root, folder, beside)
    index = _class_index(beside)
    if not index:
        return files, {name: name for name in sorted(files)}
    names = read_class_index(index, files.keys())
    unknown = files.keys() - names.keys()
    if unknown:
        raise ValueError(f"data: expected class folders that {index} lists in {folder}, got {some(unknown)} too")
    return files, {name: title for name, title in names.items() if name in files}


def _labelled(root: Path, folder: Path, beside: list[Path]) -> Files:
    """Image files of a split whose labels its folders or Kaggle's file give."""
    solution = next((place / SOLUTION for place in beside if (place / SOLUTION).is_file()), None)
    if solution and not _subfolders(folder):
        return _solved(root, folder, solution)
    return _class_files(root, folder)


def _class_index(beside: list[Path]) -> Path | None:
    return next((place / name for place in beside for name in CLASS_INDICES if (place / name).is_file()), None)


def _split_folders(root: Path) -> tuple[Path, Path | None]:
    """The folders that hold the class folders of training and of validation; None where there is no validation."""
    validation = next((root / name for name in VALIDATION_FOLDERS if (root / name).is_dir()), None)
    if (root / "train").is_dir():
        return root / "train", validation
    if validation:
        raise ValueError(f"data: expected a folder 'train' beside {validation}, found none")
    nested = next((child for child in _subfolders(root) if (child / "train").is_dir()), None)
    if nested:
        raise ValueError(f"data: expected {root}/train or class folders; did you mean {nested}?")
    return root, None


def _beside(root: Path, layout: Path) -> list[Path]:
    """Where the class index and the labels may lie: Kaggle's archive has them three folders above the split folders."""
    absolute = layout.resolve()
    above = [absolute.parents[k.count("/")] for k in KAGGLE_FOLDERS if absolute.as_posix().endswith(f"/{k}")]
    return [root, layout, *above]


def _subfolders(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if not _is_hidden(e.name) and e.is_dir()]
    return [folder / name for name in sorted(names)]


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX"))


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS and not name.startswith(".")


def _class_files(root: Path, folder: Path) -> Files:
    """Image files of each class folder, also from folders within it, each of these once."""

    def files(subfolder: Path) -> list[str]:
        found, seen = [], {os.path.realpath(subfolder)}
        for parent, folders, names in os.walk(subfolder, followlinks=True):
            below = os.path.relpath(parent, root)
            found += [os.path.join(below, name) for name in names if _is_image(name)]
            # a link may lead to a folder above it, round and round
            places = {
                os.path.realpath(os.path.join(parent, name)): name for name in sorted(folders) if not _is_hidden(name)
            }
            folders[:] = [name for place, name in places.items() if place not in seen]
            seen.update(places)
        return sorted(found)

    subfolders = _subfolders(folder)
    if not subfolders:
        labels = f", or {SOLUTION} beside it" if folder.name in VALIDATION_FOLDERS else ""
        raise ValueError(f"data: expected class folders ({folder}/CLASS/*.jpg) in {folder}{labels}, found none")
    # On a file system behind a network the time goes to waiting.
    with ThreadPoolExecutor(16) as pool:
        classes = dict(zip((s.name for s in subfolders), pool.map(files, subfolders), strict=True))
    refuse_empty(classes, folder)
    return classes


def refuse_empty(classes: Files, folder: Path) -> None:
    """Each class of `folder` must have images."""
    empty = [name for name, paths in classes.items() if not paths]
    if empty:
        raise ValueError(
            f"data: expected images ({', '.join(sorted(EXTENSIONS))}) in each class folder of {folder}, "
            f"found none in {some(empty)}"
        )


def _refuse_difference(expected: Iterable[str], kind: str, found: Iterable[str], folder: str) -> None:
    expected, found = set(expected), set(found)
    if expected != found:
        raise ValueError(
            f"data: expected the same {kind} and {folder}; "
            f"only in the former: {some(expected - found)}, only in the latter: {some(found - expected)}"
        )


def _solved(root: Path, folder: Path, solution: Path) -> Files:
    """Images that lie in one folder, by the class that Kaggle's file gives them."""
    with solution.open(newline="") as file:
        rows = csv.reader(file)
        header = next(rows, [])
        if [column.strip() for column in header[:2]] != ["ImageId", "PredictionString"]:
            raise ValueError(f"data: expected the columns ImageId,PredictionString in {solution}, got {header}")
        classes = {row[0]: row[1].split()[0] for row in rows if len(row) > 1 and row[1].split()}
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if _is_image(entry.name))
    unknown = [name for name in names if os.path.splitext(name)[0] not in classes]
    if unknown:
        raise ValueError(
            f"data: expected a class in {solution} for each image of {folder}, found none for {some(unknown)}"
        )
    below, files = os.path.relpath(folder, root), {name: [] for name in classes.values()}
    for name in names:
        files[classes[os.path.splitext(name)[0]]].append(os.path.join(below, name))
    refuse_empty(files, folder)
    return files


def _imagenet_notices(root: Path, train: Files, validation: Files, *, own_layout: bool) -> list[str]:
    """How a tree that is meant to be ImageNet-1k differs from it: known by its layout, or by most of its classes."""
    expected = IMAGENET_COUNTS
    synsets = all(re.fullmatch(r"n\d{8}", name) for name in train)
    if not (own_layout or (synsets and len(train) > expected["classes"] // 2)):
        return []
    found = dict(
        zip(expected, (len(train), *(sum(map(len, split.values())) for split in (train, validation))), strict=True)
    )
    differences = [
        f"{found[what]:,} {what} (expected {count:,})" for what, count in expected.items() if found[what] != count
    ]
    return [f"data: {root} is not the whole of ImageNet-1k: {', '.join(differences)}"] if differences else []


def hold_out(tree: Tree) -> Tree:
    """Move a share of each class to validation.

    The split depends on nothing but the names of the files; each class keeps at least one image on both sides.
    """
    train, validation = {}, {}
    for folder, names in tree.train.items():
        held = set(np.random.default_rng(0).permutation(len(names))[: max(1, round(HELD_OUT * len(names)))].tolist())
        train[folder] = [name for i, name in enumerate(names) if i not in held]
        validation[folder] = [name for i, name in enumerate(names) if i in held]
    notice = (
        f"data: {tree.root} brings no validation images; a fixed random {HELD_OUT:.0%} of each class is held out "
        f"({sum(map(len, validation.values()))} of {sum(map(len, tree.train.values()))} images)"
    )
    refuse_empty(train, tree.train_folder)
    return replace(tree, train=train, validation=validation, notices=[*tree.notices, notice])
