"""`localmix report`: one page about what this machine can regenerate of the paper, and what runs found."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from localmix.reports.paper import TASKS
from localmix.reports.progress import Display
from localmix.reports.reproduction.page import Block, Heading, Mark, Paragraph, html, markdown
from localmix.reports.reproduction.paper_tables import paper_table
from localmix.reports.reproduction.runs import blocks as section
from localmix.reports.reproduction.runs import find, score
from localmix.tasks.engine.checkpoint import write_atomically

TITLE = "What is reproduced of the paper"
SPEED = ("networks", "operators", "loader")
"""Kinds of results that stand under a heading of their own, and behind them those on cost."""
COST = ("scaling", "cost")


def report(
    runs: Sequence[Path | str], *, output: Path | str | None = None, markdown_output: Path | str | None = None
) -> str:
    """Write the page about some runs; returns what was done.

    Args:
        runs: folders or files of results: of `compare`, `ablate`, `fit`, `validate`, `test`, `bench` and `cost`; or
            folders of such folders.
        output: the page as one HTML file that needs no other.
        markdown_output: the page as Markdown, which links to the pictures.

    Raises:
        ValueError: an argument is wrong, or a run is half written or of no known kind; names it.
    """
    outputs = {"output": (output, (".html", ".htm")), "markdown": (markdown_output, (".md",))}
    for name, (path, suffixes) in outputs.items():
        if path is not None and Path(path).suffix not in suffixes:
            raise ValueError(f"{name}: expected a name that ends in {suffixes[0]}, got {path}")
    if output is None and markdown_output is None:
        raise ValueError("output: expected a file to write into, got none")
    content = blocks([Path(run) for run in runs])
    written = []
    if output is not None:
        text = html(content)
        write_atomically(Path(output), lambda file: file.write(text.encode()))
        written.append(str(output))
    if markdown_output is not None:
        folder = Path(markdown_output).parent
        again = f"localmix report{''.join(f' {Path(os.path.relpath(run)).as_posix()}' for run in runs)}"
        lines = markdown(_with_command(content, f"{again} --markdown {Path(markdown_output).as_posix()}"), folder)
        write_atomically(Path(markdown_output), lambda file: file.write(lines.encode()))
        written.append(str(markdown_output))
    return f"{', '.join(written)}: the paper's tables and {len(runs)} run(s)"


def blocks(runs: Sequence[Path]) -> list[Block]:
    """The page: the paper's tables, then what the runs found."""
    found, left = find(runs)
    # before what takes long, so that an error comes at once
    sections = {id(item): section(item) for item in found}
    scores = dict(place for item in found if (place := score(item)))
    page: list[Block] = [
        Heading(TITLE, 1),
        Paragraph(
            "The tables of On the Connection between Local Attention and Dynamic Depth-wise Convolution (Han et al., "
            "ICLR 2022): what can be counted is counted by this code, and what was measured is of the runs that are "
            "named. Every figure is marked:"
        ),
        Paragraph("; ".join(f"{mark.value} {mark.meaning}" for mark in Mark) + "."),
    ]
    with Display() as display:
        for task in display.track(TASKS, "tables", len(TASKS)):
            page += paper_table(task, scores)
    groups = {
        "Accuracy on the data at hand": [item for item in found if item.kind not in (*SPEED, *COST)],
        "Speed": [item for item in found if item.kind in SPEED],
        "Cost": [item for item in found if item.kind in COST],
    }
    for title, items in groups.items():
        if items:
            page.append(Heading(title))
        elif title != "Cost":
            page += [Heading(title), Paragraph("No run of it was given.")]
        for item in items:
            page += sections[id(item)]
    if left:
        page.append(Paragraph(f"Left alone, for their kind is not known: {', '.join(f'`{p.name}`' for p in left)}."))
    return page


def _with_command(page: Sequence[Block], command: str) -> list[Block]:
    """The page with a line below its title that says how it is made."""
    return [page[0], Paragraph(f"This page is made by `{command}`; do not edit it."), *page[1:]]
