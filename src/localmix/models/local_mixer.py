"""Networks around any point of the paper's space: the mixer, the block and its norm are arguments.

Source: section 3 of the paper and its ablations.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import nn

from localmix import arguments
from localmix.layers import LocalMixer, SqueezeExcitation
from localmix.models.dwnet import DWNetBlock
from localmix.models.hierarchy import Hierarchy
from localmix.models.registry import build, pretrained_cfg
from localmix.models.swin import SwinBlock
from localmix.point import MIXER_POINTS, Point

BLOCKS: dict[str, tuple[type[nn.Module], str]] = {"dwnet": (DWNetBlock, "batch"), "swin": (SwinBlock, "layer")}
"""The blocks by name, each with the norm it has if none is named."""

DEFAULT_MIXER = MIXER_POINTS["depthwise_convolution"].name
"""The mixer of a network that names none."""

NORMS: dict[str, type[nn.Module]] = {"batch": nn.BatchNorm2d, "layer": nn.LayerNorm}


def _local_mixer(
    name: str,
    pretrained: bool,
    *,
    mixer: str = DEFAULT_MIXER,
    block: str = "dwnet",
    norm: str | None = None,
    squeeze_excitation: bool | float = False,
    impl: str = "auto",
    **kwargs: Any,
) -> Hierarchy:
    """Network of a size around a mixer.

    Args:
        name: of the network; its last word is the size.
        pretrained: there are no weights to load yet.
        mixer: name of a point, see `localmix.point`. Its shift holds in every second block, as in Swin.
        block: "dwnet" (pointwise, mixer, pointwise) or "swin" (norm, mixer).
        norm: of the block, "batch" or "layer"; its own if not given.
        squeeze_excitation: a factor per image and channel behind the mixer: hidden channels over channels, or True for
            a quarter.
        impl: see `localmix.kernels`.
        kwargs: see `Hierarchy`.
    """
    point = Point.parse(mixer)
    kind, own_norm = BLOCKS[arguments.choice("block", block, tuple(BLOCKS))]
    norm_layer = NORMS[arguments.choice("norm", own_norm if norm is None else norm, tuple(NORMS))]

    def make(dim: int, stage: int, index: int) -> nn.Module:
        layer = LocalMixer(dim, point.in_block(stage, index), impl=impl)
        if squeeze_excitation is False:
            return layer
        ratio = 0.25 if squeeze_excitation is True else squeeze_excitation
        return nn.Sequential(layer, SqueezeExcitation(dim, ratio=ratio))

    return build(name, make, partial(kind, norm=norm_layer), pretrained, **kwargs)


default_cfgs = generate_default_cfgs({name: pretrained_cfg(name) for name in ("localmixer_nano", "localmixer_tiny")})


@register_model
def localmixer_nano(pretrained: bool = False, **kwargs: Any) -> Hierarchy:
    """Any mixer, for images of 28 to 64 pixels."""
    return _local_mixer("localmixer_nano", pretrained, **kwargs)


@register_model
def localmixer_tiny(pretrained: bool = False, **kwargs: Any) -> Hierarchy:
    """Any mixer, in the hierarchy of Swin-T."""
    return _local_mixer("localmixer_tiny", pretrained, **kwargs)
