"""Weights to begin a training run with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm.models import load_pretrained
from torch import Tensor, nn
from torch.nn import functional as F

from localmix.models import Hierarchy
from localmix.models.checkpoint_reading import read_checkpoint
from localmix.models.convert import checkpoint_filter

PRETRAINED = "pretrained"


def load_weights(net: nn.Module, source: str, model: str) -> str:
    """Fill a net with weights for fine-tuning; gives what was done, in words.

    A classifier for other classes is left out, and tables of relative positions are resized to another window.

    Args:
        source: "pretrained" for those that timm has; a checkpoint of `localmix fit` or `compare` (the average of the
            weights if it has one); or a .safetensors or .pth file, converted or published.
        model: name of the net.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the weights are not those of the net.
    """
    facts: Any = net
    if source == PRETRAINED:
        if not facts.pretrained_cfg.get("url") and not facts.pretrained_cfg.get("hf_hub_id"):
            raise ValueError(f"weights: expected a file, got {PRETRAINED!r}, but timm has no weights of {model}")
        load_pretrained(net, num_classes=facts.num_classes)
        return f"weights: begins with those that timm has of {model}"
    weights = _weights(net, read_checkpoint(Path(source), name="weights"))
    expected = net.state_dict()
    classifier = facts.pretrained_cfg.get("classifier") or ()
    left_out = []
    for name in list(weights):
        like = expected.get(name)
        if like is None or weights[name].shape == like.shape:
            continue
        if name.endswith("relative_position_bias_table") and weights[name].ndim == like.ndim == 3:
            weights[name] = F.interpolate(
                weights[name][None].float(), like.shape[1:], mode="bicubic", align_corners=False
            )[0]
        elif name.startswith(classifier):
            left_out.append(name)
            del weights[name]
    try:
        missing, unexpected = net.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise ValueError(f"weights: those in {source} do not fit {model}: {str(error)[:500]}") from None
    missing = [name for name in missing if not name.startswith(classifier)]
    if missing or unexpected:
        raise ValueError(
            f"weights: {source} does not belong to {model}: missing {missing[:5]}, left over {unexpected[:5]}"
        )
    return f"weights: begins with those in {source}" + (f", without {', '.join(sorted(left_out))}" if left_out else "")


def _weights(net: nn.Module, content: Mapping[str, Any]) -> dict[str, Tensor]:
    if "hyper_parameters" in content:
        state = content["state_dict"]
        prefix = "ema.module." if any(name.startswith("ema.module.") for name in state) else "net."
        return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    if content.keys() != net.state_dict().keys() and isinstance(net, Hierarchy):
        return checkpoint_filter(content, net)
    return dict(content)
