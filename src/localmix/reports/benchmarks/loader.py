"""`localmix bench loader`: how many images a loader delivers, beside timm's loader with the same augmentation."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from timm.data import create_dataset, create_loader
from torch.utils.data import DataLoader, Subset

from localmix.arguments import positive
from localmix.reports.benchmarks.timing import take_turns, times_as_fast
from localmix.reports.environment import command, commit, environment
from localmix.reports.results import write_json
from localmix.tasks.classification.data import Images, load_images
from localmix.tasks.classification.folders import read_tree
from localmix.tasks.classification.loading import DecodedImages
from localmix.tasks.classification.shard_reading import is_shards
from localmix.tasks.classification.views import ImageNetViews, drawn_from, mend_posterize
from localmix.tasks.engine.batches import EpochBatches, loader
from localmix.tasks.engine.output import output_folder
from localmix.tasks.images import read_image

PAPER: dict[str, Any] = {"auto_augment": "rand-m9-mstd0.5-inc1", "color_jitter": 0.4}
PLAIN: dict[str, Any] = {"auto_augment": None, "color_jitter": 0.0}


def bench_loader(
    data: str,
    *,
    img_size: int = 224,
    batch_size: int = 64,
    images: int = 512,
    workers: int = 1,
    plain: bool = False,
    rounds: int = 7,
    output: Path | None = None,
) -> dict[str, Any]:
    """Time both loaders in turns on the same training images, in memory of the CPU.

    Nothing is timed unless the same draws give the same pixels in both.

    Args:
        data: folder of images.
        img_size: side of the view [pixels].
        batch_size: images of a batch.
        images: how many of the folder, evenly chosen, a turn loads.
        workers: processes of each loader.
        plain: only crops and flips, instead of the paper's RandAugment and random erasing.
        rounds: timed turns of each.
        output: folder for results.json.

    Raises:
        ValueError: an argument is wrong.
        ArithmeticError: the pixels differ.
    """
    for name, value in {"batch_size": batch_size, "images": images, "workers": workers, "rounds": rounds}.items():
        positive(name, value)
    if output is not None:
        output_folder(output)
    if not Path(data).is_dir() or is_shards(data):
        raise ValueError(f"data: expected a folder of image files, which timm's loader reads too, got {data!r}")
    ours = load_images(data, img_size=img_size, check=False, announce=lambda text: None)
    num_images = min(images, len(ours.train)) // batch_size * batch_size
    if not num_images:
        raise ValueError(
            f"batch_size: expected at most the {min(images, len(ours.train))} images that are loaded, got {batch_size}"
        )
    chosen = np.linspace(0, len(ours.train) - 1, num_images, dtype=int).tolist()
    options = PLAIN if plain else PAPER
    erasing = 0.0 if plain else 0.25
    theirs = _timm_loader(ours, data, chosen, batch_size, workers, options, erasing)
    views = ImageNetViews(
        img_size,
        mean=ours.mean,
        std=ours.std,
        auto_augment=options["auto_augment"] or "",
        color_jitter=options["color_jitter"],
        random_erasing=erasing,
    )
    train: Any = ours.train
    subset: Any = Subset(train.images, chosen)
    dataset = DecodedImages(subset, size=img_size, mean=ours.mean, std=ours.std, views=views)
    _refuse_other_pixels(dataset, theirs)
    loaders = {"localmix": loader(dataset, batch_size, seed=0, workers=workers), "timm": theirs}
    times = take_turns({name: _pass(batches) for name, batches in loaders.items()}, rounds=rounds, seconds=0)
    results = {
        "kind": "loader",
        "settings": {
            "data": ours.name,
            "img_size": img_size,
            "batch": batch_size,
            "images": num_images,
            "workers": workers,
            "plain": plain,
            "rounds": rounds,
        },
        "rows": [
            {"label": name, "images_per_second": num_images / median(turns), "seconds": turns}
            for name, turns in times.items()
        ],
        "times_as_fast_as_timm": times_as_fast(times["localmix"], times["timm"]),
        "environment": environment("cpu"),
        "command": command(),
        "commit": commit(),
    }
    if output:
        write_json(Path(output) / "results.json", results)
    return results


def table(results: dict[str, Any]) -> str:
    """For people."""
    rows = [f"{row['label']:10}{row['images_per_second']:10.1f} images/s" for row in results["rows"]]
    return "\n".join([*rows, f"localmix is {results['times_as_fast_as_timm']:.2f} times as fast"])


def _timm_loader(
    images: Images, data: str, chosen: list[int], batch_size: int, workers: int, options: dict[str, Any], erasing: float
) -> DataLoader:
    dataset = create_dataset("", root=str(read_tree(Path(data)).train_folder))
    # timm sorts by the numbers in names, and knows nothing of a share that is held out
    train: Any = images.train
    labels = {str(Path(path)): label for path, label in dataset.reader.samples}
    paths = [str(Path(train.images.name(index))) for index in chosen]
    dataset.reader.samples = [(path, labels[path]) for path in paths]
    subset: Any = Subset(dataset, range(len(paths)))
    batches = create_loader(
        subset,
        (3, images.size, images.size),
        batch_size,
        is_training=True,
        interpolation="bicubic",
        mean=tuple(images.mean),
        std=tuple(images.std),
        re_prob=erasing,
        re_mode="pixel",
        num_workers=workers,
        use_prefetcher=False,
        device=torch.device("cpu"),
        **options,
    )
    # it was given to the subset, which does not use it
    dataset.transform = subset.transform
    mend_posterize(dataset.transform)
    return batches


def _refuse_other_pixels(ours: DecodedImages, theirs: Any) -> None:
    dataset = theirs.dataset.dataset
    for index in range(min(8, len(ours))):
        pixels, _ = ours[0, 0, [index]]
        image = read_image(dataset.reader.samples[index][0], channels=3)
        with drawn_from(np.random.default_rng([0, 0, index])):
            expected = dataset.transform(image)
        if not torch.allclose(pixels[0], expected, atol=1e-5):
            raise ArithmeticError(f"image {index}: the pixels are not those of timm; nothing was timed")


def _pass(batches: Any) -> Callable[[], None]:
    epochs = count()

    def run() -> None:
        if isinstance(batches.sampler, EpochBatches):
            batches.sampler.set_epoch(next(epochs))
        for _ in batches:
            pass

    return run
