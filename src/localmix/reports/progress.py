"""What a long command shows while it works: bars on a terminal, a line per event elsewhere."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Display:
    """Bars and lines on stderr, so that stdout has the result alone."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal or self.console.is_dumb_terminal,
        )

    def __enter__(self) -> Display:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _stop(self) -> None:
        if not self.bars.disable:  # rich before 14.3 prints an empty line where bars end that were never shown
            self.bars.stop()

    def say(self, text: str) -> None:
        """Print lines, above the bars if there are any."""
        self.bars.console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def paused(self) -> Generator[None]:
        """No bars within it, so that what is printed to stdout meets none."""
        self._stop()
        try:
            yield
        finally:
            self.bars.start()

    def track(self, iterable: Iterable[Any], what: str, count: int) -> Iterator[Any]:
        """Hand on an iterable of `count` items under a bar."""
        bar = self.bar(what)
        for done, item in enumerate(iterable, 1):
            yield item
            bar.move(done, count)
        bar.remove()

    def bar(self, what: str) -> Bar:
        """A new bar."""
        return Bar(self.bars, self.bars.add_task(what, total=None))


class Bar(NamedTuple):
    """One line of the display."""

    bars: Progress
    task: TaskID

    def move(self, done: int, total: int) -> None:
        """`done` of `total` steps are done."""
        self.bars.update(self.task, completed=done, total=total)

    def remove(self) -> None:
        """Take the line away."""
        self.bars.remove_task(self.task)
