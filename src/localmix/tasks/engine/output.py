"""Where results go, asked before the work whose results would be lost."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile


def output_folder(output: Path | str, *, name: str = "output") -> Path:
    """`output`, which must be a folder that can be written into, or a name that can become one; leaves nothing.

    Args:
        name: of the argument that errors name.

    Raises:
        ValueError: it is a file, lies below one, or cannot be written into.
    """
    path = Path(output)
    there = next(part for part in (path, *path.absolute().parents) if part.exists())
    if not there.is_dir():
        raise ValueError(f"{name}: expected a folder, got {path}{'' if there == path else f' in {there}'}, a file")
    if not os.access(there, os.W_OK):
        raise ValueError(f"{name}: expected a folder that may be written into, got {path}")
    try:
        # who is root may write anywhere, but not everything takes files
        with TemporaryFile(dir=there):
            return path
    except OSError as error:
        raise ValueError(f"{name}: expected a folder that takes files, got {path}: {error.strerror}") from error


def output_file(output: Path | str, *suffixes: str, name: str = "output") -> Path:
    """`output`, which must be the name of a file that can be written, in a folder that can be made; leaves nothing.

    Args:
        suffixes: one of which the name ends in; none: any.
        name: of the argument that errors name.

    Raises:
        ValueError: it ends otherwise, is a folder, or its folder is refused by `output_folder`.
    """
    path = Path(output)
    if suffixes and path.suffix.lower() not in suffixes:
        raise ValueError(f"{name}: expected a name that ends in {suffixes[0]}, got {path}")
    if path.is_dir():
        raise ValueError(f"{name}: expected a file, got {path}, a folder")
    output_folder(path.parent, name=name)
    return path


@contextmanager
def made_folder(output: Path | str, *, name: str = "output") -> Generator[Path]:
    """Make the folder `output`; when the block fails and has left nothing in it, it is gone again.

    Raises:
        ValueError: as `output_folder`; or it cannot be made.
    """
    path = output_folder(output, name=name)
    absolute = path.absolute()
    new = [folder for folder in (absolute, *absolute.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{name}: expected a folder that can be made, got {path}: {error.strerror}") from error
    try:
        yield path
    except BaseException:
        with suppress(OSError):  # there is something in one of them
            for folder in new:
                folder.rmdir()
        raise
