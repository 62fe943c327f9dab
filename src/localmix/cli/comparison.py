"""Arguments that the commands share that train nets side by side: images, recipe, machine."""

from __future__ import annotations

import argparse
from pathlib import Path

from localmix.cli.images import DATA_HELP
from localmix.cli.values import number, path, processes, text


def add_data(parser: argparse.ArgumentParser) -> None:
    """Which images."""
    add = parser.add_argument
    add("--data", type=text, default="fashion_mnist", metavar="DATA", help=f"{DATA_HELP} (%(default)s)")
    add("--data-root", type=text, metavar="DIR", help="where a named data set lies")
    add("--download", action="store_true", help="fetch a named data set that is not there")
    add("--on-corrupt", choices=("error", "skip"), default="error", help="refuse or leave out files that are no images")
    add(
        "--img-size",
        type=number,
        metavar="PIXELS",
        help="side of the images the networks see (28 embedded, 64 folders)",
    )


def add_training(parser: argparse.ArgumentParser, *, epochs: int, seeds: list[int], output: str) -> None:
    """How they are trained, and where; `epochs` of the embedded images."""
    add = parser.add_argument
    add("--epochs", type=number, metavar="N", help=f"({epochs} for the embedded images, else 10)")
    shown = " ".join(map(str, seeds))
    add("--seeds", type=int, nargs="+", default=seeds, metavar="SEED", help=f"several show the spread ({shown})")
    add("--batch-size", type=number, default=32, metavar="N", help="(%(default)s)")
    add("--lr", type=float, default=2e-3, metavar="RATE", help="learning rate after the warm-up (%(default)s)")
    add("--weight-decay", type=float, default=0.05, metavar="RATE", help="(%(default)s)")
    add("--drop-path-rate", type=float, default=0.0, metavar="RATE", help="(%(default)s)")
    add("--augment", action=argparse.BooleanOptionalAction, help="crops and flips (on, but for the embedded images)")
    add("--device", default="auto", metavar="DEVICE", help="auto, cpu or cuda (%(default)s)")
    add("--processes", type=processes, metavar="N", help="runs that train at a time (one per CPU core, one per GPU)")
    add(
        "--workers", type=processes, metavar="N", help="processes that decode images for a run (its share of the cores)"
    )
    add("--output", type=path, default=Path(output), metavar="DIR", help="to write or go on in (%(default)s)")


def begin(args: argparse.Namespace) -> None:
    """Let the processes that will train load what they need while this one does the same."""
    if args.processes != 1:
        from localmix.tasks.classification.parallel import prepare

        prepare()
