"""What is explained: networks, trained or not, and the images as they see them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor

from localmix.arguments import positive
from localmix.axes import MIXERS
from localmix.layers import LocalMixer
from localmix.models import create_model
from localmix.point import Point
from localmix.reports.evaluation.trained import Trained, load_trained, view_of
from localmix.reports.explanation.weights import mixers
from localmix.tasks.images import read_image, to_tensor

SHOWCASE = tuple(f"{row.network}_nano" for row in MIXERS.values())
"""The six mixers in one skeleton."""


@dataclass(frozen=True)
class Subject:
    """A network by a name of its own among those side by side.

    Args:
        whole: the image is not cropped.
        pixels: side that the view was changed to; None for that of the view, or of the image if `whole`.
    """

    label: str
    trained: Trained
    is_random: bool
    whole: bool = False
    pixels: int | None = None

    @property
    def title(self) -> str:
        """What its mixers are called, "" if it has none that have a name or several kinds."""
        held = list(mixers(self.trained.net).values())
        kinds = {type(mixer).__name__ for mixer in held}
        titles = [row.title for row in MIXERS.values() if {row.layer} == kinds]
        points = [mixer.point.name for mixer in held if isinstance(mixer, LocalMixer)]
        return next(iter([*titles, *points]), "")

    @property
    def origin(self) -> str:
        """Where its weights come from, in words."""
        if self.is_random:
            return "random weights: it is not trained"
        source = self.trained.source
        return next((str(source[key]) for key in ("checkpoint", "hf_hub_id", "file", "url") if key in source), "timm")

    def see(self, path: Path) -> Tensor:
        """What the network is shown of an image file: uint8 [C, H, W].

        Raises:
            CorruptImage: the file cannot be decoded.
        """
        view = self.trained.view
        image = read_image(path, view.channels)
        if not self.whole:
            return view(image)
        if self.pixels is not None:
            scale = self.pixels / min(image.size)
            width, height = (max(1, round(side * scale)) for side in image.size)
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        return to_tensor(image)

    def normalise(self, pixels: Tensor) -> Tensor:
        """What `see` gives, as the network takes it."""
        return self.trained.view.normalise(pixels)

    def run(self, pixels: Tensor) -> None:
        """One forward pass of what `see` gives.

        Raises:
            ValueError: a network that takes one size of images only, and not this one.
        """
        try:
            with torch.no_grad():
                self.trained.net(self.normalise(pixels)[None])
        except AssertionError as error:
            size = " x ".join(map(str, pixels.shape[1:]))
            raise ValueError(f"img_size: {self.label} takes no images of {size}: {error}") from error

    def facts(self) -> dict[str, Any]:
        """For results."""
        return {
            "label": self.label,
            "model": self.trained.name,
            "mixer": self.title or None,
            "num_mixers": len(mixers(self.trained.net)),
            "weights": "random" if self.is_random else self.trained.source,
            "view": "the whole image" if self.whole else self.trained.view.facts(),
        }


def subjects(
    models: Sequence[str | Path],
    *,
    weights: str | None = None,
    pretrained: bool = False,
    checkpoint: Path | str | None = None,
    img_size: int | None = None,
    whole: bool = False,
) -> list[Subject]:
    """The networks that `models` name, each with a label of its own.

    A name that timm knows has random weights, the same in each call, unless `pretrained` or `checkpoint` gives it
    others. So has a point of the space of mixers, such as "sliding7/shared-positions/groups8/homogeneous", which
    stands for the nano network of such mixers. See `load_trained` for the rest.

    Raises:
        OSError, ValueError: as `load_trained`; `checkpoint` with several models.
    """
    if not models:
        raise ValueError("model: expected one or more, got none")
    if img_size is not None:
        positive("img_size", img_size)
    if checkpoint is not None and len(models) > 1:
        raise ValueError(f"checkpoint: expected a single model with it, got {len(models)}")
    loaded: list[tuple[Trained, bool]] = []
    for model in models:
        point = _point(model)
        is_random = point is not None or (timm.is_model(str(model)) and not pretrained and checkpoint is None)
        if is_random:
            if weights is not None:
                raise ValueError(f"weights: expected nothing, since {model} is the name of a network; got {weights!r}")
            trained = _untrained(str(model), img_size) if point is None else _at(point)
        else:
            known = timm.is_model(str(model)) or ":" in str(model)
            trained = load_trained(
                model,
                weights=weights,
                pretrained=pretrained and known,
                checkpoint=checkpoint,
                img_size=img_size,
            )
        if not whole:
            view = trained.view.changed(img_size=img_size, crop_pct=None, interpolation=None)
            trained = replace(trained, view=view)
        loaded.append((trained, is_random))
    names = [trained.name for trained, _ in loaded]
    labels = [name if names.count(name) == 1 else str(model) for name, model in zip(names, models, strict=True)]
    if len(set(labels)) < len(labels):
        raise ValueError(f"model: expected each once, got {', '.join(labels)}")
    return [
        Subject(label, trained, is_random, whole, img_size if whole else None)
        for label, (trained, is_random) in zip(labels, loaded, strict=True)
    ]


def same_size(seen: dict[str, Tensor]) -> tuple[int, int]:
    """H, W of what several networks see of one image.

    Raises:
        ValueError: they see several sizes, so no position is the same for all.
    """
    sizes = {label: tuple(pixels.shape[1:]) for label, pixels in seen.items()}
    if len(set(sizes.values())) > 1:
        shown = ", ".join(f"{label} {height} x {width}" for label, (height, width) in sizes.items())
        raise ValueError(f"img_size: expected one size for all models, which see {shown}; give --img-size")
    height, width = next(iter(sizes.values()))
    return height, width


def picture(pixels: Tensor) -> np.ndarray:
    """What a network sees, as uint8 [H, W, 3]."""
    return pixels.expand(3, -1, -1).permute(1, 2, 0).numpy()


def _point(model: str | Path) -> Point | None:
    """The point of the space of mixers that is named so; None for anything else."""
    if Path(model).exists() or not re.match(r"(sliding|window)\d.*/", str(model)):
        return None
    return Point.parse(str(model))


def _at(point: Point) -> Trained:
    trained = _untrained("localmixer_nano", None, mixer=point.name)
    return replace(trained, name=point.name)


def _untrained(name: str, img_size: int | None, **options: Any) -> Trained:
    """A network as it is before training."""
    config = timm.models.get_pretrained_cfg(name)
    if img_size is not None and config and config.fixed_input_size and config.input_size[2] != img_size:
        options["img_size"] = img_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = create_model(name, **options).eval()
    return Trained(net, name, None, view_of(net), {}, options)
