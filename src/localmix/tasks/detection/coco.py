"""Images and their objects, as COCO's json describes them: polygons, run-length masks, crowds, any categories."""

from __future__ import annotations

import gc
import hashlib
import json
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from faster_coco_eval.core import mask as run_lengths
from PIL import Image
from torch import Tensor

from localmix.tasks.detection.coco_entries import packed, unpacked
from localmix.tasks.detection.coco_errors import errors
from localmix.tasks.images import CorruptImage, read_image, to_tensor

MAX_LISTED = 100
USED = ("id", "file_name", "width", "height")
"""What is kept of the entry of an image: addresses and dates would come to be copied into each process that loads."""


class CocoImages:
    """A data set in COCO's format, checked as a whole before its first image is read.

    An element is an image, float32 [3, H, W] with values in 0..1, and its target: "boxes" [n, 4] as (x0, y0, x1, y1),
    "labels" [n] and "masks" [n, H, W], as `CascadeMaskRCNN` takes them. Crowds, and objects whose box is less than a
    pixel wide or high, are no targets; `CocoScores` knows them nevertheless. So an image may be without objects.

    Args:
        annotations: the json file.
        folder: the images.

    Attributes:
        classes: names of the categories, by their id; that of label 1 first.
        category_ids: their ids in the file.
        images: `USED` of the entry of each image.
        objects: entries of the annotations of each image.
        digest: SHA-256 of the json file.

    Raises:
        ValueError: with all that is wrong, at once: files that are missing, boxes outside the image, unknown
            categories, duplicate ids, ...
    """

    def __init__(self, annotations: Path | str, folder: Path | str) -> None:
        self.folder = Path(folder)
        with _uncollected():
            self._take(Path(annotations))

    def _take(self, annotations: Path) -> None:
        content, self.digest = _read(annotations)
        found = errors(content, self.folder)
        if found:
            more = f"\n  and {len(found) - MAX_LISTED} more" if len(found) > MAX_LISTED else ""
            lines = "".join(f"\n  {error}" for error in found[:MAX_LISTED])
            raise ValueError(f"annotations: {annotations} has {len(found)} errors:{lines}{more}")
        categories = sorted(content["categories"], key=lambda category: category["id"])
        self.classes: list[str] = [category["name"] for category in categories]
        self.category_ids: list[int] = [category["id"] for category in categories]
        self.images: list[dict[str, Any]] = [{name: image[name] for name in USED} for image in content["images"]]
        self.index = {image["id"]: index for index, image in enumerate(self.images)}
        objects: list[list[bytes]] = [[] for _ in self.images]
        for item in content.pop("annotations"):
            objects[self.index[item.image_id]].append(item.content)
        self.objects = Objects(objects)
        self.labels = {category: 1 + index for index, category in enumerate(self.category_ids)}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        return to_tensor(self.read(index)).float() / 255, self.target(index)

    def read(self, index: int) -> Image.Image:
        """An image, decoded.

        Raises:
            CorruptImage: it cannot be, or has another size than the annotations say.
        """
        entry = self.images[index]
        path = self.folder / entry["file_name"]
        image = read_image(path, 3)
        if image.size != (entry["width"], entry["height"]):
            raise CorruptImage(
                f"{path}: expected {entry['width']} x {entry['height']} pixels, got {image.width} x {image.height}"
            )
        return image

    def target(self, index: int) -> dict[str, Tensor]:
        """What is to be found in an image; the image itself is not read."""
        height, width = self.images[index]["height"], self.images[index]["width"]
        objects = self._trained_on(index)
        boxes = [_box(item, height, width) for item in objects]
        masks = [decode_mask(item["segmentation"], height, width) for item in objects]
        return {
            "boxes": torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
            "labels": torch.tensor([self.labels[item["category_id"]] for item in objects], dtype=torch.long),
            "masks": torch.from_numpy(np.stack(masks)) if masks else torch.zeros(0, height, width, dtype=torch.uint8),
        }

    def with_objects(self) -> list[int]:
        """Indices of the images that have something to train on."""
        return [index for index in range(len(self)) if self._trained_on(index)]

    def counts(self) -> dict[str, int]:
        """Objects of each class, without crowds."""
        found = Counter(item["category_id"] for items in self.objects for item in items if not item.get("iscrowd"))
        return {name: found[category] for name, category in zip(self.classes, self.category_ids, strict=True)}

    def _trained_on(self, index: int) -> list[dict[str, Any]]:
        height, width = self.images[index]["height"], self.images[index]["width"]

        def counts(item: dict[str, Any]) -> bool:
            x0, y0, x1, y1 = _box(item, height, width)
            return not item.get("iscrowd") and x1 - x0 >= 1 and y1 - y0 >= 1

        return [item for item in self.objects[index] if counts(item)]


def decode_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Polygons or run lengths to pixels: uint8 [height, width]."""
    return run_lengths.decode(encode_mask(segmentation, height, width))


def encode_mask(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Polygons or run lengths, or an array [height, width] of 0 and 1, to COCO's compressed run lengths."""
    # its answer is of the kind that it is given, which its annotations do not say
    convert: Any = run_lengths.frPyObjects
    if isinstance(segmentation, np.ndarray):
        return run_lengths.encode(np.asfortranarray(segmentation, dtype=np.uint8))
    if isinstance(segmentation, list):
        return run_lengths.merge(convert(segmentation, height, width))
    return convert(segmentation, height, width) if isinstance(segmentation["counts"], list) else segmentation


def _box(item: dict[str, Any], height: int, width: int) -> tuple[float, float, float, float]:
    """Corners of an object's box, inside the image."""
    x, y, across, down = item["bbox"]
    return max(0.0, x), max(0.0, y), min(float(width), x + across), min(float(height), y + down)


class Objects(Sequence[list[dict[str, Any]]]):
    """Lists of entries in one block of memory, taken out of it when they are asked for.

    As objects of Python those of COCO take gigabytes, which each process that loads images would come to copy.
    """

    def __init__(self, lists: list[list[bytes]]) -> None:
        self.first = np.cumsum([0, *map(len, lists)])
        self.ends = np.cumsum([0, *(len(packed) for items in lists for packed in items)])
        self.bytes = np.frombuffer(b"".join(packed for items in lists for packed in items), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.first) - 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        ends = self.ends[self.first[index] : self.first[index + 1] + 1].tolist()
        return [unpacked(self.bytes[start:end].tobytes()) for start, end in pairwise(ends)]


@contextmanager
def _uncollected() -> Generator[None]:
    """Without the search for cycles, which json has none of, and which takes a third of the time to read COCO's."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _read(path: Path) -> tuple[Any, str]:
    """What the file says, and its digest."""
    try:
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        text = content.decode(json.detect_encoding(content), "surrogatepass")
        del content  # as long as the text
        return json.loads(text, object_hook=packed), digest
    except FileNotFoundError:
        raise ValueError(f"annotations: expected a json file, there is none at {path}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"annotations: {path} is not json: {error}") from error
