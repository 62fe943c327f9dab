"""The four-stage hierarchy of Swin, written once: the mixer and the block around it are arguments."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import ClassifierHead, calculate_drop_path_rates
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from localmix import arguments
from localmix.layers.channels_last import Pointwise
from localmix.registration import is_watched

MixerFactory = Callable[[int, int, int], nn.Module]
"""Makes the mixer of a block: (dim, stage, index within the stage) -> module [B, H, W, C] -> [B, H, W, C]."""


def missing(size: int, divisor: int) -> int:
    """What fills `size` up to a multiple of `divisor`: written so that their sum is plainly one when `size` is open."""
    return (size + divisor - 1) // divisor * divisor - size


def pad(x: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """`F.pad` with zeros, or cut by negative sizes; not where there is nothing to do, which `F.pad` does by a copy."""
    return F.pad(x, sizes) if is_watched((x,)) or any(sizes) else x


class PatchEmbed(nn.Module):
    """Patches of the image to vectors: a convolution whose stride is its kernel, then a layer norm.

    [B, in_chans, H, W] -> [B, ceil(H / patch), ceil(W / patch), dim]; an image that the patch does not divide is padded
    with zeros below and on the right.
    """

    def __init__(self, in_chans: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_chans, dim, patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(dim)

    def forward(self, image: Tensor) -> Tensor:
        bottom, right = (missing(size, self.patch_size) for size in image.shape[2:])
        image = pad(image, (0, right, 0, bottom))
        if image.device.type == "cpu" and image.dtype != torch.float16 and not is_watched((image,)):
            # then the result is channels-last too, and not copied: half of the time, forward and backward
            image = image.contiguous(memory_format=torch.channels_last)
        return self.norm(self.proj(image).permute(0, 2, 3, 1))


class PatchMerging(nn.Module):
    """Halves the map: the channels of 2 x 2 positions side by side, a layer norm, a linear map 4C -> 2C.

    [B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), 2C]; odd sizes are padded with zeros.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        x = pad(x, (0, 0, 0, missing(width, 2), 0, missing(height, 2)))
        x = x.reshape(batch, (height + 1) // 2, 2, (width + 1) // 2, 2, channels)
        # left column first, as Swin's checkpoints have it: (0, 0), (1, 0), (0, 1), (1, 1)
        return self.reduction(self.norm(x.permute(0, 1, 3, 4, 2, 5).flatten(3)))


class Stage(nn.Module):
    """Patch merging (but in the first stage), then blocks."""

    def __init__(self, downsample: nn.Module, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        for block in self.blocks:
            recompute = self.grad_checkpointing and torch.is_grad_enabled()
            x = _recompute(block, x) if recompute else block(x)
        return x


class Hierarchy(nn.Module):
    """Network of four stages with widths C, 2C, 4C, 8C: patch embedding, blocks around a mixer, average pool, head.

    It follows the contract of timm's backbones and takes images of any size.

    Args:
        mixer: makes the mixer of each block.
        block: the block around a mixer: block(dim, mixer, mlp_ratio=, proj_drop=, drop_path=).
        in_chans: channels of the image.
        num_classes: outputs of the head; 0 for none.
        global_pool: "avg", or "" for the unpooled map.
        embed_dim: C.
        depths: blocks of each stage.
        patch_size: side of a patch [pixels].
        mlp_ratio: hidden channels of a block's MLP over its channels.
        drop_rate: dropout in front of the head.
        proj_drop_rate: dropout in the MLPs.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0.
        img_size: ignored; timm's callers may give it, and any size is taken without.

    Shapes: image [B, in_chans, H, W] -> logits [B, num_classes]; `forward_features` gives [B, h, w, 8C].
    """

    output_fmt = "NHWC"
    pretrained_cfg: dict[str, Any]  # set by timm

    def __init__(
        self,
        mixer: MixerFactory,
        block: Callable[..., nn.Module],
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dim: int = 96,
        depths: tuple[int, ...] = (2, 2, 6, 2),
        patch_size: int = 4,
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        img_size: int | tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("in_chans", in_chans), ("embed_dim", embed_dim), ("patch_size", patch_size)):
            arguments.positive(name, value)
        if not depths:
            raise ValueError(f"depths: expected the blocks of one or more stages, got {depths!r}")
        arguments.not_negative("num_classes", num_classes)
        if embed_dim * mlp_ratio < 1:
            raise ValueError(f"mlp_ratio: expected one hidden channel or more of {embed_dim} channels, got {mlp_ratio}")
        arguments.share("drop_path_rate", drop_path_rate)
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.global_pool = global_pool
        self.grad_checkpointing = False

        self.patch_embed = PatchEmbed(in_chans, embed_dim, patch_size)
        drop_paths: Any = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        stages, self.feature_info = [], []
        for index, depth in enumerate(depths):
            dim = embed_dim * 2**index
            downsample = PatchMerging(dim // 2) if index else nn.Identity()
            blocks = [
                block(
                    dim,
                    mixer(dim, index, position),
                    mlp_ratio=mlp_ratio,
                    proj_drop=proj_drop_rate,
                    drop_path=drop_paths[index][position],
                )
                for position in range(depth)
            ]
            stages.append(Stage(downsample, blocks))
            self.feature_info.append({"num_chs": dim, "reduction": patch_size * 2**index, "module": f"stages.{index}"})
        self.stages = nn.Sequential(*stages)
        self.num_features = self.head_hidden_size = dim
        self.norm = nn.LayerNorm(dim)
        self.head = ClassifierHead(dim, num_classes, pool_type=global_pool, drop_rate=drop_rate, input_fmt="NHWC")
        self._init_linear_layers()

    def _init_linear_layers(self) -> None:
        """Linear layers start from a normal of deviation 0.02 truncated at 2, convolutions as PyTorch has them."""
        for module in self.modules():
            if isinstance(module, nn.Linear) and not isinstance(module, Pointwise):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward_features(self, x: Tensor) -> Tensor:
        """Image [B, in_chans, H, W] to the normed map of the last stage, [B, h, w, C]."""
        self._check_image(x)
        return self.norm(self.stages(self.patch_embed(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map of the last stage to logits, or to the pooled features if `pre_logits`."""
        return self.head(x, pre_logits=True) if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Maps behind the stages that `indices` selects (last n if an int, all if None), as timm defines it.

        `norm` applies the final norm to the map of the last stage, `stop_early` runs no stage beyond the last selected
        one, `output_fmt` is "NCHW" or "NHWC". Returns the maps, and in front of them the final map unless
        `intermediates_only`.
        """
        arguments.choice("output_fmt", output_fmt, ("NCHW", "NHWC"))
        self._check_image(x)
        take, last = feature_take_indices(len(self.stages), indices)
        stages = self.stages[: last + 1] if stop_early else self.stages
        intermediates = []
        x = self.patch_embed(x)
        final = len(self.stages) - 1
        for index, stage in enumerate(stages):
            x = stage(x)
            if index in take:
                y = self.norm(x) if norm and index == final else x
                intermediates.append(y.permute(0, 3, 1, 2) if output_fmt == "NCHW" else y)
        if intermediates_only:
            return intermediates
        return (self.norm(x) if len(stages) == final + 1 else x), intermediates

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes the stages behind the last selected one, and the norm and head if asked."""
        take, last = feature_take_indices(len(self.stages), indices)
        ends_early = last < len(self.stages) - 1
        self.stages = self.stages[: last + 1]
        if prune_norm or ends_early:
            self.norm = nn.Identity()
        if ends_early:
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        if prune_head or ends_early:
            self.reset_classifier(0, "")
        return take

    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head of `num_classes` outputs; 0 for none."""
        self.num_classes = num_classes
        self.head.reset(num_classes, pool_type=global_pool, in_features=self.num_features)
        parameter = next(self.patch_embed.parameters())
        self.head.to(parameter.device, parameter.dtype)
        if isinstance(self.head.fc, nn.Linear):
            nn.init.trunc_normal_(self.head.fc.weight, std=0.02)
            nn.init.zeros_(self.head.fc.bias)
        if global_pool is not None:
            self.global_pool = global_pool

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trades time for memory in training: each block keeps its input only, and runs again in the backward."""
        self.grad_checkpointing = enable
        for stage in self.stages:
            stage.grad_checkpointing = enable  # ty: ignore[invalid-assignment] -- a Stage

    def set_input_size(self, img_size: int | tuple[int, int] | None = None, **_: Any) -> None:
        """Nothing to do: any size is taken without a call. It is here for callers that announce the size to a net."""

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Which parameters belong to which depth, for layer-wise learning rates."""
        blocks = r"^stages\.(\d+)"
        if not coarse:
            blocks = [
                (r"^stages\.(\d+)\.downsample", (0,)),
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^norm", (99999,)),
            ]
        return {"stem": r"^patch_embed", "blocks": blocks}

    def no_weight_decay(self) -> set[str]:
        """Biases of two axes or more: as those of one axis they stay without weight decay."""
        biases = ("relative_position_bias_table", "bias")
        return {name for name, p in self.named_parameters() if p.ndim > 1 and name.endswith(biases)}

    def _check_image(self, x: Tensor) -> None:
        arguments.tensor("image", x, "B in_chans H W")
        expected = ((None,), (self.in_chans,), (None,), (None,))
        arguments.sizes("image", x, expected, lambda: f"[B, {self.in_chans}, H, W]")


def _recompute(block: nn.Module, x: Tensor) -> Tensor:
    """Activation checkpointing that leaves batch-norm statistics as one forward pass does, not two."""
    if torch.compiler.is_compiling():
        return checkpoint(block, x, use_reentrant=False)
    return checkpoint(block, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _statistics_set_aside(block)))


@contextmanager
def _statistics_set_aside(block: nn.Module) -> Generator[None]:
    """Batch norms update copies of their statistics, which are thrown away.

    Copies and not nothing: checkpointing wants the second pass to save as many tensors as the first.
    """
    norms = [m for m in block.modules() if isinstance(m, nn.modules.batchnorm._NormBase) and m.training]
    buffers = [(norm, name, buffer) for norm in norms for name, buffer in norm.named_buffers(recurse=False)]
    for norm, name, buffer in buffers:
        setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, name, buffer in buffers:
            setattr(norm, name, buffer)
