"""Arguments of commands that run segmenters."""

from __future__ import annotations

import argparse

from localmix.cli.values import number

OPTIONS = ("scales", "short_side", "window", "stride")


def add_views(parser: argparse.ArgumentParser) -> None:
    """How a segmenter is shown an image."""
    add = parser.add_argument_group("of segmenters").add_argument
    add("--scales", type=float, nargs="+", default=(1.0,), metavar="FACTOR", help="sizes whose mean is taken (1)")
    add("--short-side", type=number, metavar="PIXELS", help="of the image at scale 1; 0: as it is (as in training)")
    add("--window", type=number, metavar="PIXELS", help="side of windows that are seen one by one (the whole image)")
    add("--stride", type=number, metavar="PIXELS", help="from a window to the next (two thirds of it)")
