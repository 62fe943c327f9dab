"""The arguments of `localmix cost`."""

from __future__ import annotations

import argparse

from localmix.cli.values import number, path, processes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of the command."""
    add = parser.add_argument
    add("models", nargs="*", metavar="MODEL", help="networks by their timm names; the backbones of other tasks")
    add("--scaling", action="store_true", help="how each mixer's cost grows with kernel, resolution and channels")
    add("--task", choices=("classification", "detection", "segmentation"), help="(classification)")
    add(
        "--img-size", type=number, nargs="+", metavar="PIXELS", help="H W, or one for both (the network's; the paper's)"
    )
    add("--batch-size", type=number, metavar="N", help="images that memory and time are of (2)")
    add("--num-classes", type=number, metavar="N", help="(1000, 80 or 150 as the paper's data have)")
    add("--precision", choices=("float32", "bfloat16"), help="of memory and time (float32)")
    add("--layers", action="store_true", help="also show the weights of each mixer")
    add("--throughput", action="store_true", help="measure images per second; with --scaling milliseconds")
    add("--mixers", nargs="+", metavar="MIXER", help="of --scaling, such as window_attention (all)")
    add("--device", default="auto", metavar="DEVICE", help="auto, cpu or cuda (%(default)s)")
    add("--threads", type=processes, metavar="N", help="of the CPU (as many as PyTorch takes)")
    add("--output", type=path, metavar="FILE.json", help="to write into; of --scaling a folder")


def run(args: argparse.Namespace) -> int:
    """`localmix cost`."""
    common = {"device": args.device, "threads": args.threads, "output": args.output}
    if args.scaling:
        wrong = [
            f"--{name.replace('_', '-')}"
            for name in ("task", "img_size", "num_classes", "precision", "layers")
            if getattr(args, name)
        ]
        if args.models or wrong:
            raise ValueError(f"scaling: expected neither networks nor their options, got {[*args.models, *wrong]}")
        from localmix.reports.cost_scaling import scaling

        scaling(
            mixers=args.mixers,
            batch_size=2 if args.batch_size is None else args.batch_size,
            timed=args.throughput,
            **common,
        )
        return 0
    if args.mixers:
        raise ValueError("mixers: expected with --scaling only")
    from localmix.reports.cost_table import cost_table

    given = ("task", "img_size", "batch_size", "num_classes", "precision")
    options = {name: getattr(args, name) for name in given if getattr(args, name) is not None}
    cost_table(args.models, layers=args.layers, timed=args.throughput, **options, **common)
    return 0
