"""What a net that stands on a network of timm passes on to it."""

from __future__ import annotations

from typing import Any

from timm.models._features import FeatureGetterNet
from torch import nn


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
