"""What the values of a label map mean, and how a label map is read."""

from __future__ import annotations

import colorsys
import csv
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image

from localmix.arguments import choice
from localmix.tasks.images import CorruptImage
from localmix.tasks.scenes import CLASSES as SCENES

IGNORED = -1
"""Label of a pixel that counts nowhere."""
SHALLOW = {"L;2": 85, "L;4": 17}
"""What Pillow multiplies the values of a grey PNG of 2 and 4 bits by."""

Colour: TypeAlias = tuple[int, int, int]

OKABE_ITO: tuple[Colour, ...] = (
    (0, 114, 178),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (230, 159, 0),
    (86, 180, 233),
    (240, 228, 66),
)
"""The palette of Okabe and Ito without its black, which is void."""


@dataclass(frozen=True)
class Labelling:
    """The classes of label maps and how their files store them.

    Args:
        classes: their names.
        colours: RGB of each, to draw them with; by default some that differ.
        first: stored value of the first class; the others follow.
        void: stored values that are ignored.

    Raises:
        ValueError: there is no class, a void value is one of a class, or there are not as many colours as classes.
    """

    classes: tuple[str, ...]
    colours: tuple[Colour, ...] = ()
    first: int = 0
    void: tuple[int, ...] = (255,)

    def __post_init__(self) -> None:
        if not self.classes:
            raise ValueError("classes: expected at least one name, got none")
        if not self.colours:
            object.__setattr__(self, "colours", tuple(_colour(i) for i in range(len(self.classes))))
        if len(self.colours) != len(self.classes):
            raise ValueError(f"colours: expected one for each of {len(self.classes)} classes, got {len(self.colours)}")
        used = [value for value in self.void if 0 <= value - self.first < len(self.classes)]
        if used:
            raise ValueError(
                f"void: expected values that no class has, got {used}; the classes have "
                f"{self.first} to {self.first + len(self.classes) - 1}"
            )

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    def labels(self, stored: np.ndarray) -> np.ndarray:
        """Stored values to classes from 0 and `IGNORED`, int32.

        Raises:
            ValueError: a value is that of no class, and not void.
        """
        labels = stored.astype(np.int32) - np.int32(self.first)
        void = np.isin(stored, self.void)
        wrong = ~void & ((labels < 0) | (labels >= self.num_classes))
        if wrong.any():
            values = np.unique(stored[wrong])
            more = f" and {len(values) - 10} more" if len(values) > 10 else ""
            raise ValueError(
                f"expected values {self.first} to {self.first + self.num_classes - 1}, or void: "
                f"{', '.join(map(str, self.void))}; got {', '.join(map(str, values[:10]))}{more}"
            )
        labels[void] = IGNORED
        return labels

    def stored(self, labels: np.ndarray) -> Image.Image:
        """Classes from 0 and `IGNORED` as a label map: what `read_label_map` reads back, with the colours as palette.

        More than 8 bits have no palette.
        """
        void = self.void[0] if self.void else 0
        values = np.where(labels == IGNORED, void, labels + self.first)
        if values.max(initial=0) > 255:
            return Image.fromarray(values.astype(np.uint16))
        image = Image.fromarray(values.astype(np.uint8))
        palette = np.zeros((256, 3), dtype=np.uint8)
        last = min(256, self.first + self.num_classes)
        palette[self.first : last] = self.colours[: last - self.first]
        image.putpalette(palette.ravel().tolist())
        return image


def read_label_map(path: Path | str, labelling: Labelling) -> np.ndarray:
    """The classes of a label map, int32 [H, W]; what is void is `IGNORED`.

    Grey of 1 to 16 bits, or a palette, whose indices count and not its colours.

    Raises:
        CorruptImage: the file cannot be decoded (a ValueError).
        ValueError: it is no label map, or has values of no class; begins with the name of the file.
    """
    try:
        with Image.open(path) as image:
            raw = image.tile[0].args if image.tile else ""
            mode, stored = image.mode, np.asarray(image)
    except Exception as error:
        raise CorruptImage(f"{path}: cannot be decoded as an image ({error or type(error).__name__})") from error
    if stored.ndim != 2 or stored.dtype.kind not in "uib":
        raise ValueError(f"{path}: expected a label map of one channel of integers, or with a palette, got mode {mode}")
    raw = raw[0] if isinstance(raw, tuple) and raw else raw
    try:
        return labelling.labels(stored // SHALLOW.get(str(raw), 1) if stored.dtype != bool else stored.astype(np.uint8))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _colour(index: int) -> Colour:
    """Colours that colour-blind readers tell apart, as far as there are any; then hues a golden section apart."""
    if index < len(OKABE_ITO):
        return OKABE_ITO[index]
    red, green, blue = colorsys.hls_to_rgb(index * 0.6180339887 % 1, (0.5, 0.35, 0.65)[index % 3], 0.8)
    return round(255 * red), round(255 * green), round(255 * blue)


CAMVID = Labelling(
    classes=(
        "sky",
        "building",
        "pole",
        "road",
        "pavement",
        "tree",
        "sign",
        "fence",
        "car",
        "pedestrian",
        "bicyclist",
    ),
    colours=(
        (86, 180, 233),
        (213, 94, 0),
        (240, 228, 66),
        (128, 128, 128),
        (204, 121, 167),
        (0, 158, 115),
        (255, 255, 255),
        (128, 80, 20),
        (0, 90, 170),
        (230, 159, 0),
        (90, 40, 140),
    ),
    void=(11, 255),
)
"""CamVid with 11 classes."""


@cache
def ade20k() -> Labelling:
    """ADE20K's 150 classes of scene parsing, by the names and colours of the data set; 0 is void, wall is 1."""
    with resources.files("localmix.tasks.segmentation").joinpath("ade20k.csv").open() as file:
        rows = list(csv.DictReader(file))
    return Labelling(
        classes=tuple(row["name"] for row in rows),
        colours=tuple((*bytes.fromhex(row["colour"][1:]),) for row in rows),  # ty: ignore[invalid-argument-type]
        first=1,
        void=(0,),
    )


NAMED = {"camvid": lambda: CAMVID, "ade20k": ade20k, "scenes": lambda: Labelling(SCENES)}
"""Labellings of known data sets."""
CLASSES = "classes.txt"
"""Beside the folders of a data set of one's own: a line for each class, in the order of the stored values."""


def find_labelling(name: str | None, root: Path, *, first: int = 0, void: tuple[int, ...] = (255,)) -> Labelling:
    """The classes of a data set: of a known one, or those that `classes.txt` in its folder names.

    Args:
        name: one of `NAMED`; None for the file.
        root: folder of the data set.
        first: stored value of the first class, if a file names the classes.
        void: stored values that count nowhere, likewise.

    Raises:
        ValueError: the name is not known, there is no such file, or it is empty or names a class twice.
    """
    if name is not None:
        return NAMED[choice("classes", name, tuple(NAMED))]()
    path = root / CLASSES
    if not path.is_file():
        raise ValueError(
            f"data: expected {path}, a line for each class in the order of the labels, or a data set that is known by "
            f"name ({', '.join(NAMED)}), found none"
        )
    classes = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    twice = sorted({name for name in classes if classes.count(name) > 1})
    if twice:
        raise ValueError(f"data: expected each class once in {path}, got {', '.join(twice[:10])} more than once")
    return Labelling(tuple(classes), first=first, void=void)
