"""Find objects in image files with a trained detector, and draw them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from localmix.reports.benchmarks.rows import known_device
from localmix.reports.evaluation.detector import load_detector
from localmix.reports.results import write_json
from localmix.tasks.detection.drawing import draw
from localmix.tasks.engine.output import output_folder
from localmix.tasks.images import CorruptImage, read_image, to_tensor
from localmix.writing import write_atomically


def predict(
    model: Path,
    images: Sequence[Path],
    *,
    output: Path,
    min_score: float = 0.5,
    weights: str | None = None,
    device: str = "auto",
) -> int:
    """Draw boxes, masks, names and scores on each image, and print what was found.

    An image `a.jpg` makes `a.png`, the picture, and `a.json`, in which "objects" have a class, a score and a box (x0,
    y0, x1, y1) [pixels].

    Args:
        model, weights: see `localmix.reports.evaluation.detector.load_detector`.
        output: folder for the pictures.
        min_score: least score of what is drawn and printed.
        device: "auto", "cpu" or "cuda".

    Returns:
        The exit status: 1 if an image could not be read, else 0.

    Raises:
        ValueError: an argument is wrong, or two images would make the same file.
    """
    if not 0 <= min_score <= 1:
        raise ValueError(f"min_score: expected 0 to 1, got {min_score}")
    names = [path.stem for path in images]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"images: expected names that differ, since each names a picture, got twice: {twice[:5]}")
    output_folder(output)
    detector, device = load_detector(model, weights), known_device(device)
    detector.net.to(device)
    status = 0
    for path, name in zip(images, names, strict=True):
        try:
            image = read_image(path, channels=3)
        except CorruptImage as error:
            print(f"localmix: error: {error}", file=sys.stderr)
            status = 1
            continue
        found = {key: value.cpu() for key, value in detector(to_tensor(image).to(device)).items()}
        picture = draw(image, found, detector.classes, min_score=min_score)
        rows = [
            {"class": detector.classes[label - 1], "score": round(score, 4), "box": [round(x, 1) for x in box]}
            for label, score, box in zip(
                found["labels"].tolist(), found["scores"].tolist(), found["boxes"].tolist(), strict=True
            )
            if score >= min_score
        ]
        write_atomically(output / f"{name}.png", lambda file, picture=picture: picture.save(file, "PNG"))
        write_json(output / f"{name}.json", {"objects": rows})
        print(f"{path} -> {output / name}.png")
        width = max((len(row["class"]) for row in rows), default=0)
        for row in rows:
            print(f"  {row['class']:<{width}}  {row['score']:7.2%}  {', '.join(f'{x:.0f}' for x in row['box'])}")
        if not rows:
            print(f"  nothing of a score of {min_score:g} or more")
    return status
