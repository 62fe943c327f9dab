"""The command line. Arguments are declared here; the modules that do the work are loaded when a command runs.

So `localmix --help` answers without waiting for PyTorch.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from localmix import __version__
from localmix.axes import MIXERS


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; gives the exit status.

    0 done, 1 done in part, 2 a wrong request, 75 stopped by a signal and ready to go on, 130 interrupted.
    """
    parser = _parser()
    args, rest = parser.parse_known_args(arguments)
    if args.run is _fit:
        args.arguments = rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        return args.run(args)
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, ImportError) as error:
        message = _message(error)
        if args.traceback or message is None:
            raise
        print(f"localmix: error: {message}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="localmix", description="Local attention and dynamic depth-wise convolution: one equation, six mixers."
    )
    parser.add_argument("--version", action="version", version=f"localmix {__version__}")
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, summary, add_arguments, run in (
        ("fit", "train a network", _add_fit, _fit),
        ("compare", "train the mixers in one network and compare them", _add_compare, _compare),
        ("predict", "classify images with a trained network", _add_predict, _predict),
        ("explain", "say where a mixer or a network stands on the axes of the paper", _add_explain, _explain),
        ("convert", "turn a published checkpoint into one of localmix", _add_convert, _convert),
        ("shard", "pack images into shards that stream to many machines", _add_shard, _shard),
        ("bench", "time operators and networks beside other ways to compute them", _add_bench, _bench),
    ):
        command = commands.add_parser(
            name, help=summary, description=f"{summary.capitalize()}.", add_help=run is not _fit
        )
        add_arguments(command)
        command.set_defaults(run=run)
    return parser


def _add_fit(parser: argparse.ArgumentParser) -> None:
    """Nothing: its settings, and its help, are those of the classes that are configured."""


def _fit(args: argparse.Namespace) -> int:
    from localmix.reports.fit import main

    return main(args.arguments)


def _add_compare(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", default="fashion_mnist", metavar="DATA", help=_DATA_HELP)
    add("--data-root", metavar="DIR", help="where a named data set lies")
    add("--download", action="store_true", help="fetch a named data set that is not there")
    add("--on-corrupt", choices=("error", "skip"), default="error", help="refuse or leave out files that are no images")
    nets = parser.add_mutually_exclusive_group()
    nets.add_argument("--mixers", nargs="+", metavar="MIXER", help=f"among {', '.join(MIXERS)} (all)")
    nets.add_argument("--models", nargs="+", metavar="MODEL", help="networks by their timm names, instead of --mixers")
    add("--size", default="nano", metavar="SIZE", help="nano, tiny, small or base networks (%(default)s)")
    add("--img-size", type=int, metavar="PIXELS", help="side of the images the networks see (28 embedded, 64 folders)")
    add("--epochs", type=int, metavar="N", help="(2 for the embedded images, else 10)")
    add("--seeds", type=int, nargs="+", default=[0], metavar="SEED", help="several give a standard deviation (0)")
    add("--batch-size", type=int, default=32, metavar="N", help="(%(default)s)")
    add("--lr", type=float, default=2e-3, metavar="RATE", help="learning rate after the warm-up (%(default)s)")
    add("--weight-decay", type=float, default=0.05, metavar="RATE", help="(%(default)s)")
    add("--drop-path-rate", type=float, default=0.0, metavar="RATE", help="(%(default)s)")
    add("--augment", action=argparse.BooleanOptionalAction, help="crops and flips (on, but for the embedded images)")
    add("--device", default="auto", metavar="DEVICE", help="auto, cpu or cuda (%(default)s)")
    add("--processes", type=int, metavar="N", help="runs that train at a time (one per CPU core, one on a GPU)")
    add("--workers", type=int, metavar="N", help="processes that decode images for a run (its share of the cores)")
    add("--output", type=Path, default=Path("runs/compare"), metavar="DIR", help="to write or go on in (%(default)s)")


_DATA_HELP = """fashion_mnist (embedded, the default); a folder DIR/train/CLASS/*, DIR/val/CLASS/*; a folder of class
folders; ImageNet as Kaggle packs it; shards; or a data set as timm names it, such as torchvision/cifar10"""


def _compare(args: argparse.Namespace) -> int:
    if args.processes != 1:
        from localmix.tasks.parallel import prepare

        prepare()
    from localmix.reports.compare import compare

    compare(**{name: value for name, value in vars(args).items() if name not in ("run", "traceback")})
    return 0


def _add_predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="written by `localmix compare`")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="classes to show (%(default)s)")


def _predict(args: argparse.Namespace) -> int:
    from localmix.reports.predict import predict

    return predict(args.checkpoint, args.images, top=args.top)


def _add_explain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="such as window_attention")


def _explain(args: argparse.Namespace) -> int:
    from localmix.reports.explain import explain

    print(explain(args.name))
    return 0


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="the published file")
    parser.add_argument("--model", required=True, metavar="NAME", help="the network it belongs to, as timm names it")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.safetensors")


def _convert(args: argparse.Namespace) -> int:
    from localmix.models.convert import convert_file

    print(convert_file(args.checkpoint, model=args.model, output=args.output))
    return 0


def _add_shard(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("data", nargs="?", metavar="DIR", help="DIR/train/CLASS/*, DIR/val/CLASS/*, or class folders, or ImageNet")
    add("--output", type=Path, metavar="SHARDS", help="folder to write or go on in")
    add("--size", type=int, metavar="PIXELS", help="shorter side that larger images are resized to (as they are)")
    add("--quality", type=int, default=90, metavar="N", help="of the JPEGs that resizing makes (%(default)s)")
    add("--chunk-mb", type=int, default=64, metavar="MB", help="about the size of a chunk (%(default)s)")
    add("--workers", type=int, metavar="N", help="threads (one per core)")
    add("--on-corrupt", choices=("error", "skip"), default="error", help="refuse or leave out files that are no images")
    add("--verify", type=Path, metavar="SHARDS", help="only compare every chunk of a folder with its checksum")


def _shard(args: argparse.Namespace) -> int:
    if (args.verify is None) == (args.data is None) or (args.data is None) != (args.output is None):
        raise ValueError("shard: expected DIR and --output SHARDS, or --verify SHARDS")
    from localmix.reports.progress import Display
    from localmix.tasks.shard_reading import verify_shards
    from localmix.tasks.shard_writing import summary, write_shards

    with Display() as display:
        shown: dict[str, Any] = {"announce": display.say, "track": display.track}
        if args.verify:
            for line in summary(verify_shards(args.verify, display.track)):
                display.say(f"{args.verify}: {line}")
        else:
            options = ("output", "size", "quality", "chunk_mb", "workers", "on_corrupt")
            write_shards(args.data, **{name: getattr(args, name) for name in options}, **shown)
    return 0


def _add_bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--info", action="store_true", help="say what was built and which implementations run here")
    parser.set_defaults(bench=None)
    parts = parser.add_subparsers(metavar="PART")
    for name, summary, add_arguments, run in (
        ("ops", "time the operators at the sizes of the tiny networks", _add_bench_ops, _bench_ops),
        ("models", "time networks, for inference and in training", _add_bench_models, _bench_models),
        ("loader", "load images beside timm's loader", _add_bench_loader, _bench_loader),
        ("docs", "write a page about results", _add_bench_docs, _bench_docs),
    ):
        part = parts.add_parser(name, help=summary, description=f"{summary.capitalize()}.")
        add_arguments(part)
        part.set_defaults(bench=run)


def _add_bench_ops(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--ops", nargs="+", metavar="OPERATOR", help="such as window_attention or window_attention_shifted (all)")
    shapes = parser.add_mutually_exclusive_group()
    shapes.add_argument("--stages", nargs="+", type=int, metavar="N", help="of the tiny networks at 224 px (1 2 3 4)")
    shapes.add_argument("--shape", nargs=3, type=int, metavar=("H", "W", "C"), help="one map instead of the stages")
    add("--batch", type=int, metavar="N", help="images of a call (4 on a CPU, 128 on a GPU)")
    _add_bench_common(parser, ("forward", "backward"))
    add("--impls", nargs="+", metavar="NAME", help="implementations and peers (all but reference)")
    add("--bias", action=argparse.BooleanOptionalAction, default=True, help="whether attention adds its bias (yes)")
    add("--rounds", type=int, default=7, metavar="N", help="timed turns of each (%(default)s)")
    add("--seconds", type=float, default=0.01, metavar="S", help="least duration of a turn (%(default)s)")


def _add_bench_models(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--nets", nargs="+", metavar="MODEL", help="networks by their timm names (tiny ones, and timm's Swin)")
    add("--batch", type=int, metavar="N", help="images of a call (8 on a CPU, 128 on a GPU)")
    add("--img-size", type=int, default=224, metavar="PIXELS", help="side of the images (%(default)s)")
    _add_bench_common(parser, ("inference", "training"))
    add("--modes", nargs="+", metavar="MODE", help="eager, compiled (both, but eager to train on a CPU)")
    add("--rounds", type=int, default=5, metavar="N", help="timed turns of each (%(default)s)")
    add("--seconds", type=float, default=0.05, metavar="S", help="least duration of a turn (%(default)s)")


def _add_bench_loader(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("data", metavar="DIR", help="folder of images")
    add("--img-size", type=int, default=224, metavar="PIXELS", help="side of the views (%(default)s)")
    add("--batch", type=int, default=64, metavar="N", help="images of a batch (%(default)s)")
    add("--images", type=int, default=512, metavar="N", help="images of a turn (%(default)s)")
    add("--workers", type=int, default=1, metavar="N", help="processes of each loader (%(default)s)")
    add("--plain", action="store_true", help="only crops and flips, instead of the augmentation of the paper")
    add("--rounds", type=int, default=7, metavar="N", help="timed turns of each (%(default)s)")
    add("--output", type=Path, metavar="DIR", help="to write results.json into")


def _add_bench_common(parser: argparse.ArgumentParser, directions: tuple[str, str]) -> None:
    add = parser.add_argument
    add("--dtype", default="float32", metavar="DTYPE", help="float32, bfloat16 or float16 (%(default)s)")
    add("--device", default="auto", metavar="DEVICE", help="auto, cpu or cuda (%(default)s)")
    add("--direction", nargs="+", default=directions, metavar="WAY", help=f"{' and '.join(directions)} (both)")
    add("--threads", type=int, metavar="N", help="of the CPU (as many as PyTorch takes)")
    add("--output", type=Path, metavar="DIR", help="to write results.json, table.md and figure.png into")


def _add_bench_docs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "results", type=Path, nargs="+", metavar="FOLDER", help="what --output was, or a folder of such"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.md")


def _bench(args: argparse.Namespace) -> int:
    if args.info:
        from localmix.reports.info import info

        print(info())
        return 0
    if args.bench is None:
        raise ValueError("bench: expected ops, models, loader, docs or --info, got nothing")
    return args.bench(**{k: v for k, v in vars(args).items() if k not in ("run", "bench", "info", "traceback")})


def _bench_ops(**options: Any) -> int:
    from localmix.reports.bench import bench_operators

    return _refused(bench_operators(**options))


def _bench_models(**options: Any) -> int:
    from localmix.reports.bench_models import bench_models

    return _refused(bench_models(**options))


def _bench_loader(**options: Any) -> int:
    from localmix.reports.bench_loader import bench_loader, table

    print(table(bench_loader(**options)))
    return 0


def _refused(results: dict[str, Any]) -> int:
    """1 if a row was not timed because its numbers were wrong."""
    return int(any(row["refused"] for row in results["rows"]))


def _bench_docs(results: Sequence[Path], output: Path) -> int:
    from localmix.reports.speed import write_page

    print(write_page(results, output))
    return 0


def _message(error: ValueError | OSError | ImportError) -> str | None:
    """What the user reads, or None for an error that is a defect of localmix."""
    if isinstance(error, ImportError):
        package = (error.name or "").split(".")[0]
        if not isinstance(error, ModuleNotFoundError) or package in ("", "localmix"):
            return None
        # What localmix always needs was installed with it, so what is missing belongs to the extra.
        return f'{package} is not installed: pip install "localmix[train]"'
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename}" if error.filename else "")
    # What a process that loads images raised comes with its traceback.
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return str(error).rpartition(f"\n{name}: ")[2].strip()
