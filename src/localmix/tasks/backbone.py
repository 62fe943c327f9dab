"""What a net that stands on a network of timm passes on to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.models import group_parameters
from timm.models._features import FeatureGetterNet
from torch import nn

from localmix.models import DWNetBlock

PARAMETERS_OF_A_LAYER = 12
"""Where a network does not say what its layers are; as timm has it."""


def norm_of_maps(network: nn.Module) -> str:
    """What maps of a network need in front of convolutions, by the official detectors and segmenters.

    "batch" behind blocks of DWNets; "layer" on other nets that normalise layers, such as Swin and ConvNeXt, whose maps
    are sums that no norm has seen; "none" on the rest, such as ResNets.
    """
    modules = list(network.modules())
    if any(isinstance(module, DWNetBlock) for module in modules):
        return "batch"
    return "layer" if any(isinstance(module, nn.LayerNorm) for module in modules) else "none"


class OnBackbone(nn.Module):
    """A net that takes the maps of a network of timm, which is the attribute of the name `holder`."""

    holder = "backbone"

    @property
    def network(self) -> nn.Module:
        """The network itself, without what takes its maps from it."""
        held = getattr(self, self.holder)
        return held.model if isinstance(held, FeatureGetterNet) else held

    @property
    def prefix(self) -> str:
        """In front of the names of `network` in those of this net."""
        return f"{self.holder}." if self.network is getattr(self, self.holder) else f"{self.holder}.model."

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Less memory for more time: blocks of the network run again in the backward pass.

        Raises:
            ValueError: the network cannot.
        """
        network: Any = self.network
        try:
            network.set_grad_checkpointing(enable)
        except (AttributeError, AssertionError):
            raise ValueError(
                f"backbone: expected one that can recompute its blocks, got {type(network).__name__}"
            ) from None

    def no_weight_decay(self) -> set[str]:
        """Parameters of two axes or more that are not to decay: those that the network names."""
        network: Any = self.network
        names = network.no_weight_decay() if hasattr(network, "no_weight_decay") else ()
        return {self.prefix + name for name in names}

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """Which parameters belong to which depth, for layer-wise rates: what is not the network stands behind it."""
        network: Any = self.network
        if hasattr(network, "group_matcher"):
            layers = group_parameters(network, network.group_matcher(coarse=coarse), reverse=True)
        else:
            names = (name for name, _ in network.named_parameters())
            layers = {name: index // PARAMETERS_OF_A_LAYER for index, name in enumerate(names)}
        layers = {self.prefix + name: layer for name, layer in layers.items()}
        last = 1 + max(layers.values())
        return lambda name: layers.get(name, last)
