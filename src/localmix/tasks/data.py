"""Where labelled images come from: the embedded set, a folder of class folders, or a data set that timm knows."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from localmix.arguments import choice, positive
from localmix.tasks.images import EXTENSIONS, CorruptImage, centre_square, read_image, to_mode, to_tensor
from localmix.tasks.loading import DecodedImages, LabelledImages, StoredImages
from localmix.tasks.parallel import cpu_cores

EMBEDDED = "fashion_mnist"
SCHEMES = ("torchvision", "torch", "hfds")
VALIDATION_FOLDERS = ("val", "validation", "test")
HELD_OUT = 0.2
"""Share of each class that is held out where a folder brings no validation images."""
NORMALISATION = {1: ([0.2860], [0.3530]), 3: ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])}
"""Mean and standard deviation by number of channels: of Fashion-MNIST and of ImageNet."""

Announce = Callable[[str], None]
Track = Callable[[Iterable[Any], str, int], Iterable[Any]]
"""Hands an iterable on while it shows progress: (iterable, what is being done, how many)."""


@dataclass(frozen=True)
class Images:
    """Training and validation images, with what a net and a reader of its results must know about them."""

    name: str
    classes: list[str]
    size: int
    channels: int
    mean: list[float]
    std: list[float]
    train: LabelledImages = field(repr=False)
    validation: LabelledImages = field(repr=False)
    fingerprint: str
    in_memory: bool = False
    skipped: list[str] = field(default_factory=list)


def load_images(
    data: str = EMBEDDED,
    *,
    img_size: int | None = None,
    data_root: str | None = None,
    download: bool = False,
    on_corrupt: str = "error",
    announce: Announce = print,
    track: Track = lambda iterable, what, count: iterable,
) -> Images:
    """Find the images that `data` names and check them.

    Args:
        data: "fashion_mnist" (embedded in the package); a folder `DIR/train/CLASS/*` with `DIR/val/CLASS/*`
            (or `validation`, `test`); a folder of class folders; or "torchvision/NAME", "hfds/NAME" as timm has them.
        img_size: side of the square that the net sees [pixels]; default 28 for the embedded set, else 64 (less where
            the images of a named data set are smaller).
        data_root: folder of a named data set.
        download: fetch a named data set that `data_root` does not hold.
        on_corrupt: "error" refuses a folder with a file that cannot be decoded, "skip" leaves such files out.
        announce: receives notices, such as of a held-out split or of skipped files.
        track: shows progress while files are checked.

    Raises:
        ValueError: names the argument, what was expected and what came.
        CorruptImage: names the file (a ValueError).
    """
    choice("on_corrupt", on_corrupt, ("error", "skip"))
    if img_size is not None:
        positive("img_size", img_size)
    if data == EMBEDDED:
        return _embedded(img_size or 28)
    scheme, _, name = data.partition("/")
    if scheme in SCHEMES and name and not Path(data).exists():
        return _named(data, scheme, name, img_size, data_root, download)
    return _folder(Path(data), img_size or 64, on_corrupt, announce, track)


def _embedded(size: int) -> Images:
    from localmix.tasks import fashion_mnist

    mean, std = NORMALISATION[1]

    def stored(split: Literal["train", "test"]) -> StoredImages:
        images, labels = fashion_mnist.load(split)
        images = torch.as_tensor(images)[:, None]
        if size != images.shape[-1]:
            images = torch.stack([to_tensor(centre_square(Image.fromarray(i[0].numpy()), size)) for i in images])
        return StoredImages(images, torch.as_tensor(labels).long(), mean=mean, std=std)

    train, validation = stored("train"), stored("test")
    fingerprint = hashlib.sha256(train.images.numpy().tobytes() + validation.images.numpy().tobytes()).hexdigest()
    return Images(
        EMBEDDED, list(fashion_mnist.CLASSES), size, 1, mean, std, train, validation, fingerprint, in_memory=True
    )


class ImageFiles:
    """Pairs (RGB image, label) read from files."""

    def __init__(self, paths: list[Path], labels: list[int]) -> None:
        self.paths, self.labels = paths, labels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return read_image(self.paths[index], channels=3), self.labels[index]


def _folder(root: Path, size: int, on_corrupt: str, announce: Announce, track: Track) -> Images:
    if not root.is_dir():
        raise ValueError(
            f"data: expected {EMBEDDED!r}, an image folder or a data set name such as 'torchvision/cifar10'; "
            f"got {str(root)!r}, which {'is a file' if root.exists() else 'does not exist'}"
        )
    train_folder, validation_folder = _split_folders(root)
    files = _class_files(train_folder)
    validation_files = _class_files(validation_folder) if validation_folder else {}
    if validation_folder and files.keys() != validation_files.keys():
        raise ValueError(
            f"data: expected the same class folders in {train_folder} and {validation_folder}; "
            f"only in the former: {sorted(files.keys() - validation_files.keys())}, "
            f"only in the latter: {sorted(validation_files.keys() - files.keys())}"
        )
    if len(files) < 2:
        raise ValueError(f"data: expected at least 2 class folders in {train_folder}, got {sorted(files)}")

    corrupt = _corrupt([p for split in (files, validation_files) for paths in split.values() for p in paths], track)
    if corrupt and on_corrupt == "error":
        named = list(corrupt.values())
        more = f"; and {len(named) - 10} more" if len(named) > 10 else ""
        raise CorruptImage(
            f"data: {len(named)} corrupt image(s); remove them or pass on_corrupt='skip': {'; '.join(named[:10])}{more}"
        )
    if corrupt:
        announce("\n  ".join([f"data: left out {len(corrupt)} corrupt image(s):", *corrupt.values()]))
        files = {name: [p for p in paths if p not in corrupt] for name, paths in files.items()}
        validation_files = {name: [p for p in paths if p not in corrupt] for name, paths in validation_files.items()}
    if not validation_folder:
        files, validation_files = _hold_out(files)
        announce(
            f"data: {root} brings no validation images; a fixed random {HELD_OUT:.0%} of each class is held out "
            f"({sum(map(len, validation_files.values()))} of "
            f"{sum(map(len, files.values())) + sum(map(len, validation_files.values()))} images)"
        )
    for split, folder in ((files, train_folder), (validation_files, validation_folder or train_folder)):
        _refuse_empty(split, folder)

    classes = sorted(files)
    mean, std = NORMALISATION[3]
    digest = hashlib.sha256()

    def decoded(split: dict[str, list[Path]]) -> DecodedImages:
        paths = [path for name in classes for path in split[name]]
        labels = [label for label, name in enumerate(classes) for _ in split[name]]
        for path in paths:
            digest.update(f"{path.relative_to(root)} {path.stat().st_size}\n".encode(errors="surrogateescape"))
        return DecodedImages(ImageFiles(paths, labels), size=size, mean=mean, std=std)

    train, validation = decoded(files), decoded(validation_files)
    skipped = [str(path.relative_to(root)) for path in corrupt]
    return Images(
        str(root.resolve()), classes, size, 3, mean, std, train, validation, digest.hexdigest(), skipped=skipped
    )


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


def _subfolders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith((".", "__MACOSX")))


def _class_files(folder: Path) -> dict[str, list[Path]]:
    """Sorted image files of each class folder, also from folders within it."""
    classes = {}
    for subfolder in _subfolders(folder):
        names = (Path(parent, name) for parent, _, names in os.walk(subfolder, followlinks=True) for name in names)
        classes[subfolder.name] = sorted(
            p for p in names if p.suffix.lower() in EXTENSIONS and not p.name.startswith(".")
        )
    if not classes:
        raise ValueError(f"data: expected class folders ({folder}/CLASS/*.jpg) in {folder}, found none")
    _refuse_empty(classes, folder)
    return classes


def _refuse_empty(classes: dict[str, list[Path]], folder: Path) -> None:
    empty = [name for name, paths in classes.items() if not paths]
    if empty:
        raise ValueError(
            f"data: expected images ({', '.join(sorted(EXTENSIONS))}) in each class folder of {folder}, "
            f"found none in {empty}"
        )


def _corrupt(paths: list[Path], track: Track) -> dict[Path, str]:
    """The files that cannot be decoded, each with the reason."""

    def defect(path: Path) -> str | None:
        try:
            read_image(path, channels=3)
        except CorruptImage as error:
            return str(error)
        return None

    # Pillow decodes without the interpreter lock, so threads do.
    with ThreadPoolExecutor(cpu_cores()) as pool:
        defects = track(pool.map(defect, paths, chunksize=16), "checking images", len(paths))
        return {path: reason for path, reason in zip(paths, defects, strict=True) if reason}


def _hold_out(files: dict[str, list[Path]]) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """A split that depends on nothing but the names of the files; each class keeps at least one image on both sides."""
    train, validation = {}, {}
    for name, paths in files.items():
        held = set(np.random.default_rng(0).permutation(len(paths))[: max(1, round(HELD_OUT * len(paths)))].tolist())
        train[name] = [path for i, path in enumerate(paths) if i not in held]
        validation[name] = [path for i, path in enumerate(paths) if i in held]
    return train, validation


class ConvertedImages:
    """Pairs (image, label) of a named data set, all in one mode."""

    def __init__(self, dataset: Any, channels: int) -> None:
        self.dataset, self.channels = dataset, channels

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        image, label = self.dataset[index]
        return to_mode(image, self.channels), label


def _named(data: str, scheme: str, name: str, size: int | None, data_root: str | None, download: bool) -> Images:
    from timm.data import create_dataset

    def create(split: str) -> Any:
        try:
            return create_dataset(
                f"{'hfds' if scheme == 'hfds' else 'torch'}/{name}", root=data_root, split=split, download=download
            )
        # timm asserts, torchvision raises RuntimeError, datasets raises errors of its own.
        except Exception as error:
            raise ValueError(
                f"data: cannot open the {split} images of {data!r} with data_root={data_root!r}, "
                f"download={download}: {error or type(error).__name__}"
            ) from error

    train, validation = create("train"), create("validation")
    first, _ = train[0]
    channels = 1 if first.mode in ("1", "L", "I;16") else 3
    size = size or min(64, *first.size)
    mean, std = NORMALISATION[channels]
    names = getattr(train, "classes", None)
    if names is None:
        names = train.reader.class_to_idx
    views: dict[str, Any] = {"size": size, "mean": mean, "std": std}
    return Images(
        name=data,
        classes=[str(name) for name in names],
        size=size,
        channels=channels,
        mean=mean,
        std=std,
        train=DecodedImages(ConvertedImages(train, channels), **views),
        validation=DecodedImages(ConvertedImages(validation, channels), **views),
        fingerprint=f"{len(train)} + {len(validation)} images",
    )
