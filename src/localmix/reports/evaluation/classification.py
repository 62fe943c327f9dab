"""`localmix validate` and `localmix test`: what a network answers to labelled images."""

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

from localmix.arguments import choice, not_negative, positive
from localmix.reports.benchmarks.rows import known_device
from localmix.reports.environment import command, commit, environment
from localmix.reports.evaluation.outcome import PRECISIONS, TTA, Outcome, answer, batches, computed_in
from localmix.reports.evaluation.split import SPLITS, load_split, matched, readable
from localmix.reports.evaluation.trained import Trained, load_trained
from localmix.reports.evaluation.view import View
from localmix.reports.progress import Display
from localmix.reports.results import write_json
from localmix.reports.throughput import images_per_second
from localmix.tasks.classification.data import EMBEDDED
from localmix.tasks.engine.output import output_folder
from localmix.tasks.engine.workers import default_workers
from localmix.writing import write_atomically

AMONG = ("net", "data")
"""Whose classes compete."""


def evaluate(
    model: str | Path,
    *,
    split: str = "validation",
    data: str | None = None,
    data_root: str | None = None,
    download: bool = False,
    on_corrupt: str = "error",
    weights: str | None = None,
    pretrained: bool = False,
    checkpoint: Path | str | None = None,
    img_size: int | None = None,
    crop_pct: float | None = None,
    interpolation: str | None = None,
    tta: str = "none",
    among: str = "net",
    batch_size: int = 64,
    workers: int | None = None,
    device: str = "auto",
    precision: str = "float32",
    throughput: int | None = None,
    output: Path | str | None = None,
) -> dict[str, Any]:
    """Evaluate a network on labelled images; print the figures, and write them down if there is an `output`.

    Args:
        model, weights, pretrained, checkpoint: see `localmix.reports.evaluation.trained.load_trained`.
        split: "validation" or "test", of `data`, as data_root and download: see
            `localmix.reports.evaluation.split.load_split`. By default of what the run of a checkpoint was trained on,
            else of the embedded images.
        on_corrupt: "error" stops at a file that cannot be decoded, "skip" leaves such files out and counts them.
        img_size: side of the square that the network sees [pixels]; by default what it was trained on.
        crop_pct: the shorter side is resized to floor(img_size / crop_pct), of which the centre is cropped.
        interpolation: "bicubic", "bilinear", "lanczos" or "nearest". These two by default as the network wants them.
        tta: "flip" takes the mean of the probabilities of an image and its mirror image.
        among: whose classes compete, where the network knows more than the data has: "net" or "data".
        batch_size: images of a call; the figures do not depend on it but for rounding.
        workers: processes that decode images; by default see `localmix.tasks.engine.workers.default_workers`.
        device: "auto", "cpu" or "cuda".
        precision: "float32" or "bfloat16" (by autocast).
        throughput: images of a batch to time; None: do not time. By the protocol of the official code: 50 passes to
            warm up, 30 that are timed, on random images of the same size, in the same precision.
        output: folder for results.json, per_class.csv, confusion.csv and confusion.png.

    Returns:
        The content of results.json.

    Raises:
        ValueError: an argument is wrong; names it.
        CorruptImage: an image cannot be decoded; names it (a ValueError).
    """
    choice("split", split, SPLITS)
    choice("on_corrupt", on_corrupt, ("error", "skip"))
    choice("tta", tta, TTA)
    choice("among", among, AMONG)
    choice("precision", precision, tuple(PRECISIONS))
    positive("batch_size", batch_size)
    if throughput is not None:
        positive("throughput", throughput)
    if workers is not None:
        not_negative("workers", workers)
    if output is not None:
        output_folder(output)
    device = known_device(device)
    trained = load_trained(model, weights=weights, pretrained=pretrained, checkpoint=checkpoint, img_size=img_size)
    view = trained.view.changed(img_size=img_size, crop_pct=crop_pct, interpolation=interpolation)
    _refuse_size(trained, view)
    net = trained.net.to(device)
    if data is None:
        data, folder = trained.data
        data_root = data_root or folder
    with Display() as display:
        if data is None:
            display.say(
                "nothing says what the network was trained on: it is shown the embedded images; --data names others"
            )
        images = load_split(data or EMBEDDED, split, data_root=data_root, download=download, announce=display.say)
        outputs, names = matched(images, trained.classes, trained.num_classes, display.say)
        whole = among == "net"
        if workers is None:
            workers = default_workers(in_memory=images.in_memory, device=device)
        loader = batches(
            images.pairs,
            view,
            batch_size,
            labels=outputs if whole else None,
            workers=workers,
            pin_memory=device == "cuda",
        )
        outcome = answer(
            net,
            display.track(loader, split, len(loader)),
            view,
            outputs=None if whole else outputs,
            tta=tta,
            precision=precision,
            device=device,
            skip_corrupt=on_corrupt == "skip",
        )
        speed = None
        if throughput is not None:
            pixels = torch.rand(throughput, view.channels, *view.size, device=device)
            with computed_in(precision, device):
                speed = images_per_second(net, pixels, track=display.track)
    names = readable(names if whole else images.classes)
    per_class = outcome.per_class(names)
    results = {
        "kind": "evaluation",
        "split": split,
        **outcome.figures(),
        "images_per_second": speed,
        "absent": [row["class"] for row in per_class if not row["images"]],
        "per_class": per_class,
        "model": {
            "name": trained.name,
            "parameters": sum(p.numel() for p in net.parameters()),
            "classes": trained.num_classes,
            **trained.source,
        },
        "data": {
            "name": images.name,
            "classes": len(images.classes),
            "fingerprint": images.fingerprint,
            "skipped": outcome.corrupt,
        },
        "view": view.facts(),
        "settings": {
            "tta": tta,
            "among": among,
            "batch_size": batch_size,
            "precision": precision,
            "throughput_batch_size": throughput,
        },
        "environment": environment(device),
        "command": command(),
        "commit": commit(),
    }
    try:
        _print(results, outcome, names)
    finally:  # also where nobody reads on, such as head
        if output is not None:
            _write(Path(output), results, outcome, names)
    return results


def _refuse_size(trained: Trained, view: View) -> None:
    """Raise if the network does not take images of that size, before any is read."""
    try:
        with torch.inference_mode():
            trained.net(torch.zeros(1, view.channels, *view.size))
    except (AssertionError, RuntimeError, ValueError) as error:
        size = " x ".join(map(str, view.size))
        raise ValueError(f"img_size: {trained.name} does not take images of {size} pixels: {error}") from error


def _print(results: dict[str, Any], outcome: Outcome, names: Sequence[str]) -> None:
    console = Console(file=sys.stdout)
    if not console.is_terminal:
        # nothing limits the width of a file
        console = Console(file=sys.stdout, width=200)
    table = Table(title=title(results), box=box.SIMPLE_HEAD, title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for name, value in lines(results):
        table.add_row(name, value)
    console.print(table)
    for text in remarks(results, outcome, names):
        console.print(text, highlight=False, markup=False)


def title(results: dict[str, Any]) -> str:
    """What was evaluated on what."""
    return f"{results['model']['name']} on {Path(results['data']['name']).name}, {results['split']}"


def lines(results: dict[str, Any]) -> list[tuple[str, str]]:
    """The figures, for people."""
    view = results["view"]
    size = " x ".join(map(str, dict.fromkeys(view["size"]))) + " px"
    how = "largest square" if view["crop_pct"] is None else f"crop {view['crop_pct']:g}, {view['interpolation']}"
    speed = results["images_per_second"]
    hardware = results["environment"]["hardware"]
    where = hardware["gpu"] or f"{hardware['threads']} threads of {hardware['cpu']}"
    return [
        ("top-1", f"{results['top1']:.3%}"),
        *([("top-5", f"{results['top5']:.3%}")] if len(results["per_class"]) > 5 else []),
        ("mean over classes", f"{results['mean_class_accuracy']:.3%}"),
        ("loss", f"{results['loss']:.4f}"),
        ("images", f"{results['images']:,}"),
        ("view", f"{size}, {how}" + (", and its mirror image" if results["settings"]["tta"] == "flip" else "")),
        *([(f"images/s on {where}", f"{speed:,.1f}")] if speed else []),
    ]


def remarks(results: dict[str, Any], outcome: Outcome, names: Sequence[str]) -> list[str]:
    """What else a reader should know, a line each."""
    present = [row for row in results["per_class"] if row["images"]]
    worst = sorted(present, key=lambda row: row["top1"])[:3]
    mistakes = sorted((pair for pair in outcome.confusion() if pair[0] != pair[1] != -1), key=lambda pair: -pair[2])
    absent, skipped = results["absent"], results["data"]["skipped"]
    texts = []
    if len(present) > 1:
        texts.append("lowest: " + ", ".join(f"{row['class']} {row['top1']:.1%} of {row['images']}" for row in worst))
    if mistakes:
        texts.append("most often: " + ", ".join(f"{names[a]} taken for {names[b]} ({n})" for a, b, n in mistakes[:3]))
    if absent:
        more = ", ..." if len(absent) > 5 else ""
        texts.append(f"no images of {len(absent)} of {len(names)} classes: {', '.join(absent[:5])}{more}")
    if skipped:
        texts.append("\n  ".join([f"left out {len(skipped)} image(s) that cannot be decoded:", *skipped[:10]]))
    if results["not_finite"]:
        texts.append(f"the network gave no finite numbers for {results['not_finite']} images; they count as wrong")
    return texts


def _write(folder: Path, results: dict[str, Any], outcome: Outcome, names: Sequence[str]) -> None:
    from localmix.reports.evaluation.confusion import draw

    rows = results["per_class"]
    confusion = [
        {"class": names[label], "prediction": names[guess] if guess >= 0 else "", "images": number}
        for label, guess, number in outcome.confusion()
    ]
    for name, table in (("per_class.csv", rows), ("confusion.csv", confusion)):
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
        write_atomically(folder / name, lambda file, text=text: file.write(text.getvalue().encode()))
    write_atomically(
        folder / "confusion.png",
        lambda file: draw(outcome.confusion(), names, file, title=title(results), note=f"top-1 {results['top1']:.2%}"),
    )
    # the last, so that where it is everything is
    write_json(folder / "results.json", results)
    print(f"{folder}: results.json, per_class.csv, confusion.csv, confusion.png")
