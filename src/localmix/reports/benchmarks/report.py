"""What a benchmark prints and writes."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TypeVar

from rich import box
from rich.console import Console
from rich.table import Table

from localmix.reports.benchmarks.limits import Limits
from localmix.reports.environment import command, commit, environment
from localmix.reports.progress import Display
from localmix.reports.results import write_json
from localmix.writing import write_atomically

T = TypeVar("T")
Row = dict[str, Any]

ROWS = "results.json"
"""The file of all rows."""


class Report:
    """Collects rows: prints the table of each group as it comes, and writes all of them when the benchmark ends.

    What was measured before an interruption, by Ctrl-C or by SIGTERM, which schedulers send at a limit of time, or
    before an error is written too. The rows are written with each group, for a GPU that does not answer lets no handler
    run.

    Args:
        kind: "operators" or "networks".
        settings: of the benchmark.
        device, limits: what it runs on, and what that can do.
        output: folder to write into; nothing is written if None.
    """

    def __init__(
        self, kind: str, settings: dict[str, Any], device: str, limits: Limits, output: Path | str | None
    ) -> None:
        self.output = None if output is None else Path(output)
        # the file is named because bars on stderr would catch what goes to stdout by its name
        self.console = Console(file=sys.stdout)
        if not self.console.is_terminal:
            # nothing limits the width of a file
            self.console = Console(file=sys.stdout, width=200)
        self.display = Display()
        self._handler: Any = None
        self.results: dict[str, Any] = {
            "kind": kind,
            "is_complete": False,
            "settings": settings,
            "limits": asdict(limits),
            "rows": [],
            "left_out": {},
            "environment": environment(device),
            "command": command(),
            "commit": commit(),
        }

    def __enter__(self) -> Report:
        for line in describe(self.results):
            self.console.print(line, highlight=False)
        self.display.__enter__()
        # only the main thread may set handlers
        if threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(signal.SIGTERM, _interrupt)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.display.__exit__()
        if self._handler is not None:
            signal.signal(signal.SIGTERM, self._handler)
        self.results["is_complete"] = error is None
        if self.output is not None and (error is None or self.results["rows"]):
            self._write(self.output)
        for name, reason in self.results["left_out"].items():
            self.display.say(f"left out: {name}: {reason}")

    def track(self, items: Sequence[T]) -> Iterator[T]:
        """Hand on the items under a bar."""
        return self.display.track(items, "groups", len(items))

    def leave_out(self, reasons: dict[str, str]) -> None:
        """Note what could not take part, and why."""
        self.results["left_out"].update(reasons)

    def add(self, rows: list[Row]) -> None:
        """Take rows that were timed in the same turns, and print them."""
        if not rows:
            return
        self.results["rows"] += rows
        if self.output is not None:
            write_json(self.output / ROWS, self.results)
        header, lines = cells(rows, all_columns=self.console.width >= 140)
        table = Table(title=rows[0]["group"], box=box.SIMPLE_HEAD, title_justify="left")
        for index, name in enumerate(header):
            # a long name of a peer stands on several lines
            name = name if name in dict(COLUMNS) else name.replace(" ", "\n").replace("-", "-\n")
            table.add_column(name, justify="right" if index else "left", no_wrap=True)
        for line in lines:
            table.add_row(*line)
        with self.display.paused():
            self.console.print(table)
            for row in rows:
                if row["refused"]:
                    self.console.print(f"  refused: {row['label']}: {row['refused']}", highlight=False, markup=False)

    def _write(self, output: Path) -> None:
        from localmix.reports.benchmarks.figure import draw

        write_json(output / ROWS, self.results)
        write_atomically(output / "table.md", lambda file: file.write(markdown(self.results).encode()))
        write_atomically(output / "figure.png", lambda file: draw(self.results, file))
        self.display.say(f"{output}: results.json, table.md, figure.png")


def _interrupt(number: int, _: FrameType | None) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)


def groups(rows: Iterable[Row]) -> list[list[Row]]:
    """Rows that were timed in the same turns, together."""
    return [list(group) for _, group in groupby(rows, key=lambda row: row["group"])]


def setting(results: dict[str, Any]) -> str:
    """What tells results on the same hardware apart, in words."""
    settings = results["settings"]
    graphs = ", CUDA graphs" if settings.get("graph") else ""
    return f"{settings['dtype']}, batch {settings['batch']}{graphs}"


def describe(results: dict[str, Any]) -> list[str]:
    """Lines that say where the numbers come from."""
    hardware, limits = results["environment"]["hardware"], results["limits"]
    rates = (limits["matrix_macs_per_second"], limits["vector_macs_per_second"])
    threads = f"{hardware['threads']} thread{'s' if hardware['threads'] > 1 else ''} of {hardware['cpu']}"
    return [
        f"{results['kind']} on {hardware['gpu'] or threads}, {setting(results)}, "
        f"torch {results['environment']['versions']['torch']}",
        f"measured: copy {limits['bytes_per_second'] / 1e9:,.1f} GB/s, matrix products {rates[0] / 1e9:,.0f} GMAC/s, "
        f"vector units {rates[1] / 1e9:,.0f} GMAC/s",
    ]


def markdown(results: dict[str, Any]) -> str:
    """The content of table.md."""
    paragraphs = ["  \n".join(describe(results)), NOTE, *([GRAPHS] if results["settings"].get("graph") else [])]
    for rows in groups(results["rows"]):
        paragraphs += [f"**{rows[0]['group']}**", "\n".join(markdown_table(*cells(rows)))]
    remarks = [f"left out: {name}: {reason}" for name, reason in results["left_out"].items()]
    remarks += [f"refused: {r['group']}, {r['label']}: {r['refused']}" for r in results["rows"] if r["refused"]]
    if not results["is_complete"]:
        remarks.append("interrupted: the rest is missing")
    paragraphs += ["\n".join(f"* {remark}" for remark in remarks)] if remarks else []
    return "\n\n".join(paragraphs) + "\n"


def markdown_table(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table whose first column is text and whose others are numbers."""
    return [
        "| " + " | ".join(header) + " |",
        "|---|" + "---:|" * (len(header) - 1),
        *("| " + " | ".join(line) + " |" for line in body),
    ]


def cells(rows: Sequence[Row], *, all_columns: bool = True) -> tuple[list[str], list[list[str]]]:
    """Header and lines of the table of a group; the columns of peers say how many times as fast as they a row is."""
    rivals = [row["label"] for row in rows if not row["is_ours"] and not row["refused"]]
    columns = COLUMNS if all_columns else [column for column in COLUMNS if column[0] in NARROW]
    header = ["", *(name for name, _ in columns), *rivals]
    lines = []
    for row in rows:
        numbers = [value(row) for _, value in columns]
        ratios = [row["times_as_fast_as"].get(name) for name in rivals]
        name = row["label"] + (" (auto)" if row["is_auto"] else "")
        lines.append([name, *("-" if n is None else short(n) for n in (*numbers, *ratios))])
    return header, lines


def _ms(name: str) -> Callable[[Row], float | None]:
    return lambda row: row["ms"] and row["ms"][name]


COLUMNS: Sequence[tuple[str, Callable[[Row], float | None]]] = (
    ("p20 ms", _ms("p20")),
    ("p50 ms", _ms("p50")),
    ("p80 ms", _ms("p80")),
    ("images/s", lambda row: row["images_per_second"]),
    ("peak MB", lambda row: None if row["peak_bytes"] is None else row["peak_bytes"] / 1e6),
    ("moves MB", lambda row: row["bytes"] / 1e6),
    ("GMACs", lambda row: (row["matrix_macs"] + row["vector_macs"]) / 1e9),
    ("floor ms", lambda row: row["floor_ms"]),
    ("over floor", lambda row: row["over_floor"]),
)
NARROW = ("p50 ms", "over floor")
"""What is left of the columns on a narrow terminal."""
GRAPHS = (
    "Each pass is the replay of a CUDA graph: its kernels without the time that the processor takes to start them, as "
    'in `torch.compile(mode="reduce-overhead")`.'
)
NOTE = "A column that is headed by a peer says how many times as fast as that peer a row is."


def short(number: float) -> str:
    """Three digits.

    >>> [short(n) for n in (0.01234, 1.234, 123.4, 12345.6)]
    ['0.0123', '1.23', '123', '12,346']
    """
    if number >= 100:
        return f"{number:,.0f}"
    return f"{number:#.3g}".rstrip(".") if number else "0"
