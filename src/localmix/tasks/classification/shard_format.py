"""What lies in a folder of shards: litdata's chunks and index for each split, and a manifest that vouches for them.

```
SHARDS/shards.json               classes, settings, and each chunk with its number of images, bytes and SHA-256
SHARDS/train/chunk-000000.bin      images, each with its label and a checksum
SHARDS/train/index.json            litdata's own list of the chunks
SHARDS/validation/...
```

A chunk is what litdata writes for tuples (bytes, int, int): the content of an image file, its label, and the CRC-32 of
both. Nothing in it is code, and nothing of it is unpickled. Numbers are little-endian:

    chunk   uint32 n; uint32 offset[n + 1], from the start of the chunk; the items
    item    uint32 size[3]; content; int64 label; int64 checksum
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

MANIFEST, INDEX = "shards.json", "index.json"
PROGRESS = "shards.progress.jsonl"
"""Which chunks are done; without a manifest beside it the shards are unfinished."""
FORMAT = "localmix shards 1"
SPLITS = ("train", "validation")
DATA_FORMAT = ["bytes", "int", "int"]
_LEAF = {"type": None, "context": None, "children_spec": []}
_TUPLE = {"type": "builtins.tuple", "context": "null", "children_spec": [_LEAF] * 3}
LARGEST = 2**32 - 1
"""Bytes of a chunk: its offsets have 32 bits."""


@dataclass(frozen=True)
class Chunk:
    """A file of images, as the manifest has it."""

    name: str
    images: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards holds."""

    classes: list[str]
    settings: dict[str, Any]
    skipped: list[str]
    train: list[Chunk]
    validation: list[Chunk]
    indices: dict[str, str]
    """SHA-256 of the index of each split."""

    def chunks(self, split: str) -> list[Chunk]:
        """Of a split."""
        return getattr(self, split)

    def to_bytes(self) -> bytes:
        """The content of the file."""
        return (json.dumps({"format": FORMAT, **asdict(self)}, indent=1, sort_keys=True) + "\n").encode()


def chunk_name(number: int) -> str:
    """Of the file."""
    return f"chunk-{number:06}.bin"


def read_manifest(content: bytes, where: str) -> Manifest:
    """The manifest in a file that `where` names.

    Raises:
        ValueError: it is none, or it names a file that would not lie in the folder of its split.
    """
    try:
        values = json.loads(content)
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise ValueError(f"expected the format {FORMAT!r}")
        values = {field.name: values[field.name] for field in fields(Manifest)}
        for split in SPLITS:
            values[split] = [_chunk(entry) for entry in values[split]]
            if not values[split]:
                raise ValueError(f"expected chunks for {split}, got none")
        if not all(isinstance(name, str) for name in values["classes"]) or len(values["classes"]) < 2:
            raise ValueError("expected the names of at least 2 classes")
        return Manifest(**values)
    except KeyError as error:
        raise ValueError(f"data: {where} is no manifest of shards: {error} is missing") from None
    except (ValueError, TypeError) as error:
        raise ValueError(f"data: {where} is no manifest of shards: {error}") from None


def _chunk(entry: dict[str, Any]) -> Chunk:
    chunk = Chunk(**entry)
    if not isinstance(chunk.name, str) or not re.fullmatch(r"chunk-[0-9]{6,12}\.bin", chunk.name):
        raise ValueError(f"expected a file name like {chunk_name(0)!r}, got {chunk.name!r}")
    if not all(type(number) is int and number > 0 for number in (chunk.images, chunk.bytes)):
        raise ValueError(f"expected numbers of images and bytes of {chunk.name}, got {chunk.images!r}, {chunk.bytes!r}")
    if not isinstance(chunk.sha256, str) or not re.fullmatch(r"[0-9a-f]{64}", chunk.sha256):
        raise ValueError(f"expected a SHA-256 of {chunk.name}, got {chunk.sha256!r}")
    return chunk


def encode_index(chunks: Sequence[Chunk]) -> bytes:
    """litdata's index.json of a split, by which its `StreamingDataset` reads the chunks, too."""
    config = {
        "chunk_bytes": max(chunk.bytes for chunk in chunks),
        "chunk_size": None,
        "compression": None,
        "data_format": DATA_FORMAT,
        "data_spec": json.dumps([1, _TUPLE]),
        "encryption": None,
        "item_loader": "PyTreeLoader",
    }
    entries = [{"chunk_bytes": c.bytes, "chunk_size": c.images, "dim": None, "filename": c.name} for c in chunks]
    return json.dumps({"chunks": entries, "config": config}, sort_keys=True).encode()


def check_index(content: bytes, where: str) -> None:
    """Refuse an index by which litdata would unpickle or decompress what it reads."""
    try:
        config = json.loads(content)["config"]
        found = {key: config.get(key) for key in ("data_format", "compression", "encryption")}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"data: {where} is no index of litdata: {error!r}") from None
    expected = {"data_format": DATA_FORMAT, "compression": None, "encryption": None}
    if found != expected:
        raise ValueError(f"data: expected {expected} in {where}, got {found}; refused")


def _head(images: int) -> int:
    """Bytes before the first item."""
    return 4 * (images + 2)


def encode_chunk(items: Sequence[tuple[bytes, int]]) -> bytes:
    """A chunk of (content of an image file, label)."""
    encoded = [_encode_item(content, label) for content, label in items]
    offsets = np.cumsum([_head(len(items)), *map(len, encoded)])
    if offsets[-1] > LARGEST:
        raise ValueError(
            f"chunk_mb: {len(items)} images take {offsets[-1]} bytes, a chunk holds {LARGEST}; ask for less"
        )
    return b"".join([np.uint32(len(items)).astype("<u4").tobytes(), offsets.astype("<u4").tobytes(), *encoded])


def _encode_item(content: bytes, label: int) -> bytes:
    sizes = np.array([len(content), 8, 8], "<u4").tobytes()
    return b"".join([sizes, content, np.array([label, _checksum(content, label)], "<i8").tobytes()])


def _checksum(content: bytes, label: int) -> int:
    return zlib.crc32(label.to_bytes(8, "little", signed=True), zlib.crc32(content))


def decode_offsets(head: bytes, chunk: Chunk) -> np.ndarray:
    """Where the items of a chunk begin, and the last one ends.

    Args:
        head: the first bytes of the file, at least `head_bytes(chunk)`.
        chunk: what the file should be.

    Raises:
        ValueError: it is another, or damaged.
    """
    numbers = np.frombuffer(head[: _head(chunk.images)], "<u4").astype(np.int64)
    offsets = numbers[1:]
    if (
        len(numbers) != chunk.images + 2
        or numbers[0] != chunk.images
        or offsets[0] != _head(chunk.images)
        or offsets[-1] != chunk.bytes
        or (np.diff(offsets) < 28).any()
    ):
        raise ValueError("its list of items is damaged")
    return offsets


def head_bytes(chunk: Chunk) -> int:
    """How many bytes `decode_offsets` needs."""
    return _head(chunk.images)


def decode_item(item: bytes) -> tuple[bytes, int]:
    """Content of an image file and label.

    Raises:
        ValueError: the checksum is wrong.
    """
    content = item[12:-16]
    label, checksum = np.frombuffer(item[-16:], "<i8").tolist()
    if _checksum(content, label) != checksum:
        raise ValueError("wrong checksum")
    return content, label


def sha256(content: bytes) -> str:
    """As hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()
