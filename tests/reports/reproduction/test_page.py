from html.parser import HTMLParser
from pathlib import Path

import pytest

from localmix.reports.reproduction.page import (
    Beside,
    Cell,
    Grid,
    Heading,
    Mark,
    Paragraph,
    Picture,
    cells,
    html,
    markdown,
)

VOID = {"meta", "img"}
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c4944415408d763f8ffff3f0005fe02fe"
    "dccc59e70000000049454e44ae426082"
)


class Reader(HTMLParser):
    """Checks that tags are closed in their order, and keeps the cells, sources and links."""

    def __init__(self):
        super().__init__()
        self.open, self.rows, self.classes, self.addresses, self.tags = [], [], [], [], []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        self.addresses += [attributes[name] for name in ("src", "href") if name in attributes]
        if tag == "tr":
            self.rows.append([])
            self.classes.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.classes[-1].append(attributes["class"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def read(text):
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


GRID = Grid(
    ("net", "kind", "top-1 %"),
    (
        (Cell("`a`"), Cell("x | y"), Cell("81.2", Mark.PAPER)),
        (Cell("<b>"), Cell("z"), Cell("", Mark.MISSING, "needs `ImageNet`")),
        (Cell("c"), Cell("z"), Cell("80.0", Mark.HERE)),
        (Cell("d"), Cell("z"), Cell("", Mark.MISSING, "needs `ImageNet`")),
    ),
    num_left=2,
)


def test_html_is_whole_and_needs_nothing_else(tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(PIXEL)
    text = html([Heading("A & B", 1), Paragraph("of `x < y`"), GRID, Picture(file, "one"), Picture(PIXEL, 'a "two"')])
    page = read(text)
    assert "<title>A &amp; B</title>" in text and "<code>x &lt; y</code>" in text
    assert page.addresses and all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert not {"script", "link", "iframe"} & set(page.tags) and "url(" not in text and "@import" not in text
    assert page.tags.count("img") == 2


def test_cells_of_html():
    page = read(html([GRID]))
    assert page.rows[0] == ["net", "kind", "top-1 %"]
    assert page.rows[1] == ["a", "x | y", "81.2 ○"]
    assert page.rows[2] == ["<b>", "z", " ×1"]
    assert all(classes == ["text", "text", "number"] for classes in page.classes)


def test_markdown(tmp_path):
    folder = tmp_path / "docs"
    lines = markdown([Heading("A", 2), GRID, Picture(tmp_path / "runs" / "a.png", "one"), Picture(PIXEL, "b")], folder)
    assert lines.splitlines() == [
        "## A",
        "",
        "| net | kind | top-1 % |",
        "|---|---|---:|",
        "| `a` | x \\| y | 81.2 ○ |",
        "| <b> | z | ×<sup>1</sup> |",
        "| c | z | 80.0 ● |",
        "| d | z | ×<sup>1</sup> |",
        "",
        "1. needs `ImageNet`",
        "",
        "![one](../runs/a.png)",
    ]


def test_a_file_beside_is_a_link_or_a_name(tmp_path):
    beside = Beside(tmp_path / "runs" / "README.md", "More")
    assert markdown([beside], tmp_path / "docs") == "[More](../runs/README.md).\n"
    assert "<p>More: <code>runs/README.md</code></p>" in html([beside])


def test_rows_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"rows: expected 2 cells in each, got \[1\]"):
        Grid(("a", "b"), ((Cell("a"),),))


def test_numbers_get_the_mark():
    row = cells(("name", "1", "-", Cell("2")), Mark.HERE)
    assert [cell.mark for cell in row] == [None, Mark.HERE, None, None]


def test_pictures_are_read_from_where_they_are():
    with pytest.raises(FileNotFoundError):
        html([Picture(Path("nowhere.png"), "none")])
