"""The page docs/speed.md, made from the results that benchmarks wrote."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from localmix.reports.benchmarks.report import (
    GRAPHS,
    NOTE,
    Row,
    cells,
    describe,
    groups,
    markdown_table,
    setting,
    short,
)
from localmix.tasks.engine.output import output_file
from localmix.writing import write_atomically

KINDS = ("operators", "networks")
HEAD = """# Speed

This page is made by `localmix bench docs` from the results in `benchmarks/results`; do not edit it.
[What the numbers mean and how they are measured](bench.md).

## What has been run
"""


def write_page(results: Sequence[Path], output: Path) -> str:
    """Write the page about the results in some folders, or in folders within those; returns what was done.

    Raises:
        ValueError: there is no such folder, or there are no results in it.
    """
    output_file(output)
    files = [file for folder in results for file in _files(folder)]
    if not files:
        folders = ", ".join(map(str, results))
        raise ValueError(f"results: expected those of `localmix bench ops` or `models`, found none in {folders}")
    text = page({Path(os.path.relpath(file.parent, output.parent)): json.loads(file.read_text()) for file in files})
    write_atomically(output, lambda file: file.write(text.encode()))
    return f"{output}: from {len(files)} results"


def page(results: dict[Path, dict[str, Any]]) -> str:
    """The page about results by their folder, as seen from the page."""
    paragraphs = [HEAD.strip(), *_coverage(results)]
    for folder, content in results.items():
        paragraphs += _section(folder, content)
    return "\n\n".join(paragraphs) + "\n"


def _files(folder: Path) -> list[Path]:
    """The results of benchmarks in a folder, or in each folder within it; those of other commands are left alone."""
    if not folder.is_dir():
        raise ValueError(f"results: expected a folder that `localmix bench --output` wrote, got {folder}")
    files = [folder / "results.json", *sorted(folder.glob("*/results.json"))]
    return [file for file in files if file.is_file() and json.loads(file.read_text()).get("kind") in KINDS]


def _coverage(results: dict[Path, dict[str, Any]]) -> list[str]:
    """What there is, and so what there is not."""
    body = []
    for kind in KINDS:
        ran = [
            [
                f"[{_processor(content)}, {setting(content)}](#{folder.name})"
                for folder, content in results.items()
                if content["kind"] == kind and content["environment"]["hardware"]["device"] == device
            ]
            for device in ("cpu", "cuda")
        ]
        body.append([kind, *(", ".join(links) or "not run yet" for links in ran)])
    table = ["| | on a CPU | on a GPU |", "|---|---|---|", *("| " + " | ".join(line) + " |" for line in body)]
    return ["\n".join(table), "Of what is not in this table nothing is known, and nothing is claimed."]


def _processor(results: dict[str, Any]) -> str:
    hardware = results["environment"]["hardware"]
    return hardware["gpu"] or hardware["cpu"]


def _section(folder: Path, results: dict[str, Any]) -> list[str]:
    first, *rest = describe(results)
    files = [f"[{name}]({(folder / name).as_posix()})" for name in ("results.json", "table.md", "figure.png")]
    commit = f", commit `{results['commit'][:12]}`" if results["commit"] else ""
    commit += " with changes" if commit and results["commit"].endswith("+") else ""
    paragraphs = [
        f'<a id="{folder.name}"></a>',
        f"## {first[0].upper()}{first[1:]}",
        f"`{results['command']}`{commit}, {results['settings']['rounds']} rounds; {'; '.join(rest)}. "
        f"Everything: {', '.join(files)}.",
        f"![{first}]({(folder / 'figure.png').as_posix()})",
    ]
    if results["settings"].get("graph"):
        paragraphs.append(GRAPHS)
    if not results["is_complete"]:
        paragraphs.append("**Interrupted: the rest is missing.**")
    if results["kind"] == "networks":
        paragraphs.append(NOTE)
        for rows in groups(results["rows"]):
            paragraphs += [f"### {rows[0]['direction'].capitalize()}", "\n".join(markdown_table(*cells(rows)))]
        return [*paragraphs, *_refused(results)]
    paragraphs.append(
        "Milliseconds (median), in brackets how many times the floor. "
        "Below, how many times as fast as each peer the implementation is that `auto` takes."
    )
    for name, direction in dict.fromkeys((row["name"], row["direction"]) for row in results["rows"]):
        rows = [row for row in results["rows"] if (row["name"], row["direction"]) == (name, direction)]
        paragraphs += [f"### `{name}`, {direction}", "\n".join(_by_shape(rows))]
    return [*paragraphs, *_refused(results)]


def _by_shape(rows: Sequence[Row]) -> list[str]:
    """A line for each implementation and a column for each shape."""
    shapes = list(dict.fromkeys(tuple(row["shape"]) for row in rows))
    at = {(row["label"], tuple(row["shape"])): row for row in rows}
    header = ["", *(" × ".join(map(str, shape[1:])) for shape in shapes), "geometric mean"]
    body = [["floor", *(short(next(r for r in rows if tuple(r["shape"]) == s)["floor_ms"]) for s in shapes), ""]]
    for label in dict.fromkeys(row["label"] for row in rows):
        body.append([label, *(_duration(at.get((label, shape))) for shape in shapes), ""])
    for label in dict.fromkeys(row["label"] for row in rows if not row["is_ours"]):
        ratios = [_ratio_of_auto(rows, shape, label) for shape in shapes]
        known = [ratio for ratio in ratios if ratio]
        mean = short(geometric_mean(known)) if known else "-"
        body.append([f"**times as fast as {label}**", *(short(r) if r else "-" for r in ratios), mean])
    return markdown_table(header, body)


def _duration(row: Row | None) -> str:
    if row is None:
        return "-"
    return f"{short(row['ms']['p50'])} ({short(row['over_floor'])})" if row["ms"] else "refused"


def _ratio_of_auto(rows: Sequence[Row], shape: tuple[int, ...], label: str) -> float | None:
    own = next((row for row in rows if row["is_auto"] and tuple(row["shape"]) == shape), None)
    return own["times_as_fast_as"].get(label) if own else None


def _refused(results: dict[str, Any]) -> list[str]:
    lines = [f"* {row['group']}, {row['label']}: {row['refused']}" for row in results["rows"] if row["refused"]]
    return ["Refused, and so not timed:", "\n".join(lines)] if lines else []
