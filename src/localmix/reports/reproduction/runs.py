"""Which runs there are: what folders and files hold that commands of localmix wrote."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from localmix.reports.paper import NUM_CLASSES, SIZES, paper_row
from localmix.reports.reproduction.found import Content, Found
from localmix.reports.reproduction.page import Block
from localmix.reports.reproduction.paper_tables import Scores
from localmix.reports.reproduction.sections import SECTIONS, section
from localmix.tasks.engine.run_folder import METRICS

RESULTS, RUN = "results.json", "run.json"
IMAGENET_VALIDATION = 50_000
"""Images of ImageNet's validation set, which tells it from others of 1000 classes."""


def blocks(found: Found) -> list[Block]:
    """Its section of the page.

    Raises:
        ValueError: something is missing in it, such as in half of a file; names it.
    """
    try:
        return section(found)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else f"something else: {error}"
        raise ValueError(f"runs: expected the results of {found.kind}, {found.path} has {what}") from error


def score(found: Found) -> tuple[tuple[str, str], tuple[float, ...]] | None:
    """Its place in the paper's tables, (task, network), and what it reached there; None if it is none of those.

    The paper's are of images of 224 pixels, each seen once.
    """
    if found.kind != "evaluation":
        return None
    content = found.content
    row = paper_row("classification", content["model"]["name"])
    of_imagenet = content["data"]["classes"] == NUM_CLASSES["classification"]
    as_the_paper = tuple(content["view"]["size"]) == SIZES["classification"] and content["settings"]["tta"] == "none"
    if row is None or not of_imagenet or not as_the_paper or content["images"] != IMAGENET_VALIDATION:
        return None
    return ("classification", row.networks[0]), (100 * content["top1"],)


def scores(found: Sequence[Found]) -> Scores:
    """What was reached on the paper's data, by task and network and then by the run, which counts once.

    A run is named by its folder, and by its whole path where folders of one name were given.
    """
    placed = {item.path.resolve(): (item.path, place) for item in found if (place := score(item))}.values()
    paths: dict[tuple[str, str], list[Path]] = {}
    for path, (subject, _) in placed:
        paths.setdefault(subject, []).append(path)
    result: dict[tuple[str, str], dict[str, tuple[float, ...]]] = {}
    for path, (subject, values) in placed:
        alone = [other.name for other in paths[subject]].count(path.name) == 1
        result.setdefault(subject, {})[path.name if alone else path.as_posix()] = values
    return result


def find(paths: Sequence[Path]) -> tuple[list[Found], list[Path]]:
    """What the paths hold, and what was left alone: results of unknown kinds in a folder of folders.

    Raises:
        ValueError: a path holds nothing that is known; names it.
    """
    found, left = [], []
    for path in paths:
        own = _read(path)
        if own is not None:
            found.append(own)
            continue
        inner = sorted(folder for folder in path.iterdir() if folder.is_dir()) if path.is_dir() else []
        read = [(folder, _read(folder, unknown=None)) for folder in inner if _holds_something(folder)]
        if not read:
            there = "no such file or folder" if not path.exists() else "neither"
            raise ValueError(
                f"runs: expected a folder with {RESULTS} or {METRICS}, or a folder of such, got {path}: {there}"
            )
        found += [item for _, item in read if item is not None]
        left += [folder for folder, item in read if item is None]
    return found, left


def _holds_something(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (RESULTS, METRICS))


def _read(path: Path, unknown: str | None = "refuse") -> Found | None:
    """What a path holds; None if nothing, or something unknown that is not to be refused."""
    file = path / RESULTS if path.is_dir() else path
    if file.is_file():
        content = _json(file)
        kind = _kind(content)
        if kind is not None:
            return Found(path, kind, content, file.parent)
        if unknown is None:
            return None
        raise ValueError(
            f"runs: expected results of {', '.join(dict.fromkeys(SECTIONS))}, got another kind in {file}: "
            f"{content.get('kind')!r}"
        )
    if path.is_dir() and (path / METRICS).is_file():
        facts = path / RUN
        return Found(path, "fit", _json(facts) if facts.is_file() else {}, path)
    return None


def _json(file: Path) -> Content:
    try:
        content = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"runs: expected whole JSON, {file} is not: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"runs: expected an object in {file}, got {type(content).__name__}")
    return content


def _kind(content: Content) -> str | None:
    kind = content.get("kind")
    if kind is None:
        # results that were written before they named their kind
        kind = "ablation" if "studies" in content else "compare" if {"rows", "images"} <= content.keys() else None
    return kind if kind in SECTIONS else None
