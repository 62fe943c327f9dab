"""The arguments of `localmix report`."""

from __future__ import annotations

import argparse
from pathlib import Path

from localmix.cli.values import path

PARTS = ("paper", "accuracy", "speed", "cost")
"""Those of `localmix.reports.reproduction.report`, which is not imported for a help text."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of the command."""
    add = parser.add_argument
    add(
        "runs",
        type=path,
        nargs="*",
        metavar="RUN",
        help="what compare, ablate, fit, validate, bench and cost wrote: folders, files, or folders of such",
    )
    add("--output", type=path, metavar="FILE.html", help="the page as one file (report.html, if no --markdown)")
    add("--markdown", type=path, metavar="FILE.md", help="the page as Markdown")
    add("--parts", nargs="+", default=PARTS, choices=PARTS, help="of the page (all)")


def run(args: argparse.Namespace) -> int:
    """`localmix report`."""
    from localmix.reports.reproduction.report import report

    output = Path("report.html") if args.output is None and args.markdown is None else args.output
    print(report(args.runs, output=output, markdown_output=args.markdown, parts=args.parts))
    return 0
