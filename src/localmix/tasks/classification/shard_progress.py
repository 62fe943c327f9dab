"""Which chunks of unfinished shards are done, on the disk: so writing goes on where it was interrupted."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localmix.tasks.classification.shard_format import chunk_name
from localmix.writing import named, write_atomically


@dataclass(frozen=True)
class Written:
    """What became of the images of a chunk."""

    split: str
    number: int
    chunk: dict[str, Any] | None
    """None where nothing was written."""
    corrupt: list[str]


class Progress:
    """A file with the settings in the first line, then a line for each chunk that is done.

    Args:
        path: of the file.
        settings: what is to be written; a file with others is refused.
        chunk_images: called at the very beginning, how many images go into a chunk.
    """

    def __init__(self, path: Path, settings: dict[str, Any], chunk_images: Callable[[], int]) -> None:
        self.path = path
        self.done: dict[tuple[str, int], Written] = {}
        if path.exists():
            header, *lines = path.read_bytes().split(b"\n")
            known = json.loads(header)
            refuse_other(path.parent, known["settings"], settings)
            self.chunk_images = known["chunk_images"]
            # What follows the last newline was being written when the process ended.
            for line in lines[:-1]:
                self._take(Written(**json.loads(line)))
        else:
            # hidden: the lock, and what a run that was killed in its first moment has left
            others = sorted(p.name for p in path.parent.iterdir() if not p.name.startswith("."))
            if others:
                raise ValueError(
                    f"output: expected an empty folder or unfinished shards, {path.parent} holds {others[:5]}"
                )
            self.chunk_images = chunk_images()
        lines = [{"settings": settings, "chunk_images": self.chunk_images}, *(vars(w) for w in self.done.values())]
        write_atomically(path, lambda file: file.writelines(_line(line) for line in lines))
        self.file = path.open("ab")

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        with named(self.path):
            self.file.close()

    def is_done(self, split: str, number: int, on_corrupt: str) -> bool:
        """Whether the chunk is there, with all that it should have."""
        written = self.done.get((split, number))
        if written is None or (written.corrupt and on_corrupt == "error"):
            return False
        path = self.path.parent / split / chunk_name(number)
        return written.chunk is None or (path.exists() and path.stat().st_size == written.chunk["bytes"])

    def add(self, written: Written) -> None:
        """A chunk is done."""
        self._take(written)
        with named(self.path):
            self.file.write(_line(vars(written)))
            self.file.flush()
            os.fsync(self.file.fileno())

    def _take(self, written: Written) -> None:
        self.done[written.split, written.number] = written


def _line(values: dict[str, Any]) -> bytes:
    return json.dumps(values).encode() + b"\n"


def refuse_other(output: Path, found: dict[str, Any], settings: dict[str, Any]) -> None:
    """Shards that were begun with `found` are not continued with other `settings`."""
    if found != settings:
        keys = [key for key in settings if found.get(key) != settings[key]]
        raise ValueError(
            f"output: {output} holds shards of other settings: "
            + ", ".join(f"{key} = {found.get(key)!r}, now {settings[key]!r}" for key in keys)
        )
