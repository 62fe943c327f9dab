"""A trained network, wherever it comes from: a checkpoint of a run, a published folder, a name that timm knows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
from safetensors import safe_open
from timm.data import resolve_model_data_config
from timm.models import get_pretrained_cfg
from torch import nn

from localmix.arguments import choice
from localmix.models import NAMES, create_model
from localmix.models.checkpoint_reading import read_checkpoint
from localmix.models.convert import convert_state_dict
from localmix.reports.evaluation.published import is_published
from localmix.reports.evaluation.tasks import DEFAULT, task_of
from localmix.reports.evaluation.view import View
from localmix.tasks.engine.checkpoint import load_checkpoint
from localmix.tasks.engine.run_folder import CHECKPOINT, CHECKPOINTS

PREFIXES = {"ema": "ema.module.", "raw": "net."}
"""Of the weights in a checkpoint: the moving average, and the weights that were trained."""


@dataclass(frozen=True)
class Trained:
    """A network in evaluation mode, on the CPU, with what is known about it.

    Args:
        name: of its architecture, as timm has it.
        classes: names in the order of its outputs; None if nothing says.
        view: how it wants to see images.
        source: where the weights come from, in plain values.
        options: further arguments that the network was built with.
        training: what a checkpoint and its run say of the training: the arguments of `Classification`, the settings of
            `localmix compare`, and under "run" what `localmix fit` has noted.
    """

    net: nn.Module
    name: str
    classes: list[str] | None
    view: View
    source: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """Number of outputs."""
        net: Any = self.net
        return net.num_classes

    @property
    def data(self) -> tuple[str | None, str | None]:
        """What the run was trained on, and the folder of that if it was named; None where nothing says."""
        settings = self.training.get("run", {}).get("settings", {})
        return self.training.get("data") or settings.get("data.root"), settings.get("data.folder")


def load_trained(
    model: str | Path,
    *,
    weights: str | None = None,
    pretrained: bool = False,
    checkpoint: Path | str | None = None,
    img_size: int | None = None,
) -> Trained:
    """Build the network that `model` names, with its weights.

    Args:
        model: a checkpoint or the folder of a run; a folder with config.json and weights, as `localmix publish` and
            timm write it; or a name that timm knows ("dwnet_tiny", "resnet50.a1_in1k", "hf-hub:...").
        weights: "ema" or "raw"; by default the moving average where there is one. For checkpoints.
        pretrained: take the weights that timm has for the name.
        checkpoint: a file with weights for the name, safetensors or written by `torch.save`.
        img_size: what a network is built for that takes one size only [pixels].

    Raises:
        OSError: there is no such file.
        ValueError: names the argument, what was expected and what came.
    """
    if weights is not None:
        choice("weights", weights, tuple(PREFIXES))
    path = Path(model)
    task = task_of(path) if path.exists() else DEFAULT
    if task != DEFAULT:
        raise ValueError(f"model: expected a classifier, got a network for {task} in {path}")
    if is_published(path):
        _refuse(model, "a published folder", weights=weights, checkpoint=checkpoint)
        return _named(f"local-dir:{path}", None, img_size)
    if path.is_dir() or path.suffix == ".ckpt":
        _refuse(model, "a checkpoint", pretrained=pretrained, checkpoint=checkpoint)
        return from_checkpoint(path / CHECKPOINT if path.is_dir() else path, weights)
    if path.is_file():
        raise ValueError(
            f"model: expected a checkpoint (*.ckpt), a folder or the name of a network, got {path}; "
            f"for a file of weights name its network: NAME --checkpoint {path}"
        )
    if ":" not in str(model) and "/" in str(model):
        raise FileNotFoundError(2, "model: no such checkpoint or folder", str(model))
    if ":" not in str(model) and not timm.is_model(str(model)):
        create_model(str(model))  # which answers with the nearest names
    if ":" not in str(model) and pretrained == (checkpoint is not None):
        raise ValueError(
            f"model: expected weights for {str(model)!r}, either pretrained (those that timm has) or checkpoint "
            f"(a file); got {'both' if pretrained else 'neither'}"
        )
    _refuse(model, "the name of a network", weights=weights)
    return _named(str(model), checkpoint, img_size)


def from_checkpoint(path: Path, weights: str | None = None) -> Trained:
    """The network of a checkpoint that `localmix compare` or `localmix fit` has written.

    Raises:
        OSError: there is no such file.
        ValueError: it is damaged, foreign, of a net that is not known here, or has no such weights.
    """
    content = load_checkpoint(path, name="model")
    facts = content["hyper_parameters"]
    kind, weights_of_net = weights_in(content, path, weights)
    try:
        classes = [str(name) for name in facts["classes"]]
        # the weights that training began with are not fetched again, here or by who loads what is published
        options = {name: value for name, value in (facts.get("model_kwargs") or {}).items() if name != "pretrained"}
        net: Any = create_model(facts["model"], num_classes=len(classes), in_chans=facts["in_chans"], **options)
        net.load_state_dict(weights_of_net)
        view = _validated(facts, content.get("run", {}).get("settings", {}))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"checkpoint: {path} does not fit a net of localmix: {str(error)[:300]}") from error
    source = {**source_of(path), "weights": kind, "epoch": content.get("epoch"), "step": content.get("global_step")}
    settings = run_of(path) / "settings.json"
    training = {**facts, **(json.loads(settings.read_text()) if settings.is_file() else {})}
    training |= {"run": content["run"]} if "run" in content else {}
    return Trained(net.eval(), str(facts["model"]), classes, view, source, options, training)


def weights_in(content: Mapping[str, Any], path: Path, weights: str | None) -> tuple[str, dict[str, Any]]:
    """Of a checkpoint, "ema" or "raw" and the weights of that kind by their names in the net.

    Args:
        weights: the kind that is wanted; by default the moving average where there is one.

    Raises:
        ValueError: it is not there.
    """
    state = content["state_dict"]
    held = [kind for kind, prefix in PREFIXES.items() if any(key.startswith(prefix) for key in state)]
    kind = weights or next(iter(held), "raw")
    if kind not in (held or PREFIXES):
        raise ValueError(f"weights: expected {' or '.join(map(repr, held or PREFIXES))} for {path}, got {kind!r}")
    prefix = PREFIXES[kind]
    return kind, {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def source_of(path: Path) -> dict[str, Any]:
    """Where weights come from: the file, and what tells it from one of the same name."""
    return {"checkpoint": str(path), "sha256": digest(path)}


def run_of(checkpoint: Path) -> Path:
    """The folder of the run that a checkpoint lies in; those of the last steps lie in a folder of their own."""
    return checkpoint.parent.parent if checkpoint.parent.name == CHECKPOINTS else checkpoint.parent


def _validated(facts: Mapping[str, Any], settings: Mapping[str, Any]) -> View:
    """How the images were shown that the run was validated on; `settings` are those of `localmix fit`."""
    as_the_paper = settings.get("data.views") == "imagenet"
    interpolation = settings.get("data.interpolation", "bicubic")
    return View(
        size=(facts["img_size"],) * 2,
        channels=facts["in_chans"],
        crop_pct=settings["data.crop_pct"] if as_the_paper else None,
        crop_mode="center",
        # chance is for training
        interpolation="bicubic" if interpolation == "random" or not as_the_paper else interpolation,
        mean=tuple(facts["mean"]),
        std=tuple(facts["std"]),
    )


def _named(name: str, checkpoint: Path | str | None, img_size: int | None) -> Trained:
    def build(**options: Any) -> Any:
        return _create(name, **options) if checkpoint is None else _filled(name, Path(checkpoint), **options)

    def other_size(config: Any) -> dict[str, int]:
        if img_size is None or not config or not config.get("fixed_input_size") or config["input_size"][2] == img_size:
            return {}
        return {"img_size": img_size}

    # what a folder or the Hub holds is known when it is built
    options = {} if ":" in name else other_size(_registered(name))
    net = build(**options)
    if not options and other_size(net.pretrained_cfg):
        net = build(**other_size(net.pretrained_cfg))
    config = net.pretrained_cfg
    if checkpoint is not None:
        source: dict[str, Any] = {"checkpoint": str(checkpoint), "sha256": digest(Path(checkpoint))}
    else:
        source = {key: config[key] for key in ("source", "file", "tag", "hf_hub_id", "url") if config.get(key)}
    return Trained(net.eval(), config["architecture"], _labels(config.get("label_names")), view_of(net), source)


def view_of(net: nn.Module) -> View:
    """How a network of timm wants to see images, as its configuration says."""
    facts: Any = resolve_model_data_config(net)
    return View(
        size=facts["input_size"][1:],
        channels=facts["input_size"][0],
        crop_pct=facts["crop_pct"],
        crop_mode=facts["crop_mode"],
        interpolation=facts["interpolation"],
        mean=tuple(facts["mean"]),
        std=tuple(facts["std"]),
    )


def _registered(name: str) -> dict[str, Any]:
    """timm's configuration of a name that it knows."""
    try:
        config = get_pretrained_cfg(name)
    except RuntimeError as error:
        raise ValueError(f"model: {error}") from None
    return config.to_dict(remove_source=True) if config else {}


def _create(name: str, **options: Any) -> Any:
    """The network with the weights that timm has for it, or that a folder or the Hub has."""
    try:
        return create_model(name, pretrained=True, **options)
    except ValueError:
        raise
    # Whatever timm, the Hub and the network fail with: no weights, no connection, an option that it does not take.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"model: cannot load the weights of {name!r}: {reason}") from error


def _filled(name: str, path: Path, **options: Any) -> Any:
    """The network with the weights in a file, all of them."""
    weights, noted = _weights(path)
    options |= noted | _outputs(weights, name)
    if name.split(".")[0] in NAMES:
        net: Any = create_model(name, **options)
        net.load_state_dict(convert_state_dict(weights, net))
        return net
    # by way of timm, which resizes tables of positions to another size of the images
    overlay = {**options.pop("pretrained_cfg_overlay", {}), "state_dict": dict(weights)}
    overlay |= {key: options[key] for key in ("num_classes",) if key in options}
    try:
        net: Any = create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"checkpoint: expected the weights of {name} in {path}: {reason[:300]}") from error
    net.pretrained_cfg.pop("state_dict")
    return net


def _weights(path: Path) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """The tensors in a file, and the arguments of the network if `localmix convert` has noted any."""
    content = read_checkpoint(path)
    options = {}
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            notes = file.metadata() or {}
        options = json.loads(notes.get("model_args", "{}"))
        if "input_size" in notes:
            options["pretrained_cfg_overlay"] = {"input_size": tuple(json.loads(notes["input_size"]))}
    for wrapper in ("state_dict_ema", "state_dict", "model"):
        if isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    return {key.removeprefix("module.").removeprefix("_orig_mod."): value for key, value in content.items()}, options


def _outputs(weights: Mapping[str, Any], name: str) -> dict[str, int]:
    """The number of classes that a file of weights is for, as an argument of the network; nothing if it cannot be seen.

    The head is called as timm says, or as in the checkpoints of the official code.
    """
    heads = _registered(name).get("classifier")
    heads = heads if isinstance(heads, (tuple, list)) else (heads,)
    sizes = [weights[key].shape[0] for key in (f"{head}.weight" for head in (*heads, "head")) if key in weights]
    return {"num_classes": sizes[0]} if sizes else {}


def _labels(names: Any) -> list[str] | None:
    """Names of classes as timm's configurations have them: a list, or by their number."""
    if isinstance(names, Mapping):
        return [str(names[key]) for key in sorted(names, key=int)]
    return [str(name) for name in names] if names else None


def _refuse(model: str | Path, kind: str, **options: Any) -> None:
    given = [name for name, value in options.items() if value]
    if given:
        raise ValueError(f"{given[0]}: expected nothing, since {model} is {kind}; got {options[given[0]]!r}")


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    content = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            content.update(chunk)
    return content.hexdigest()
