"""A folder is written to by one run at a time."""

from __future__ import annotations

import os
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from localmix.tasks.engine.output import made_folder

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

CLAIM = ".claim"
"""Name of the file that is locked; it stays, empty, where a run has ended well."""


@contextmanager
def claim(folder: Path, *, patience: float = 0.0, name: str = "output") -> Generator[None]:
    """Keep other processes from working in `folder`. The claim ends with this process at the latest, however that ends.

    What fails leaves no claim that was not there before, and no folder that was not, if that is empty.
    Where the file system has no locks, nothing is kept from anything.

    Args:
        patience: how long to wait for another process, such as one whose parent was killed and that ends soon [s].
        name: of the argument that errors name.

    Raises:
        ValueError: another process is at work there, or it can be no folder.
    """
    path = folder / CLAIM
    with made_folder(folder, name=name):
        is_new = not path.exists()
        with _locked(path, patience, name):
            try:
                yield
            except BaseException:
                # while it is locked: afterwards it may be that of another process
                with suppress(OSError):
                    if is_new:
                        path.unlink()
                raise


@contextmanager
def _locked(path: Path, patience: float, name: str) -> Generator[None]:
    deadline = time.monotonic() + patience
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            while not _lock(file):
                if time.monotonic() >= deadline:
                    raise ValueError(
                        f"{name}: another process is at work in {path.parent}; wait for it or end it"
                    ) from None
                time.sleep(0.1)
            # the process that was waited for may have removed the file
            if _is_at(file, path):
                yield
                return


def _lock(file: IO[str]) -> bool:
    """Whether nobody else has the lock."""
    if fcntl:
        # Locks of POSIX and not flock: processes that are forked from this one do not have them.
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        except OSError:
            return True
    return True


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
