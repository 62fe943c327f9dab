"""What a network needs of memory: what a training step keeps for its backward pass, and weights as one tensor."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from localmix import kernels
from localmix.layers import Mixer
from localmix.reports.evaluation.outcome import PRECISIONS, computed_in


@dataclass(frozen=True)
class LayerWeights:
    """The weights of one mixer written out as the equation has them.

    `shape` is [B|1, H|1, W|1, G, K]. They are dynamic if each image has its own.
    """

    layer: str
    shape: tuple[int, ...]
    is_dynamic: bool
    num_bytes: int


def saved_bytes(model: nn.Module, shape: tuple[int, int, int, int], *, precision: str = "float32") -> int:
    """Bytes that autograd keeps from the forward to the backward pass of a training step.

    Each storage counts once, however many tensors are views of it; parameters and buffers do not count, for they are
    there anyway. The images count, which the first convolution keeps. It is what hooks on saved tensors see in a pass
    on the CPU in training mode, with the kernels that serve it there; the pass itself runs on fake tensors, so nothing
    is computed and any size fits. What the pass needs only for a moment is not in it. In bfloat16 the statistics of
    norms count half, as PyTorch's rules for fake tensors have them: a few thousandths of the whole.

    Args:
        model: a network [B, C, H, W] -> anything, on any device; it is left as it is.
        shape: B, C, H, W.
        precision: "float32", or "bfloat16" for autocast.

    >>> from localmix.models import create_model
    >>> saved_bytes(create_model("localmlp_nano"), (2, 3, 64, 64)) // 2**20
    13
    """
    kept: dict[int, Any] = {}

    def keep(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        kept[storage._cdata] = storage
        return t

    with FakeTensorMode(allow_non_fake_inputs=True):
        state = {
            name: torch.empty(t.shape, dtype=t.dtype).requires_grad_(t.requires_grad)
            for name, t in (*model.named_parameters(), *model.named_buffers())
        }
        images = torch.empty(shape)
        modes = [(module, module.training) for module in model.modules()]
        model.train()
        try:
            with computed_in(precision, "cpu"), saved_tensors_hooks(keep, lambda t: t):
                outputs = torch.func.functional_call(model, state, (images,))
        finally:
            for module, training in modes:
                module.training = training
        own = {t.untyped_storage()._cdata for t in state.values()}
        del outputs
        return sum(storage.nbytes() for key, storage in kept.items() if key not in own)


def layer_weights(
    model: nn.Module, shape: tuple[int, int, int, int], *, precision: str = "float32"
) -> list[LayerWeights]:
    """The weights of each mixer of the network, by the definition: no kernel here writes all of them out.

    Args:
        model: a network [B, C, H, W] -> anything; mixers that are not of this package are not seen.
        shape: B, C, H, W.
        precision: "float32", or "bfloat16" for autocast.

    >>> from localmix.models import create_model
    >>> layer_weights(create_model("dynamic_dwnet_nano"), (8, 3, 64, 64))[0]
    LayerWeights(layer='stages.0.blocks.0.mixer', shape=(8, 1, 1, 24, 49), is_dynamic=True, num_bytes=37632)
    """
    itemsize = (PRECISIONS[precision] or torch.float32).itemsize
    found: dict[str, tuple[int, ...]] = {}

    def watch(name: str) -> Any:
        def hook(mixer: Mixer, arguments: tuple[Tensor, ...]) -> None:
            x = mixer.connectivity.pad(arguments[0])
            found[name] = tuple(mixer.source(x, mixer.connectivity)[1].shape)

        return hook

    mixers = {name: module for name, module in model.named_modules() if isinstance(module, Mixer)}
    handles = [mixer.register_forward_pre_hook(watch(name)) for name, mixer in mixers.items()]
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    state = {name: t.detach().to("meta") for name, t in (*model.named_parameters(), *model.named_buffers())}
    try:
        # of two images, so that weights of each image are told from weights of all
        images = torch.empty(2, *shape[1:], device="meta")
        with torch.no_grad(), kernels.prefer("reference"):
            torch.func.functional_call(model, state, (images,))
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
    layers = []
    for name, (images_of_weight, *rest) in found.items():
        is_dynamic = images_of_weight == 2
        size = (shape[0] if is_dynamic else 1, *rest)
        layers.append(LayerWeights(name, size, is_dynamic, prod(size) * itemsize))
    return layers
