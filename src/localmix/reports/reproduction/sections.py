"""The sections of the page about runs, one for each kind of results that a command of localmix writes."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from localmix.axes import MIXERS
from localmix.reports.ablation.effort import effort
from localmix.reports.cost_table import megabytes
from localmix.reports.metrics import read_metrics
from localmix.reports.reproduction.page import Block, Cell, Grid, Heading, Mark, Paragraph, Picture, cells

Content = dict[str, Any]


@dataclass(frozen=True)
class Found:
    """What a folder or file holds: its kind, its content, and the folder that its pictures lie in."""

    path: Path
    kind: str
    content: Content
    folder: Path


def section(found: Found) -> list[Block]:
    """What the page says of it; a `KeyError` or `TypeError` where something is missing in it."""
    return SECTIONS[found.kind](found)


def _origin(found: Found) -> Paragraph:
    """How it was made and on what."""
    content = found.content
    environment = content.get("environment", content)
    hardware, versions = environment["hardware"], environment["versions"]
    threads = f"{hardware['threads']} thread{'s' if hardware['threads'] != 1 else ''} of {hardware['cpu']}"
    commit = content.get("commit")
    revision = f", commit `{commit[:12]}`{' with changes' if commit.endswith('+') else ''}" if commit else ""
    return Paragraph(f"`{content['command']}`{revision}; {hardware['gpu'] or threads}, torch {versions['torch']}.")


def _picture(found: Found, name: str, caption: str) -> list[Block]:
    file = found.folder / name
    return [Picture(file, caption)] if file.is_file() else []


def _compare(found: Found) -> list[Block]:
    content = found.content
    settings, rows = content["settings"], content["rows"]
    name, seeds = Path(settings["data"]).name, len(settings["seeds"])
    header = ("mixer", "network", "parameters", "MACs", "training images/s", "inference images/s", "top-1 %")
    table = [
        (
            Cell(row["title"]),
            Cell(f"`{row['model']}`"),
            *cells(
                (
                    Cell(f"{row['parameters'] / 1e6:.3f} M", Mark.HERE),
                    f"{row['macs'] / 1e6:.1f} M",
                    f"{row['training_images_per_second']:,.0f}",
                    f"{row['inference_images_per_second']:,.0f}",
                    _with_spread(row["top1_mean"], row["top1_std"]),
                ),
                Mark.HERE,
            ),
        )
        for row in rows
    ]
    spread = f"± is the standard deviation over {seeds} seeds" if seeds > 1 else "one seed, so no spread is known"
    return [
        Heading(f"The mixers on {name}", 3),
        Paragraph(
            f"One skeleton, recipe and order of the images: {settings['img_size']} px, {settings['epochs']} epochs of "
            f"{content['images']['train']:,} images, {content['images']['validation']:,} for validation; {spread}. "
            f"Images per second: batch {content['throughput']['batch_size']}, "
            f"{content['environment']['hardware']['gpu'] or 'one thread of the CPU'}."
        ),
        _origin(found),
        Grid(header, tuple(table), num_left=2),
        *_picture(found, "figure.png", f"Top-1 on {name} against multiply-adds and images per second"),
    ]


def _with_spread(value: float, std: float | None) -> str:
    return f"{100 * value:.2f}" + ("" if std is None else f" ± {100 * std:.2f}")


def _ablation(found: Found) -> list[Block]:
    content = found.content
    settings = content["settings"]
    header = ("point", "parameters", "MACs", "top-1 %", "95% interval", "difference", "95% interval", "p (Holm)")
    blocks: list[Block] = [
        Heading(f"Ablation: {settings['model']} on {Path(settings['data']).name}", 3),
        Paragraph(
            f"{settings['img_size']} px, {settings['epochs']} epoch{'s' if settings['epochs'] > 1 else ''}, "
            f"{len(settings['seeds'])} seed(s): {effort(content)}. Differences in percentage points to the baseline of "
            "the study, paired by seed."
        ),
        _origin(found),
    ]
    for study in content["studies"]:
        rows = []
        for point in study["points"]:
            is_baseline = point["label"] == study["baseline"]
            rows.append(
                cells(
                    (
                        point["label"],
                        f"{point['parameters'] / 1e6:.3f} M",
                        f"{point['macs'] / 1e6:.2f} M",
                        f"{100 * point['top1_mean']:.2f}",
                        _interval(point["top1_interval"]),
                        Cell("baseline") if is_baseline else f"{100 * point['difference']:+.2f}",
                        "-" if is_baseline else _interval(point["difference_interval"], "+"),
                        "-" if is_baseline or point["p_holm"] is None else f"{point['p_holm']:.3f}",
                    ),
                    Mark.HERE,
                )
            )
        blocks += [Paragraph(f"{study['title']}. {study['question']}"), Grid(header, tuple(rows))]
    if content["missing"]:
        blocks.append(Paragraph(f"Not complete yet: {', '.join(content['missing'])}."))
    return [*blocks, *_picture(found, "figure.png", "Differences to the baseline of each study")]


def _interval(interval: Sequence[float] | None, sign: str = "") -> str:
    return "-" if not interval else " to ".join(f"{100 * end:{sign}.2f}" for end in interval)


def _evaluation(found: Found) -> list[Block]:
    content = found.content
    figures = [
        ("top-1 %", f"{100 * content['top1']:.2f}"),
        ("top-5 %", f"{100 * content['top5']:.2f}"),
        ("mean over classes %", f"{100 * content['mean_class_accuracy']:.2f}"),
        ("loss", f"{content['loss']:.4f}"),
        ("images", f"{content['images']:,}"),
        *([("images/s", f"{content['images_per_second']:,.1f}")] if content["images_per_second"] else []),
    ]
    return [
        Heading(f"`{content['model']['name']}` on {Path(content['data']['name']).name}, {content['split']}", 3),
        _origin(found),
        Grid(("", "value"), tuple(cells(figure, Mark.HERE) for figure in figures)),
        *_picture(found, "confusion.png", "Confusion of the classes"),
    ]


def _fit(found: Found) -> list[Block]:
    metrics = read_metrics(found.path)
    settings = found.content.get("settings", {})
    name, data = settings.get("model.name", found.path.name), settings.get("data.root")
    steps, losses = metrics.points("loss")
    rows = [("steps", f"{int(steps[-1]):,}" if len(steps) else "0", "-")]
    for column in metrics.columns:
        _, values = metrics.points(column)
        if column in ("epoch", "step", "lr") or not len(values):
            continue
        is_loss = column.endswith("loss")
        best = np.min(values) if is_loss else np.max(values)
        rows.append((column, *(f"{v:.4f}" if is_loss else f"{100 * v:.2f} %" for v in (values[-1], best))))
    blocks: list[Block] = [
        Heading(f"Training of `{name}`" + (f" on {Path(data).name}" if data else ""), 3),
        *([_origin(found)] if found.content else [Paragraph(f"`{found.path.name}`")]),
        Grid(("metric", "last", "best"), tuple(cells(row, Mark.HERE) for row in rows)),
    ]
    if len(losses):
        from localmix.reports.curves import draw

        file = io.BytesIO()
        draw({name: metrics}, file)
        blocks.append(Picture(file.getvalue(), f"Loss, accuracy and learning rate of {name}"))
    return blocks


def _networks(found: Found) -> list[Block]:
    content = found.content
    labels = list(dict.fromkeys(row["label"] for row in content["rows"]))
    ways = list(dict.fromkeys(row["direction"] for row in content["rows"]))
    at = {(row["label"], row["direction"]): row for row in content["rows"]}

    def rate(label: str, way: str) -> Cell:
        row = at.get((label, way))
        if row is None:
            return Cell("-")
        if row["refused"]:
            return Cell("", Mark.MISSING, f"not timed: {row['refused']}")
        return Cell(f"{row['images_per_second']:,.1f}", Mark.HERE)

    settings = content["settings"]
    return [
        Heading("Images per second", 3),
        Paragraph(
            f"Batches of {settings['batch']} images of {settings['img_size']} px in {settings['dtype']}; the median of "
            f"{settings['rounds']} turns. The paper's own images per second are of another machine and were read in no "
            "public source: they are not shown."
        ),
        _origin(found),
        Grid(
            ("network", *(f"{way} images/s" for way in ways)),
            tuple((Cell(f"`{label}`"), *(rate(label, way) for way in ways)) for label in labels),
        ),
        *_interrupted(content),
        *_picture(found, "figure.png", "Networks beside other ways to compute them"),
    ]


def _operators(found: Found) -> list[Block]:
    content = found.content
    settings = content["settings"]
    return [
        Heading("Time of the operators", 3),
        Paragraph(
            f"{len(content['rows'])} rows, batch {settings['batch']}, {settings['dtype']}: each operator beside other "
            "ways to compute it, against the limit of the hardware."
        ),
        _origin(found),
        *_interrupted(content),
        *_picture(found, "figure.png", "Operators beside other ways to compute them"),
    ]


def _interrupted(content: Content) -> list[Block]:
    return [] if content["is_complete"] else [Paragraph("The run was interrupted: the rest is missing.")]


def _scaling(found: Found) -> list[Block]:
    content = found.content
    blocks: list[Block] = [Heading("How the cost of a mixer grows", 3), _origin(found)]
    for quantity, exponents in content["exponents"].items():
        of = "multiply-adds" if quantity == "macs" else "time"
        rows = [
            cells((MIXERS[name].title, *(f"{by_axis[axis]:.2f}" for axis in ("kernel", "side", "channels"))), Mark.HERE)
            for name, by_axis in exponents.items()
        ]
        header = (f"exponents of {of}", "side of the kernel", "side of the map", "channels")
        blocks.append(Grid(header, tuple(rows)))
    return [*blocks, *_picture(found, "figure.png", "Multiply-adds of each mixer against its sizes")]


def _loader(found: Found) -> list[Block]:
    content, settings = found.content, found.content["settings"]
    views = "crops and flips" if settings["plain"] else "the augmentation of the paper"
    rows = [cells((row["label"], f"{row['images_per_second']:,.1f}"), Mark.HERE) for row in content["rows"]]
    return [
        Heading("Loading of images", 3),
        Paragraph(
            f"{settings['images']:,} images at {settings['img_size']} px with {views}, "
            f"{settings['workers']} process(es)."
        ),
        _origin(found),
        Grid(("loader", "images/s"), tuple(rows)),
    ]


def _cost(found: Found) -> list[Block]:
    settings = found.content["settings"]
    header = ("network", "pixels", "parameters", "MACs", "kept for backward", "dynamic weights written out")
    rows = [
        (
            Cell(f"`{row['model']}`"),
            Cell(" x ".join(map(str, row["img_size"]))),
            Cell(f"{row['parameters'] / 1e6:.3f} M", Mark.HERE),
            Cell(f"{row['macs'] / 1e9:.3f} G", Mark.HERE),
            Cell(megabytes(row["saved_bytes"]) or "-", Mark.HERE),
            Cell(megabytes(row["dynamic_weight_bytes"]) or "-", Mark.HERE),
        )
        for row in found.content["rows"]
    ]
    return [
        Heading(f"Costs: {settings['task']}", 3),
        Paragraph(f"MACs of one image; memory of {settings['batch_size']} images in {settings['precision']}."),
        _origin(found),
        Grid(header, tuple(rows), num_left=2),
    ]


SECTIONS: dict[str, Callable[[Found], list[Block]]] = {
    "compare": _compare,
    "ablation": _ablation,
    "evaluation": _evaluation,
    "fit": _fit,
    "networks": _networks,
    "operators": _operators,
    "loader": _loader,
    "scaling": _scaling,
    "cost": _cost,
}
