"""The arguments of `localmix explain`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from localmix.cli.values import number, path

PARTS = ("weights", "connections", "receptive_field", "variation")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A name for text; images and networks for pictures."""
    parser.set_defaults(refuse=parser.error)
    add = parser.add_argument
    add(
        "name",
        nargs="?",
        metavar="NAME",
        help="""a mixer such as window_attention, a point such as sliding7/shared-positions/groups8/static, or a
        network, to say in text""",
    )
    pictures = parser.add_argument_group("pictures of what networks do to images")
    add = pictures.add_argument
    add("--image", type=path, nargs="+", metavar="FILE", help="images of any size")
    add(
        "--model",
        nargs="+",
        metavar="MODEL",
        help="""checkpoints, runs, published folders, or names that timm knows, which have random weights (the six
        mixers, as nano networks)""",
    )
    origin = pictures.add_mutually_exclusive_group()
    origin.add_argument("--weights", choices=("ema", "raw"), help="of checkpoints (ema if there is one)")
    origin.add_argument("--pretrained", action="store_true", help="of names: the weights that timm has for them")
    origin.add_argument(
        "--checkpoint", type=path, metavar="FILE", help="of one name: weights, such as FILE.safetensors"
    )
    add("--show", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=f"{', '.join(PARTS)} (all)")
    add("--positions", nargs="+", metavar="X,Y", help="shares such as 0.5,0.25, or pixels such as 112,56 (0.5,0.5)")
    add("--layers", nargs="+", metavar="LAYER", help="stages from 1, names of layers, or all (every stage)")
    add("--groups", nargs="+", metavar="GROUP", help="groups of channels by number, and mean (mean 0)")
    add("--img-size", type=number, metavar="PIXELS", help="side of what the networks see (as they were trained)")
    add("--whole", action="store_true", help="the whole image and not a square of it, in its size or with --img-size")
    add(
        "--draw",
        type=number,
        default=2,
        metavar="N",
        help="images whose weights are drawn; all are counted (%(default)s)",
    )
    add("--probes", type=number, default=8, metavar="N", help="random signs for a receptive field (%(default)s)")
    add("--output", type=path, default=Path("explanation"), metavar="DIR", help="(%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Text on a name, or pictures of images."""
    if (args.name is None) == (args.image is None):
        args.refuse("expected NAME (for text), or --image FILE ... (for pictures)")
    if args.name is not None:
        from localmix.reports.explain import explain

        print(explain(args.name))
        return 0
    from localmix.arguments import positive
    from localmix.reports.explanation.images import explain_images
    from localmix.reports.explanation.selection import parse_position

    options: dict[str, Any] = {}
    if args.positions is not None:
        options["positions"] = [parse_position(text) for text in args.positions]
    if args.groups is not None:
        options["groups"] = [int(group) if group.isdigit() else group for group in args.groups]
    if args.model is not None:
        options["models"] = args.model
    explain_images(
        args.image,
        output=args.output,
        show=args.show,
        layers=args.layers,
        img_size=args.img_size,
        whole=args.whole,
        draw=args.draw,
        num_probes=positive("probes", args.probes),
        weights=args.weights,
        pretrained=args.pretrained,
        checkpoint=args.checkpoint,
        announce=print,
        **options,
    )
    return 0
