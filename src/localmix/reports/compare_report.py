"""What a comparison shows of its results: a table and a figure."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from localmix.writing import write_atomically

COLUMNS = (
    ("mixer", "left"),
    ("connectivity", "left"),
    ("shared over\npositions", "left"),
    ("shared over\nchannels", "left"),
    ("weights", "left"),
    ("parameters", "right"),
    ("MACs", "right"),
    ("training\nimages/s", "right"),
    ("inference\nimages/s", "right"),
    ("top-1 %", "right"),
)


def report(results: dict[str, Any], output: Path) -> None:
    """Print the results of a comparison as a table; write that as table.md, and figure.png, into `output`."""
    from localmix.reports.figure import draw

    rows, settings, hardware = results["rows"], results["settings"], results["environment"]["hardware"]
    num_seeds = len(settings["seeds"])
    spread = f"± standard deviation over {num_seeds} seeds" if num_seeds > 1 else "1 seed: no standard deviation"
    epochs = f"{settings['epochs']} epoch{'s' if settings['epochs'] > 1 else ''}"
    title = (
        f"{Path(settings['data']).name} at {settings['img_size']} px, {epochs}, {results['images']['train']:,} images"
    )
    where = hardware["gpu"] or f"one thread of {hardware['cpu']}"
    note = f"top-1: {spread}; images/s: batch {settings['batch_size']}, float32, {where}"

    console = Console()
    if not console.is_terminal:
        # Nothing limits the width of a file.
        console = Console(width=200)
    whole = range(len(COLUMNS))
    # A narrow terminal gets the axes and the figures one below the other.
    for part in (whole,) if console.width >= 110 else (whole[:5], (0, *whole[5:])):
        console.print(_table(rows, part, title))
    console.print(note, highlight=False)

    lines = [
        f"**{title}**",
        "",
        "| " + " | ".join(name.replace("\n", " ") for name, _ in COLUMNS) + " |",
        "|" + "|".join("---:" if justify == "right" else "---" for _, justify in COLUMNS) + "|",
        *("| " + " | ".join(_cells(row)) + " |" for row in rows),
        "",
        note,
        "",
    ]
    write_atomically(output / "table.md", lambda file: file.write("\n".join(lines).encode()))
    draw(rows, output / "figure.png", title=title, note=note)
    print(f"{output}: results.json, table.md, figure.png, and a folder for each net")


def _table(rows: list[dict[str, Any]], columns: Iterable[int], title: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for column in columns:
        name, justify = COLUMNS[column]
        table.add_column(name, justify=justify, no_wrap=justify == "right" or not column, overflow="fold")
    for row in rows:
        cells = _cells(row)
        table.add_row(*(cells[column] for column in columns))
    return table


def _cells(row: dict[str, Any]) -> list[str]:
    std = "" if row["top1_std"] is None else f" ± {100 * row['top1_std']:.2f}"
    return [
        *(row[name] or "-" for name in ("title", "connectivity", "sharing_positions", "sharing_channels", "dynamics")),
        f"{row['parameters'] / 1e6:.2f} M",
        f"{row['macs'] / 1e6:.1f} M",
        f"{row['training_images_per_second']:,.0f}",
        f"{row['inference_images_per_second']:,.0f}",
        f"{100 * row['top1_mean']:.2f}{std}",
    ]
