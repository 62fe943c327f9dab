"""Files that are written wholly or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from secrets import token_hex
from typing import IO, Any

from localmix.causes import causes

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Replace the file at `path` by what `write` writes: either wholly or, when that fails, not at all.

    Where several write it at the same time, each fills a file of its own, and the last to end has the name. What
    killed processes have left in the folder is removed, unless the file system has no locks to tell it by.

    Raises:
        OSError: with `path` and the cause, such as a full disk; a file that was there before is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_left(path.parent.absolute())
    partial: Path | None = None
    try:
        with _beside(path) as file:
            partial = Path(file.name)
            write(file)
            file.flush()
            os.fsync(file.fileno())
            # while it is locked
            partial.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except BaseException as error:
        if partial:
            partial.unlink(missing_ok=True)
        # torch.save hides it behind a RuntimeError of its own
        cause = next((behind for behind in causes(error) if isinstance(behind, OSError)), None)
        if cause is None:
            raise
        kept = "; the file that was there before is kept" if path.exists() else ""
        raise OSError(cause.errno, f"{cause.strerror} while writing{kept}", str(path)) from error


@contextmanager
def named(path: Path) -> Generator[None]:
    """In the block, errors of writing name the file, which those of a full disk do not.

    Raises:
        OSError: with `path` and the cause.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.strerror is None:
            raise
        raise OSError(error.errno, f"{error.strerror} while writing", str(path)) from error


def _beside(path: Path) -> IO[bytes]:
    """A new file in the folder of `path`, for the rename to be atomic; locked for as long as it is open."""
    while True:
        file = path.with_name(f".{path.name}.{token_hex(4)}.partial").open("xb")
        with suppress(OSError):  # a file system without locks
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX)
        if os.path.exists(file.name):
            return file
        # before it was locked, another process took it for one that was left
        file.close()


@cache
def _remove_left(folder: Path) -> None:
    """Remove what nobody has locked any more; once, for a folder may hold many files."""
    if fcntl is None:
        return
    for left in folder.glob(f".*.{'[0-9a-f]' * 8}.partial"):
        with suppress(OSError), left.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()
