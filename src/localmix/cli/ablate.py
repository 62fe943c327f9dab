"""The arguments of `localmix ablate`."""

from __future__ import annotations

import argparse

from localmix.cli.comparison import add_data, add_training, begin
from localmix.cli.values import number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of the command."""
    add = parser.add_argument
    add("studies", nargs="*", metavar="STUDY", help="names of studies, or all")
    add("--list", action="store_true", help="show the studies")
    add("--from", dest="start", metavar="NET", help="flip one axis at a time from this network; --list has names")
    add("--size", default="nano", metavar="SIZE", help="nano or tiny networks (%(default)s)")
    add("--steps", type=number, metavar="N", help="steps of an epoch (160 for the embedded images, else one pass)")
    add_data(parser)
    add_training(parser, epochs=1, seeds=[0, 1, 2], output="runs/ablate")


def run(args: argparse.Namespace) -> int:
    """`localmix ablate`."""
    if args.list:
        from localmix.reports.ablation.studies import listing

        print(listing())
        return 0
    begin(args)
    from localmix.reports.ablation.ablate import ablate

    ablate(**{name: value for name, value in vars(args).items() if name not in ("run", "traceback", "list")})
    return 0
