"""One HTML page that needs no other file."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2em auto; padding: 0 1em; color: #222; }
h1 { font-size: 1.6em; } h2 { font-size: 1.25em; margin-top: 2em; border-top: 1px solid #ddd; padding-top: 1em; }
img { max-width: 100%; height: auto; display: block; margin: 1em auto; }
table { border-collapse: collapse; font-size: 0.9em; margin: 1em 0; } th { text-align: left; }
th, td { padding: 0.2em 0.8em; border-bottom: 1px solid #eee; } td.number { text-align: right; }
p.warning { background: #fff4d6; border-left: 4px solid #e69f00; padding: 0.5em 1em; }
pre { background: #f4f4f4; padding: 0.6em; overflow-x: auto; font-size: 0.85em; }
"""


class Page:
    """Gathers headings, paragraphs, tables and pictures."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._parts: list[str] = []

    def heading(self, text: str) -> None:
        self._parts.append(f"<h2>{escape(text)}</h2>")

    def text(self, text: str, *, warning: bool = False) -> None:
        kind = ' class="warning"' if warning else ""
        self._parts.append(f"<p{kind}>{escape(text)}</p>")

    def verbatim(self, text: str) -> None:
        self._parts.append(f"<pre>{escape(text)}</pre>")

    def picture(self, png: bytes, description: str) -> None:
        """A PNG, held in the page itself."""
        data = base64.b64encode(png).decode("ascii")
        self._parts.append(f'<img alt="{escape(description)}" src="data:image/png;base64,{data}">')

    def table(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows with the same keys, which are the head; floats with three digits, None as a dash."""
        if not rows:
            return
        head = "".join(f"<th>{escape(key)}</th>" for key in rows[0])
        body = "".join(f"<tr>{''.join(_cell(value) for value in row.values())}</tr>" for row in rows)
        self._parts.append(f"<table><tr>{head}</tr>{body}</table>")

    def html(self) -> str:
        title, body = escape(self.title), "\n".join(self._parts)
        return (
            f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{title}</title>\n'
            f"<style>{STYLE}</style>\n<h1>{title}</h1>\n{body}\n</html>\n"
        )


def cell(value: Any) -> str:
    """A value as it stands in a table.

    >>> cell(0.12345), cell(0.0001), cell(0.0), cell(None)
    ('0.123', '<0.001', '0', '–')
    """
    if value is None:
        return "–"
    if isinstance(value, float):
        return "0" if value == 0 else "<0.001" if 0 < value < 0.001 else f"{value:.3f}"
    return str(value)


def _cell(value: Any) -> str:
    number = ' class="number"' if isinstance(value, (int, float)) or value is None else ""
    return f"<td{number}>{escape(cell(value))}</td>"
