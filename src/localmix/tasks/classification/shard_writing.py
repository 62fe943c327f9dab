"""Image files into shards. Interrupted and called again, it goes on; what is half written never counts as done."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from localmix.arguments import choice, positive
from localmix.tasks.classification.folders import Announce, Track, Tree, hold_out, read_tree
from localmix.tasks.classification.parallel import cpu_cores
from localmix.tasks.classification.shard_format import (
    INDEX,
    MANIFEST,
    PROGRESS,
    SPLITS,
    Chunk,
    Manifest,
    chunk_name,
    encode_chunk,
    encode_index,
    read_manifest,
    sha256,
)
from localmix.tasks.classification.shard_progress import Progress, Written, refuse_other
from localmix.tasks.classification.shard_reading import damaged_chunks
from localmix.tasks.engine.output import made_folder, output_folder
from localmix.tasks.images import CorruptImage, decode_image
from localmix.writing import write_atomically

SAMPLE = 64
"""Images whose size decides how many go into a chunk."""
LOCK = ".lock"
"""Name of the file that is locked; it stays, empty, where shards were written."""


def write_shards(
    data: str,
    output: Path,
    *,
    size: int | None = None,
    quality: int = 90,
    chunk_mb: int = 64,
    workers: int | None = None,
    on_corrupt: str = "error",
    announce: Announce = print,
    track: Track = lambda iterable, what, count: iterable,
) -> Manifest:
    """Write the images of a folder as shards for `localmix fit`.

    The training images are shuffled, so that each chunk has images of all classes. Every image is decoded once, so
    that none in the shards is corrupt. Interrupted, the same call goes on; called again at the end, it only verifies.

    Args:
        data: folder of images, see `localmix.tasks.classification.data.load_images`.
        output: folder for the shards.
        size: larger images are resized so that their shorter side has so many pixels, and stored as JPEG; the others,
            and all if it is None, keep the content of their file.
        quality: of these JPEGs.
        chunk_mb: about the size of a chunk [10^6 bytes].
        workers: threads (one per core).
        on_corrupt: "error" refuses corrupt images, once all others are written; "skip" leaves them out.
        announce: receives notices.
        track: shows progress.

    Raises:
        ValueError: an argument is wrong, `output` holds something else, or a chunk was damaged while it was written.
        CorruptImage: names the files (a ValueError).
    """
    from filelock import FileLock, Timeout

    choice("on_corrupt", on_corrupt, ("error", "skip"))
    if size is not None:
        positive("size", size)
    if not 1 <= positive("quality", quality) <= 100:
        raise ValueError(f"quality: expected 1 to 100, got {quality}")
    if positive("chunk_mb", chunk_mb) > 1024:
        raise ValueError(f"chunk_mb: expected at most 1024, got {chunk_mb}")
    workers = cpu_cores() if workers is None else positive("workers", workers)
    output_folder(output)
    tree = read_tree(Path(data))
    if not tree.validation:
        tree = hold_out(tree)
    for notice in tree.notices:
        announce(notice)
    path = output / LOCK
    is_new = not path.exists()
    with made_folder(output), ExitStack() as locked:
        try:
            locked.enter_context(FileLock(path, timeout=0))
        except Timeout:
            raise ValueError(f"output: another process is writing {output}") from None
        try:
            writer = ShardWriter(tree, output, size=size, quality=quality, chunk_mb=chunk_mb)
            manifest = writer.run(workers, on_corrupt, track)
        except BaseException:
            # while it is locked: afterwards it may be that of another process
            with suppress(OSError):
                if is_new:
                    path.unlink()
            raise
    for line in summary(manifest):
        announce(f"{output}: {line}")
    return manifest


def summary(manifest: Manifest) -> Iterator[str]:
    """What shards hold, in lines for people."""
    for split in SPLITS:
        chunks = manifest.chunks(split)
        yield (
            f"{split}: {sum(c.images for c in chunks):,} images in {len(chunks):,} chunks, "
            f"{sum(c.bytes for c in chunks) / 1e6:,.1f} MB, checksums verified"
        )
    if manifest.skipped:
        yield "\n  ".join([f"left out {len(manifest.skipped)} corrupt image(s):", *manifest.skipped])


class ShardWriter:
    """Writes the chunks that are missing, then the lists."""

    def __init__(self, tree: Tree, output: Path, *, size: int | None, quality: int, chunk_mb: int) -> None:
        self.tree, self.output, self.size, self.quality = tree, output, size, quality
        self.items = {split: _items(tree, split) for split in SPLITS}
        self.settings: dict[str, Any] = {
            "size": size,
            "quality": quality if size else None,
            "chunk_mb": chunk_mb,
            "images": {split: len(items) for split, items in self.items.items()},
            "files": self._fingerprint(),
        }

    def _fingerprint(self) -> str:
        lines = [*self.tree.names.values(), *(f"{name} {k}" for items in self.items.values() for name, k in items)]
        return sha256("\n".join(lines).encode(errors="surrogateescape"))

    def run(self, workers: int, on_corrupt: str, track: Track) -> Manifest:
        """Write what is missing, verify everything, and leave a manifest."""
        if (self.output / MANIFEST).exists():
            return self._verified(self._finished(), track)
        refused: list[str] = []
        with Progress(self.output / PROGRESS, self.settings, self._chunk_images) as progress:
            todo = [
                (split, number)
                for split, items in self.items.items()
                for number in range(-(-len(items) // progress.chunk_images))
                if not progress.is_done(split, number, on_corrupt)
            ]
            with ThreadPoolExecutor(workers) as pool:
                futures = [pool.submit(self._write, *task, progress.chunk_images, on_corrupt) for task in todo]
                try:
                    for future in track(as_completed(futures), "writing chunks", len(futures)):
                        written = future.result()
                        if written.corrupt and on_corrupt == "error":
                            refused += written.corrupt
                        else:
                            progress.add(written)
                except BaseException:
                    pool.shutdown(wait=True, cancel_futures=True)
                    raise
        if refused:
            more = f"; and {len(refused) - 10} more" if len(refused) > 10 else ""
            raise CorruptImage(
                f"data: {len(refused)} corrupt image(s); all chunks without one are written. Mend the files and call "
                f"this again, or pass on_corrupt='skip': {'; '.join(sorted(refused)[:10])}{more}"
            )
        manifest = self._verified(self._manifest(progress), track)
        write_atomically(self.output / MANIFEST, lambda file: file.write(manifest.to_bytes()))
        return manifest

    def _finished(self) -> Manifest:
        path = self.output / MANIFEST
        manifest = read_manifest(path.read_bytes(), str(path))
        refuse_other(self.output, manifest.settings, self.settings)
        return manifest

    def _chunk_images(self) -> int:
        """How many images a chunk takes, from the size of some."""
        items = self.items["train"]
        sizes = []
        for place in np.linspace(0, len(items) - 1, min(SAMPLE, len(items)), dtype=int):
            try:
                sizes.append(len(self._encoded(items[place][0])))
            except CorruptImage:
                continue
        return max(1, round(self.settings["chunk_mb"] * 1e6 / (np.mean(sizes) if sizes else 1e5)))

    def _write(self, split: str, number: int, chunk_images: int, on_corrupt: str) -> Written:
        encoded, corrupt = [], []
        for name, label in self.items[split][number * chunk_images : (number + 1) * chunk_images]:
            try:
                encoded.append((self._encoded(name), label))
            except CorruptImage as error:
                corrupt.append(str(error))
        if not encoded or (corrupt and on_corrupt == "error"):
            return Written(split, number, None, corrupt)
        content = encode_chunk(encoded)
        write_atomically(self.output / split / chunk_name(number), lambda file: file.write(content))
        return Written(
            split, number, vars(Chunk(chunk_name(number), len(encoded), len(content), sha256(content))), corrupt
        )

    def _encoded(self, name: str) -> bytes:
        path = self.tree.root / name
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise CorruptImage(f"{path}: no such file") from None
        image = decode_image(content, str(path), channels=3)
        if self.size is None or min(image.size) <= self.size:
            return content
        return _jpeg(image, self.size, self.quality)

    def _manifest(self, progress: Progress) -> Manifest:
        """Of what is done; the indices are written along."""
        done = [progress.done[key] for key in sorted(progress.done)]
        chunks = {s: [Chunk(**w.chunk) for w in done if w.split == s and w.chunk] for s in SPLITS}
        for split in SPLITS:
            if not chunks[split]:
                raise ValueError(f"data: none of the {split} images of {self.tree.root} can be decoded")
        indices = {split: encode_index(chunks[split]) for split in SPLITS}
        for split, index in indices.items():
            write_atomically(self.output / split / INDEX, lambda file, index=index: file.write(index))
        return Manifest(
            classes=list(self.tree.names.values()),
            settings=self.settings,
            skipped=[reason for written in done for reason in written.corrupt],
            indices={split: sha256(index) for split, index in indices.items()},
            **chunks,
        )

    def _verified(self, manifest: Manifest, track: Track) -> Manifest:
        paths = [(self.output / split / chunk.name, chunk) for split in SPLITS for chunk in manifest.chunks(split)]
        damaged = damaged_chunks(paths, track)
        if damaged:
            for path in damaged:
                path.unlink(missing_ok=True)
            (self.output / MANIFEST).unlink(missing_ok=True)
            raise ValueError(
                "\n  ".join(["output: damaged chunks were removed; the same call writes them anew:", *damaged.values()])
            )
        return manifest


def _items(tree: Tree, split: str) -> list[tuple[str, int]]:
    """(name of a file, label): those for training shuffled, since a chunk should have images of all classes."""
    items = list(zip(*tree.items(tree.train if split == "train" else tree.validation), strict=True))
    if split == "train":
        items = [items[place] for place in np.random.default_rng(0).permutation(len(items))]
    return items


def _jpeg(image: Image.Image, size: int, quality: int) -> bytes:
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    file = io.BytesIO()
    image.resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=quality)
    return file.getvalue()
