"""How an image becomes the pixels that a network is shown for evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from timm.data.transforms_factory import transforms_imagenet_eval
from torch import Tensor

from localmix.arguments import choice, positive
from localmix.tasks.images import centre_square, to_mode, to_tensor

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
"""Those that Pillow has and that timm's configurations name."""


@dataclass(frozen=True)
class View:
    """Resize, centre crop, scaling by mean and standard deviation.

    Args:
        size: height and width of what the network sees [pixels].
        channels: 1 for grey, 3 for RGB.
        crop_pct: the shorter side is resized to floor(size / crop_pct) before the crop, by timm's own transform: 0.875
            is the protocol of the paper, 256 and 224 pixels. None: the largest centred square is resized to `size`, as
            `localmix compare` validates.
        crop_mode: timm's "center", "squash" or "border".
        interpolation: of the resizing.
        mean: of each channel, values in 0..1.
        std: of each channel, values in 0..1.
    """

    size: tuple[int, int]
    channels: int
    crop_pct: float | None
    crop_mode: str
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            if len(getattr(self, name)) != self.channels:
                raise ValueError(f"{name}: expected {self.channels} values, one per channel, got {getattr(self, name)}")

    def changed(self, *, img_size: int | None, crop_pct: float | None, interpolation: str | None) -> View:
        """This view with what is not None put in its place."""
        size = self.size if img_size is None else (positive("img_size", img_size), img_size)
        if crop_pct is not None and not 0 < crop_pct <= 1:
            raise ValueError(f"crop_pct: expected more than 0 and at most 1, got {crop_pct}")
        if interpolation is None:
            interpolation = self.interpolation
        elif crop_pct is None and self.crop_pct is None:
            # the largest centred square is always resized bicubically; the nearest that another way can do
            crop_pct = 1.0
        return View(
            size,
            self.channels,
            self.crop_pct if crop_pct is None else crop_pct,
            self.crop_mode,
            choice("interpolation", interpolation, INTERPOLATIONS),
            self.mean,
            self.std,
        )

    def __call__(self, image: Image.Image) -> Tensor:
        """Any image to uint8 [C, H, W]."""
        image = to_mode(image, self.channels)
        if self.crop_pct is None:
            return to_tensor(centre_square(image, self.size[0]))
        return self._transform(image)

    @cached_property
    def _transform(self) -> Callable[[Image.Image], Tensor]:
        return transforms_imagenet_eval(
            self.size, self.crop_pct, self.crop_mode, interpolation=self.interpolation, mean=self.mean, normalize=False
        )

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 [..., C, H, W] to float32, on the same device, as `localmix.tasks.images.normalise` does."""
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return pixels / std.mul(255).to(pixels.device) - mean.div(std).to(pixels.device)

    def facts(self) -> dict[str, Any]:
        """For results."""
        return asdict(self)
