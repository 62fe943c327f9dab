"""What `localmix fit` can be told, by configuration files and by options of the same names."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_parsing_settings

from localmix.arguments import choice, existing_file, positive, seed
from localmix.reports.training.kinds import KINDS, Kind, kind


@dataclass
class TrainerOptions:
    """Where and how long to train; the names are those of Lightning's trainer.

    Args:
        max_epochs: epochs of the whole run.
        accelerator: auto takes a GPU if there is one.
        devices: on each node, a process for each; auto: as many as torchrun or Slurm have started, else all GPUs.
        num_nodes: auto: as many as torchrun or Slurm have started, else one.
        strategy: ddp: each process has the whole net; fsdp: each has a share of its parameters; auto: ddp if needed.
        precision: bf16-mixed halves time and memory on a GPU; 16-mixed is for GPUs without bfloat16.
        accumulate_grad_batches: batches of a step.
        gradient_clip_val: largest norm of the gradient; 0 for any.
        check_val_every_n_epoch: epochs from one validation to the next.
        deterministic: on a GPU too, where it costs time; a CPU always is.
        benchmark: let cuDNN choose its fastest convolutions.
    """

    max_epochs: int = 10
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int | Literal["auto"] = "auto"
    num_nodes: int | Literal["auto"] = "auto"
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    accumulate_grad_batches: int = 1
    gradient_clip_val: float = 5.0
    check_val_every_n_epoch: int = 1
    deterministic: bool = False
    benchmark: bool = False


@dataclass
class SaveOptions:
    """Checkpoints.

    Args:
        every: steps from one to the next, beside those at the end of each epoch.
        keep: how many of the last ones stay.
    """

    every: int | None = None
    keep: int = 3


@dataclass
class LogOptions:
    """Where metrics go beside metrics.csv.

    Args:
        tensorboard: to OUTPUT/tensorboard.
        wandb: name of a project of Weights & Biases, if wandb is installed.
    """

    tensorboard: bool = True
    wandb: str | None = None


FREE = re.compile(
    r"(output|resume|weights|max_non_finite|save\..*|log\..*"
    r"|data\.(root|folder|download|workers|max_corrupt|max_cache_gb|batch_size|check)"
    r"|trainer\.(accelerator|devices|num_nodes|strategy|accumulate_grad_batches|benchmark|deterministic)"
    r"|model\.(grad_checkpointing|compile|channels_last))"
)
"""Settings that a run may go on with after a change: they do not say what is computed, or are checked elsewhere."""

COUNTS = {
    *("max_non_finite", "data.batch_size", "data.steps_per_epoch", "save.every", "save.keep"),
    *(f"trainer.{name}" for name in ("max_epochs", "devices", "num_nodes", "accumulate_grad_batches")),
    "trainer.check_val_every_n_epoch",
}
"""Settings that are at least 1."""

PATHS = {"output", "resume", "weights", "data.root"}
"""Settings that name something; nothing at all is what a variable of the shell becomes that is not set."""
LARGEST = 2**31 - 1
"""Of all whole numbers but the seed."""

RANGES: dict[str, tuple[Callable[[float], bool], set[str]]] = {
    "at least 0": (
        lambda value: value >= 0,
        {
            *("data.workers", "data.max_corrupt", "data.color_jitter", "trainer.gradient_clip_val"),
            *(f"model.{name}" for name in ("lr", "min_lr", "weight_decay", "mixup", "cutmix", "warmup_epochs")),
        },
    ),
    # a machine that is asked for far more processes than it has memory for may not answer any more
    "of at most 1024": (lambda value: value <= 1024, {"data.workers", "trainer.devices"}),
    "above 0": (lambda value: value > 0, {"data.max_cache_gb"}),
    "from 0 to 1": (lambda value: 0 <= value <= 1, {"data.random_erasing", "model.warmup"}),
    "at least 0 and below 1": (
        lambda value: 0 <= value < 1,
        {f"model.{name}" for name in ("ema_decay", "drop_path_rate", "label_smoothing", "dropout")},
    ),
    "above 0 and at most 1": (
        lambda value: 0 < value <= 1,
        {"data.scale", "data.crop_pct", "data.largest_share", "model.layer_decay"},
    ),
}
"""What numbers other settings may be; a task has some of them."""


FIRST_OF_GROUP = {"model": "model.name", "data": "data.root"}
"""What is perhaps meant where a group of settings is given a value, as other commands have it."""


def parse(arguments: Sequence[str]) -> tuple[Namespace, str]:
    """The settings, and the same as a YAML file with comments.

    Raises:
        ValueError: a name is unknown, which is answered with the nearest, or a value has the wrong type.
    """
    whole = _with_bases(arguments)
    parser = _parser(_kind(whole))
    try:
        settings = parser.parse_args(whole)
    except ArgumentError as error:
        raise ValueError(_explained(str(error), parser)) from None
    seed("seed", settings.seed)
    for name, value in flat(settings.as_dict()).items():
        if name in PATHS and value == "":
            raise ValueError(f"{name}: expected a name, got ''")
        if name != "seed" and isinstance(value, int) and value > LARGEST:
            raise ValueError(f"{name}: expected at most {LARGEST}, got {value}")
        if name in COUNTS and isinstance(value, int):
            positive(name, value)
        for expected, (holds, names) in RANGES.items():
            if name in names and isinstance(value, int | float) and not holds(value):
                raise ValueError(f"{name}: expected a number {expected}, got {value}")
    return settings, parser.dump(settings)


def _kind(arguments: Sequence[str]) -> Kind:
    """The task that the arguments name: the rest of their names depends on it."""
    task = "classification"
    for argument, following in zip(arguments, [*arguments, ""][1:], strict=True):
        if argument == "--task":
            task = following
        elif argument.startswith("--task="):
            task = argument.removeprefix("--task=")
        elif argument.startswith("--config="):
            task = json.loads(argument.removeprefix("--config=")).get("task", task)
    return kind(choice("task", task, KINDS))


def _parser(kind: Kind) -> ArgumentParser:
    set_parsing_settings(docstring_parse_attribute_docstrings=False)
    parser = ArgumentParser(
        prog="localmix fit",
        description="Train one network: exactly, and so that it can be interrupted anywhere.",
        exit_on_error=False,
        default_env=False,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        action="config",
        help="a file of settings; of several, the later ones win; `base: FILE` in it names one that it builds on",
    )
    parser.add_argument("--task", type=str, default=kind.task.kind, help=f"what is trained: {', '.join(KINDS)}")
    parser.add_argument("--output", type=str, default="runs/fit", help="folder of the run")
    parser.add_argument("--seed", type=int, default=0, help="of the weights, the order and all that is drawn")
    parser.add_argument(
        "--resume",
        type=str,
        default="auto",
        help="auto: go on from the newest whole checkpoint in OUTPUT, if there is one; never; or a checkpoint",
    )
    parser.add_argument(
        "--weights",
        type=str | None,
        default=None,
        help="to begin with: a .safetensors or .ckpt file, or 'pretrained' for those that timm has",
    )
    parser.add_argument(
        "--max_non_finite", type=int, default=10, help="steps in a row without a finite gradient that end the run"
    )
    parser.add_argument("--model.name", type=str, default="dwnet_nano", help="network, as timm names it")
    parser.add_class_arguments(kind.task, "model", skip={"model", *kind.given_by_data})
    for name, options in (
        ("data", kind.data_options),
        ("trainer", TrainerOptions),
        ("save", SaveOptions),
        ("log", LogOptions),
    ):
        parser.add_class_arguments(options, name)
    return parser


def _with_bases(arguments: Sequence[str]) -> list[str]:
    """The arguments with what files hold in place of their names, behind what they build on."""
    result, waiting = [], list(arguments)
    while waiting:
        argument = waiting.pop(0)
        if argument == "--config" and waiting:
            result += [f"--config={json.dumps(content)}" for content in _contents(Path(waiting.pop(0)))]
        elif argument.startswith("--config="):
            waiting[:0] = ["--config", argument.removeprefix("--config=")]
        else:
            result.append(argument)
    return result


def _contents(file: Path, above: tuple[Path, ...] = ()) -> list[dict[str, Any]]:
    """What a file of settings holds, behind what those hold that it builds on."""
    if file in above:
        raise ValueError(f"base: {' -> '.join(map(str, (*above, file)))} go round in a circle")
    existing_file("base" if above else "config", file)
    try:
        content = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"config: {file} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ValueError(f"config: expected settings in {file}, got {type(content).__name__}")
    base = content.pop("base", None)
    return [*(_contents(file.parent / base, (*above, file)) if base else []), content]


def _explained(message: str, parser: ArgumentParser) -> str:
    """The message of the parser in a line, with the name that was perhaps meant."""
    message = re.sub(r"<class '(\w+)'>", r"\1", " ".join(message.split())).replace("typing.", "")
    wrong = re.fullmatch(
        r'Parser key "([\w.]+)": (.*?)(?: Given value type: \w+)?\.? (?:Got|Given) value: ?(.*)', message
    )
    kinds = re.findall(r"Expected an? (.+?)(?= - Expected|$)", wrong[2]) if wrong else []
    if wrong and kinds:
        return f"{wrong[1]}: expected {' or '.join(kinds).replace('NoneType', 'null')}, got {wrong[3]!r}"
    known = [name for name in dict(parser.get_defaults().items()) if name != "config"]
    whole_group = re.match(r'Parser key "(\w+)": Unable to load config (.*?) - ', message)
    if whole_group:
        meant = FIRST_OF_GROUP.get(whole_group[1], f"{whole_group[1]}.*")
        return f"{whole_group[1]}: expected a file of settings, got {whole_group[2]}; did you mean {meant}?"
    group = re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", message)
    unknown = [f"{group[1]}.{group[2]}"] if group else re.findall(r"(?:--|[Kk]ey '|[Oo]ption ')([\w.-]+)", message)
    nearest = [near for name in unknown if name not in known for near in _nearest(name, known)]
    return f"{message}; did you mean {nearest[0]}?" if nearest else message


def _nearest(name: str, known: Sequence[str]) -> list[str]:
    """The name that is like it, or one that ends so: "--batch-size" and "--epochs" are options of other commands."""
    name = name.replace("-", "_")
    by_end = {full.rpartition(".")[2]: full for full in reversed(known)}
    ends = get_close_matches(name.rpartition(".")[2], by_end, n=1, cutoff=0.75)
    return get_close_matches(name, known, n=1) or [by_end[end] for end in ends]


def flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings with dotted names."""
    result = {}
    for name, value in settings.items():
        nested = isinstance(value, dict) and prefix == "" and name in ("model", "data", "trainer", "save", "log")
        result |= flat(value, f"{name}.") if nested else {f"{prefix}{name}": value}
    return result
