"""Shards that lie at an address: chunks are fetched when they are needed, checked, and kept while there is room."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import IO
from uuid import uuid4

from localmix.tasks.classification.shard_format import Chunk, sha256

CACHE = "~/.cache/localmix/shards"
MOST_GB = 100.0


def is_url(data: str) -> bool:
    """Whether `data` is an address that litdata fetches from: s3, gs, azure, hf or r2, or `local:` and a folder."""
    return bool(re.match(r"(s3|gs|azure|hf|r2)://|local:", data))


class RemoteShards:
    """A folder of shards at an address that litdata fetches from.

    All processes of a machine share the cache: one fetches a chunk, the others wait for it. What was used least
    recently is removed when the cache grows over its size; a chunk that is open stays readable until it is closed.

    Args:
        url: of the folder.
        cache: folder for what was fetched.
        max_cache_gb: size of the cache [10^9 bytes].
    """

    def __init__(self, url: str, cache: Path | None, max_cache_gb: float) -> None:
        if not max_cache_gb > 0:
            raise ValueError(f"max_cache_gb: expected more than 0, got {max_cache_gb}")
        self.url, self.max_bytes = url.rstrip("/"), int(max_cache_gb * 1e9)
        self.cache = cache or Path(CACHE).expanduser() / sha256(self.url.encode())[:16]

    def read(self, name: str) -> bytes:
        """The content of a small file, always fetched anew: it says whether what is cached still holds."""
        # Nodes may share the cache, and processes of two nodes or containers have the same number.
        path = self.cache / f".{uuid4().hex}.partial"
        self._fetch(name, path)
        try:
            return path.read_bytes()
        finally:
            path.unlink()

    def open(self, split: str, chunk: Chunk) -> IO[bytes]:
        """A chunk, fetched if it is not here yet.

        Raises:
            ValueError: what came is not what the manifest vouches for.
        """
        from filelock import FileLock

        # Named by its content: shards that were made anew at the same address are never taken for the old ones.
        path = self.cache / f"{chunk.sha256}.bin"
        self.cache.mkdir(parents=True, exist_ok=True)
        with FileLock(self.cache / f".{chunk.sha256[:2]}.lock"):
            try:
                file = path.open("rb", buffering=0)
            except FileNotFoundError:
                self._keep(split, chunk, path)
                file = path.open("rb", buffering=0)
            # By its number, not its name: another process may have removed it just now.
            os.utime(file.fileno())
        return file

    def _keep(self, split: str, chunk: Chunk, path: Path) -> None:
        # Overwrites what a process that was killed has left.
        fetched = path.with_name(f".{path.name}.partial")
        self._fetch(f"{split}/{chunk.name}", fetched)
        try:
            digest = sha256(fetched.read_bytes())
            if digest != chunk.sha256:
                raise ValueError(
                    f"data: {self.url}/{split}/{chunk.name} is damaged: SHA-256 {digest}, expected {chunk.sha256}"
                )
            fetched.replace(path)
        finally:
            fetched.unlink(missing_ok=True)
        self._make_room(path)

    def _fetch(self, name: str, path: Path) -> None:
        """Get a file of the shards as `path`, which no other process uses now."""
        from litdata.streaming.downloader import get_downloader

        self.cache.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        try:
            get_downloader(self.url, str(self.cache), []).download_file(f"{self.url}/{name}", str(path))
            if not path.exists():
                raise FileNotFoundError(2, "nothing came")
        # Each of litdata's downloaders raises errors of its own library.
        except Exception as error:
            path.unlink(missing_ok=True)
            raise ValueError(f"data: cannot fetch {self.url}/{name}: {error or type(error).__name__}") from error
        finally:
            path.with_name(f"{path.name}.lock").unlink(missing_ok=True)

    def _make_room(self, newest: Path) -> None:
        files = []
        for path in self.cache.glob("*.bin"):
            # Another process may remove it meanwhile.
            try:
                files.append((path.stat().st_mtime_ns, path.stat().st_size, path))
            except FileNotFoundError:
                continue
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self.max_bytes:
                break
            if path != newest:
                path.unlink(missing_ok=True)
                total -= size
