"""A folder is written to by one run at a time."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from localmix.tasks.engine.output import output_folder

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

CLAIM = ".claim"
"""Name of the file that is locked; it stays, empty."""


@contextmanager
def claim(folder: Path, *, patience: float = 0.0) -> Generator[None]:
    """Keep other processes from working in `folder`. The claim ends with this process at the latest, however that ends.

    Where the file system has no locks, nothing is kept from anything.

    Args:
        patience: how long to wait for another process, such as one whose parent was killed and that ends soon [s].

    Raises:
        ValueError: another process is at work there, or it can be no folder.
    """
    output_folder(folder).mkdir(parents=True, exist_ok=True)
    # Locks of POSIX and not flock: processes that are forked from this one do not have them.
    with (folder / CLAIM).open("w") as file:
        deadline = time.monotonic() + patience
        while fcntl:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except (BlockingIOError, PermissionError):
                if time.monotonic() >= deadline:
                    raise ValueError(f"output: another process is at work in {folder}; wait for it or end it") from None
                time.sleep(0.1)
            except OSError:
                break
        yield
