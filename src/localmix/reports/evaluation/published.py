"""What a published folder holds, by name: for `localmix publish`, which writes it, and those that read it."""

from __future__ import annotations

from pathlib import Path

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"


def is_published(path: Path) -> bool:
    """Whether a path is a folder that `localmix publish`, or timm, has made."""
    return path.is_dir() and (path / CONFIG).is_file()


def net_file(path: Path) -> Path:
    """The file of weights of a published folder; other paths as they are."""
    return path / WEIGHTS if is_published(path) else path
