"""The command line. Arguments are declared here; the modules that do the work are loaded when a command runs.

So `localmix --help` answers without waiting for PyTorch.
"""

import argparse
import os
import re
import signal
import sys
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

from localmix import __version__
from localmix.axes import MIXERS
from localmix.cli import ablate, bench, cost, evaluation, explanation, prediction, report, scenes
from localmix.cli.comparison import add_data, add_training, begin
from localmix.cli.values import number, path, processes, text


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; gives the exit status.

    0 done, 1 done in part, 2 a wrong request, 75 stopped by a signal and ready to go on, 130 interrupted, 143 ended by
    SIGTERM, 141 where nobody reads on, such as `head`.
    """
    parser = _parser()
    args, rest = parser.parse_known_args(arguments)
    if args.run is _fit:
        args.arguments = rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        if args.run is _fit:  # it hears signals in its own way
            return args.run(args)
        with _terminable():
            status = args.run(args)
            # here, and not when the interpreter ends
            if sys.stdout:
                sys.stdout.flush()
            return status
    except KeyboardInterrupt as interrupt:
        return 143 if interrupt.args == (signal.SIGTERM.name,) else 130
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # as rich answers it
            return 141
        raise
    except (ValueError, OSError, ImportError) as error:
        if isinstance(error, BrokenPipeError) and _is_cut():
            return 141
        message = _message(error, args)
        if args.traceback or message is None:
            raise
        print(f"localmix: error: {message}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if args.traceback or not _is_out_of_memory(error):
            raise
        found = re.search(r"tried to allocate [\d.]+ \w+", str(error), re.IGNORECASE)
        asked = f" ({found[0]})" if found else ""
        print(f"localmix: error: not enough memory{asked}; smaller images or batches need less", file=sys.stderr)
        return 2


def _is_cut() -> bool:
    """Whether nobody reads stdout any more; what is left for it then goes nowhere."""
    try:
        # something, for what it could not write before is forgotten
        print(flush=True)
        return False
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True


@contextmanager
def _terminable() -> Generator[None]:
    """SIGTERM ends a command as Ctrl-C does: it ends the processes that it began, and removes what is half written."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    process = os.getpid()

    def interrupt(number: int, _: FrameType | None) -> None:
        if os.getpid() != process:  # forked from the command, which ends it
            os._exit(1)
        raise KeyboardInterrupt(signal.Signals(number).name)

    handler = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


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
        ("ablate", "flip one axis of the paper at a time and say what that changes", ablate.add_arguments, ablate.run),
        (
            "predict",
            "classify images or their pixels, or find objects, with a trained network",
            prediction.add_arguments,
            prediction.run,
        ),
        (
            "explain",
            "say where a mixer stands on the axes, or show what networks do to images",
            explanation.add_arguments,
            explanation.run,
        ),
        ("convert", "turn a published checkpoint into one of localmix", _add_convert, _convert),
        ("validate", "evaluate a network on validation images", evaluation.add_arguments, evaluation.validate),
        ("test", "evaluate a network on test images", evaluation.add_arguments, evaluation.test),
        ("curves", "draw how the loss and the accuracy of runs go", _add_curves, _curves),
        ("publish", "make a checkpoint a folder that others load, with a model card", _add_publish, _publish),
        ("shard", "pack images into shards that stream to many machines", _add_shard, _shard),
        (
            "scenes",
            "compose a data set for detection and segmentation of the embedded images",
            scenes.add_arguments,
            scenes.run,
        ),
        ("cost", "count what networks cost, beside what the paper states", cost.add_arguments, cost.run),
        ("report", "make one page of the paper's tables and of what runs found", report.add_arguments, report.run),
        ("bench", "time operators and networks beside other ways to compute them", bench.add_arguments, bench.run),
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
    from localmix.reports.training.fit import main

    return main(args.arguments)


def _add_compare(parser: argparse.ArgumentParser) -> None:
    add_data(parser)
    nets = parser.add_mutually_exclusive_group()
    nets.add_argument("--mixers", nargs="+", metavar="MIXER", help=f"among {', '.join(MIXERS)} (all)")
    nets.add_argument("--models", nargs="+", metavar="MODEL", help="networks by their timm names, instead of --mixers")
    parser.add_argument(
        "--size", default="nano", metavar="SIZE", help="nano, tiny, small or base networks (%(default)s)"
    )
    add_training(parser, epochs=2, seeds=[0], output="runs/compare")


def _compare(args: argparse.Namespace) -> int:
    begin(args)
    from localmix.reports.compare import compare

    compare(**{name: value for name, value in vars(args).items() if name not in ("run", "traceback")})
    return 0


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=path, metavar="CHECKPOINT", help="the published file")
    parser.add_argument("--model", required=True, metavar="NAME", help="the network it belongs to, as timm names it")
    parser.add_argument("--output", type=path, required=True, metavar="FILE.safetensors")
    parser.add_argument(
        "--task",
        choices=("classification", "detection", "segmentation"),
        default="classification",
        help="detection: of mmdetection's (Cascade) Mask R-CNN, segmentation: of mmsegmentation's UPerNet; NAME is "
        "then the backbone (%(default)s)",
    )
    parser.add_argument(
        "--img-size",
        type=number,
        metavar="PIXELS",
        help="of classification: side of the images that it was trained on, to be noted (what a Swin tells)",
    )


def _convert(args: argparse.Namespace) -> int:
    if args.task != "classification" and args.img_size is not None:
        raise ValueError(f"img_size: expected nothing, since the task is {args.task}, got {args.img_size}")
    if args.task == "detection":
        from localmix.tasks.detection.checkpoints import convert_file
    elif args.task == "segmentation":
        from localmix.tasks.segmentation.checkpoints import convert_file
    else:
        from localmix.models.convert import convert_file

    from localmix.tasks.engine.output import output_file

    output_file(args.output, ".safetensors")
    options = {} if args.img_size is None else {"img_size": args.img_size}
    print(convert_file(args.checkpoint, model=args.model, output=args.output, **options))
    return 0


def _add_shard(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "data",
        type=text,
        nargs="?",
        metavar="DIR",
        help="DIR/train/CLASS/*, DIR/val/CLASS/*, or class folders, or ImageNet",
    )
    add("--output", type=path, metavar="SHARDS", help="folder to write or go on in")
    add("--size", type=number, metavar="PIXELS", help="shorter side that larger images are resized to (as they are)")
    add("--quality", type=number, default=90, metavar="N", help="of the JPEGs that resizing makes (%(default)s)")
    add("--chunk-mb", type=number, default=64, metavar="MB", help="about the size of a chunk (%(default)s)")
    add("--workers", type=processes, metavar="N", help="threads (one per core)")
    add("--on-corrupt", choices=("error", "skip"), default="error", help="refuse or leave out files that are no images")
    add("--verify", type=path, metavar="SHARDS", help="only compare every chunk of a folder with its checksum")


def _shard(args: argparse.Namespace) -> int:
    if (args.verify is None) == (args.data is None) or (args.data is None) != (args.output is None):
        raise ValueError("shard: expected DIR and --output SHARDS, or --verify SHARDS")
    from localmix.reports.progress import Display
    from localmix.tasks.classification.shard_reading import verify_shards
    from localmix.tasks.classification.shard_writing import summary, write_shards

    with Display() as display:
        shown: dict[str, Any] = {"announce": display.say, "track": display.track}
        if args.verify:
            for line in summary(verify_shards(args.verify, display.track)):
                display.say(f"{args.verify}: {line}")
        else:
            options = ("output", "size", "quality", "chunk_mb", "workers", "on_corrupt")
            write_shards(args.data, **{name: getattr(args, name) for name in options}, **shown)
    return 0


def _add_curves(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("runs", type=path, nargs="+", metavar="RUN", help="folders with metrics.csv; they may be under way")
    add("--output", type=path, default=Path("curves.png"), metavar="FILE.png", help="(%(default)s)")
    add(
        "--smooth",
        type=number,
        metavar="N",
        help="steps that a point of a thick line is the mean of (a 50th of the run)",
    )


def _curves(args: argparse.Namespace) -> int:
    from localmix.reports.curves import curves

    print(curves(args.runs, args.output, smooth=args.smooth))
    return 0


def _add_publish(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", type=path, metavar="RUN_OR_CHECKPOINT", help="a run's folder, or a checkpoint in one")
    add("--to", type=path, required=True, metavar="DIR", help="the folder to make")
    add("--weights", choices=("ema", "raw"), help="the moving average or the weights themselves (ema if there is one)")
    add("--results", type=path, nargs="+", default=(), metavar="FILE", help="results.json of `validate` or `test`")
    add("--license", type=text, default="mit", metavar="NAME", help="of the weights, as the Hub calls it (%(default)s)")
    add("--overwrite", action="store_true", help="replace DIR if it was published before")


def _publish(args: argparse.Namespace) -> int:
    from localmix.reports.publishing.publish import publish

    options = {name: value for name, value in vars(args).items() if name not in ("run", "traceback", "source")}
    print(publish(args.source, **options))
    return 0


def _is_out_of_memory(error: MemoryError | RuntimeError) -> bool:
    """Of a GPU or not; PyTorch, which need not be loaded, has no class for what it says of the memory of a CPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return any(words in str(error) for words in ("DefaultCPUAllocator", "Storage size calculation overflowed"))


def _message(error: ValueError | OSError | ImportError, args: argparse.Namespace) -> str | None:
    """What the user reads, or None for an error that is a defect of localmix."""
    if isinstance(error, ImportError):
        package = (error.name or "").split(".")[0]
        if not isinstance(error, ModuleNotFoundError) or package in ("", "localmix"):
            return None
        # What localmix always needs was installed with it, so what is missing belongs to the extra.
        return f'{package} is not installed: pip install "localmix[train]"'
    if isinstance(error, OSError) and error.strerror:
        if not error.filename:
            return error.strerror
        name = _argument_of(os.fsdecode(error.filename), args)
        begins = f"{name}: " if name and not re.match(r"[\w.]+: ", error.strerror) else ""
        return f"{begins}{error.strerror}: {os.fsdecode(error.filename)}"
    # What a process that loads images raised comes with its traceback.
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return str(error).rpartition(f"\n{name}: ")[2].strip()


def _argument_of(filename: str, args: argparse.Namespace) -> str | None:
    """The argument that named a file, or a folder above it, or a file below it; None if none did."""
    file = Path(os.path.abspath(filename))
    given = list(_given(args))
    for name, place in given:
        if place == file:
            return name
    return next((name for name, place in given if place in file.parents or file in place.parents), None)


def _given(args: argparse.Namespace) -> Iterator[tuple[str, Path]]:
    """The arguments that are paths, or may be; `localmix fit` has all of its own in a list."""
    rest = getattr(args, "arguments", [])
    pairs = [(name, value) for name, value in vars(args).items() if name != "arguments"]
    pairs += [(name, value) for name, value in pairwise(rest) if name.startswith("--")]
    pairs += [(argument.partition("=")[0], argument.partition("=")[2]) for argument in rest]
    for name, values in pairs:
        for value in values if isinstance(values, (list, tuple)) else [values]:
            # a word without a separator may be anything
            if isinstance(value, Path) or (isinstance(value, str) and (os.sep in value or os.path.exists(value))):
                yield name.lstrip("-"), Path(os.path.abspath(value))
