"""What a network costs, counted by running it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from localmix import arguments, kernels
from localmix.arguments import Size


@dataclass(frozen=True)
class Cost:
    """Parameters, and multiply-adds of one image (half of its FLOPs)."""

    parameters: int
    macs: int


def cost(model: nn.Module, img_size: Size, *, in_chans: int | None = None) -> Cost:
    """Counts the parameters of `model` and its multiply-adds for one image.

    Counted are convolutions, linear layers and mixers (dot products, and the weighted sums of the one equation over
    all K taps, also those that the border cuts off, if there are two or more); norms, activations, softmax and
    additions are not. The net runs on the meta device, where nothing is computed, with its mixers by their definition:
    so the count does not depend on which kernel serves them.

    Args:
        model: a network [B, in_chans, H, W] -> anything; it is left as it is.
        img_size: H, W [pixels]; an int counts for both.
        in_chans: channels of the image; those of the model if not given, or 3.

    >>> from localmix.models import create_model
    >>> cost(create_model("dwnet_tiny"), 224)
    Cost(parameters=24172744, macs=3726862848)
    """
    return cost_by_module(model, img_size, in_chans=in_chans)[""]


def cost_by_module(model: nn.Module, img_size: Size, *, in_chans: int | None = None) -> dict[str, Cost]:
    """`cost` of each submodule by its name, as `named_modules` has it; "" is the whole."""
    height, width = arguments.pair("img_size", img_size)
    channels = getattr(model, "in_chans", 3) if in_chans is None else in_chans
    state = {name: t.detach().to("meta") for name, t in (*model.named_parameters(), *model.named_buffers())}
    image = torch.empty(1, channels, height, width, device="meta")
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), kernels.prefer("reference"), FlopCounterMode(display=False) as counter:
            torch.func.functional_call(model, state, (image,))
    finally:
        for module, training in modes:
            module.training = training
    flops = counter.get_flop_counts()
    root = type(model).__name__
    costs = {}
    for name, module in model.named_modules():
        counted = flops.get(f"{root}.{name}" if name else "Global", {})
        costs[name] = Cost(sum(p.numel() for p in module.parameters()), sum(counted.values()) // 2)
    return costs
