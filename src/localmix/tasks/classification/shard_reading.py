"""Images read from shards: any of them by its index, and a shuffled order in which few chunks are needed at a time."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from localmix.tasks.classification.parallel import cpu_cores
from localmix.tasks.classification.shard_cache import RemoteShards, is_url
from localmix.tasks.classification.shard_format import (
    INDEX,
    MANIFEST,
    PROGRESS,
    SPLITS,
    Chunk,
    Manifest,
    check_index,
    decode_item,
    decode_offsets,
    head_bytes,
    read_manifest,
    sha256,
)
from localmix.tasks.images import decode_image

BUFFER = 16
"""Chunks over which images are shuffled."""


class LocalShards:
    """A folder of shards on this machine, or on a file system that it sees."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, name: str) -> bytes:
        """The content of a small file."""
        return (self.folder / name).read_bytes()

    def open(self, split: str, chunk: Chunk) -> IO[bytes]:
        """A chunk."""
        return (self.folder / split / chunk.name).open("rb", buffering=0)


Source = LocalShards | RemoteShards


def is_shards(data: str) -> bool:
    """Whether `data` is a folder of shards, be they unfinished, or the address of one."""
    return is_url(data) or any((Path(data) / name).is_file() for name in (MANIFEST, PROGRESS))


def open_shards(data: str, cache: Path | None, max_cache_gb: float) -> tuple[Source, Manifest]:
    """Find shards and check their lists.

    Raises:
        ValueError: what is there was not written by `localmix shard`, or was changed.
    """
    if not is_url(data) and not (Path(data) / MANIFEST).is_file():
        raise ValueError(
            f"data: expected shards with a {MANIFEST}, which `localmix shard` writes at the end; {data} has none"
        )
    source = RemoteShards(data, cache, max_cache_gb) if is_url(data) else LocalShards(Path(data))
    manifest = read_manifest(source.read(MANIFEST), f"{data}/{MANIFEST}")
    for split in SPLITS:
        name = f"{split}/{INDEX}"
        index = source.read(name)
        check_index(index, f"{data}/{name}")
        if sha256(index) != manifest.indices.get(split):
            raise ValueError(f"data: {data}/{name} is not the file that {MANIFEST} vouches for")
    return source, manifest


class ShardImages:
    """Pairs (RGB image, label) of one split.

    Args:
        source: where the chunks lie.
        split: "train" or "validation".
        chunks: of the split.
        buffer: chunks over which `order` shuffles; all of them are open at a time.
    """

    def __init__(self, source: Source, split: str, chunks: list[Chunk], *, buffer: int = BUFFER) -> None:
        self.source, self.split, self.chunks, self.buffer = source, split, chunks, buffer
        self.ends = np.cumsum([chunk.images for chunk in chunks])
        self.opened: OrderedDict[int, OpenChunk] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "opened": OrderedDict()}

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = int(np.searchsorted(self.ends, index, side="right"))
        place = int(index - self.ends[number] + self.chunks[number].images)
        chunk = self._open(number)
        content, label = chunk.item(place)
        return decode_image(content, f"image {place} of {chunk.file.name}", channels=3), label

    def order(self, seed: int, epoch: int) -> ShardOrder:
        """All images, shuffled within a buffer of chunks that moves over the chunks, which are shuffled too."""
        return ShardOrder([chunk.images for chunk in self.chunks], seed, epoch, self.buffer)

    def _open(self, number: int) -> OpenChunk:
        chunk = self.opened.pop(number, None)
        if chunk is None:
            chunk = OpenChunk(self.source.open(self.split, self.chunks[number]), self.chunks[number])
        self.opened[number] = chunk
        if len(self.opened) > 2 * self.buffer:
            self.opened.popitem(last=False)
        return chunk


class OpenChunk:
    """A chunk whose file is open and of which the list of items has been read."""

    def __init__(self, file: IO[bytes], chunk: Chunk) -> None:
        self.file = file
        size = os.fstat(file.fileno()).st_size
        if size != chunk.bytes:
            raise self._damage(f"{size} bytes, expected {chunk.bytes}")
        try:
            self.offsets = decode_offsets(self._read(0, head_bytes(chunk)), chunk)
        except ValueError as error:
            raise self._damage(str(error)) from None

    def __del__(self) -> None:
        self.file.close()

    def item(self, place: int) -> tuple[bytes, int]:
        """Content of an image file, and label."""
        start, end = self.offsets[place : place + 2].tolist()
        try:
            return decode_item(self._read(start, end))
        except ValueError as error:
            raise self._damage(f"image {place}: {error}") from None

    def _read(self, start: int, end: int) -> bytes:
        # Not seek and read: processes that were forked share the position in the file.
        content = os.pread(self.file.fileno(), end - start, start)
        if len(content) < end - start:
            raise self._damage("it ends too early")
        return content

    def _damage(self, what: str) -> ValueError:
        return ValueError(f"data: {self.file.name} is damaged ({what}); `localmix shard --verify` looks at all chunks")


class ShardOrder:
    """A permutation of all images, made as it is read: a slice gives an array.

    The images of a chunk are dealt at random over `buffer` blocks, those of the next chunk over as many beginning one
    block later, and each block is shuffled. So a block draws on `buffer` chunks, and from one to the next a single
    chunk comes in and one goes.

    Args:
        sizes: images of each chunk.
        seed: with `epoch` decides the order.
        epoch: with `seed` decides the order.
        buffer: chunks that a block draws on.
    """

    def __init__(self, sizes: list[int], seed: int, epoch: int, buffer: int) -> None:
        self.sizes, self.key, self.buffer = np.array(sizes), [seed, epoch], buffer
        self.starts = np.cumsum(self.sizes) - self.sizes
        self.chunks = np.random.default_rng(self.key).permutation(len(sizes))
        blocks = np.zeros(len(sizes) + buffer - 1, dtype=np.int64)
        for share in range(buffer):
            begin, end = self._share(self.sizes[self.chunks], share)
            blocks[share : share + len(sizes)] += end - begin
        self.block_ends = np.cumsum(blocks)
        self.last: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def __len__(self) -> int:
        return int(self.block_ends[-1])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or np.int64, copy=False)

    def __getitem__(self, where: slice) -> np.ndarray:
        start, stop, step = where.indices(len(self))
        if step < 1:
            raise ValueError(f"order: expected a slice that goes forward, got {where}")
        if start >= stop:
            return np.empty(0, dtype=np.int64)
        first, last = np.searchsorted(self.block_ends, [start, stop - 1], side="right").tolist()
        images = np.concatenate([self._block(number) for number in range(first, last + 1)])
        before = int(self.block_ends[first - 1]) if first else 0
        return images[start - before : stop - before : step]

    def _share(self, sizes: np.ndarray, share: int) -> tuple[np.ndarray, np.ndarray]:
        """Which of the shuffled images of a chunk go to its block number `share`."""
        return sizes * share // self.buffer, sizes * (share + 1) // self.buffer

    def _block(self, number: int) -> np.ndarray:
        # A block is longer than a batch.
        if number != self.last[0]:
            self.last = number, self._make_block(number)
        return self.last[1]

    def _make_block(self, number: int) -> np.ndarray:
        parts = []
        for share in range(max(0, number - len(self.chunks) + 1), min(self.buffer, number + 1)):
            chunk = self.chunks[number - share]
            begin, end = self._share(self.sizes[chunk], share)
            images = np.random.default_rng([*self.key, 1, chunk]).permutation(self.sizes[chunk])
            parts.append(self.starts[chunk] + images[begin:end])
        return np.random.default_rng([*self.key, 2, number]).permutation(np.concatenate(parts))


def verify_shards(folder: Path, track: Callable[..., Any] = lambda iterable, what, count: iterable) -> Manifest:
    """Compare every chunk of a folder with its checksum in the manifest.

    Raises:
        ValueError: names the chunks that are missing or damaged.
    """
    _, manifest = open_shards(str(folder), None, 0)
    paths = [(folder / split / chunk.name, chunk) for split in SPLITS for chunk in manifest.chunks(split)]
    damaged = damaged_chunks(paths, track)
    if damaged:
        raise ValueError(
            "\n  ".join([f"verify: {len(damaged)} of {len(paths)} chunks are damaged:", *damaged.values()])
        )
    return manifest


def damaged_chunks(paths: list[tuple[Path, Chunk]], track: Callable[..., Any]) -> dict[Path, str]:
    """Which files are not what they should be, each with the reason."""

    def damage(entry: tuple[Path, Chunk]) -> str | None:
        path, chunk = entry
        try:
            with path.open("rb") as file:
                digest = hashlib.sha256()
                while block := file.read(1 << 20):
                    digest.update(block)
            if digest.hexdigest() == chunk.sha256:
                return None
            size = path.stat().st_size
            return f"{path}: {'wrong checksum' if size == chunk.bytes else f'{size} bytes, expected {chunk.bytes}'}"
        except OSError as error:
            return f"{path}: {error.strerror}"

    # Checksums are computed without the interpreter lock.
    with ThreadPoolExecutor(cpu_cores()) as pool:
        found = list(track(pool.map(damage, paths), "verifying chunks", len(paths)))
    return {path: reason for (path, _), reason in zip(paths, found, strict=True) if reason}
