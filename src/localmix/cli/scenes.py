"""The arguments of `localmix scenes`."""

from __future__ import annotations

import argparse

from localmix.cli.values import number, path, processes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of the command."""
    add = parser.add_argument
    add("output", type=path, metavar="DIR", help="folder to make, or to go on with")
    add("--num-train", type=number, default=4000, metavar="N", help="scenes for training (%(default)s)")
    add("--num-val", type=number, default=500, metavar="N", help="scenes for validation (%(default)s)")
    add("--size", type=number, nargs=2, default=(192, 256), metavar=("H", "W"), help="of the images [pixels] (192 256)")
    add("--max-objects", type=number, default=12, metavar="N", help="most garments in a scene (%(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="another one makes other scenes (%(default)s)")
    add("--plain", action="store_true", help="garments of one bright colour each on dark ground: easier to learn")
    add("--workers", type=processes, metavar="N", help="processes; the files do not depend on it (one per core)")


def run(args: argparse.Namespace) -> int:
    """Write the set."""
    from localmix.reports.progress import Display
    from localmix.tasks.scenes.writing import write_scenes

    options = {name: value for name, value in vars(args).items() if name not in ("run", "traceback")}
    options["size"] = tuple(args.size)
    with Display() as display:
        write_scenes(**options, announce=display.say, track=display.track)
    return 0
