"""Layouts of published checkpoints, as tables: what a weight is called there, and what it is here.

A row reads "this name there, that name here, and its shape changes so". Nothing is matched by shape or by order.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

from localmix.layers import DepthwiseConv, HomogeneousDynamicConv, InhomogeneousDynamicConv, Mixer, WindowAttention

Shape: TypeAlias = tuple[int, ...]
Weights: TypeAlias = dict[str, Any]


def same(value: Tensor, shape: Shape) -> Tensor:
    """As it is."""
    return value


def matrix(value: Tensor, shape: Shape) -> Tensor:
    """[O, I, 1, 1], a 1x1 convolution, to [O, I]."""
    return value.flatten(1) if value.ndim == 4 and value.shape[2:] == (1, 1) else value


def kernels(value: Tensor, shape: Shape) -> Tensor:
    """[C, 1, kh, kw] to [C, kh, kw]."""
    return value[:, 0] if value.ndim == 4 and value.shape[1] == 1 else value


def bias_table(value: Tensor, shape: Shape) -> Tensor:
    """[(2h-1)(2w-1), heads] by query minus key to [heads, 2h-1, 2w-1] by key minus query."""
    rows_and_columns = shape[-2:]
    if value.ndim != 2 or len(shape) != 3 or value.shape[0] != math.prod(rows_and_columns):
        return value
    return value.t().unflatten(1, rows_and_columns).flip(1, 2)


class Row(NamedTuple):
    """What a weight of a checkpoint is here. `#` stands for a number and `*` for a word, in both names."""

    source: str
    target: str | None
    """None: nothing is kept of it, because it follows from the sizes."""
    change: Callable[[Tensor, Shape], Tensor] = same

    def match(self, key: str) -> re.Match[str] | None:
        pattern = re.escape(self.source).replace(r"\#", r"(\d+)").replace(r"\*", r"(\w+)")
        return re.fullmatch(pattern, key)

    def rename(self, match: re.Match[str]) -> str | None:
        """The name here; `#+1` is the number after the one there."""
        if self.target is None:
            return None
        found = iter(match.groups())

        def fill(placeholder: re.Match[str]) -> str:
            value = next(found)
            return str(int(value) + 1) if placeholder[0] == "#+1" else value

        return re.sub(r"#\+1|#|\*", fill, self.target)


@dataclass(frozen=True)
class Layout:
    """How one source names and shapes its weights."""

    name: str
    network: str | None
    """Stem of the networks here that hold the same weights; None for our own layout, which all share."""
    mixer: type[Mixer] | None
    marks: tuple[str, ...]
    """Patterns that each match a key of such a checkpoint."""
    rows: tuple[Row, ...]

    def fits(self, weights: Weights) -> bool:
        return all(any(re.fullmatch(mark, key) for key in weights) for mark in self.marks)

    def place(self, key: str) -> tuple[Row | None, str | None]:
        """The row for a name there, and the name here: (None, None) if there is none."""
        if self.network is None:
            return None, key
        for row in self.rows:
            match = row.match(key)
            if match:
                return row, row.rename(match)
        return None, None


def _in_block(*rows: Row) -> tuple[Row, ...]:
    return tuple(
        row._replace(source=f"layers.#.blocks.#.{row.source}", target=row.target and f"stages.#.blocks.#.{row.target}")
        for row in rows
    )


STEM = (
    Row("patch_embed.proj.*", "patch_embed.proj.*"),
    Row("patch_embed.norm.*", "patch_embed.norm.*"),
    Row("norm.*", "norm.*"),
)
HEAD = (Row("head.*", "head.fc.*"),)
HEAD_OF_TIMM = (Row("head.fc.*", "head.fc.*"),)
MERGING_AT_THE_END = (
    Row("layers.#.downsample.norm.*", "stages.#+1.downsample.norm.*"),
    Row("layers.#.downsample.reduction.weight", "stages.#+1.downsample.reduction.weight"),
)
MERGING_AT_THE_START = (
    Row("layers.#.downsample.norm.*", "stages.#.downsample.norm.*"),
    Row("layers.#.downsample.reduction.weight", "stages.#.downsample.reduction.weight"),
)
MLP = _in_block(
    Row("mlp.fc1.*", "mlp.fc1.*"),
    Row("mlp.fc2.*", "mlp.fc2.*"),
)
SWIN_BLOCK = MLP + _in_block(
    Row("norm1.*", "norm1.*"),
    Row("attn.qkv.*", "mixer.source.qkv.*"),
    Row("attn.relative_position_bias_table", "mixer.source.relative_position_bias_table", bias_table),
    Row("attn.proj.*", "mixer.output.*"),
    Row("norm2.*", "norm2.*"),
)
SWIN_BUFFERS = _in_block(
    Row("attn.relative_position_index", None),
    Row("attn_mask", None),
)
DWNET_BLOCK = MLP + _in_block(
    Row("attn2conv.conv0.weight", "conv1.weight", matrix),
    Row("attn2conv.bn0.*", "norm1.*"),
    Row("attn2conv.bn.*", "norm2.*"),
    Row("attn2conv.conv2.weight", "conv2.weight", matrix),
    Row("attn2conv.bn2.*", "norm3.*"),
    Row("bn.*", "norm4.*"),
)
STATIC = _in_block(
    Row("attn2conv.conv.weight", "mixer.source.weight", kernels),
    Row("attn2conv.conv.bias", "mixer.bias"),
)
HOMOGENEOUS = _in_block(
    Row("attn2conv.conv.conv1.weight", "mixer.source.reduce.weight", matrix),
    Row("attn2conv.conv.bn.*", "mixer.source.norm.*"),
    Row("attn2conv.conv.conv2.weight", "mixer.source.expand.weight", matrix),
    Row("attn2conv.conv.conv2.bias", "mixer.source.expand.bias"),
    Row("attn2conv.conv.bias", "mixer.bias"),
)
INHOMOGENEOUS = _in_block(
    Row("attn2conv.conv.conv1.0.weight", "mixer.source.reduce.weight", matrix),
    Row("attn2conv.conv.conv1.0.bias", "mixer.source.reduce.bias"),
    Row("attn2conv.conv.conv1.1.*", "mixer.source.norm.*"),
    Row("attn2conv.conv.conv2.0.weight", "mixer.source.expand.weight", matrix),
    Row("attn2conv.conv.conv2.0.bias", "mixer.source.expand.bias"),
)

_ATTENTION = r"layers\.\d+\.blocks\.\d+\.attn\.qkv\.weight"
_CONVOLUTION = r"layers\.\d+\.blocks\.\d+\.attn2conv\.conv"

LAYOUTS: tuple[Layout, ...] = (
    Layout(
        name="localmix",
        network=None,
        mixer=None,
        marks=(r"stages\.0\.blocks\.0\..+",),
        rows=(),
    ),
    Layout(
        name="official DWNet",
        network="dwnet",
        mixer=DepthwiseConv,
        marks=(rf"{_CONVOLUTION}\.weight",),
        rows=STEM + DWNET_BLOCK + STATIC + MERGING_AT_THE_END + HEAD,
    ),
    Layout(
        name="official dynamic DWNet",
        network="dynamic_dwnet",
        mixer=HomogeneousDynamicConv,
        marks=(rf"{_CONVOLUTION}\.conv1\.weight",),
        rows=STEM + DWNET_BLOCK + HOMOGENEOUS + MERGING_AT_THE_END + HEAD,
    ),
    Layout(
        name="official inhomogeneous dynamic DWNet",
        network="i_dynamic_dwnet",
        mixer=InhomogeneousDynamicConv,
        marks=(rf"{_CONVOLUTION}\.conv1\.0\.weight",),
        rows=STEM + DWNET_BLOCK + INHOMOGENEOUS + MERGING_AT_THE_END + HEAD,
    ),
    Layout(
        name="Swin with Microsoft's names",
        network="localswin",
        mixer=WindowAttention,
        marks=(_ATTENTION, r"head\.(weight|bias)|layers\.0\.downsample\..+"),
        rows=STEM + SWIN_BLOCK + SWIN_BUFFERS + MERGING_AT_THE_END + HEAD,
    ),
    Layout(
        name="Swin with timm's names",
        network="localswin",
        mixer=WindowAttention,
        marks=(_ATTENTION,),
        rows=STEM + SWIN_BLOCK + MERGING_AT_THE_START + HEAD_OF_TIMM,
    ),
)
"""The layouts that are known. A checkpoint has the first one whose marks it has."""
