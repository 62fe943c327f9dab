"""Label maps as pictures: in the colours of their classes, over the image, beside a legend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from localmix.tasks.segmentation.labels import IGNORED, Colour, Labelling

VOID: Colour = (0, 0, 0)
INK, PAPER, FRAME = (32, 32, 32), (255, 255, 255), (150, 150, 150)
LEAST_SIDE = 320
"""Height that small images are enlarged to, for a legend beside them to be legible [pixels]."""
ROWS = 20
"""Lines of a legend as high as its picture; with more classes it has more columns."""


class Entry(NamedTuple):
    """A line of a legend."""

    name: str
    colour: Colour
    share: float
    """Of the pixels, in 0..1."""


def draw(
    labels: np.ndarray, labelling: Labelling, image: Image.Image | None = None, *, opacity: float = 0.6
) -> Image.Image:
    """A label map in its colours, void in black; over its image if one is given."""
    table = np.array([*labelling.colours, VOID], dtype=np.uint8)  # IGNORED is the last
    drawn = Image.fromarray(table[labels], "RGB")
    return drawn if image is None else Image.blend(image.convert("RGB"), drawn, opacity)


def entries(labels: np.ndarray | Sequence[np.ndarray], labelling: Labelling) -> list[Entry]:
    """The classes of one or several label maps by their share of all pixels, the largest first.

    A class without a pixel is left out; void comes last, if there is any.

    >>> lines = entries(np.array([[0, 2, 2, IGNORED]]), Labelling(classes=("sky", "tree", "road")))
    >>> [(line.name, line.share) for line in lines]
    [('road', 0.5), ('sky', 0.25), ('void', 0.25)]
    """
    maps = [labels] if isinstance(labels, np.ndarray) else labels
    counts = np.sum([np.bincount(x.ravel() - IGNORED, minlength=labelling.num_classes + 1) for x in maps], axis=0)
    void, *of_classes = (counts / max(1, counts.sum())).tolist()
    found = [Entry(*line) for line in zip(labelling.classes, labelling.colours, of_classes, strict=True) if line[2]]
    found.sort(key=lambda entry: -entry.share)
    return [*found, Entry("void", VOID, void)] if void else found


def legend(lines: Sequence[Entry], height: int) -> Image.Image:
    """Colour, name and share of each entry, in a picture of that height [pixels]; in columns where they are many."""
    if not lines:
        return Image.new("RGB", (1, height), PAPER)
    step = max(15, height // ROWS)
    font = ImageFont.load_default(round(0.72 * step))
    per_column = max(1, (height - step // 3) // step)
    columns = [lines[i : i + per_column] for i in range(0, len(lines), per_column)]
    texts = [[(entry.name, _percent(entry.share)) for entry in column] for column in columns]
    widths = [
        [
            max(int(font.getlength(text)) + 1 for text in texts_of_a_kind)
            for texts_of_a_kind in zip(*column, strict=True)
        ]
        for column in texts
    ]
    picture = Image.new("RGB", (sum(names + shares + 3 * step for names, shares in widths), height), PAPER)
    pencil = ImageDraw.Draw(picture)
    left = 0
    for column, text, (names, shares) in zip(columns, texts, widths, strict=True):
        for row, (entry, (name, share)) in enumerate(zip(column, text, strict=True)):
            top = step // 4 + row * step
            box = (left + step // 2, top + step // 6, left + step // 2 + 2 * step // 3, top + 5 * step // 6)
            pencil.rectangle(box, fill=entry.colour, outline=FRAME)
            middle = top + step // 2
            pencil.text((left + 3 * step // 2, middle), name, INK, font, anchor="lm")
            right = left + 3 * step // 2 + names + step // 2 + shares
            pencil.text((right, middle), share, INK, font, anchor="rm")
        left += names + shares + 3 * step
    return picture


def _percent(share: float) -> str:
    return "<0.1%" if 0 < share < 0.0005 else f"{share:.1%}"


def draw_with_legend(
    labels: np.ndarray, labelling: Labelling, image: Image.Image | None = None, *, opacity: float = 0.6
) -> Image.Image:
    """`draw`, with the legend of the classes that are there to the right; small images are enlarged.

    Args:
        labels: classes [H, W].
        labelling: their names and colours.
        image: that they belong to, of the same size.
        opacity: of the colours over the image.
    """
    picture = enlarged(draw(labels, labelling, image, opacity=opacity))
    return beside([picture, legend(entries(labels, labelling), picture.height)])


def comparison(
    image: Image.Image, labels: np.ndarray, predicted: np.ndarray, labelling: Labelling, *, height: int = LEAST_SIDE
) -> Image.Image:
    """An image, its labels and what was predicted, from left to right, with a legend; labels of their own say which.

    Shares are those of the labels; a class that was predicted alone has none.

    Args:
        height: of the panels [pixels].
    """
    size = (max(1, round(height * image.width / image.height)), height)
    lines = entries(labels, labelling)
    known = {line.name for line in lines}
    lines += [line._replace(share=0.0) for line in entries(predicted, labelling) if line.name not in known]
    panels = []
    for title, panel, resample in (
        ("image", image.convert("RGB"), Image.Resampling.BILINEAR),
        ("labels", draw(labels, labelling), Image.Resampling.NEAREST),
        ("predicted", draw(predicted, labelling), Image.Resampling.NEAREST),
    ):
        panels.append(titled(panel.resize(size, resample), title))
    return beside([*panels, titled(legend(lines, height), "share of the labels")], gap=8)


def titled(picture: Image.Image, title: str) -> Image.Image:
    """A picture with a line of text above it."""
    font = ImageFont.load_default(16)
    width = max(picture.width, int(font.getlength(title)) + 1)
    whole = Image.new("RGB", (width, picture.height + 24), PAPER)
    ImageDraw.Draw(whole).text((0, 12), title, INK, font, anchor="lm")
    whole.paste(picture, (0, 24))
    return whole


def below(pictures: Sequence[Image.Image], *, gap: int = 8) -> Image.Image:
    """Pictures one below the other, their left sides aligned."""
    height = sum(picture.height for picture in pictures) + gap * (len(pictures) - 1)
    whole = Image.new("RGB", (max(picture.width for picture in pictures), height), PAPER)
    top = 0
    for picture in pictures:
        whole.paste(picture, (0, top))
        top += picture.height + gap
    return whole


def enlarged(picture: Image.Image, least: int = LEAST_SIDE) -> Image.Image:
    """A picture whose height is at least so large, by a whole factor: pixels stay squares."""
    factor = -(-least // picture.height)
    size = (picture.width * factor, picture.height * factor)
    return picture if factor == 1 else picture.resize(size, Image.Resampling.NEAREST)


def beside(pictures: Sequence[Image.Image], *, gap: int = 0, colour: Colour = PAPER) -> Image.Image:
    """Pictures from left to right, their tops aligned."""
    width = sum(picture.width for picture in pictures) + gap * (len(pictures) - 1)
    whole = Image.new("RGB", (width, max(picture.height for picture in pictures)), colour)
    left = 0
    for picture in pictures:
        whole.paste(picture, (left, 0))
        left += picture.width + gap
    return whole
