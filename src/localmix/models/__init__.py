"""The networks of the paper and their companions, registered with timm by importing this package."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import Any

import timm
from torch import nn

from localmix.models import dwnet, local_mixer, swin
from localmix.models.dwnet import DWNetBlock
from localmix.models.folding import fold
from localmix.models.hierarchy import Hierarchy
from localmix.models.swin import SwinBlock

NAMES: tuple[str, ...] = (*dwnet.default_cfgs, *swin.default_cfgs, *local_mixer.default_cfgs)
"""Every network registered here."""

__all__ = ["NAMES", "DWNetBlock", "Hierarchy", "SwinBlock", "create_model", "fold"]


def create_model(name: str, **kwargs: Any) -> nn.Module:
    """`timm.create_model`, which knows these networks and timm's; an unknown name is answered with the nearest ones.

    Raises:
        ValueError: no network of that name, or it has no such argument.

    >>> sum(p.numel() for p in create_model("dwnet_tiny").parameters())
    24172744
    """
    if ":" not in name and not timm.is_model(name):
        stem = name.split(".")[0].replace("-", "_").lower()
        nearest = get_close_matches(stem, NAMES, n=3, cutoff=0.4) or get_close_matches(stem, timm.list_models(), n=3)
        hint = f"the nearest are {', '.join(nearest)}" if nearest else f"those of localmix are {', '.join(NAMES)}"
        raise ValueError(f"model: expected the name of a network, got {name!r}; {hint}")
    try:
        return timm.create_model(name, **kwargs)
    except TypeError as error:
        argument = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if argument is None:
            raise
        raise ValueError(f"model: {name} has no argument {argument[1]!r}") from error
