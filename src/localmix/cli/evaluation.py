"""The arguments of `localmix validate` and `localmix test`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from localmix.cli import segmentation
from localmix.cli.images import DATA_HELP
from localmix.cli.values import number, path, processes, text

OPTIONS = {
    "classification": (
        "pretrained",
        "checkpoint",
        "data_root",
        "download",
        "on_corrupt",
        "img_size",
        "crop_pct",
        "interpolation",
        "among",
        "tta",
        "batch_size",
        "workers",
        "throughput",
    ),
    "segmentation": (*segmentation.OPTIONS, "tta"),
    "detection": ("workers",),
}
"""Those that not every task has, for each that has them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of both commands."""
    add = parser.add_argument
    add(
        "model",
        metavar="MODEL",
        help="a checkpoint, the folder of a run, a published folder, or a name that timm knows",
    )
    origin = parser.add_mutually_exclusive_group()
    origin.add_argument(
        "--weights", choices=("ema", "raw"), help="which of those in a checkpoint of a run (ema if there is one)"
    )
    origin.add_argument("--pretrained", action="store_true", help="of a name: the weights that timm has for it")
    origin.add_argument("--checkpoint", type=path, metavar="FILE", help="of a name: weights, such as FILE.safetensors")
    add(
        "--data",
        type=text,
        metavar="DATA",
        help=f"what the run was trained on (the default), or {DATA_HELP}; for `test` DIR/test",
    )
    add("--data-root", type=text, metavar="DIR", help="where a named data set lies")
    add("--download", action="store_true", help="fetch a named data set that is not there")
    add(
        "--on-corrupt",
        choices=("error", "skip"),
        default="error",
        help="stop at files that are no images, or skip them",
    )
    add("--img-size", type=number, metavar="PIXELS", help="side of what the network sees (as it was trained)")
    add(
        "--crop-pct", type=float, metavar="SHARE", help="img-size over the shorter side that is resized (the network's)"
    )
    add("--interpolation", metavar="NAME", help="bicubic, bilinear, lanczos or nearest (the network's)")
    add("--tta", choices=("none", "flip"), default="none", help="also show the mirror image (%(default)s)")
    add("--among", choices=("net", "data"), default="net", help="whose classes compete (%(default)s)")
    add("--batch-size", type=number, default=64, metavar="N", help="(%(default)s)")
    add(
        "--workers",
        type=processes,
        metavar="N",
        help="processes that decode images (one on a CPU, for a GPU the cores but one)",
    )
    add("--device", default="auto", metavar="DEVICE", help="auto, cpu or cuda (%(default)s)")
    add("--precision", choices=("float32", "bfloat16"), default="float32", help="(%(default)s)")
    add(
        "--throughput",
        type=number,
        nargs="?",
        const=64,
        metavar="BATCH",
        help="measure images per second: 50 passes to warm up, 30 timed, of 64 images or so many",
    )
    add(
        "--output",
        type=path,
        metavar="DIR",
        help="for results.json, per_class.csv and what else there is, such as pictures",
    )
    segmentation.add_views(parser)


def validate(args: argparse.Namespace) -> int:
    """`localmix validate`."""
    return _evaluate(args, "validation")


def test(args: argparse.Namespace) -> int:
    """`localmix test`."""
    return _evaluate(args, "test")


def _evaluate(args: argparse.Namespace, split: str) -> int:
    from importlib import import_module

    from localmix.reports.evaluation.tasks import task_of

    task = task_of(args.model)
    options = {name: value for name, value in vars(args).items() if name not in ("run", "traceback")}
    leave_out(options, task, OPTIONS, add_arguments)
    import_module(f"localmix.reports.evaluation.{task}").evaluate(split=split, **options)
    return 0


def leave_out(
    options: dict[str, Any],
    task: str,
    of_tasks: Mapping[str, Sequence[str]],
    add_arguments: Callable[[argparse.ArgumentParser], None],
) -> None:
    """Drop the options of other tasks, which have to be as they are by default.

    Args:
        options: of a command, by name.
        task: of the network.
        of_tasks: the options that not every task has, for each that has them.
        add_arguments: declares those of the command, on a parser.
    """
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    for name in sorted({name for names in of_tasks.values() for name in names} - set(of_tasks[task])):
        if options.pop(name) != parser.get_default(name):
            raise ValueError(f"{name}: expected nothing, since the network is one of {task}")
