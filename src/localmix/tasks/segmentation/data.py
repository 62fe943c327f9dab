"""The labelled scenes that a run trains on and validates with."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localmix.tasks.segmentation.labels import Labelling
from localmix.tasks.segmentation.pairs import LabelledScenes, Track, splits
from localmix.tasks.segmentation.views import MEAN, STD, SceneDataset, SceneViews, fitted


@dataclass(frozen=True)
class Scenes:
    """Scenes for training and validation, with all that a segmenter has to know of them.

    Args:
        name: where they come from.
        labelling: their classes.
        short_side: shorter side of the images in validation [pixels].
        fingerprint: changes with the names and sizes of the files.
    """

    name: str
    labelling: Labelling
    short_side: int
    train: SceneDataset
    validation: SceneDataset
    fingerprint: str
    in_memory: bool = False

    def arguments(self) -> dict[str, Any]:
        """Those of `Segmentation` that the scenes decide."""
        return {
            "classes": list(self.labelling.classes),
            "colours": [list(colour) for colour in self.labelling.colours],
            "first": self.labelling.first,
            "void": list(self.labelling.void),
            "short_side": self.short_side,
            "mean": MEAN,
            "std": STD,
        }

    def shapes(self, batch_size: int) -> dict[str, tuple[int, int, int, int]]:
        """B, C, H, W of a batch of crops and of the first one of the validation, by the setting that decides it."""
        size = self.train.views.size
        image, _ = self.validation.scenes[0]
        width, height = fitted(*image.size, self.short_side)
        return {"size": (batch_size, 3, size, size), "short_side": (1, 3, height, width)}

    def __str__(self) -> str:
        return f"{self.name}, {self.labelling.num_classes} classes, crops of {self.train.views.size} px"


def load_scenes(
    root: Path,
    labelling: Labelling,
    *,
    size: int = 512,
    short_side: int | None = None,
    scale: Sequence[float] = (0.5, 2.0),
    largest_share: float = 0.75,
    distort: bool = True,
    check: bool = True,
    track: Track = lambda iterable, what, count: iterable,
) -> Scenes:
    """Find the scenes in a folder, check them, and say how they are shown.

    Args:
        root: laid out as `localmix.tasks.segmentation.pairs.splits` says.
        labelling: their classes.
        size, short_side, scale, largest_share, distort: see `localmix.tasks.segmentation.views.SceneViews`.
        check: read every file of these two splits now.
        track: shows progress while files are read.

    Raises:
        ValueError: an argument is wrong, a split is missing, or the files are: lists all that is wrong with them.
    """
    least, largest = scale
    views = SceneViews(
        size, short_side=short_side, scale=(least, largest), largest_share=largest_share, distort=distort
    )
    found = splits(Path(root), labelling, wanted=("train", "validation"), check=check, track=track)
    train, validation = (SceneDataset(scenes, views) for scenes in found.values())
    return Scenes(
        str(Path(root).resolve()), labelling, views.short_side, train, validation, fingerprint(found, Path(root))
    )


def fingerprint(found: dict[str, LabelledScenes], root: Path) -> str:
    """Of the names and sizes of the files of some splits."""
    digest = hashlib.sha256()
    for scenes in found.values():
        for pair in scenes.pairs:
            for path in pair:
                name = path.relative_to(root).as_posix()
                digest.update(f"{name} {path.stat().st_size}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()
