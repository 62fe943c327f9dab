"""Times how one process makes batches from image files beside timm, with the same files and the same random draws.

    python benchmarks/views_beside_timm.py DIR [--img-size 64] [--images 256] [--rounds 15] [--plain]
        [--output FOLDER]

`localmix bench loader` times whole loaders, whose draws differ; RandAugment's operations differ in cost, so its ratio
has a share of luck for tiny images. Here image files are decoded, augmented, normalised and collated in turns of 16
images in one thread, and the time of the processor is taken, so that a busy machine disturbs little. What timm's side
needs for the same draws is not timed. The ratio is the median over the rounds.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.utils.data import Subset, default_collate

from localmix.reports.benchmarks.loader import PAPER, PLAIN, _refuse_other_pixels, _timm_loader
from localmix.reports.benchmarks.timing import times_as_fast
from localmix.reports.environment import command, commit, environment
from localmix.reports.results import write_json
from localmix.tasks.classification import views
from localmix.tasks.classification.data import load_images
from localmix.tasks.classification.loading import DecodedImages

BATCH = 16


def main() -> None:
    """Prints microseconds per image and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", metavar="DIR")
    for name, value in {"img-size": 64, "images": 256, "rounds": 15}.items():
        parser.add_argument(f"--{name}", type=int, default=value, metavar="N")
    parser.add_argument("--plain", action="store_true", help="only crops and flips")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="for results.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    # as in a worker, whose random states nobody else needs
    views.get_worker_info = lambda: object()  # ty: ignore[invalid-assignment]
    images = load_images(args.data, img_size=args.img_size, check=False, announce=lambda text: None)
    train: Any = images.train
    chosen = np.linspace(0, len(train) - 1, min(args.images, len(train)), dtype=int).tolist()
    options, erasing = (PLAIN, 0.0) if args.plain else (PAPER, 0.25)
    theirs = _timm_loader(images, args.data, chosen, BATCH, 0, options, erasing)
    ours_views = views.ImageNetViews(
        images.size,
        mean=images.mean,
        std=images.std,
        auto_augment=options["auto_augment"] or "",
        color_jitter=options["color_jitter"],
        random_erasing=erasing,
    )
    subset: Any = Subset(train.images, chosen)
    ours = DecodedImages(subset, size=images.size, mean=images.mean, std=images.std, views=ours_views)
    _refuse_other_pixels(ours, theirs)

    def localmix(epoch: int, indices: range) -> float:
        start = time.process_time()
        ours[0, epoch, list(indices)]
        return time.process_time() - start

    def timm(epoch: int, indices: range) -> float:
        seconds, pairs = 0.0, []
        for index in indices:
            with views.drawn_from(np.random.default_rng([0, epoch, index])):
                start = time.process_time()
                pairs.append(theirs.dataset[index])
                seconds += time.process_time() - start
        start = time.process_time()
        default_collate(pairs)
        return seconds + time.process_time() - start

    times: dict[str, list[float]] = {"localmix": [], "timm": []}
    for epoch in range(args.rounds):
        sums = dict.fromkeys(times, 0.0)
        for turn, start in enumerate(range(0, len(chosen), BATCH)):
            indices = range(start, min(start + BATCH, len(chosen)))
            for run in (localmix, timm) if (epoch + turn) % 2 else (timm, localmix):
                sums[run.__name__] += run(epoch, indices)
        for name, seconds in sums.items():
            times[name].append(seconds)
    for name, seconds in times.items():
        print(f"{name:10}{median(seconds) / len(chosen) * 1e6:8.0f} us an image")
    ratio = times_as_fast(times["localmix"], times["timm"])
    print(f"localmix is {ratio:.3f} times as fast")
    if args.output:
        settings = {name: value for name, value in vars(args).items() if name not in ("data", "output")}
        settings |= {"data": Path(args.data).name, "images": len(chosen)}
        results = {"kind": "views", "settings": settings, "seconds": times, "times_as_fast_as_timm": ratio}
        write_json(
            args.output / "results.json",
            {**results, "environment": environment("cpu"), "command": command(), "commit": commit()},
        )


if __name__ == "__main__":
    main()
