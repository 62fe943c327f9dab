"""Some scenes of a set in one picture, with their label maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from localmix.tasks.scenes import CLASSES
from localmix.tasks.scenes.composing import PALETTE

GAP = 4
CAPTION = 14
"""Height of the line of names [pixels]."""


def contact_sheet(folder: Path, split: str, number: int) -> Image.Image:
    """The first scenes of a split, a column each, under one another as images and as label maps; names beneath."""
    columns = [_column(folder, split, index) for index in range(number)]
    width, height = columns[0].size
    legend = _legend(number * (width + GAP) + GAP)
    sheet = Image.new("RGB", (legend.width, height + 2 * GAP + legend.height), "white")
    for place, column in enumerate(columns):
        sheet.paste(column, (GAP + place * (width + GAP), GAP))
    sheet.paste(legend, (0, height + 2 * GAP))
    return sheet


def _column(folder: Path, split: str, index: int) -> Image.Image:
    with Image.open(folder / "images" / split / f"{index:06}.jpg") as file:
        image = file.convert("RGB")
    with Image.open(folder / "annotations" / split / f"{index:06}.png") as file:
        labels = file.convert("RGB")
    column = Image.new("RGB", (image.width, 2 * image.height + GAP), "white")
    column.paste(image, (0, 0))
    column.paste(labels, (0, image.height + GAP))
    return column


def _legend(width: int) -> Image.Image:
    """The names in the colours of the label maps, in as many lines as they need."""
    colours = np.array(PALETTE, np.uint8).reshape(-1, 3)
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    places, x, line = [], GAP, 0
    for name in CLASSES:
        needed = CAPTION + GAP + round(measure.textlength(name)) + 3 * GAP
        if x + needed > width and x > GAP:
            x, line = GAP, line + 1
        places.append((x, line * (CAPTION + GAP)))
        x += needed
    legend = Image.new("RGB", (width, (line + 1) * (CAPTION + GAP)), "white")
    draw = ImageDraw.Draw(legend)
    for name, colour, (left, top) in zip(CLASSES, colours, places, strict=True):
        draw.rectangle((left, top, left + CAPTION - 3, top + CAPTION - 3), fill=tuple(map(int, colour)))
        draw.text((left + CAPTION + GAP, top), name, fill="black")
    return legend
