"""Weights to begin the training of a detector with: of its backbone, or of the whole of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from localmix.models import create_model
from localmix.models.checkpoint_reading import read_checkpoint
from localmix.tasks.detection.feature_pyramid import OnPyramid
from localmix.tasks.engine.weights import PRETRAINED, load_weights

PYRAMID = "backbone.fpn."
"""The beginning of names that detectors have and classifiers do not."""
OF_CLASSES = ("classifier", "regressor", "predictor", "cls_score", "bbox_pred", "mask_fcn_logits", "cls_logits")
"""Layers that answer for each class."""


def begin_with(net: OnPyramid, source: str, model: str, **options: Any) -> str:
    """Fill a detector with weights for training; gives what was done, in words.

    Args:
        source: of a classifier, of which the backbone is taken, as `load_weights` has it; or a checkpoint of `localmix
            fit` (the average of the weights if it has one) or a file of weights of such a detector, without the layers
            that answer for each class if those are others.
        model: name of the backbone.
        options: its further arguments.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the weights are not those of the net, or of its backbone.
    """
    weights = {} if source == PRETRAINED else _named(read_checkpoint(Path(source), name="weights"))
    if any(name.startswith(PYRAMID) for name in weights):
        return _whole(net, weights, source)
    classifier: Any = create_model(model, **options)
    done = load_weights(classifier, source, model)
    # timm's nets that list their features have other dots in their names
    flat = {name.replace(".", "_"): value for name, value in classifier.state_dict().items()}
    network = net.backbone.network
    network.load_state_dict({name: flat[name.replace(".", "_")] for name in network.state_dict()})
    return f"{done}, those of the backbone"


def _named(content: Mapping[str, Any]) -> dict[str, Any]:
    """The weights by their names in the net."""
    if "hyper_parameters" not in content:
        return dict(content)
    state = content["state_dict"]
    prefix = "ema.module." if any(name.startswith("ema.module.") for name in state) else "net."
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _whole(net: OnPyramid, weights: dict[str, Tensor], source: str) -> str:
    expected = net.state_dict()
    others = [n for n, v in weights.items() if n in expected and v.shape != expected[n].shape]
    left_out = [name for name in others if name.split(".")[-2] in OF_CLASSES]
    wrong = [name for name in others if name not in left_out]
    wrong += [name for name in weights if name not in expected] + [name for name in expected if name not in weights]
    if wrong:
        raise ValueError(
            f"weights: {source} does not belong to this detector: {', '.join(wrong[:5])} are missing, left over or "
            "misshapen"
        )
    net.load_state_dict({name: expected[name] if name in left_out else value for name, value in weights.items()})
    return f"weights: begins with those in {source}" + (f", without {', '.join(left_out)}" if left_out else "")
