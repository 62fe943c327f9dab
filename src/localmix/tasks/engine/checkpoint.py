"""Checkpoints that are whole or not there, and that hold tensors and plain values only."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from localmix.arguments import existing_file
from localmix.writing import write_atomically


def save_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint wholly or not at all; see `localmix.writing.write_atomically`."""
    write_atomically(path, lambda file: torch.save(checkpoint, file))


def load_checkpoint(path: Path, *, name: str = "checkpoint") -> dict[str, Any]:
    """The content of a checkpoint of this package, on the CPU; nothing in the file can run code.

    Args:
        name: of the argument that errors name.

    Raises:
        FileNotFoundError: there is no such file.
        IsADirectoryError: it is a folder.
        ValueError: the file is truncated or foreign; says which and why.
    """
    damage = _damage(existing_file(name, path))
    if damage:
        raise ValueError(f"{name}: {path} {damage}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{name}: {path} holds more than tensors and plain values, which could run code; refused"
        ) from error
    except Exception as error:
        raise ValueError(f"{name}: {path} cannot be read: {error}") from error
    if not isinstance(checkpoint, dict) or not {"state_dict", "hyper_parameters"} <= checkpoint.keys():
        found = sorted(map(str, checkpoint))[:8] if isinstance(checkpoint, dict) else type(checkpoint).__name__
        raise ValueError(
            f"{name}: {path} was not written by localmix: "
            f"expected the keys 'state_dict' and 'hyper_parameters', got {found}"
        )
    return checkpoint


def _damage(path: Path) -> str | None:
    """Why the file is not a whole archive, in words; None when it is."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return "is not a PyTorch checkpoint (it does not begin like a zip archive)"
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except zipfile.BadZipFile:
        return "is truncated (the end of its zip archive is missing)"
    return f"is damaged (wrong checksum of {damaged})" if damaged else None
