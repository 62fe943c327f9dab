"""Checkpoints that are whole or not there, and that hold tensors and plain values only."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

from localmix.arguments import existing_file


def save_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint wholly or not at all; see `write_atomically`."""
    write_atomically(path, lambda file: torch.save(checkpoint, file))


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Replace the file at `path` by what `write` writes: either wholly or, when that fails, not at all.

    Raises:
        OSError: with `path` and the cause, such as a full disk; a file that was there before is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # One fixed name, in the same folder for the rename to be atomic: what a killed process left is overwritten.
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        cause = _os_error(error)
        if cause is None:
            raise
        kept = "; the file that was there before is kept" if path.exists() else ""
        raise OSError(cause.errno, f"{cause.strerror} while writing{kept}", str(path)) from error


def _os_error(error: BaseException | None) -> OSError | None:
    """The error of the operating system behind `error`: torch.save hides it behind a RuntimeError of its own."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


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
