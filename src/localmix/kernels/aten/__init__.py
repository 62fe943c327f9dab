"""The six mixers by PyTorch's own operators: every device, dtype and transform of it, and no K copies of the input.

Arguments come checked, sizes as pairs. Nothing here branches on the size of the map unless it is a plain int, so that
`torch.export` can leave height, width and batch open.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from localmix.exporting import has_forward_derivatives, is_vectorised
from localmix.kernels.aten.shifted_products import ShiftedProducts, SumOfProjectedProducts, SumOfShiftedProducts
from localmix.kernels.aten.windows import from_windows, grid, tiles_of, to_windows, trim

Pair = tuple[int, int]

# Devices whose grouped convolution has been seen right for several samples; one other backend is silently wrong there.
_GROUPED_CONVOLUTION_IS_RIGHT = frozenset({"cpu", "cuda", "meta"})


def refusal(x: Tensor, named: bool) -> str | None:
    """Why a call on x, named or not, is not served; None if it is."""
    if has_forward_derivatives():
        return "PyTorch's fused attention and the sums of shifted products have no forward derivatives"
    if is_vectorised():
        return "the sums of shifted products have no rule for torch.func.vmap"
    return None


def depthwise_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *, dilation: Pair) -> Tensor:
    image = x.permute(0, 3, 1, 2)  # [B, C, H, W]
    y = _grouped_convolution(image, weight[:, None], bias, dilation)
    return y.permute(0, 2, 3, 1)


def homogeneous_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *, dilation: Pair) -> Tensor:
    batch, height, width, channels = x.shape
    kernel = (weight.shape[2], weight.shape[3])
    if batch == 0 or (not isinstance(batch, int) and torch.onnx.is_in_onnx_export()):
        # no groups at all, or a number of them that ONNX wants to know
        y = _convolution_by_products(x, weight, dilation)
        return y if bias is None else y + bias
    if x.device.type not in _GROUPED_CONVOLUTION_IS_RIGHT:
        return torch.cat(
            [depthwise_convolution(x[i : i + 1], weight[i], bias, dilation=dilation) for i in range(batch)]
        )
    # all images side by side as channels of one: [1, B * C, H, W]
    image = x.permute(0, 3, 1, 2).reshape(1, batch * channels, height, width)
    y = _grouped_convolution(image, weight.reshape(batch * channels, 1, *kernel), None, dilation)
    y = y.view(batch, channels, height, width)
    if bias is not None:
        y = y + bias[:, None, None]
    return y.permute(0, 2, 3, 1)


def inhomogeneous_convolution(x: Tensor, weight: Tensor, *, kernel_size: Pair, dilation: Pair) -> Tensor:
    groups = weight.shape[3]
    # the batch innermost: a shifted row of the map is then one dense stretch of W * B numbers, however narrow the map
    image = x.permute(3, 1, 2, 0).unflatten(0, (groups, x.shape[3] // groups))  # [G, D, H, W, B]
    taps = weight.permute(3, 4, 1, 2, 0).contiguous()  # [G, K, H, W, B]
    y = SumOfShiftedProducts.apply(image, taps, kernel_size, dilation)
    return y.flatten(0, 1).permute(3, 1, 2, 0).contiguous()


def neighborhood_products(query: Tensor, key: Tensor, *, num_groups: int, kernel_size: Pair, dilation: Pair) -> Tensor:
    images = (t.permute(3, 1, 2, 0).unflatten(0, (num_groups, -1)) for t in (query, key))  # [G, D, H, W, B]
    return ShiftedProducts.apply(*images, kernel_size, dilation).permute(4, 2, 3, 0, 1)


def projected_inhomogeneous_convolution(
    x: Tensor,
    hidden: Tensor,
    projection: Tensor,
    projection_bias: Tensor | None,
    *,
    kernel_size: Pair,
    num_groups: int,
    dilation: Pair,
) -> Tensor:
    image = x.permute(3, 1, 2, 0).unflatten(0, (num_groups, -1))  # [G, D, H, W, B]
    bias = projection.new_zeros(projection.shape[0]) if projection_bias is None else projection_bias
    y = SumOfProjectedProducts.apply(image, hidden.permute(3, 1, 2, 0), projection, bias, kernel_size, dilation)
    return y.flatten(0, 1).permute(3, 1, 2, 0).contiguous()


def window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    window_size: Pair,
    shift: Pair,
    bias: Tensor | None,
    scale: float | None,
) -> Tensor:
    batch, height, width, heads, dim = query.shape
    window_size, (bias,) = trim(window_size, shift, (height, width), (bias,))
    rows, columns = grid(height, window_size[0], shift[0]), grid(width, window_size[1], shift[1])
    slots = rows.size * columns.size
    cut = not (rows.is_whole and columns.is_whole)

    # [B, nh, wh, nw, ww, heads, D] to [bias axes, other axes, N, D]: SDPA then repeats the mask without a copy
    order = (1, 3, 5, 0, 2, 4, 6) if cut else (5, 0, 1, 3, 2, 4, 6)
    lead = (rows.count, columns.count, heads) if cut else (heads,)
    inner = (batch,) if cut else (batch, rows.count, columns.count)

    def split(t: Tensor) -> Tensor:
        windows = to_windows(t, rows, columns).permute(order)
        return windows.reshape(math.prod(lead), math.prod(inner), slots, dim)

    mask = bias[:, None] if bias is not None else None
    if cut:
        inside = rows.inside(query)[:, None, :, None] & columns.inside(query)[None, :, None, :]
        mask = inside.reshape(-1, 1, 1, 1, slots)  # [windows, heads, B, query slot, key slot]
        if bias is not None:
            mask = torch.where(mask, bias[None, :, None], -torch.inf)
        mask = mask.expand(-1, heads, -1, -1, -1).flatten(0, 1)
    y = _attend(split(query), split(key), split(value), mask, scale)
    y = y.reshape(*lead, *inner, rows.size, columns.size, dim)
    inverse = [order.index(axis) for axis in range(7)]
    return from_windows(y.permute(inverse), rows, columns)


def neighborhood_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    kernel_size: Pair,
    dilation: Pair,
    bias: Tensor | None,
    scale: float | None,
) -> Tensor:
    batch, height, width, heads, dim = query.shape
    device = query.device
    rows = tiles_of(height, kernel_size[0], dilation[0], device)
    columns = tiles_of(width, kernel_size[1], dilation[1], device)
    tiles = rows.queries.shape[0] * columns.queries.shape[0]

    def tile(t: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """[B, H, W, heads, D] to [tiles * heads, B, positions of a tile, D]."""
        t = t.index_select(1, row.flatten()).index_select(2, column.flatten())
        t = t.unflatten(2, column.shape).unflatten(1, row.shape)
        return t.permute(1, 3, 5, 0, 2, 4, 6).reshape(tiles * heads, batch, row.shape[1] * column.shape[1], dim)

    allowed = rows.allowed[:, None, :, None, :, None] & columns.allowed[None, :, None, :, None, :]
    queries, keys = rows.queries.shape[1] * columns.queries.shape[1], rows.keys.shape[1] * columns.keys.shape[1]
    mask = allowed.reshape(-1, 1, queries, keys)  # [tiles, heads, query, key]
    if bias is not None:
        distance = (rows.distance[:, None, :, None, :, None], columns.distance[None, :, None, :, None, :])
        by_distance = bias[(slice(None), *distance)].movedim(0, 2).reshape(-1, heads, queries, keys)
        mask = torch.where(mask, by_distance, -torch.inf)
    mask = mask.expand(-1, heads, -1, -1).flatten(0, 1)[:, None]
    y = _attend(
        tile(query, rows.queries, columns.queries),
        tile(key, rows.keys, columns.keys),
        tile(value, rows.keys, columns.keys),
        mask,
        scale,
    )
    (num_rows, tile_height), (num_columns, tile_width) = rows.queries.shape, columns.queries.shape
    y = y.reshape(num_rows, num_columns, heads, batch, tile_height, tile_width, dim)
    y = y.permute(3, 0, 4, 1, 5, 2, 6).flatten(3, 4).flatten(1, 2)
    return y.index_select(1, rows.slot).index_select(2, columns.slot)


def local_mlp(x: Tensor, weight: Tensor, bias: Tensor | None, *, window_size: Pair, shift: Pair) -> Tensor:
    batch, height, width, channels = x.shape
    window_size, (weight, bias) = trim(window_size, shift, (height, width), (weight, bias))
    groups, slots = weight.shape[:2]
    rows, columns = grid(height, window_size[0], shift[0]), grid(width, window_size[1], shift[1])
    windows = to_windows(x.unflatten(3, (groups, channels // groups)), rows, columns)
    # [B, nh, wh, nw, ww, G, D] to [G, N, B * nh * nw * D]: one matrix product per group
    windows = windows.permute(5, 2, 4, 0, 1, 3, 6)
    shape = windows.shape
    y = weight @ windows.reshape(groups, slots, batch * rows.count * columns.count * (channels // groups))
    if bias is not None:
        y = y + bias[:, :, None]
    return from_windows(y.view(shape).permute(3, 4, 1, 5, 2, 0, 6), rows, columns).flatten(3)


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    # The result has the strides of the query in some backends and not in others, among them those of ONNX: so that what
    # follows holds for all, they are the same.
    query = query.contiguous()
    with _twice_differentiable():
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    if query.shape[1] == 0 and mask is not None and mask.requires_grad:
        # SDPA leaves an empty batch without a graph to the mask; its gradient is zero and not missing
        y = y + 0 * mask.sum().nan_to_num()
    return y


def _twice_differentiable() -> AbstractContextManager[Any]:
    """Under `torch.func` no fused attention, which has neither second derivatives nor one of the mask.

    PyTorch picks it there though autograd, or an outer transform, wants the gradient of the mask.
    """
    transformed = not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()
    return sdpa_kernel(SDPBackend.MATH) if transformed else nullcontext()


def _convolution_by_products(x: Tensor, weight: Tensor, dilation: Pair) -> Tensor:
    """`homogeneous_convolution` as a matrix product for each channel of each image: a kernel row after the other.

    It holds as many copies of the map as the kernel has columns and rows, and few nodes of a graph.
    """
    height, width = x.shape[1:3]
    down, right = (d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True))
    margins = (right // 2, right - right // 2, down // 2, down - down // 2)
    padded = F.pad(x.permute(0, 3, 1, 2), margins)  # [B, C, H + ., W + .]
    shifted = [padded.narrow(3, dilation[1] * column, width) for column in range(weight.shape[3])]
    columns = torch.stack(shifted, 2).flatten(3)  # [B, C, kw, (H + .) * W]
    rows = (weight @ columns).unflatten(3, (height + down, width))  # [B, C, kh, H + ., W]
    y = torch.stack([rows[:, :, row].narrow(2, dilation[0] * row, height) for row in range(weight.shape[2])]).sum(0)
    return y.permute(0, 2, 3, 1)


def _grouped_convolution(image: Tensor, weight: Tensor, bias: Tensor | None, dilation: Pair) -> Tensor:
    """`F.conv2d` with padding="same"; an even kernel has one more row or column of padding at the end."""
    total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    if any(t % 2 for t in total):
        image = F.pad(image, (0, total[1] % 2, 0, total[0] % 2))
    padding = [t // 2 for t in total]
    return F.conv2d(image, weight, bias, padding=padding, dilation=dilation, groups=image.shape[1])
