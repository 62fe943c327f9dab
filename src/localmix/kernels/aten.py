"""The six mixers by PyTorch's own operators: every device, dtype and transform of it, and no K copies of the input.

Arguments come checked, sizes as pairs. Nothing here branches on the size of the map unless it is a plain int, so that
`torch.export` can leave height, width and batch open.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from localmix.exporting import has_forward_derivatives

Pair = tuple[int, int]

# Devices whose grouped convolution has been seen right for several samples; one other backend is silently wrong there.
_GROUPED_CONVOLUTION_IS_RIGHT = frozenset({"cpu", "cuda", "meta"})


def refusal(x: Tensor, named: bool) -> str | None:
    """Why a call on x, named or not, is not served; None if it is."""
    if has_forward_derivatives():
        return "PyTorch's fused attention and the sums of shifted products have no forward derivatives"
    return None


def depthwise_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *, dilation: Pair) -> Tensor:
    image = x.permute(0, 3, 1, 2)  # [B, C, H, W]
    y = _grouped_convolution(image, weight[:, None], bias, dilation)
    return y.permute(0, 2, 3, 1)


def homogeneous_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *, dilation: Pair) -> Tensor:
    batch, height, width, channels = x.shape
    kernel = (weight.shape[2], weight.shape[3])
    if batch == 0:  # no groups at all
        taps = kernel[0] * kernel[1]
        per_position = weight.view(0, 1, 1, channels, taps).expand(0, height, width, channels, taps)
        y = inhomogeneous_convolution(x, per_position, kernel_size=kernel, dilation=dilation)
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
    y = _SumOfShiftedProducts.apply(image, taps, kernel_size, dilation)
    return y.flatten(0, 1).permute(3, 1, 2, 0).contiguous()


def neighborhood_products(query: Tensor, key: Tensor, *, num_groups: int, kernel_size: Pair, dilation: Pair) -> Tensor:
    images = (t.permute(3, 1, 2, 0).unflatten(0, (num_groups, -1)) for t in (query, key))  # [G, D, H, W, B]
    return _ShiftedProducts.apply(*images, kernel_size, dilation).permute(4, 2, 3, 0, 1)


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
    y = _SumOfProjectedProducts.apply(image, hidden.permute(3, 1, 2, 0), projection, bias, kernel_size, dilation)
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
    window_size, (bias,) = _trimmed(window_size, shift, (height, width), (bias,))
    rows, columns = _grid(height, window_size[0], shift[0]), _grid(width, window_size[1], shift[1])
    slots = rows.size * columns.size
    cut = not (rows.is_whole and columns.is_whole)

    # [B, nh, wh, nw, ww, heads, D] to [bias axes, other axes, N, D]: SDPA then repeats the mask without a copy
    order = (1, 3, 5, 0, 2, 4, 6) if cut else (5, 0, 1, 3, 2, 4, 6)
    lead = (rows.count, columns.count, heads) if cut else (heads,)
    inner = (batch,) if cut else (batch, rows.count, columns.count)

    def split(t: Tensor) -> Tensor:
        windows = _to_windows(t, rows, columns).permute(order)
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
    return _from_windows(y.permute(inverse), rows, columns)


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
    rows = _tiles(height, kernel_size[0], dilation[0], device)
    columns = _tiles(width, kernel_size[1], dilation[1], device)
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
    window_size, (weight, bias) = _trimmed(window_size, shift, (height, width), (weight, bias))
    groups, slots = weight.shape[:2]
    rows, columns = _grid(height, window_size[0], shift[0]), _grid(width, window_size[1], shift[1])
    windows = _to_windows(x.unflatten(3, (groups, channels // groups)), rows, columns)
    # [B, nh, wh, nw, ww, G, D] to [G, N, B * nh * nw * D]: one matrix product per group
    windows = windows.permute(5, 2, 4, 0, 1, 3, 6)
    shape = windows.shape
    y = weight @ windows.reshape(groups, slots, batch * rows.count * columns.count * (channels // groups))
    if bias is not None:
        y = y + bias[:, :, None]
    return _from_windows(y.view(shape).permute(3, 4, 1, 5, 2, 0, 6), rows, columns).flatten(3)


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    # The result has the strides of the query in some backends and not in others, among them those of ONNX: so that what
    # follows holds for all, they are the same.
    query = query.contiguous()
    y = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    if query.shape[1] == 0 and mask is not None and mask.requires_grad:
        # SDPA leaves an empty batch without a graph to the mask; its gradient is zero and not missing
        y = y + 0 * mask.sum().nan_to_num()
    return y


def _grouped_convolution(image: Tensor, weight: Tensor, bias: Tensor | None, dilation: Pair) -> Tensor:
    """`F.conv2d` with padding="same"; an even kernel has one more row or column of padding at the end."""
    total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    if any(t % 2 for t in total):
        image = F.pad(image, (0, total[1] % 2, 0, total[0] % 2))
    padding = [t // 2 for t in total]
    return F.conv2d(image, weight, bias, padding=padding, dilation=dilation, groups=image.shape[1])


class _SumOfShiftedProducts(torch.autograd.Function):
    """y[g, d, i, b] = sum_k taps[g, k, i, b] * image[g, d, i + k, b]: tap by tap, one pass over the image each.

    Autograd of the same loop would keep every product and scatter each gradient into a tensor of full size.
    """

    @staticmethod
    def forward(image: Tensor, taps: Tensor, kernel_size: Pair, dilation: Pair) -> Tensor:
        padded = F.pad(image.contiguous(), _border(kernel_size, dilation))
        return _sum_of_products(padded, taps, kernel_size, dilation).to(image.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        image, taps, ctx.kernel_size, ctx.dilation = inputs
        ctx.save_for_backward(image, taps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradients[0].contiguous()
        image, taps = ctx.saved_tensors
        sizes = (ctx.kernel_size, ctx.dilation)
        border = _border(*sizes)
        of_image = of_taps = None
        if ctx.needs_input_grad[1]:
            of_taps = _gradient_of_taps(gradient, F.pad(image.contiguous(), border), *sizes)
        if ctx.needs_input_grad[0]:
            padded = F.pad(_zeros_like(image), border)
            _add_gradient_of_image(padded, gradient, taps, *sizes)
            of_image = F.pad(padded, [-size for size in border]).to(image.dtype)
        return of_image, of_taps, None, None


class _ShiftedProducts(torch.autograd.Function):
    """products[g, k, i, b] = sum_d query[g, d, i, b] * key[g, d, i + k, b], each tap one pass over both."""

    @staticmethod
    def forward(query: Tensor, key: Tensor, kernel_size: Pair, dilation: Pair) -> Tensor:
        return _gradient_of_taps(
            query.contiguous(), F.pad(key.contiguous(), _border(kernel_size, dilation)), kernel_size, dilation
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        query, key, ctx.kernel_size, ctx.dilation = inputs
        ctx.save_for_backward(query, key)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key = ctx.saved_tensors
        taps, sizes = gradients[0].contiguous(), (ctx.kernel_size, ctx.dilation)
        border = _border(*sizes)
        padded = F.pad(_zeros_like(key), border)
        _add_gradient_of_image(padded, query.contiguous(), taps, *sizes)
        of_query = _sum_of_products(F.pad(key.contiguous(), border), taps, *sizes)
        of_key = F.pad(padded, [-size for size in border])
        return of_query.to(query.dtype), of_key.to(key.dtype), None, None


class _SumOfProjectedProducts(torch.autograd.Function):
    """`_SumOfShiftedProducts` with taps = projection @ features + bias, made for some rows at a time and forgotten.

    Features are [R, H, W, B]. At any time the taps at hand are about as many numbers as the image has; the backward
    pass makes them again.
    """

    @staticmethod
    def forward(
        image: Tensor, features: Tensor, projection: Tensor, bias: Tensor, kernel_size: Pair, dilation: Pair
    ) -> Tensor:
        padded = F.pad(image.contiguous(), _border(kernel_size, dilation))
        strips = [
            _sum_of_products(rows, _project(projection, bias, features.narrow(1, *span), image), kernel_size, dilation)
            for span, rows in _strips(padded, image, projection, kernel_size, dilation)
        ]
        return torch.cat(strips, dim=2).to(image.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.kernel_size, ctx.dilation = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradients[0].contiguous()
        image, features, projection, bias = ctx.saved_tensors
        sizes = (ctx.kernel_size, ctx.dilation)
        border = _border(*sizes)
        padded, of_padded = F.pad(image.contiguous(), border), F.pad(_zeros_like(image), border)
        of_features, of_projection, of_bias = [], torch.zeros_like(projection), torch.zeros_like(bias)
        for span, rows in _strips(padded, image, projection, *sizes):
            strip, of_y = features.narrow(1, *span), gradient.narrow(2, *span)
            if any(ctx.needs_input_grad[1:4]):
                of_taps = _gradient_of_taps(of_y, rows, *sizes).flatten(0, 1).flatten(1)  # [G * K, h * W * B]
                of_features.append((projection.t() @ of_taps).view(strip.shape))
                of_projection = of_projection + of_taps @ strip.flatten(1).t()
                of_bias = of_bias + of_taps.sum(1)
            if ctx.needs_input_grad[0]:
                taps = _project(projection, bias, strip, image)
                _add_gradient_of_image(of_padded.narrow(2, span[0], rows.shape[2]), of_y, taps, *sizes)
        of_image = F.pad(of_padded, [-size for size in border]).to(image.dtype)
        return of_image, torch.cat(of_features, 1) if of_features else None, of_projection, of_bias, None, None


def _project(projection: Tensor, bias: Tensor, features: Tensor, image: Tensor) -> Tensor:
    """Taps [G, K, h, W, B] of some rows of features [R, h, W, B]."""
    taps = torch.addmm(bias[:, None], projection, features.flatten(1))
    return taps.unflatten(1, features.shape[1:]).unflatten(0, (image.shape[0], -1))


def _strips(
    padded: Tensor, image: Tensor, projection: Tensor, kernel_size: Pair, dilation: Pair
) -> Iterator[tuple[Pair, Tensor]]:
    """Rows of the map, (first, number), with the rows of the padded image [G, D, H + ., W + ., B] that they reach."""
    groups, dim, height = image.shape[:3]
    reach = dilation[0] * (kernel_size[0] - 1)
    if torch.compiler.is_compiling():  # a graph of open height does not know the number of strips
        yield (0, height), padded
        return
    size = max(1, height * groups * dim // projection.shape[0])
    for first in range(0, height, size):
        number = min(size, height - first)
        yield (first, number), padded.narrow(2, first, number + reach)


def _sum_of_products(padded: Tensor, taps: Tensor, kernel_size: Pair, dilation: Pair) -> Tensor:
    shape = (taps.shape[0], padded.shape[1], *taps.shape[2:])
    y = torch.zeros(shape, dtype=_accumulator(padded), device=padded.device)
    for k, shifted in enumerate(_shifts(padded, taps.shape[2:4], kernel_size, dilation)):
        y.addcmul_(shifted, taps[:, k, None].to(shifted.dtype))
    return y


def _gradient_of_taps(gradient: Tensor, padded: Tensor, kernel_size: Pair, dilation: Pair) -> Tensor:
    groups, _, *positions = gradient.shape
    shifts = _shifts(padded, gradient.shape[2:4], kernel_size, dilation)
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return torch.stack([(gradient * shifted).sum(1) for shifted in shifts], dim=1)
    # the same in place: this gradient is as large as all weights, and a stack holds it twice
    of_taps = gradient.new_empty(groups, kernel_size[0] * kernel_size[1], *positions)
    for k, shifted in enumerate(shifts):
        torch.sum(gradient * shifted, 1, out=of_taps[:, k])
    return of_taps


def _add_gradient_of_image(
    of_padded: Tensor, gradient: Tensor, taps: Tensor, kernel_size: Pair, dilation: Pair
) -> None:
    for k, shifted in enumerate(_shifts(of_padded, taps.shape[2:4], kernel_size, dilation)):
        shifted.addcmul_(gradient, taps[:, k, None])


def _zeros_like(image: Tensor) -> Tensor:
    """Zeros in the dtype that sums are kept in, one number in memory."""
    return torch.zeros((), dtype=_accumulator(image), device=image.device).expand(image.shape)


def _accumulator(t: Tensor) -> torch.dtype:
    return torch.float32 if t.dtype in (torch.float16, torch.bfloat16) else t.dtype


def _border(kernel_size: Pair, dilation: Pair) -> list[int]:
    """Padding of [..., H, W, B], as `F.pad` takes it, that makes the output as large as the input."""
    border = [0, 0]
    for k, d in zip(reversed(kernel_size), reversed(dilation), strict=True):
        total = d * (k - 1)
        border += [total // 2, total - total // 2]
    return border


def _shifts(padded: Tensor, size: tuple[int, ...], kernel_size: Pair, dilation: Pair) -> Iterator[Tensor]:
    """Views of the padded image [..., H + ., W + ., B] that are H x W = `size` large, one per tap.

    One at a time: autograd refuses to change a view that is older than a change of its base.
    """
    for row in range(kernel_size[0]):
        for column in range(kernel_size[1]):
            yield padded.narrow(-3, dilation[0] * row, size[0]).narrow(-2, dilation[1] * column, size[1])


def _trimmed(window_size: Pair, shift: Pair, size: Pair, by_slot: tuple[Tensor | None, ...]) -> tuple[Pair, list[Any]]:
    """The window without slots that no position of the map can be in, and the tensors [G, N] or [G, N, N] for it.

    Those of a window that is larger than the map and begins with it; where a size is left open all slots stay.
    """
    trimmed = tuple(
        length if isinstance(length, int) and s == 0 and length < window else window
        for window, s, length in zip(window_size, shift, size, strict=True)
    )
    height, width = trimmed
    if (height, width) == window_size:
        return window_size, list(by_slot)
    results = []
    for t in by_slot:
        if t is not None:
            for axis in range(1, t.ndim):
                t = t.unflatten(axis, window_size).narrow(axis, 0, height).narrow(axis + 1, 0, width)
                t = t.flatten(axis, axis + 1)
        results.append(t)
    return (height, width), results


class _Grid(NamedTuple):
    """One axis of a map cut into windows: `count` windows of `size`, the map begins after `before` empty slots."""

    count: int
    size: int
    before: int
    after: int

    @property
    def is_whole(self) -> bool:
        """No window is known to be cut: false too where the size of the map is left open."""
        return isinstance(self.after, int) and isinstance(self.before, int) and self.before == 0 and self.after == 0

    def inside(self, like: Tensor) -> Tensor:
        """bool [count, size]: slots that hold a position of the map."""
        total = self.count * self.size
        slot = torch.arange(total, device=like.device)
        return ((slot >= self.before) & (slot < total - self.after)).view(self.count, self.size)


def _grid(length: int, size: int, shift: int) -> _Grid:
    before = (size - shift) % size
    count = (before + length + size - 1) // size
    return _Grid(count, size, before, count * size - before - length)


def _to_windows(t: Tensor, rows: _Grid, columns: _Grid) -> Tensor:
    """[B, H, W, *, *] to [B, nh, wh, nw, ww, *, *], zero outside of the map."""
    if not (rows.is_whole and columns.is_whole):
        t = F.pad(t, (0, 0, 0, 0, columns.before, columns.after, rows.before, rows.after))
    batch, _, _, *inner = t.shape
    return t.reshape(batch, rows.count, rows.size, columns.count, columns.size, *inner)


def _from_windows(t: Tensor, rows: _Grid, columns: _Grid) -> Tensor:
    """[B, nh, wh, nw, ww, *, *] to [B, H, W, *, *]."""
    t = t.reshape(t.shape[0], rows.count * rows.size, columns.count * columns.size, *t.shape[5:])
    if rows.is_whole and columns.is_whole:
        return t
    # negative padding and not a slice: a slice would fix the size of the map in an exported graph
    return F.pad(t, (0, 0, 0, 0, -columns.before, -columns.after, -rows.before, -rows.after))


class _Tiles(NamedTuple):
    """One axis of a map cut into tiles of queries, each with the strip of keys that its queries can see.

    Positions that are `dilation` apart belong together; n tiles in all, T queries and S keys in each.
    """

    queries: Tensor  # [n, T] position of each query
    keys: Tensor  # [n, S] position of each key
    allowed: Tensor  # [n, T, S] whether the key is in the neighborhood of the query
    distance: Tensor  # [n, T, S] step from query to key plus kernel - 1, the index of a bias
    slot: Tensor  # [size] where each position is among the n * T queries


def _tiles(size: int, kernel: int, dilation: int, device: torch.device) -> _Tiles:
    longest = (size + dilation - 1) // dilation
    length = (size - torch.arange(dilation, device=device) + dilation - 1) // dilation  # of each residue
    tile: Any = torch.sym_min(longest, kernel)
    count = (longest + tile - 1) // tile
    strip = torch.sym_min(longest, tile + kernel - 1)

    length = length.repeat_interleave(count)[:, None]  # [n, 1], residues outside and tiles inside
    residue = torch.arange(dilation, device=device).repeat_interleave(count)[:, None]
    first = (torch.arange(count, device=device) * tile).repeat(dilation)[:, None]
    query = first + torch.arange(tile, device=device)
    key = torch.minimum((first - kernel // 2).clamp(min=0), (length - strip).clamp(min=0))
    key = key + torch.arange(strip, device=device)
    start = torch.minimum((query - kernel // 2).clamp(min=0), (length - kernel).clamp(min=0))

    step, begin = key[:, None, :], start[:, :, None]
    allowed = (step >= begin) & (step < begin + kernel) & (step < length[:, :, None])
    # a query behind the end is thrown away; it sees all keys so that its softmax stays finite
    allowed = allowed | (query >= length)[:, :, None]
    distance = (step - query[:, :, None] + kernel - 1).clamp(0, 2 * kernel - 2)
    position = torch.arange(size, device=device)
    return _Tiles(
        queries=(query * dilation + residue).clamp(max=size - 1),
        keys=(key * dilation + residue).clamp(max=size - 1),
        allowed=allowed,
        distance=distance,
        slot=position % dilation * (count * tile) + position // dilation,
    )
