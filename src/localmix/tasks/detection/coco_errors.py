"""What is wrong with a data set in COCO's format: everything, so that it is repaired once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from localmix.tasks.detection.coco_entries import Packed

SLACK = 1.0
"""What a box may reach beyond its image, by rounding [pixels]."""


def errors(content: Any, folder: Path) -> list[str]:
    """A line for each error in the content of a json file whose images lie in `folder`; none if all is well."""
    if not isinstance(content, dict):
        return [f"expected an object with images, annotations and categories, got {type(content).__name__}"]
    kinds = {"images": dict, "annotations": dict | Packed, "categories": dict}
    found = [f"{name}: expected a list of objects" for name in kinds if not _is_list_of(kinds[name], content.get(name))]
    if found:
        return found
    found.extend(_identities("image", content["images"]))
    found.extend(_identities("category", content["categories"]))
    found.extend(
        f"{_name('category', c)}: no name" for c in content["categories"] if not isinstance(c.get("name"), str)
    )
    names = Counter(c["name"] for c in content["categories"] if isinstance(c.get("name"), str))
    found.extend(f"category name {name!r}: {count} categories have it" for name, count in names.items() if count > 1)
    images = {}
    for image in content["images"]:
        wrong = list(_wrong_with_image(image, folder))
        found.extend(f"{_name('image', image)}: {error}" for error in wrong)
        images[_key(image)] = None if any("width" in error for error in wrong) else image
    categories = {_key(category) for category in content["categories"]}
    found.extend(_wrong_with_objects(content["annotations"], images, categories))
    return found


def _identities(kind: str, entries: Iterable[dict[str, Any]]) -> Iterator[str]:
    """What is wrong with the ids of entries, each of which is looked at once."""
    counts: Counter[int | None] = Counter()
    for entry in entries:
        counts[_key(entry)] += 1
        if not _is_integer(entry.get("id")):
            yield f"{kind} without a whole number as id: {str(entry)[:80]}"
    for key, count in counts.items():
        if count > 1 and key is not None:
            yield f"{kind} {key}: {count} entries have this id"


def _wrong_with_objects(items: list[Any], images: dict[Any, Any], categories: set[Any]) -> list[str]:
    found: list[str] = []

    def checked() -> Iterator[dict[str, Any]]:
        for packed in items:
            item = packed.entry if isinstance(packed, Packed) else packed
            found.extend(
                f"{_name('annotation', item)}: {error}" for error in _wrong_with_object(item, images, categories)
            )
            yield item

    # once, since to unpack them takes time
    return [*_identities("annotation", checked()), *found]


def _wrong_with_image(image: dict[str, Any], folder: Path) -> Iterator[str]:
    name = image.get("file_name")
    if not isinstance(name, str) or not name:
        yield "no file_name"
    elif not (folder / name).is_file():
        yield f"there is no file {folder / name}"
    size = image.get("width"), image.get("height")
    if not all(isinstance(side, int) and side > 0 for side in size):
        yield f"expected width and height in pixels, got {size[0]!r} and {size[1]!r}"


def _wrong_with_object(item: dict[str, Any], images: dict[Any, Any], categories: set[Any]) -> Iterator[str]:
    image_id, category = item.get("image_id"), item.get("category_id")
    if not _is_integer(image_id) or image_id not in images:
        yield f"there is no image {image_id!r}"
        return
    if not _is_integer(category) or category not in categories:
        yield f"there is no category {category!r}"
    if item.get("iscrowd", 0) not in (0, 1):
        yield f"expected iscrowd to be 0 or 1, got {item['iscrowd']!r}"
    image = images[image_id]
    if image is None:
        return
    box = item.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
        yield f"expected bbox to be x, y, width, height, got {str(box)[:80]}"
    elif min(box[2:]) < 0 or min(box[:2]) < -SLACK or _beyond(box, image):
        yield f"bbox {box} lies outside image {image_id} of {image['width']} x {image['height']} pixels"
    yield from _wrong_with_mask(item.get("segmentation"), image)


def _wrong_with_mask(segmentation: Any, image: dict[str, Any]) -> Iterator[str]:
    if isinstance(segmentation, dict):
        size = [image["height"], image["width"]]
        if segmentation.get("size") != size:
            yield f"expected run lengths of a mask of size {size}, got {segmentation.get('size')}"
        counts = segmentation.get("counts")
        if isinstance(counts, list):
            if not all(_is_integer(count) and count >= 0 for count in counts) or sum(counts) != size[0] * size[1]:
                yield f"expected run lengths that add up to the {size[0] * size[1]} pixels of the image"
        elif not isinstance(counts, str) or not counts:
            yield f"expected run lengths, got {str(counts)[:80]}"
    elif not isinstance(segmentation, list) or not segmentation:
        yield f"expected segmentation to be polygons or run lengths, got {str(segmentation)[:80]}"
    else:
        for polygon in segmentation:
            whole = isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0
            if not whole or not _are_numbers(polygon):
                yield f"expected a polygon of x, y of three corners or more, got {str(polygon)[:80]}"


def _beyond(box: list[float], image: dict[str, Any]) -> bool:
    return box[0] + box[2] > image["width"] + SLACK or box[1] + box[3] > image["height"] + SLACK


def _is_list_of(kind: Any, value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, kind) for entry in value)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _are_numbers(values: list[Any]) -> bool:
    """`_is_number` of all, without a call for each: COCO's polygons have 50 million of them."""
    return set(map(type, values)) <= {int, float} and all(map(math.isfinite, values))


def _key(entry: dict[str, Any]) -> int | None:
    return entry["id"] if _is_integer(entry.get("id")) else None


def _name(kind: str, entry: dict[str, Any]) -> str:
    return f"{kind} {entry.get('id')!r}"
