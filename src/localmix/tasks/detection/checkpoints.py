"""Published checkpoints of mmdetection's detectors as weights of ours; nothing is left out silently.

There, "backbone." holds the network, in one of the layouts of `localmix.models.layouts`, and the norm of each map as
"norm0" to "norm3"; "neck", "rpn_head" and "roi_head" follow. What is written here holds our names, and as metadata what
the net is built of.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from localmix.models.checkpoint_reading import read_checkpoint, unwrap
from localmix.models.convert import convert_state_dict, padding_of
from localmix.models.layouts import Row, Shape
from localmix.tasks.detection.detectors import detector
from localmix.tasks.detection.feature_pyramid import OnPyramid
from localmix.tasks.net_file import SUFFIX, read_net, write_net

TASK = "detection"
BACKBONE = "backbone."
MARKS = {
    "cascade_mask_rcnn": "roi_head.bbox_head.0.fc_cls.bias",
    "mask_rcnn": "roi_head.bbox_head.fc_cls.bias",
}
"""A weight that a checkpoint of each detector has; it has an entry for each class and the ground."""


def ground_first(value: Tensor, shape: Shape) -> Tensor:
    """[classes, then the ground] to [the ground, then classes]."""
    return value.roll(1, 0) if value.ndim else value


def ground_added(value: Tensor, shape: Shape) -> Tensor:
    """Entries of the classes behind zeros for the ground, which are never looked at."""
    missing = shape[0] - len(value) if shape and value.ndim else 0
    return torch.cat([value.new_zeros(missing, *value.shape[1:]), value]) if missing in (1, 4) else value


SHARED = (
    Row("backbone.norm#.*", "backbone.norms.#.*"),
    Row("neck.lateral_convs.#.conv.*", "backbone.fpn.inner_blocks.#.0.*"),
    Row("neck.fpn_convs.#.conv.*", "backbone.fpn.layer_blocks.#.0.*"),
    Row("rpn_head.rpn_conv.*", "rpn.head.conv.0.0.*"),
    Row("rpn_head.rpn_cls.*", "rpn.head.cls_logits.*"),
    Row("rpn_head.rpn_reg.*", "rpn.head.bbox_pred.*"),
)
ROWS = {
    "cascade_mask_rcnn": (
        *SHARED,
        Row("roi_head.bbox_head.#.shared_convs.#.conv.*", "roi_heads.box_heads.#.convs.#.0.*"),
        Row("roi_head.bbox_head.#.shared_convs.#.bn.*", "roi_heads.box_heads.#.convs.#.1.*"),
        Row("roi_head.bbox_head.#.shared_fcs.0.*", "roi_heads.box_heads.#.fc.*"),
        Row("roi_head.bbox_head.#.fc_cls.*", "roi_heads.box_heads.#.classifier.*", ground_first),
        Row("roi_head.bbox_head.#.fc_reg.*", "roi_heads.box_heads.#.regressor.*"),
        # an activation stands behind each
        *(
            Row(f"roi_head.mask_head.#.convs.{index}.conv.*", f"roi_heads.mask_heads.#.convs.{2 * index}.*")
            for index in range(4)
        ),
        Row("roi_head.mask_head.#.upsample.*", "roi_heads.mask_heads.#.upsample.*"),
        Row("roi_head.mask_head.#.conv_logits.*", "roi_heads.mask_heads.#.predictor.*"),
    ),
    "mask_rcnn": (
        *SHARED,
        Row("roi_head.bbox_head.shared_fcs.0.*", "roi_heads.box_head.fc6.*"),
        Row("roi_head.bbox_head.shared_fcs.1.*", "roi_heads.box_head.fc7.*"),
        Row("roi_head.bbox_head.fc_cls.*", "roi_heads.box_predictor.cls_score.*", ground_first),
        Row("roi_head.bbox_head.fc_reg.*", "roi_heads.box_predictor.bbox_pred.*", ground_added),
        Row("roi_head.mask_head.convs.#.conv.*", "roi_heads.mask_head.#.0.*"),
        Row("roi_head.mask_head.upsample.*", "roi_heads.mask_predictor.conv5_mask.*"),
        Row("roi_head.mask_head.conv_logits.*", "roi_heads.mask_predictor.mask_fcn_logits.*", ground_added),
    ),
}


@dataclass(frozen=True)
class Report:
    """What a conversion has done."""

    detector: str
    backbone: str
    num_classes: int
    num_parameters: int
    output: Path

    def __str__(self) -> str:
        return (
            f"{self.output}: {self.detector} on {self.backbone}, {self.num_parameters:,} parameters, "
            f"{self.num_classes} classes, from a checkpoint of mmdetection"
        )


def convert_file(checkpoint: Path, *, model: str, output: Path, **options: Any) -> Report:
    """Write the weights of a checkpoint of mmdetection as a safetensors file of a detector on the backbone `model`.

    Args:
        checkpoint: of Cascade Mask R-CNN or Mask R-CNN on a backbone that `localmix.models.convert` knows. Nothing in
            it can run code.
        model: name of the backbone.
        output: ends in ".safetensors". The file is there wholly or not at all.
        options: further arguments of the backbone, such as `window_size`.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: the file is damaged, foreign or wants to run code, or its weights are not those of the net.
    """
    if output.suffix != SUFFIX:
        raise ValueError(f"output: expected a name that ends in {SUFFIX}, got {output}")
    content = read_checkpoint(checkpoint)
    weights = unwrap(content)
    name = detector_of(weights)
    num_classes = len(weights[MARKS[name]]) - 1
    lateral = weights.get("neck.lateral_convs.0.conv.bias")
    facts: dict[str, Any] = {"num_classes": num_classes, "channels": 256 if lateral is None else len(lateral)}
    options |= padding_of(weights, **options)
    facts |= {"backbone_kwargs": options} if options else {}
    with torch.device("meta"):  # shapes are all that is needed
        net = detector(name, model, **facts)
    converted = convert_official(weights, net)
    meta = content.get("meta")
    classes = meta.get("CLASSES") if isinstance(meta, Mapping) else None
    if not classes or len(classes) != num_classes:
        classes = [str(index) for index in range(1, 1 + num_classes)]
    save_detector(output, converted, name=name, backbone=model, options=facts, classes=classes, source="mmdetection")
    return Report(name, model, num_classes, sum(parameter.numel() for parameter in net.parameters()), output)


def detector_of(weights: Mapping[str, Any]) -> str:
    """Which detector a checkpoint of mmdetection is of."""
    for name, mark in MARKS.items():
        if getattr(weights.get(mark), "ndim", 0) == 1:
            return name
    raise ValueError(
        f"checkpoint: expected one of mmdetection's Cascade Mask R-CNN or Mask R-CNN, got one without "
        f"{' and '.join(MARKS.values())}; it has names such as {', '.join(map(repr, list(weights)[:5]))}"
    )


def convert_official(state_dict: Mapping[str, Any], net: OnPyramid) -> dict[str, Tensor]:
    """The weights of mmdetection's detector under the names of `net`, for `load_state_dict`.

    Raises:
        ValueError: unless every weight of the checkpoint has its place, every one of the net is set and all shapes are
            right; it lists all that is left over, missing and misshapen.
    """
    weights, expected = unwrap(state_dict), net.state_dict()
    rows = ROWS[detector_of(weights)]
    converted, network, problems = {}, {}, []
    for key, value in weights.items():
        row, match = next(((row, match) for row in rows if (match := row.match(key))), (None, None))
        if row is not None and match is not None:
            target = str(row.rename(match))
            like = expected.get(target)
            known = isinstance(value, Tensor) and like is not None
            converted[target] = row.change(value, tuple(like.shape)) if known else value
        elif key.startswith(BACKBONE):
            network[key.removeprefix(BACKBONE)] = value
        else:
            problems.append(f"left over: {key}")
    prefix = BACKBONE + net.backbone.prefix
    try:
        found = convert_state_dict(network, net.backbone.network)
        converted |= {prefix + key: value for key, value in found.items()}
    except ValueError as error:
        problems.append(f"{BACKBONE}*: {str(error).removeprefix('checkpoint: ')}")
        expected = {key: value for key, value in expected.items() if not key.startswith(prefix)}
    problems += [f"left over: {key}" for key in converted if key not in expected]
    problems += [f"missing: {key}" for key in expected if key not in converted]
    for key, like in expected.items():
        shape = getattr(converted.get(key), "shape", None)
        if key in converted and shape != like.shape:
            got = "no tensor" if shape is None else list(shape)
            problems.append(f"misshapen: {key}: expected {list(like.shape)}, got {got}")
    if problems:
        raise ValueError("\n".join(["checkpoint: expected the weights of this detector", *problems]))
    return converted


def save_detector(
    path: Path,
    weights: Mapping[str, Tensor],
    *,
    name: str,
    backbone: str,
    options: Mapping[str, Any],
    classes: Sequence[str],
    source: str,
) -> None:
    """Write a detector as a file that `load_converted` reads.

    Args:
        path: ends in ".safetensors".
        weights: by their names in the net.
        name: of the detector, as `detector` has it, and `backbone` that of its backbone; `options` are its arguments.
        classes: their names, that of label 1 first.
        source: where the weights come from, in words.
    """
    facts = {
        "detector": name,
        "architecture": backbone,
        "model_args": dict(options),
        "classes": list(classes),
        "source": source,
    }
    write_net(path, weights, TASK, facts)


def load_converted(path: Path) -> tuple[OnPyramid, list[str], str]:
    """The detector of a file that `save_detector` has written, ready for evaluation, its classes and its backbone.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is another file.
    """
    weights, facts = read_net(path, TASK)
    try:
        net = detector(facts["detector"], facts["architecture"], **json.loads(facts["model_args"]))
        net.load_state_dict(weights)
        classes = json.loads(facts["classes"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"model: {path} does not fit the net that it names: {str(error)[:300]}") from error
    return net.eval(), classes, facts["architecture"]
