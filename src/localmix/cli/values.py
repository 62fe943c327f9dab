"""What the words on a command line may be; argparse says of which option they are."""

from __future__ import annotations

from argparse import ArgumentTypeError
from pathlib import Path

LARGEST = 2**31 - 1
"""Nothing is larger: neither an image nor a batch."""
MOST_PROCESSES = 1024
"""And threads; a machine that is asked for far more than it has may not answer any more."""


def text(word: str) -> str:
    """Anything but nothing, which a variable of the shell becomes that is not set."""
    if not word.strip():
        raise ArgumentTypeError(f"expected a name, got {word!r}")
    return word


def path(word: str) -> Path:
    """A path; an empty one would be the folder that one is in."""
    return Path(text(word))


def number(word: str) -> int:
    """A whole number that something can have."""
    return _at_most(LARGEST, word)


def processes(word: str) -> int:
    """A number of processes or threads."""
    return _at_most(MOST_PROCESSES, word)


def _at_most(most: int, word: str) -> int:
    try:
        value = int(word)
    except ValueError:
        raise ArgumentTypeError(f"expected a whole number, got {word!r}") from None
    if value > most:
        raise ArgumentTypeError(f"expected at most {most}, got {value}")
    return value
