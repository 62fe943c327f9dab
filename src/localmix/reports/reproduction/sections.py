"""The sections of the page about runs, one for each kind of results that a command of localmix writes."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from localmix.axes import MIXERS
from localmix.reports.cost_table import megabytes
from localmix.reports.reproduction import accuracy
from localmix.reports.reproduction.found import Content, Found, origin, picture
from localmix.reports.reproduction.page import Block, Cell, Grid, Heading, Mark, Paragraph, cells


def section(found: Found) -> list[Block]:
    """What the page says of it; a `KeyError` or `TypeError` where something is missing in it."""
    return SECTIONS[found.kind](found)


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
        origin(found),
        Grid(
            ("network", *(f"{way} images/s" for way in ways)),
            tuple((Cell(f"`{label}`"), *(rate(label, way) for way in ways)) for label in labels),
        ),
        *_interrupted(content),
        *picture(found, "figure.png", "Networks beside other ways to compute them"),
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
        origin(found),
        *_interrupted(content),
        *picture(found, "figure.png", "Operators beside other ways to compute them"),
    ]


def _interrupted(content: Content) -> list[Block]:
    return [] if content["is_complete"] else [Paragraph("The run was interrupted: the rest is missing.")]


def _scaling(found: Found) -> list[Block]:
    content = found.content
    blocks: list[Block] = [Heading("How the cost of a mixer grows", 3), origin(found)]
    for quantity, exponents in content["exponents"].items():
        of = "multiply-adds" if quantity == "macs" else "time"
        rows = [
            cells((MIXERS[name].title, *(f"{by_axis[axis]:.2f}" for axis in ("kernel", "side", "channels"))), Mark.HERE)
            for name, by_axis in exponents.items()
        ]
        header = (f"exponents of {of}", "side of the kernel", "side of the map", "channels")
        blocks.append(Grid(header, tuple(rows)))
    return [*blocks, *picture(found, "figure.png", "Multiply-adds of each mixer against its sizes")]


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
        origin(found),
        Grid(("loader", "images/s"), tuple(rows)),
    ]


def _views(found: Found) -> list[Block]:
    content, settings = found.content, found.content["settings"]
    views = "crops and flips" if settings["plain"] else "the augmentation of the paper"
    rows = [
        cells((name, f"{median(seconds) / settings['images'] * 1e6:,.0f}"), Mark.HERE)
        for name, seconds in content["seconds"].items()
    ]
    return [
        Heading(f"Images of {settings['img_size']} px with {views}, beside timm", 3),
        Paragraph(
            f"{settings['images']:,} image files of {settings['data']}, decoded, augmented with the same random draws "
            f"and collated, {settings['rounds']} times in turns: localmix is {content['times_as_fast_as_timm']:.2f} "
            "times as fast, the median over the turns."
        ),
        origin(found),
        Grid(("by", "µs of one core for an image"), tuple(rows)),
    ]


def _epoch(found: Found) -> list[Block]:
    content, settings = found.content, found.content["settings"]
    rows = [cells((name, f"{median(s):.2f}"), Mark.HERE) for name, s in content["seconds"].items()]
    return [
        Heading("An epoch of training beside timm's loop", 3),
        Paragraph(
            f"{settings['model']} on {settings['images']:,} images of {settings['data']} at {settings['img_size']} px, "
            f"batches of {settings['batch']}, {settings['workers']} loading process(es), {settings['rounds']} epochs "
            f"of each in turns: an epoch of localmix takes {content['times_as_long_as_timm']:.2f} times as long, the "
            "median over the turns."
        ),
        origin(found),
        Grid(("by", "seconds of an epoch"), tuple(rows)),
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
        origin(found),
        Grid(header, tuple(rows), num_left=2),
    ]


SECTIONS: dict[str, Callable[[Found], list[Block]]] = {
    **accuracy.SECTIONS,
    "networks": _networks,
    "operators": _operators,
    "loader": _loader,
    "views": _views,
    "epoch": _epoch,
    "scaling": _scaling,
    "cost": _cost,
}
