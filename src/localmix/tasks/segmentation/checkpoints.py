"""Published checkpoints of mmsegmentation's UPerNet as weights of ours; nothing is left out silently.

There, "backbone." holds the network, in one of the layouts of `localmix.models.layouts`, and the norm of each map as
"norm0" to "norm3"; the heads have the names that ours have. What is written here holds our names, and as metadata what
the net is built of.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from localmix.models.checkpoint_reading import read_checkpoint, unwrap
from localmix.models.convert import convert_state_dict, padding_of
from localmix.tasks.net_file import SUFFIX, read_net, write_net
from localmix.tasks.segmentation.upernet import UPerNet, upernet

BACKBONE = "backbone."
NORM = re.compile(r"norm(\d+)\.(\w+)")
TASK = "segmentation"
SIZES = {
    "num_classes": "decode_head.conv_seg.weight",
    "channels": "decode_head.fpn_bottleneck.conv.weight",
    "auxiliary_channels": "auxiliary_head.convs.0.conv.weight",
}
"""Arguments of `upernet`, and the weight whose first axis says how large they are."""


@dataclass(frozen=True)
class Report:
    """What a conversion has done."""

    backbone: str
    num_classes: int
    num_parameters: int
    output: Path

    def __str__(self) -> str:
        return (
            f"{self.output}: UPerNet on {self.backbone}, {self.num_parameters:,} parameters, {self.num_classes} "
            "classes, from a checkpoint of mmsegmentation"
        )


def convert_file(checkpoint: Path, *, model: str, output: Path, **options: Any) -> Report:
    """Write the weights of a checkpoint of mmsegmentation's UPerNet as a safetensors file of `upernet(model)`.

    Args:
        checkpoint: of a backbone that `localmix.models.convert` knows. Nothing in it can run code.
        model: name of the backbone. The sizes of the heads are those of the checkpoint.
        output: ends in ".safetensors". The file is there wholly or not at all.
        options: further arguments of the backbone, such as `window_size`.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: the file is damaged, foreign or wants to run code, or its weights are not those of the net.
    """
    if output.suffix != SUFFIX:
        raise ValueError(f"output: expected a name that ends in {SUFFIX}, got {output}")
    weights = unwrap(read_checkpoint(checkpoint))
    absent = [key for key in SIZES.values() if not getattr(weights.get(key), "ndim", 0)]
    if absent:
        raise ValueError(
            f"checkpoint: expected one of mmsegmentation's UPerNet, got one without {', '.join(absent)}; it has names "
            f"such as {', '.join(map(repr, list(weights)[:5]))}"
        )
    options = {name: weights[key].shape[0] for name, key in SIZES.items()} | padding_of(weights, **options) | options
    with torch.device("meta"):  # shapes are all that is needed
        net = upernet(model, **options)
    save_segmenter(output, convert_official(weights, net), backbone=model, options=options, source="mmsegmentation")
    num_parameters = sum(parameter.numel() for parameter in net.parameters())
    return Report(model, options["num_classes"], num_parameters, output)


def save_segmenter(
    path: Path,
    weights: Mapping[str, Tensor],
    *,
    backbone: str,
    options: Mapping[str, Any],
    source: str,
    **more: Any,
) -> None:
    """Write a segmenter as a file that `load_converted` reads.

    Args:
        path: ends in ".safetensors".
        weights: by their names in the net.
        backbone: its name; `options` are the arguments of `upernet`.
        source: where the weights come from, in words.
        more: what else the file is to say, as json has it.
    """
    facts = {"architecture": backbone, "model_args": dict(options), "source": source, **more}
    write_net(path, weights, TASK, facts)


def load_converted(path: Path) -> tuple[UPerNet, dict[str, str]]:
    """The net of a file that `save_segmenter` has written, in evaluation mode, and what the file says.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is another file.
    """
    weights, facts = read_net(path, TASK)
    try:
        net = upernet(facts["architecture"], **json.loads(facts["model_args"]))
        net.load_state_dict(weights)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"model: {path} does not fit the net that it names: {str(error)[:300]}") from error
    return net.eval(), facts


def load_official(checkpoint: Path, net: UPerNet) -> None:
    """Load a checkpoint that mmsegmentation has written into `net`; nothing in the file can run code.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it is damaged, or its weights are not those of the net.
    """
    net.load_state_dict(convert_official(read_checkpoint(checkpoint), net))


def convert_official(state_dict: Mapping[str, Any], net: UPerNet) -> dict[str, Tensor]:
    """The weights of mmsegmentation's UPerNet under the names of `net`, for `load_state_dict`.

    Raises:
        ValueError: unless every weight of the checkpoint has its place, every one of the net is set and all shapes are
            right; it lists all that is left over, missing and misshapen.
    """
    weights = unwrap(state_dict)
    converted, problems = {}, []
    network = {k.removeprefix(BACKBONE): v for k, v in weights.items() if k.startswith(BACKBONE)}
    norms = {key: NORM.fullmatch(key) for key in network}
    for key, match in norms.items():
        if match:
            converted[f"feature_norms.{match[1]}.norm.{match[2]}"] = network[key]
    network = {key: value for key, value in network.items() if not norms[key]}
    try:
        converted |= {net.prefix + key: value for key, value in convert_state_dict(network, net.network).items()}
    except ValueError as error:
        problems.append(f"{BACKBONE}*: {str(error).removeprefix('checkpoint: ')}")
    converted |= {key: value for key, value in weights.items() if not key.startswith(BACKBONE)}

    expected = {k: v for k, v in net.state_dict().items() if not (problems and k.startswith(BACKBONE))}
    problems += [f"left over: {key}" for key in converted if key not in expected]
    problems += [f"missing: {key}" for key in expected if key not in converted]
    for key, like in expected.items():
        shape = getattr(converted.get(key), "shape", None)
        if key in converted and shape != like.shape:
            found = "no tensor" if shape is None else list(shape)
            problems.append(f"misshapen: {key}: expected {list(like.shape)}, got {found}")
    if problems:
        raise ValueError("\n".join(["checkpoint: expected the weights of this UPerNet", *problems]))
    return converted
