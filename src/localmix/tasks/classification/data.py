"""Where labelled images come from: the embedded set, folders of image files, shards, or a data set that timm knows."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

from localmix.arguments import choice, positive
from localmix.tasks.classification.corrupt import ReplacedImages
from localmix.tasks.classification.folders import (
    Announce,
    Files,
    ImageFiles,
    Track,
    Tree,
    hold_out,
    read_tree,
    refuse_empty,
)
from localmix.tasks.classification.loading import DecodedImages, LabelledImages, StoredImages
from localmix.tasks.classification.parallel import cpu_cores
from localmix.tasks.classification.shard_cache import is_url
from localmix.tasks.classification.shard_format import SPLITS
from localmix.tasks.classification.shard_reading import ShardImages, is_shards, open_shards
from localmix.tasks.images import CorruptImage, centre_square, read_image, to_mode, to_tensor

EMBEDDED = "fashion_mnist"
SCHEMES = ("torchvision", "torch", "hfds")
NORMALISATION = {1: ([0.2860], [0.3530]), 3: ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])}
"""Mean and standard deviation by number of channels: of Fashion-MNIST and of ImageNet."""


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

    def arguments(self) -> dict[str, Any]:
        """Those of `Classification` that the images decide."""
        return {
            "classes": self.classes,
            "img_size": self.size,
            "in_chans": self.channels,
            "mean": self.mean,
            "std": self.std,
        }

    def shapes(self, batch_size: int) -> dict[str, tuple[int, int, int, int]]:
        """B, C, H, W of a batch as the net sees it, by the setting that decides it."""
        return {"img_size": (batch_size, self.channels, self.size, self.size)}

    def __str__(self) -> str:
        return f"{self.name}, {self.size} px"


def load_images(
    data: str = EMBEDDED,
    *,
    img_size: int | None = None,
    data_root: str | None = None,
    download: bool = False,
    on_corrupt: str = "error",
    check: bool = True,
    max_corrupt: int = 10,
    draft: bool = False,
    max_cache_gb: float = 100.0,
    announce: Announce = print,
    track: Track = lambda iterable, what, count: iterable,
) -> Images:
    """Find the images that `data` names and check them.

    Args:
        data: "fashion_mnist" (embedded in the package); a folder `DIR/train/CLASS/*` with `DIR/val/CLASS/*`
            (or `validation`, `test`); a folder of class folders; ImageNet as Kaggle's archive has it; a folder or an
            address of shards; or "torchvision/NAME", "hfds/NAME" as timm has them. See docs/data.md.
        img_size: side of the square that the net sees [pixels]; default 28 for the embedded set, else 64 (less where
            the images of a named data set are smaller).
        data_root: folder of a named data set; for shards at an address, where chunks are kept.
        download: fetch a named data set that `data_root` does not hold.
        on_corrupt: "error" refuses a folder with a file that cannot be decoded, "skip" leaves such files out.
        check: decode every file of a folder now. Otherwise corrupt training images are met later: each is named and
            replaced by the next whole one, see `ReplacedImages`; a corrupt validation image ends the run.
        max_corrupt: how many training images may turn out to be corrupt, if they were not checked.
        draft: decode JPEGs for training at a half, a quarter or an eighth of their size while they keep twice the
            side of the view: faster for large photographs, but not quite the same pixels. Never for validation.
        max_cache_gb: how much of the shards at an address is kept [10^9 bytes].
        announce: receives notices, such as of a held-out split or of skipped files.
        track: shows progress while files are checked.

    Raises:
        ValueError: names the argument, what was expected and what came.
        CorruptImage: names the file (a ValueError).
    """
    choice("on_corrupt", on_corrupt, ("error", "skip"))
    if img_size is not None:
        positive("img_size", img_size)
    if not isinstance(max_corrupt, int) or max_corrupt < 0:
        raise ValueError(f"max_corrupt: expected an int of at least 0, got {max_corrupt!r}")
    if data == EMBEDDED:
        return _embedded(img_size or 28)
    if is_shards(data):
        return _shards(data, img_size or 64, data_root, max_cache_gb, announce)
    scheme, _, name = data.partition("/")
    if scheme in SCHEMES and name and not Path(data).exists():
        return _named(data, scheme, name, img_size, data_root, download)
    return _folder(Path(data), img_size or 64, on_corrupt, announce, track, check, max_corrupt, draft)


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


def _folder(
    root: Path,
    size: int,
    on_corrupt: str,
    announce: Announce,
    track: Track,
    check: bool,
    max_corrupt: int,
    draft: bool,
) -> Images:
    if not root.is_dir():
        raise ValueError(
            f"data: expected {EMBEDDED!r}, an image folder or a data set name such as 'torchvision/cifar10'; "
            f"got {str(root)!r}, which {'is a file' if root.exists() else 'does not exist'}"
        )
    tree = read_tree(root)
    corrupt = {}
    if check:
        tree, corrupt = _whole(tree, on_corrupt, announce, track)
    if not tree.validation:
        tree = hold_out(tree)
    for notice in tree.notices:
        announce(notice)
    mean, std = NORMALISATION[3]
    digest = hashlib.sha256()

    def decoded(files: Files, draft: bool, replace: bool) -> DecodedImages:
        names, labels = tree.items(files)
        # With a million files on a file server even to ask for their sizes takes long.
        lines = (f"{name} {(root / name).stat().st_size}\n" if check else f"{name}\n" for name in names)
        for line in lines:
            digest.update(line.encode(errors="surrogateescape"))
        images: Any = ImageFiles(root, names, labels, at_least=2 * size if draft else None)
        if replace:
            images = ReplacedImages(images, max_corrupt, images.path)
        return DecodedImages(images, size=size, mean=mean, std=std)

    train, validation = decoded(tree.train, draft, not check), decoded(tree.validation, False, False)
    return Images(
        str(root.resolve()),
        list(tree.names.values()),
        size,
        3,
        mean,
        std,
        train,
        validation,
        digest.hexdigest(),
        skipped=list(corrupt),
    )


def _whole(tree: Tree, on_corrupt: str, announce: Announce, track: Track) -> tuple[Tree, dict[str, str]]:
    """The tree without the files that cannot be decoded, and these, each with the reason."""
    splits = tree.train, tree.validation
    corrupt = _corrupt(tree.root, [name for files in splits for names in files.values() for name in names], track)
    if not corrupt:
        return tree, {}
    named = list(corrupt.values())
    if on_corrupt == "error":
        more = f"; and {len(named) - 10} more" if len(named) > 10 else ""
        raise CorruptImage(
            f"data: {len(named)} corrupt image(s); remove them or pass on_corrupt='skip': {'; '.join(named[:10])}{more}"
        )
    announce("\n  ".join([f"data: left out {len(named)} corrupt image(s):", *named]))
    train, validation = ({k: [n for n in names if n not in corrupt] for k, names in files.items()} for files in splits)
    refuse_empty(train, tree.train_folder)
    refuse_empty(validation, tree.validation_folder or tree.train_folder)
    return replace(tree, train=train, validation=validation), corrupt


def _corrupt(root: Path, names: list[str], track: Track) -> dict[str, str]:
    """The files that cannot be decoded, each with the reason."""

    def defect(name: str) -> str | None:
        try:
            read_image(root / name, channels=3)
        except CorruptImage as error:
            return str(error)
        return None

    # Pillow decodes without the interpreter lock, so threads do.
    with ThreadPoolExecutor(cpu_cores()) as pool:
        defects = track(pool.map(defect, names, chunksize=16), "checking images", len(names))
        return {name: reason for name, reason in zip(names, defects, strict=True) if reason}


def _shards(data: str, size: int, cache: str | None, max_cache_gb: float, announce: Announce) -> Images:
    source, manifest = open_shards(data, Path(cache) if cache else None, max_cache_gb)
    mean, std = NORMALISATION[3]
    train, validation = (
        DecodedImages(ShardImages(source, split, manifest.chunks(split)), size=size, mean=mean, std=std)
        for split in SPLITS
    )
    name = data if is_url(data) else str(Path(data).resolve())
    stored = manifest.settings.get("size")
    if stored and stored < size:
        announce(
            f"data: the images in {name} were made smaller, to a shorter side of {stored} px: for views of {size} px "
            "they are enlarged, which costs accuracy"
        )
    fingerprint = hashlib.sha256(manifest.to_bytes()).hexdigest()
    return Images(name, manifest.classes, size, 3, mean, std, train, validation, fingerprint, skipped=manifest.skipped)


class ConvertedImages:
    """Pairs (image, label) of a named data set, all in one mode."""

    def __init__(self, dataset: Any, channels: int) -> None:
        self.dataset, self.channels = dataset, channels

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        image, label = self.dataset[index]
        return to_mode(image, self.channels), label


def _named(
    data: str,
    scheme: str,
    name: str,
    size: int | None,
    data_root: str | None,
    download: bool,
) -> Images:
    from timm.data import create_dataset

    if data_root is None and scheme != "hfds":
        raise ValueError(f"data_root: expected the folder where {data!r} lies, got none")

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
