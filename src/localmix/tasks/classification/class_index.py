"""A file beside folders of images that says which label, and which name for people, a class folder has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

CLASS_INDICES = ("class_index.json", "imagenet_class_index.json", "classes.txt", "LOC_synset_mapping.txt")
"""Names of such files; the first that is there counts."""


def read_class_index(path: Path, folders: Iterable[str]) -> dict[str, str]:
    """Names for people by class folder, in the order of the labels.

    A text file has a line for each class, in the order of the labels: FOLDER, or FOLDER and the name after a blank or
    a tab. A JSON file has {"LABEL": [FOLDER, NAME], ...}, {"LABEL": FOLDER, ...} or {FOLDER: LABEL, ...}.

    Args:
        path: of the file.
        folders: what is there; a line that is a folder as a whole is not cut at a blank.

    Raises:
        ValueError: the file has none of these forms.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        pairs = _json_pairs(json.loads(text)) if path.suffix == ".json" else _line_pairs(text, set(folders))
    except (ValueError, TypeError) as error:
        raise ValueError(f"data: {path} is no class index: {error}") from error
    names = dict(pairs)
    if len(names) < len(pairs):
        doubled = [folder for folder in names if sum(folder == other for other, _ in pairs) > 1]
        raise ValueError(f"data: {path} is no class index: it lists {some(doubled)} more than once")
    # ImageNet has two cranes, the bird and the machine.
    counts: dict[str, int] = {}
    for name in names.values():
        counts[name] = counts.get(name, 0) + 1
    return {folder: name if counts[name] == 1 else f"{name} ({folder})" for folder, name in names.items()}


def _line_pairs(text: str, folders: set[str]) -> list[tuple[str, str]]:
    pairs = []
    for line in filter(None, map(str.strip, text.splitlines())):
        folder, *rest = [line] if line in folders else re.split(r"\t+" if "\t" in line else r"\s+", line, maxsplit=1)
        pairs.append((folder, rest[0] if rest else folder))
    return pairs


def _json_pairs(content: object) -> list[tuple[str, str]]:
    if not isinstance(content, dict) or not content:
        raise ValueError("expected an object")
    by_label: dict[int, tuple[str, str]] = {}
    for key, value in content.items():
        if isinstance(value, int):
            label, folder, name = value, key, key
        elif isinstance(value, str):
            label, folder, name = int(key), value, value
        else:
            label, (folder, name) = int(key), value
        if not isinstance(folder, str) or not isinstance(name, str) or label in by_label:
            raise ValueError(f"label {label} is given twice, or its folder and name are no strings")
        by_label[label] = folder, name
    if sorted(by_label) != list(range(len(by_label))):
        raise ValueError(f"expected the labels 0 to {len(by_label) - 1}")
    return [by_label[label] for label in range(len(by_label))]


def some(names: Iterable[str]) -> str:
    """The names, or the first ten of more."""
    names = sorted(names)
    return str(names) if len(names) <= 10 else f"{names[:10]} and {len(names) - 10} more"
