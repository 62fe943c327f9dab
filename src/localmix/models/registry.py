"""What every network here registers with timm: sizes, pretrained configuration, construction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg
from torch import nn

from localmix.models.convert import checkpoint_filter
from localmix.models.hierarchy import Hierarchy, MixerFactory

SIZES: dict[str, dict[str, Any]] = {
    "nano": {"embed_dim": 24, "depths": (2, 2, 4, 1), "patch_size": 2},
    "tiny": {"embed_dim": 96, "depths": (2, 2, 6, 2), "patch_size": 4},
    "small": {"embed_dim": 96, "depths": (2, 2, 18, 2), "patch_size": 4},
    "base": {"embed_dim": 128, "depths": (2, 2, 18, 2), "patch_size": 4},
}
"""The nets of the paper, and nano for images of 28 to 64 pixels."""

NUM_HEADS = {"nano": (3, 6, 12, 24), "tiny": (3, 6, 12, 24), "small": (3, 6, 12, 24), "base": (4, 8, 16, 32)}
"""Heads of the attentions by stage, as in Swin."""

NUM_GROUPS = {"nano": 8, "tiny": 32, "small": 32, "base": 32}
"""Groups that share weights over their channels, in every stage: 3, 6, 12, 24 channels each (4 to 32 in base)."""


def pretrained_cfg(name: str) -> dict[str, Any]:
    """timm's pretrained configuration of a network: no weights of our own are published yet."""
    side, pool = (64, 4) if name.endswith("_nano") else (224, 7)
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, side, side),
        "pool_size": (pool, pool),
        "fixed_input_size": False,
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.proj",
        "classifier": "head.fc",
        "license": "mit",
        "paper_ids": "arXiv:2106.04263",
    }


def build(
    name: str, mixer: MixerFactory, block: Callable[..., nn.Module], pretrained: bool, **kwargs: Any
) -> Hierarchy:
    """The network `name` (its last word is the size) with that mixer and block."""
    options = {**SIZES[name.rsplit("_", 1)[1]], **kwargs}
    out_indices = options.pop("out_indices", tuple(range(len(options["depths"]))))
    return build_model_with_cfg(
        Hierarchy,
        name,
        pretrained,
        pretrained_filter_fn=checkpoint_filter,
        feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
        mixer=mixer,
        block=block,
        **options,
    )
