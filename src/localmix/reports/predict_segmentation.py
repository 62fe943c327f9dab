"""Label every pixel of image files with a trained segmenter."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from localmix.arguments import positive
from localmix.reports.benchmarks.rows import known_device
from localmix.reports.evaluation.segmentation import view_of
from localmix.reports.evaluation.segmenter import load_segmenter
from localmix.tasks.engine.output import output_folder
from localmix.tasks.images import CorruptImage, read_image
from localmix.tasks.segmentation.drawing import draw_with_legend, entries
from localmix.tasks.segmentation.inference import predict as predicted
from localmix.writing import write_atomically


def predict(
    model: Path,
    images: Sequence[Path],
    *,
    output: Path,
    top: int = 5,
    weights: str | None = None,
    short_side: int | None = None,
    device: str = "auto",
    **view: Any,
) -> int:
    """Draw the label map of each image over it, with a legend, and print the classes with the largest shares.

    An image `a.jpg` makes `a.png`, the picture, and `a.labels.png`, the label map as the data set stores them.

    Args:
        model, weights: see `localmix.reports.evaluation.segmenter.load_segmenter`.
        output: folder for the pictures.
        top: classes to print.
        short_side: shorter side of the images [pixels]; 0: their own; by default as in training.
        device: "auto", "cpu" or "cuda".
        view: `tta`, `scales`, `window` and `stride`, as `view_of` has them.

    Returns:
        The exit status: 1 if an image could not be read, else 0.

    Raises:
        ValueError: an argument is wrong, or two images would make the same file.
    """
    positive("top", top)
    names = [path.stem for path in images]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"images: expected names that differ, since each names a picture, got twice: {twice[:5]}")
    output_folder(output)
    segmenter = load_segmenter(model, weights).changed(short_side=short_side)
    options = view_of(segmenter, **view)
    segmenter.net.to(known_device(device))
    status = 0
    for path, name in zip(images, names, strict=True):
        try:
            image = read_image(path, channels=3)
        except CorruptImage as error:
            print(f"localmix: error: {error}", file=sys.stderr)
            status = 1
            continue
        labels = predicted(segmenter.net, image, **options).cpu().numpy().astype(np.int32)
        picture = draw_with_legend(labels, segmenter.labelling, image)
        for file_name, drawn in ((f"{name}.png", picture), (f"{name}.labels.png", segmenter.labelling.stored(labels))):
            write_atomically(output / file_name, lambda file, drawn=drawn: drawn.save(file, "PNG"))
        print(f"{path} -> {output / name}.png")
        lines = entries(labels, segmenter.labelling)[:top]
        width = max(len(line.name) for line in lines)
        for line in lines:
            print(f"  {line.name:<{width}}  {line.share:7.2%}")
    return status
