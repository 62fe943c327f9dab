"""`localmix cost`: what networks cost, for each task and at any size, beside what the paper states."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from localmix.arguments import Size, choice, pair, positive
from localmix.reports.benchmarks.rows import known_device, threads_of_cpu
from localmix.reports.cost_subject import InPrecision, Subject
from localmix.reports.environment import command, commit, environment
from localmix.reports.evaluation.outcome import PRECISIONS
from localmix.reports.paper import NUM_CLASSES, TASKS
from localmix.reports.progress import Display
from localmix.reports.results import write_json
from localmix.reports.throughput import throughput
from localmix.tasks.engine.output import output_file

Row = dict[str, Any]


def cost_table(
    models: Sequence[str],
    *,
    task: str = "classification",
    img_size: Size | Sequence[int] | None = None,
    batch_size: int = 2,
    num_classes: int | None = None,
    precision: str = "float32",
    layers: bool = False,
    timed: bool = False,
    device: str = "auto",
    threads: int | None = None,
    rounds: int = 5,
    output: Path | str | None = None,
) -> dict[str, Any]:
    """Count what networks cost, print it as a table and write it as JSON.

    Args:
        models: names that timm knows; of the backbones if the task is not classification.
        task: "classification"; "detection", Cascade Mask R-CNN; or "segmentation", UPerNet.
        img_size: H, W [pixels]; an int counts for both. By default that of the network, or what the paper counts a
            detector (1280 x 800) and a segmenter (512 x 2048) at.
        batch_size: images that memory and throughput are of; multiply-adds are those of one image.
        num_classes: by default those of ImageNet, COCO or ADE20K.
        precision: "float32", or "bfloat16" for autocast: of memory and throughput.
        layers: also print the weights of each mixer.
        timed: whether images per second are measured.
        device: "auto", "cpu" or "cuda": what is timed, and on a GPU what its peak memory is.
        threads: of the CPU, where it is timed.
        rounds: timed turns of each network.
        output: file to write into; nothing is written if None.

    Returns:
        The content of the file.

    Raises:
        ValueError: an argument is wrong; names it.
    """
    if not models:
        raise ValueError("models: expected one or more names of networks, got none")
    choice("task", task, TASKS)
    choice("precision", precision, tuple(PRECISIONS))
    positive("batch_size", batch_size)
    positive("rounds", rounds)
    classes = positive("num_classes", NUM_CLASSES[task] if num_classes is None else num_classes)
    if isinstance(img_size, Sequence):
        img_size = (img_size[0], img_size[-1]) if len(img_size) in (1, 2) else pair("img_size", tuple(img_size))  # ty: ignore[invalid-argument-type] -- it refuses
    size = None if img_size is None else pair("img_size", img_size)
    if output is not None:
        output_file(output, ".json")
    device = known_device(device)
    with Display() as display, threads_of_cpu(threads):
        subjects = [Subject(name, task, size, classes) for name in dict.fromkeys(models)]
        rows = [
            subject.row(batch_size, precision, device) for subject in display.track(subjects, "counted", len(subjects))
        ]
        if timed:
            for row, speed in zip(rows, _speeds(subjects, batch_size, precision, device, rounds), strict=True):
                row.update(speed)
        results = {
            "kind": "cost",
            "unit": "MACs: multiply-adds of convolutions, linear layers and mixers; half of FLOPs",
            "rows": rows,
            "settings": {
                "task": task,
                "batch_size": batch_size,
                "num_classes": classes,
                "precision": precision,
                "timed": timed,
                "rounds": rounds,
            },
            "environment": environment(device),
            "command": command(),
            "commit": commit(),
        }
    _print(results, layers)
    if output is not None:
        write_json(Path(output), results)
        print(f"{output}: everything, with the weights of each layer")
    return results


def _speeds(
    subjects: Sequence[Subject], batch_size: int, precision: str, device: str, rounds: int
) -> list[dict[str, float]]:
    """Of each network; those of one size take turns."""
    speeds: dict[str, dict[str, float]] = {}
    for size in dict.fromkeys(subject.size for subject in subjects):
        group = [subject for subject in subjects if subject.size == size]
        nets = {s.name: InPrecision(s.new(), precision, device).to(device) for s in group}
        measured = throughput(nets, *group[0].images(batch_size, device), rounds=rounds, loss=group[0].loss())
        for name, speed in measured.items():
            speeds[name] = {
                "training_images_per_second": speed.training,
                "inference_images_per_second": speed.inference,
            }
    return [speeds[subject.name] for subject in subjects]


def _print(results: dict[str, Any], layers: bool) -> None:
    settings, rows = results["settings"], results["rows"]
    console = Console(file=sys.stdout)
    if not console.is_terminal:
        # nothing limits the width of a file
        console = Console(file=sys.stdout, width=200)
    batch = f"{settings['batch_size']} image{'s' if settings['batch_size'] > 1 else ''}"
    columns: list[tuple[str, Callable[[Row], str | None]]] = [
        ("network", lambda row: row["model"]),
        ("pixels", lambda row: " x ".join(map(str, row["img_size"]))),
        ("parameters", lambda row: f"{row['parameters'] / 1e6:,.3f} M"),
        ("MACs", lambda row: f"{row['macs'] / 1e9:,.3f} G"),
        ("kept for\nbackward", lambda row: megabytes(row["saved_bytes"])),
        ("dynamic weights\nwritten out", lambda row: megabytes(row["dynamic_weight_bytes"])),
        ("peak of\na step", lambda row: row["peak_bytes"] and megabytes(row["peak_bytes"])),
        ("training\nimages/s", lambda row: _rate(row["training_images_per_second"])),
        ("inference\nimages/s", lambda row: _rate(row["inference_images_per_second"])),
    ]
    paper: list[tuple[str, Callable[[Row], str | None]]] = [
        ("network", lambda row: row["model"]),
        ("in the paper", lambda row: row["paper"] and row["paper"]["title"]),
        ("parameters\npublished", lambda row: stated(row, "parameters")),
        ("parameters of\nits architecture", lambda row: stated(row, "parameters_counted")),
        ("MACs published\n(as FLOPs)", lambda row: stated(row, "macs")),
        ("MACs of its\narchitecture", lambda row: stated(row, "macs_counted")),
    ]
    title = f"{settings['task']}; MACs of one image, memory of {batch} in {settings['precision']}"
    console.print(_table(title, columns, rows))
    known = [row for row in rows if row["paper"]]
    if known:
        console.print(_table("beside the paper; in brackets how much more is counted here", paper, known))
    if layers:
        for row in (row for row in rows if row["layers"]):
            weights: list[tuple[str, Callable[[Row], str | None]]] = [
                ("mixer", lambda layer: layer["layer"]),
                ("weight [B, H, W, G, K]", lambda layer: json.dumps(layer["shape"])),
                ("dynamic", lambda layer: "yes" if layer["is_dynamic"] else "no"),
                ("written out", lambda layer: megabytes(layer["num_bytes"])),
            ]
            console.print(_table(f"{row['model']}: weights of its mixers", weights, row["layers"]))


def _table(title: str, columns: Sequence[tuple[str, Callable[[Row], str | None]]], rows: Sequence[Row]) -> Table:
    """Columns that say nothing of any row are left out."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    shown = [(name, [value(row) for row in rows]) for name, value in columns]
    shown = [(name, cells) for index, (name, cells) in enumerate(shown) if not index or any(cells)]
    for index, (name, _) in enumerate(shown):
        table.add_column(name, justify="right" if index else "left", no_wrap=True, overflow="fold")
    for cells in zip(*(cells for _, cells in shown), strict=True):
        table.add_row(*(cell or "-" for cell in cells))
    return table


def megabytes(num_bytes: int | None) -> str | None:
    """For people.

    >>> megabytes(1_234_567), megabytes(37_632)
    ('1.2 MB', '0.038 MB')
    """
    if num_bytes is None:
        return None
    return f"{num_bytes / 1e6:,.1f} MB" if num_bytes >= 1e6 or not num_bytes else f"{num_bytes / 1e6:.2g} MB"


def stated(row: Row, name: str) -> str | None:
    """A figure of the paper and the difference, for people."""
    figure = row["paper"] and row["paper"][name]
    return figure and f"{figure['text']} ({'equal' if figure['agrees'] else format(figure['difference'], '+.2%')})"


def _rate(value: float | None) -> str | None:
    return None if value is None else f"{value:,.1f}"
