"""Boxes, masks, names and scores drawn on an image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

PALETTE = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
    (245, 245, 245),
)
"""Colours that colour-blind people tell apart: those of Okabe and Ito, with white in place of black."""
SHORTER = 480
"""Smaller images are enlarged to this shorter side, for names that can be read [pixels]."""
OPACITY = 0.45


def draw(
    image: Image.Image, found: dict[str, Tensor], classes: Sequence[str], *, min_score: float = 0.5
) -> Image.Image:
    """The image with what was found in it, the best on top; a class has one colour, and a name that says it too.

    Args:
        image: RGB.
        found: "boxes" [n, 4], "labels" [n], "scores" [n], best first, and perhaps "masks" [n, 1, H, W], on the CPU.
        classes: their names, that of label 1 first.
        min_score: least score of what is drawn.
    """
    scale = max(1, round(SHORTER / min(image.size)))
    picture = image.convert("RGB").resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC)
    best = [index for index, score in enumerate(found["scores"].tolist()) if score >= min_score]
    pixels = np.asarray(picture, dtype=np.float32).copy()
    for index in reversed(best if "masks" in found else []):
        mask = Image.fromarray((255 * found["masks"][index, 0].numpy()).round().astype(np.uint8))
        inside = np.asarray(mask.resize(picture.size, Image.Resampling.BILINEAR)) >= 128
        pixels[inside] = (1 - OPACITY) * pixels[inside] + OPACITY * np.array(_colour(found["labels"][index]))
    picture = Image.fromarray(pixels.round().astype(np.uint8))
    canvas = ImageDraw.Draw(picture)
    width = max(2, min(picture.size) // 200)
    boxes = [[scale * value for value in found["boxes"][index].tolist()] for index in best]
    for index, box in zip(reversed(best), reversed(boxes), strict=True):
        # dark beneath the colour: a line is seen on any ground
        canvas.rectangle(_grown(box, 1), outline=(0, 0, 0), width=width + 2)
        canvas.rectangle(_grown(box, 0), outline=_colour(found["labels"][index]), width=width)
    font = ImageFont.load_default(max(12, min(picture.size) // 32))
    taken: list[tuple[float, float, float, float]] = []
    for index, box in zip(best, boxes, strict=True):
        label = int(found["labels"][index])
        text = f"{classes[label - 1]} {found['scores'][index]:.0%}"
        place = _place(canvas.textbbox((0, 0), text, font=font), box, picture.size, taken)
        taken.append(place)
        canvas.rectangle(place, fill=_colour(label))
        colour = _colour(label)
        dark = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] < 128
        canvas.text((place[0] + 3, place[1] + 1), text, fill=(255, 255, 255) if dark else (0, 0, 0), font=font)
    return picture


def sheet(pictures: Sequence[Image.Image], *, columns: int = 3, gap: int = 8) -> Image.Image:
    """Pictures side by side on white, scaled to one height."""
    height = SHORTER
    scaled = [p.resize((max(1, round(p.width * height / p.height)), height)) for p in pictures]
    rows = [scaled[start : start + columns] for start in range(0, len(scaled), columns)]
    width = max(sum(p.width for p in row) + gap * (len(row) - 1) for row in rows)
    whole = Image.new("RGB", (width, len(rows) * (height + gap) - gap), "white")
    for number, row in enumerate(rows):
        left = 0
        for picture in row:
            whole.paste(picture, (left, number * (height + gap)))
            left += picture.width + gap
    return whole


def _colour(label: int | Tensor) -> tuple[int, int, int]:
    return PALETTE[(int(label) - 1) % len(PALETTE)]


def _grown(box: Sequence[float], by: int) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = box
    return x0 - by, y0 - by, max(x1 + by, x0 - by + 1), max(y1 + by, y0 - by + 1)


def _place(
    text: tuple[float, float, float, float],
    box: Sequence[float],
    size: tuple[int, int],
    taken: Sequence[tuple[float, float, float, float]],
) -> tuple[float, float, float, float]:
    """Where a name goes: above its box, inside it or below, the first of these that covers no other name."""
    width, height = text[2] + 6, text[3] + 4
    left = min(max(0, box[0]), size[0] - width)
    places = []
    for top in (box[1] - height, box[1], box[3] - height, box[3]):
        top = min(max(0, top), size[1] - height)
        places.append((left, top, left + width, top + height))
    free = (place for place in places if not any(_overlap(place, other) for other in taken))
    return next(free, places[0])


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
