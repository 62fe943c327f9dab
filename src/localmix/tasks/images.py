"""Image files to pixels: one way of reading, for training and for prediction."""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

EXTENSIONS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
MODES = {1: "L", 3: "RGB"}


class CorruptImage(ValueError):
    """A file that cannot be decoded as an image."""


def read_image(path: Path | str, channels: int, *, at_least: int | None = None) -> Image.Image:
    """Decode a file to grey (1 channel) or RGB (3 channels), upright, 8 bits.

    Args:
        at_least: lets a JPEG be decoded at a half, a quarter or an eighth of its size while both sides keep so many
            pixels. Faster for large photographs, and not quite the pixels that resizing gives.

    Raises:
        CorruptImage: with the name of the file and the reason.
    """
    return _decode(path, str(path), channels, at_least)


def decode_image(content: bytes, name: str, channels: int) -> Image.Image:
    """`read_image` for the content of a file; errors call it `name`."""
    return _decode(io.BytesIO(content), name, channels, None)


def _decode(source: Any, name: str, channels: int, at_least: int | None) -> Image.Image:
    try:
        with Image.open(source) as image:
            if at_least is not None:
                image.draft(None, (at_least, at_least))
            image = to_mode(image, channels)
            # Pixels are decoded when they are asked for, and that is here.
            image.load()
            return image
    except FileNotFoundError:
        raise CorruptImage(f"{name}: no such file") from None
    except IsADirectoryError:
        raise CorruptImage(f"{name}: expected an image file, found a folder") from None
    # Damaged files make Pillow's decoders raise far more than OSError: SyntaxError, struct.error, EOFError, ...
    except Exception as error:
        raise CorruptImage(f"{name}: cannot be decoded as an image ({error or type(error).__name__})") from error


def to_mode(image: Image.Image, channels: int) -> Image.Image:
    """Convert any image to grey or RGB of 8 bits: deep grey is scaled, transparency is laid over white."""
    # Pillow copies all pixels of an image that needs no turn, and of one that has the mode already.
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == MODES[channels] else image.convert(MODES[channels])


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit (and 32-bit or float) grey; Pillow's own `convert` would clip it at 255."""
    pixels = np.asarray(image, dtype=np.float64)
    if image.mode == "F":
        low, high = (pixels.min(), pixels.max()) if pixels.size else (0.0, 1.0)
        scaled = (pixels - low) * (255 / ((high - low) or 1.0))
    else:
        scaled = pixels * (255 / 65535)
    return Image.fromarray(np.clip(np.rint(scaled), 0, 255).astype(np.uint8))


def centre_square(image: Image.Image, size: int) -> Image.Image:
    """Resize the largest centred square to `size`: the view used for validation and prediction."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    if (width, height) == (size, size):
        return image
    return image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))


def random_square(image: Image.Image, size: int, random: np.random.Generator) -> Image.Image:
    """Random resized crop (area 0.35 to 1, aspect 3/4 to 4/3) and horizontal flip."""
    width, height = image.size
    area, aspect = random.uniform(0.35, 1.0), np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3)))
    left, top, flip = random.random(3)
    crop_width = min(width, np.sqrt(width * height * area * aspect))
    crop_height = min(height, np.sqrt(width * height * area / aspect))
    left, top = left * (width - crop_width), top * (height - crop_height)
    box = (left, top, left + crop_width, top + crop_height)
    image = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    return ImageOps.mirror(image) if flip < 0.5 else image


def to_tensor(image: Image.Image) -> Tensor:
    """Pixels as uint8 [C, H, W]."""
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def normalise(pixels: Tensor, mean: list[float], std: list[float]) -> Tensor:
    """uint8 [..., C, H, W] to float32 with the given mean and standard deviation per channel (of values in 0..1)."""
    scale, shift = _scale_and_shift(tuple(mean), tuple(std))
    # Converted first, in order: loops over two dtypes, or over pixels that lie as Pillow has them, take far longer.
    return pixels.contiguous().to(torch.float32, copy=True).div_(scale).sub_(shift)


@lru_cache
def _scale_and_shift(mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    return torch.tensor(std).mul(255)[:, None, None], torch.tensor(mean).div(torch.tensor(std))[:, None, None]
