"""What is behind an error."""

from __future__ import annotations

from collections.abc import Generator


def causes(error: BaseException | None) -> Generator[BaseException]:
    """`error` and, one behind another, what led to it; some libraries hide a cause behind an error of their own."""
    seen = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
