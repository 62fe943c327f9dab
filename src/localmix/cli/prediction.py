"""The arguments of `localmix predict`."""

from __future__ import annotations

import argparse

from localmix.cli import detection, segmentation
from localmix.cli.evaluation import leave_out
from localmix.cli.values import number, path

OPTIONS = {
    "classification": ("top",),
    "segmentation": (*segmentation.OPTIONS, "top", "tta", "output"),
    "detection": (*detection.OPTIONS, "output"),
}
"""Those that not every task has, for each that has them."""
FUNCTIONS = {
    "classification": "localmix.reports.predict",
    "segmentation": "localmix.reports.predict_segmentation",
    "detection": "localmix.reports.predict_detection",
}
"""The module whose `predict` does the work of a task."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A network, images, and how they are shown to it."""
    add = parser.add_argument
    add("model", type=path, metavar="MODEL", help="a checkpoint, a run's folder or a published folder")
    add("images", type=path, nargs="+", metavar="IMAGE")
    add("--top", type=number, default=5, metavar="N", help="classes to show (%(default)s); not of detectors")
    add("--weights", choices=("ema", "raw"), help="(ema if there is one)")
    add("--device", default="auto", metavar="DEVICE", help="auto, cpu or cuda (%(default)s)")
    segmentation.add_views(parser)
    detection.add_drawing(parser)
    add = parser.add_argument_group("of segmenters and detectors, which draw what they found").add_argument
    add("--output", type=path, metavar="DIR", help="for the pictures and the label maps")
    add(
        "--tta",
        choices=("none", "flip"),
        default="none",
        help="of segmenters: also show the mirror image (%(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """`localmix predict`."""
    from importlib import import_module

    from localmix.reports.evaluation.tasks import task_of

    task = task_of(args.model)
    options = {name: value for name, value in vars(args).items() if name not in ("run", "traceback")}
    leave_out(options, task, OPTIONS, add_arguments)
    if "output" in options and args.output is None:
        raise ValueError("output: expected a folder for the pictures, got none")
    return import_module(FUNCTIONS[task]).predict(options.pop("model"), options.pop("images"), **options)
