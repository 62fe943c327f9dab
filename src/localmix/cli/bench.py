"""The arguments of `localmix bench`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from localmix.cli.values import number, path, processes, text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of the command and of its parts."""
    parser.add_argument("--info", action="store_true", help="say what was built and which implementations run here")
    parser.set_defaults(bench=None)
    parts = parser.add_subparsers(metavar="PART")
    for name, summary, add, run_part in (
        ("ops", "time the operators at the sizes of the tiny networks", _add_bench_ops, _bench_ops),
        ("models", "time networks, for inference and in training", _add_bench_models, _bench_models),
        ("loader", "load images beside timm's loader", _add_bench_loader, _bench_loader),
        ("docs", "write a page about results", _add_bench_docs, _bench_docs),
    ):
        part = parts.add_parser(name, help=summary, description=f"{summary.capitalize()}.")
        add(part)
        part.set_defaults(bench=run_part)


def _add_bench_ops(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--ops", nargs="+", metavar="OPERATOR", help="such as window_attention or window_attention_shifted (all)")
    shapes = parser.add_mutually_exclusive_group()
    shapes.add_argument(
        "--stages", nargs="+", type=number, metavar="N", help="of the tiny networks at 224 px (1 2 3 4)"
    )
    shapes.add_argument("--shape", nargs=3, type=number, metavar=("H", "W", "C"), help="one map instead of the stages")
    add("--batch-size", type=number, metavar="N", help="images of a call (4 on a CPU, 128 on a GPU)")
    _add_bench_common(parser, ("forward", "backward"))
    add("--impls", nargs="+", metavar="NAME", help="implementations and peers (all but reference)")
    add("--kernel-size", type=int, default=7, metavar="N", help="of kernels and windows, odd (%(default)s)")
    add("--bias", action=argparse.BooleanOptionalAction, default=True, help="whether attention adds its bias (yes)")
    add("--graph", action="store_true", help="on a GPU, time replays of CUDA graphs: kernels without their launches")
    add("--rounds", type=number, default=7, metavar="N", help="timed turns of each (%(default)s)")
    add("--seconds", type=float, default=0.01, metavar="S", help="least duration of a turn (%(default)s)")


def _add_bench_models(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--nets", nargs="+", metavar="MODEL", help="networks by their timm names (tiny ones, and timm's Swin)")
    add("--batch-size", type=number, metavar="N", help="images of a call (8 on a CPU, 128 on a GPU)")
    add("--img-size", type=number, default=224, metavar="PIXELS", help="side of the images (%(default)s)")
    _add_bench_common(parser, ("inference", "training"))
    add("--modes", nargs="+", metavar="MODE", help="eager, compiled (both, but eager to train on a CPU)")
    add("--rounds", type=number, default=5, metavar="N", help="timed turns of each (%(default)s)")
    add("--seconds", type=float, default=0.05, metavar="S", help="least duration of a turn (%(default)s)")


def _add_bench_loader(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("data", type=text, metavar="DIR", help="folder of images")
    add("--img-size", type=number, default=224, metavar="PIXELS", help="side of the views (%(default)s)")
    add("--batch-size", type=number, default=64, metavar="N", help="images of a batch (%(default)s)")
    add("--images", type=number, default=512, metavar="N", help="images of a turn (%(default)s)")
    add("--workers", type=processes, default=1, metavar="N", help="processes of each loader (%(default)s)")
    add("--plain", action="store_true", help="only crops and flips, instead of the augmentation of the paper")
    add("--rounds", type=number, default=7, metavar="N", help="timed turns of each (%(default)s)")
    add("--output", type=path, metavar="DIR", help="to write results.json into")


def _add_bench_common(parser: argparse.ArgumentParser, directions: tuple[str, str]) -> None:
    add = parser.add_argument
    add("--dtype", default="float32", metavar="DTYPE", help="float32, bfloat16 or float16 (%(default)s)")
    add("--device", default="auto", metavar="DEVICE", help="auto, cpu or cuda (%(default)s)")
    add("--direction", nargs="+", default=directions, metavar="WAY", help=f"{' and '.join(directions)} (both)")
    add("--threads", type=processes, metavar="N", help="of the CPU (as many as PyTorch takes)")
    add("--output", type=path, metavar="DIR", help="to write results.json, table.md and figure.png into")


def _add_bench_docs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "results", type=path, nargs="+", metavar="FOLDER", help="what --output was, or a folder of such"
    )
    parser.add_argument("--output", type=path, required=True, metavar="FILE.md")


def run(args: argparse.Namespace) -> int:
    """Run one part."""
    if args.info:
        from localmix.reports.benchmarks.info import info

        print(info())
        return 0
    if args.bench is None:
        raise ValueError("bench: expected ops, models, loader, docs or --info, got nothing")
    return args.bench(**{k: v for k, v in vars(args).items() if k not in ("run", "bench", "info", "traceback")})


def _bench_ops(**options: Any) -> int:
    from localmix.reports.benchmarks.operators import bench_operators

    return _refused(bench_operators(**options))


def _bench_models(**options: Any) -> int:
    from localmix.reports.benchmarks.models import bench_models

    return _refused(bench_models(**options))


def _bench_loader(**options: Any) -> int:
    from localmix.reports.benchmarks.loader import bench_loader, table

    print(table(bench_loader(**options)))
    return 0


def _refused(results: dict[str, Any]) -> int:
    """1 if a row was not timed: its numbers were wrong, or the call failed."""
    return int(any(row["refused"] for row in results["rows"]))


def _bench_docs(results: Sequence[Path], output: Path) -> int:
    from localmix.reports.benchmarks.speed import write_page

    print(write_page(results, output))
    return 0
