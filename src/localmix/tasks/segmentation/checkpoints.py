"""Published checkpoints of mmsegmentation's UPerNet as weights of ours; nothing is left out silently.

There, "backbone." holds the network, in one of the layouts of `localmix.models.layouts`, and the norm of each map as
"norm0" to "norm3"; the heads have the names that ours have.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from localmix.models.convert import convert_state_dict, read_checkpoint
from localmix.tasks.segmentation.upernet import UPerNet

BACKBONE = "backbone."
NORM = re.compile(r"norm(\d+)\.(\w+)")
WRAPPERS = ("state_dict", "model")


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
    weights = _unwrap(state_dict)
    converted, problems = {}, []
    network = {k.removeprefix(BACKBONE): v for k, v in weights.items() if k.startswith(BACKBONE)}
    norms = {key: NORM.fullmatch(key) for key in network}
    for key, match in norms.items():
        if match:
            converted[f"feature_norms.{match[1]}.norm.{match[2]}"] = network[key]
    network = {key: value for key, value in network.items() if not norms[key]}
    features = net.get_submodule("backbone.model") if hasattr(net.backbone, "model") else net.backbone
    prefix = "backbone.model." if features is not net.backbone else BACKBONE
    try:
        converted |= {prefix + key: value for key, value in convert_state_dict(network, features).items()}
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


def _unwrap(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    for wrapper in WRAPPERS:
        if isinstance(state_dict.get(wrapper), Mapping):
            return _unwrap(state_dict[wrapper])
    if state_dict and all(key.startswith("module.") for key in state_dict):
        return _unwrap({key.removeprefix("module."): value for key, value in state_dict.items()})
    return dict(state_dict)
