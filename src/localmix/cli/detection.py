"""Arguments of commands that run detectors."""

from __future__ import annotations

import argparse

OPTIONS = ("min_score",)


def add_drawing(parser: argparse.ArgumentParser) -> None:
    """What a detector draws."""
    add = parser.add_argument_group("of detectors").add_argument
    add("--min-score", type=float, default=0.5, metavar="SCORE", help="of what is drawn and printed (%(default)s)")
