"""`localmix validate` and `localmix test` of a segmenter: what it answers to labelled scenes."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from localmix.arguments import choice
from localmix.reports.benchmarks.rows import known_device
from localmix.reports.environment import command, commit, environment
from localmix.reports.evaluation.outcome import PRECISIONS, TTA, computed_in
from localmix.reports.evaluation.segmenter import Segmenter, load_segmenter
from localmix.reports.progress import Display
from localmix.reports.results import write_json
from localmix.tasks.engine.output import output_folder
from localmix.tasks.segmentation import inference
from localmix.tasks.segmentation.data import fingerprint
from localmix.tasks.segmentation.drawing import below, comparison
from localmix.tasks.segmentation.pairs import LabelledScenes, splits
from localmix.tasks.segmentation.scores import Scores
from localmix.writing import write_atomically

PICTURES = 4
"""Scenes that are drawn."""


def evaluate(
    model: Path | str,
    *,
    split: str = "validation",
    data: str | None = None,
    weights: str | None = None,
    tta: str = "none",
    scales: Sequence[float] = (1.0,),
    short_side: int | None = None,
    window: int | None = None,
    stride: int | None = None,
    device: str = "auto",
    precision: str = "float32",
    output: Path | str | None = None,
) -> dict[str, Any]:
    """Evaluate a segmenter on labelled scenes at their own sizes; print the figures, and write them if asked.

    Args:
        model, weights: see `localmix.reports.evaluation.segmenter.load_segmenter`.
        split: "validation" or "test", of `data`: a folder; by default what the run was trained on.
        tta: "flip" takes the mean of the probabilities of an image and its mirror image.
        scales: factors of the size, over which the mean is taken.
        short_side: shorter side of the images at scale 1 [pixels]; 0: their own; by default as in training.
        window: side of windows that the net is run on [pixels]; by default it sees whole images.
        stride: from a window to the next [pixels]; by default two thirds of it.
        device: "auto", "cpu" or "cuda".
        precision: "float32" or "bfloat16" (by autocast).
        output: folder for results.json, per_class.csv, confusion.csv and pictures.png.

    Returns:
        The content of results.json.

    Raises:
        ValueError: an argument is wrong; names it.
    """
    choice("precision", precision, tuple(PRECISIONS))
    if output is not None:
        output_folder(output)
    device = known_device(device)
    segmenter = load_segmenter(model, weights).changed(short_side=short_side)
    root = data or segmenter.data
    if root is None:
        raise ValueError("data: expected a folder of images and label maps, got none, and the model names none")
    view = view_of(segmenter, tta=tta, scales=scales, window=window, stride=stride)
    net = segmenter.net.to(device)
    with Display() as display, computed_in(precision, device):
        scenes = splits(Path(root), segmenter.labelling, wanted=(split,), track=display.track)[split]
        metric = inference.evaluate(net, scenes, track=display.track, **view)
    confusion, scores = metric.confusion, metric.compute()
    classes = segmenter.labelling.classes
    results = {
        "kind": "segmentation",
        "split": split,
        "miou": scores.mean_iou.item(),
        "pixel_accuracy": scores.pixel_accuracy.item(),
        "mean_accuracy": scores.mean_accuracy.item(),
        "images": len(scenes),
        "pixels": int(confusion.sum()),
        "majority": majority(confusion, classes),
        "absent": [name for name, there in zip(classes, scores.present.tolist(), strict=True) if not there],
        "absent_but_predicted": absent_but_predicted(confusion, classes),
        "per_class": per_class(scores, confusion, classes),
        "model": {
            "name": f"UPerNet on {segmenter.backbone}",
            "parameters": sum(p.numel() for p in net.parameters()),
            "classes": len(classes),
            **segmenter.source,
        },
        "data": {"name": str(root), "fingerprint": fingerprint({split: scenes}, Path(root))},
        "view": {k: v for k, v in view.items() if k not in ("mean", "std")},
        "settings": {"precision": precision},
        "environment": environment(device),
        "command": command(),
        "commit": commit(),
    }
    try:
        show(results)
    finally:  # also where nobody reads on, such as head
        if output is not None:
            _write(Path(output), results, confusion, classes)
            with computed_in(precision, device):
                pictures = draw(segmenter, scenes, view)
            write_atomically(Path(output) / "pictures.png", lambda file: pictures.save(file, "PNG"))
            # the last, so that where it is everything is
            write_json(Path(output) / "results.json", results)
            print(f"{output}: results.json, per_class.csv, confusion.csv, pictures.png")
    return results


def view_of(
    segmenter: Segmenter,
    *,
    tta: str = "none",
    scales: Sequence[float] = (1.0,),
    window: int | None = None,
    stride: int | None = None,
) -> dict[str, Any]:
    """How images are shown, as `localmix.tasks.segmentation.inference.predict` has it."""
    choice("tta", tta, TTA)
    return {
        "short_side": segmenter.short_side,
        "scales": inference.known_scales(scales),
        "flip": tta == "flip",
        "window": window,
        "stride": stride,
        "mean": segmenter.mean,
        "std": segmenter.std,
    }


def majority(confusion: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """What it would score to take every pixel for the most frequent class."""
    labelled = confusion.sum(1).double()
    first = int(labelled.argmax())
    share = (labelled[first] / labelled.sum()).item()
    return {"class": classes[first], "pixel_accuracy": share, "miou": share / int((labelled > 0).sum())}


def absent_but_predicted(confusion: Tensor, classes: Sequence[str]) -> list[str]:
    """Classes that no pixel is labelled as, and some was taken for: other scores count their IoU as 0."""
    there = ((confusion.sum(1) == 0) & (confusion.sum(0) > 0)).tolist()
    return [name for name, is_one in zip(classes, there, strict=True) if is_one]


def per_class(scores: Scores, confusion: Tensor, classes: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each class; without figures where no pixel is labelled so."""
    labelled = confusion.sum(1).tolist()
    rows = zip(classes, scores.iou.tolist(), scores.accuracy.tolist(), labelled, strict=True)
    return [
        {"class": name, "iou": iou if pixels else None, "accuracy": accuracy if pixels else None, "pixels": pixels}
        for name, iou, accuracy, pixels in rows
    ]


def show(results: dict[str, Any]) -> None:
    """Print the figures, for people."""
    console = Console(file=sys.stdout)
    if not console.is_terminal:
        # nothing limits the width of a file
        console = Console(file=sys.stdout, width=200)
    title = f"{results['model']['name']} on {Path(results['data']['name']).name}, {results['split']}"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for name in ("class", "IoU", "accuracy", "share of pixels"):
        table.add_column(name, justify="left" if name == "class" else "right", no_wrap=True)
    for row in results["per_class"]:
        share = row["pixels"] / max(1, results["pixels"])
        figures = [f"{row[name]:.1%}" for name in ("iou", "accuracy")] if row["pixels"] else ["absent", ""]
        table.add_row(row["class"], *figures, f"{share:.1%}" if row["pixels"] else "")
    console.print(table)
    most = results["majority"]
    for text in (
        f"mIoU {results['miou']:.2%}, pixel accuracy {results['pixel_accuracy']:.2%}, "
        f"mean accuracy {results['mean_accuracy']:.2%}; {results['images']:,} images, {results['pixels']:,} pixels",
        f"all taken for {most['class']}: mIoU {most['miou']:.2%}, pixel accuracy {most['pixel_accuracy']:.2%}",
        *([f"absent, and left out of the means: {', '.join(results['absent'])}"] if results["absent"] else []),
        *([counted_as_zero(results)] if results["absent_but_predicted"] else []),
    ):
        console.print(text, highlight=False, markup=False)


def counted_as_zero(results: dict[str, Any]) -> str:
    """What the mIoU is where classes count that are absent and yet predicted."""
    names, present = results["absent_but_predicted"], len(results["per_class"]) - len(results["absent"])
    miou = results["miou"] * present / (present + len(names))
    taken = f"some pixels were taken for {', '.join(names)}"
    return f"{taken}; with an IoU of 0 for that, as in mmsegmentation, mIoU {miou:.2%}"


@torch.no_grad()
def draw(segmenter: Segmenter, scenes: LabelledScenes, view: dict[str, Any]) -> Any:
    """Some scenes of a split, spread over it: image, labels, prediction."""
    count = min(PICTURES, len(scenes))
    rows = []
    for number in range(count):
        image, labels = scenes[(2 * number + 1) * len(scenes) // (2 * count)]
        predicted = inference.predict(segmenter.net, image, **view).cpu().numpy()
        rows.append(comparison(image, labels, predicted, segmenter.labelling))
    return below(rows)


def _write(folder: Path, results: dict[str, Any], confusion: Tensor, classes: Sequence[str]) -> None:
    pairs = [
        {"class": classes[label], "prediction": classes[guess], "pixels": int(confusion[label, guess])}
        for label, guess in confusion.nonzero().tolist()
    ]
    for name, rows in (("per_class.csv", results["per_class"]), ("confusion.csv", pairs)):
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(rows[0]) if rows else ["class"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(folder / name, lambda file, text=text: file.write(text.getvalue().encode()))
