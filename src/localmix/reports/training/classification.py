"""What `localmix fit` has to know of classification."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from jsonargparse import Namespace

from localmix.reports.training.kinds import Kind
from localmix.tasks.classification.data import EMBEDDED, Images, load_images
from localmix.tasks.classification.loading import DecodedImages
from localmix.tasks.classification.task import Classification
from localmix.tasks.classification.views import ImageNetViews


@dataclass
class DataOptions:
    """Images and how they are shown.

    Args:
        root: an image folder, shards, or the name of a data set, as `localmix compare --data` takes it.
        folder: where a named data set lies, or where shards at an address are kept.
        download: fetch a named data set that is not there.
        img_size: side of the images the net sees [pixels]; 28 for the embedded set, else 64.
        batch_size: images of a batch in each process.
        workers: processes that load images, for each training process; by default its share of the cores for a GPU.
        max_corrupt: how many training images may turn out to be corrupt; each is named and replaced by the next one.
        draft: decode large JPEGs for training at a fraction of their size: faster, not quite the same pixels.
        max_cache_gb: how much of shards at an address is kept [10^9 bytes].
        augment: whether training images are varied at random.
        views: square: crops of 35% or more and flips; imagenet: the paper's, to which the rest belongs.
        crop_pct: share of the shorter side that validation shows.
        interpolation: bicubic, bilinear, lanczos, or random in training.
        scale: least share of the area that a training crop shows.
        auto_augment: a policy as timm names it; empty for none.
        color_jitter: its strength, where there is no policy.
        random_erasing: share of the images of which a rectangle is erased.
    """

    root: str = EMBEDDED
    folder: str | None = None
    download: bool = False
    img_size: int | None = None
    batch_size: int = 128
    workers: int | None = None
    max_corrupt: int = 10
    draft: bool = False
    max_cache_gb: float = 100.0
    augment: bool = True
    views: Literal["square", "imagenet"] = "square"
    crop_pct: float = 0.875
    interpolation: Literal["bicubic", "bilinear", "lanczos", "random"] = "bicubic"
    scale: float = 0.08
    auto_augment: str = "rand-m9-mstd0.5-inc1"
    color_jitter: float = 0.4
    random_erasing: float = 0.25


def load(data: Namespace, say: Callable[[str], None]) -> Images:
    """The images that the settings name, shown as they say."""
    images = load_images(
        data.root,
        img_size=data.img_size,
        data_root=data.folder,
        download=data.download,
        check=False,
        max_corrupt=data.max_corrupt,
        draft=data.draft,
        max_cache_gb=data.max_cache_gb,
        announce=say,
    )
    if data.views == "imagenet":
        views = ImageNetViews(
            images.size,
            mean=images.mean,
            std=images.std,
            **{
                name: data[name]
                for name in ("crop_pct", "interpolation", "scale", "auto_augment", "color_jitter", "random_erasing")
            },
        )
        for split in (images.train, images.validation):
            if not isinstance(split, DecodedImages):
                raise ValueError(
                    f"data.root: expected images in files or shards, of which data.views = imagenet are taken; "
                    f"got {data.root}, whose images are stored as pixels"
                )
            split.views = views
    return images


KIND = Kind(
    Classification,
    given_by_data=frozenset({"classes", "img_size", "in_chans", "mean", "std"}),
    data_options=DataOptions,
    load=load,
)
