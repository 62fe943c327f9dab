"""`localmix report`: one page about what this machine can regenerate of the paper, and what runs found."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from localmix.reports.paper import TASKS
from localmix.reports.progress import Display
from localmix.reports.reproduction.found import Found
from localmix.reports.reproduction.page import Block, Grid, Heading, Mark, Paragraph, html, markdown
from localmix.reports.reproduction.paper_tables import paper_table
from localmix.reports.reproduction.runs import blocks as section
from localmix.reports.reproduction.runs import find, scores
from localmix.reports.reproduction.sections import SECTIONS
from localmix.tasks.engine.output import output_file
from localmix.writing import write_atomically

PARTS = {
    "paper": "What is reproduced of the paper",
    "accuracy": "Accuracy on the data at hand",
    "speed": "Speed",
    "cost": "Cost",
}
"""Parts of the page and their titles."""
SPEED = ("networks", "operators", "loader", "views", "epoch")
COST = ("scaling", "cost")
"""Kinds of results of those parts; the others are of accuracy."""


def report(
    runs: Sequence[Path | str],
    *,
    output: Path | str | None = None,
    markdown_output: Path | str | None = None,
    parts: Sequence[str] = tuple(PARTS),
) -> str:
    """Write the page about some runs; returns what was done.

    Args:
        runs: folders or files of results: of `compare`, `ablate`, `fit`, `validate`, `test`, `bench` and `cost`; or
            folders of such folders.
        output: the page as one HTML file that needs no other.
        markdown_output: the page as Markdown, which links to the pictures.
        parts: those of `PARTS` that the page has.

    Raises:
        ValueError: an argument is wrong, or a run is half written or of no known kind; names it.
    """
    outputs = {"output": (output, (".html", ".htm")), "markdown": (markdown_output, (".md",))}
    for name, (path, suffixes) in outputs.items():
        if path is not None:
            output_file(path, *suffixes, name=name)
    if output is None and markdown_output is None:
        raise ValueError("output: expected a file to write into, got none")
    if not parts or not set(parts) <= PARTS.keys():
        raise ValueError(f"parts: expected some of {', '.join(PARTS)}, got {list(parts)}")
    parts = [part for part in PARTS if part in parts]
    content = blocks([Path(run) for run in runs], parts)
    written = []
    if output is not None:
        text = html(content)
        write_atomically(Path(output), lambda file: file.write(text.encode()))
        written.append(str(output))
    if markdown_output is not None:
        folder = Path(markdown_output).parent
        again = f"localmix report{''.join(f' {Path(os.path.relpath(run)).as_posix()}' for run in runs)}"
        again += "" if parts == list(PARTS) else f" --parts {' '.join(parts)}"
        lines = markdown(_with_command(content, f"{again} --markdown {Path(markdown_output).as_posix()}"), folder)
        write_atomically(Path(markdown_output), lambda file: file.write(lines.encode()))
        written.append(str(markdown_output))
    return f"{', '.join(written)}: {', '.join(PARTS[part].lower() for part in parts)}; {len(runs)} run(s)"


def blocks(runs: Sequence[Path], parts: Sequence[str] = tuple(PARTS)) -> list[Block]:
    """The page: the paper's tables, then what the runs found."""
    found, left = find(runs)
    # before what takes long, so that an error comes at once
    sections = {id(item): section(item) for item in found}
    body: list[Block] = []
    if "paper" in parts:
        reached = scores(found)
        with Display() as display:
            for task in display.track(TASKS, "tables", len(TASKS)):
                body += paper_table(task, reached)
    for part in parts:
        if part == "paper":
            continue
        items = [item for item in found if _part(item) == part]
        if len(parts) > 1 and (items or part != "cost"):
            body.append(Heading(PARTS[part]))
        if not items and part != "cost":
            body.append(Paragraph("No run of it was given."))
        # the order of the kinds is that of the sections
        for item in sorted(items, key=lambda item: list(SECTIONS).index(item.kind)):
            body += sections[id(item)]
    omitted = [PARTS[part].lower() for part in PARTS if part not in parts]
    if omitted:
        body.append(Paragraph(f"Not on this page: {', '.join(omitted)}."))
    if left:
        body.append(Paragraph(f"Left alone, for their kind is not known: {', '.join(f'`{p.name}`' for p in left)}."))
    if len(parts) == 1:
        body = [Heading(block.text, 2) if isinstance(block, Heading) else block for block in body]
    return [*_head(body, parts), *body]


def _part(found: Found) -> str:
    return "speed" if found.kind in SPEED else "cost" if found.kind in COST else "accuracy"


def _head(body: Sequence[Block], parts: Sequence[str]) -> list[Block]:
    """Title, what the page is about, and what the marks on it mean."""
    title = PARTS[parts[0]] if len(parts) == 1 or parts[0] == "paper" else "Results of runs"
    about = (
        "What was measured is of the runs that are named, each with its command and machine. Every figure is marked:"
    )
    if "paper" in parts:
        about = (
            "The tables of On the Connection between Local Attention and Dynamic Depth-wise Convolution (Han et al., "
            "ICLR 2022): what can be counted is counted by this code, and what was measured is of the runs that are "
            "named. Every figure is marked:"
        )
    used = {cell.mark for block in body if isinstance(block, Grid) for row in block.rows for cell in row}
    marks = "; ".join(f"{mark.value} {mark.meaning}" for mark in Mark if mark in used)
    return [Heading(title, 1), *([Paragraph(about), Paragraph(f"{marks}.")] if marks else [])]


def _with_command(page: Sequence[Block], command: str) -> list[Block]:
    """The page with a line below its title that says how it is made."""
    return [page[0], Paragraph(f"This page is made by `{command}`; do not edit it."), *page[1:]]
