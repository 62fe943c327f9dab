"""A page as blocks, and its two forms: one HTML file that needs nothing else, and Markdown."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from html import escape
from pathlib import Path
from typing import TypeAlias


class Mark(Enum):
    """Where what a cell says comes from."""

    HERE = "●"
    PAPER = "○"
    MISSING = "×"

    @property
    def meaning(self) -> str:
        return {
            Mark.HERE: "counted or measured here",
            Mark.PAPER: "from the paper",
            Mark.MISSING: "not reproducible here, for the reason below the table",
        }[self]


@dataclass(frozen=True)
class Cell:
    """A cell of a table. `why` stands below the table, once for all cells that share it."""

    text: str
    mark: Mark | None = None
    why: str | None = None


@dataclass(frozen=True)
class Heading:
    """A heading of level 1 to 3."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """Text, in which `code` stands between backticks."""

    text: str


@dataclass(frozen=True)
class Grid:
    """A table; its first `num_left` columns are text, the others numbers."""

    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    num_left: int = 1

    def __post_init__(self) -> None:
        wrong = {len(row) for row in self.rows} - {len(self.header)}
        if wrong:
            raise ValueError(f"rows: expected {len(self.header)} cells in each, got {sorted(wrong)}")

    @property
    def reasons(self) -> list[str]:
        """What stands below, numbered from 1."""
        return list(dict.fromkeys(cell.why for row in self.rows for cell in row if cell.why))

    def shown(self, cell: Cell) -> tuple[str, str, int | None]:
        """Text, mark, and number of the reason of a cell."""
        number = self.reasons.index(cell.why) + 1 if cell.why else None
        return cell.text, cell.mark.value if cell.mark else "", number


@dataclass(frozen=True)
class Picture:
    """A PNG: a file, or the bytes of one that is drawn for the page, which Markdown leaves out."""

    source: Path | bytes
    caption: str


@dataclass(frozen=True)
class Beside:
    """A file that says more: Markdown links to it, HTML, which needs no other file, names it."""

    file: Path
    text: str


Block: TypeAlias = Heading | Paragraph | Grid | Picture | Beside


def cells(row: Sequence[str | Cell], mark: Mark | None = None) -> tuple[Cell, ...]:
    """Cells of a row; those that are text get the mark, but the first."""
    return tuple(
        cell if isinstance(cell, Cell) else Cell(cell, mark if index and cell != "-" else None)
        for index, cell in enumerate(row)
    )


def markdown(blocks: Sequence[Block], folder: Path) -> str:
    """The page as Markdown that will lie in `folder`."""
    return "\n\n".join(text for block in blocks if (text := _markdown(block, folder))) + "\n"


def _markdown(block: Block, folder: Path) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {block.text}"
    if isinstance(block, Paragraph):
        return block.text
    if isinstance(block, Picture):
        if isinstance(block.source, bytes):
            return ""
        return f"![{block.caption}]({Path(os.path.relpath(block.source, folder)).as_posix()})"
    if isinstance(block, Beside):
        return f"[{block.text}]({Path(os.path.relpath(block.file, folder)).as_posix()})."
    lines = [
        _line(block.header),
        "|" + "".join("---|" if index < block.num_left else "---:|" for index in range(len(block.header))),
    ]
    for row in block.rows:
        shown = [block.shown(cell) for cell in row]
        lines.append(_line([_written(*each) for each in shown]))
    reasons = [f"{number}. {reason}" for number, reason in enumerate(block.reasons, 1)]
    return "\n".join([*lines, *([""] if reasons else []), *reasons])


def _written(text: str, mark: str, number: int | None) -> str:
    reason = f"<sup>{number}</sup>" if number else ""
    return f"{text} {mark}{reason}".strip() if mark else f"{text}{reason}"


def _line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(text.replace('|', chr(92) + '|') for text in texts)} |"


def html(blocks: Sequence[Block]) -> str:
    """The page as one HTML file: styles and pictures are in it, scripts are not needed."""
    title = next((block.text for block in blocks if isinstance(block, Heading)), "localmix")
    body = "\n".join(map(_html, blocks))
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
        "</body>\n</html>\n"
    )


def _html(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{_inline(block.text)}</h{block.level}>"
    if isinstance(block, Paragraph):
        return f"<p>{_inline(block.text)}</p>"
    if isinstance(block, Picture):
        content = block.source if isinstance(block.source, bytes) else block.source.read_bytes()
        data, caption = base64.b64encode(content).decode(), escape(block.caption)
        image = f'<img src="data:image/png;base64,{data}" alt="{caption}">'
        return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"
    if isinstance(block, Beside):
        return f"<p>{_inline(f'{block.text}: `{block.file.parent.name}/{block.file.name}`')}</p>"
    sides = ["text" if index < block.num_left else "number" for index in range(len(block.header))]
    head = "".join(
        f'<th scope="col" class="{side}">{_inline(name)}</th>' for name, side in zip(block.header, sides, strict=True)
    )
    rows = "\n".join(
        "<tr>" + "".join(_html_cell(block, cell, side) for cell, side in zip(row, sides, strict=True)) + "</tr>"
        for row in block.rows
    )
    reasons = "".join(f"<li>{_inline(reason)}</li>" for reason in block.reasons)
    return f'<div class="table"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>' + (
        f'\n<ol class="reasons">{reasons}</ol>' if reasons else ""
    )


def _html_cell(grid: Grid, cell: Cell, side: str) -> str:
    text, mark, number = grid.shown(cell)
    if mark or number:
        meaning = f' title="{escape(cell.mark.meaning)}"' if cell.mark else ""
        kind = f" {cell.mark.name.lower()}" if cell.mark else ""
        text_of_mark = f"{mark}{f'<sup>{number}</sup>' if number else ''}"
        return f'<td class="{side}">{_inline(text)} <span class="mark{kind}"{meaning}>{text_of_mark}</span></td>'
    return f'<td class="{side}">{_inline(text)}</td>'


def _inline(text: str) -> str:
    """Escaped, with what stands between backticks as code.

    >>> _inline("`a < b` & c")
    '<code>a &lt; b</code> &amp; c'
    """
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


STYLE = """\
:root { color-scheme: light; }
body { margin: 0; background: #fff; color: #1a1a1a; font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 5rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 1rem; }
h2 { font-size: 1.35rem; margin: 3rem 0 .75rem; padding-top: 1rem; border-top: 1px solid #ddd; }
h3 { font-size: 1.08rem; margin: 2rem 0 .5rem; }
p { max-width: 46rem; margin: .6rem 0; }
code { font: .88em ui-monospace, "DejaVu Sans Mono", monospace; background: #f3f3f3; padding: .1em .3em;
  border-radius: 3px; overflow-wrap: anywhere; }
.table { overflow-x: auto; margin: 1rem 0 .5rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .75rem; border-bottom: 1px solid #e5e5e5; vertical-align: bottom; }
th { font-weight: 600; border-bottom: 2px solid #888; }
.text { text-align: left; }
.number { text-align: right; white-space: nowrap; }
tbody tr:hover { background: #f7f9fb; }
.mark { font-size: .8em; color: #666; }
.mark.here { color: #0072B2; }
.mark.paper { color: #666; }
.mark.missing { color: #A33E00; }
.reasons { font-size: .85rem; color: #444; margin: .25rem 0 1rem; padding-left: 1.5rem; }
figure { margin: 1.25rem 0; }
img { max-width: 100%; height: auto; border: 1px solid #eee; }
figcaption { font-size: .85rem; color: #555; }
@media print { main { max-width: none; padding: 0; } h2 { break-after: avoid; } tr, figure { break-inside: avoid; } }
"""
