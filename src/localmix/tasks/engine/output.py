"""Where results go, asked before the work whose results would be lost."""

from __future__ import annotations

import os
from pathlib import Path


def output_folder(output: Path | str) -> Path:
    """`output`, which must be a folder that can be written into, or a name that can become one; makes nothing.

    Raises:
        ValueError: it is a file, lies below one, or may not be written into.
    """
    path = Path(output)
    there = next(part for part in (path, *path.absolute().parents) if part.exists())
    if not there.is_dir():
        raise ValueError(f"output: expected a folder, got {path}{'' if there == path else f' in {there}'}, a file")
    if not os.access(there, os.W_OK):
        raise ValueError(f"output: expected a folder that may be written into, got {path}")
    return path
